"""Counts the steps, shows the progress and stops a run that has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras

from deeplab_keras.config import UserError
from deeplab_keras.io.progress import Progress
from deeplab_keras.training.divergence import Batch, describe
from deeplab_keras.training.run import Run

# A run has diverged if its loss is larger than this many times the first step's loss, or than this
# value if the first loss is below 1.
DIVERGED = 1000.0


class Steps(keras.callbacks.Callback):
    """Counts the steps, shows the progress and stops a run that has diverged.

    It must be the first callback, because the others read `run.step`.

    Args:
        run: The run.
        batch_of: Returns the batch of a step, counted from 1.
        profile: First and last step that TensorBoard's profiler records, or empty.
    """

    def __init__(
        self, run: Run, batch_of: Callable[[int], Batch], profile: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.run, self.batch_of, self.profile = run, batch_of, tuple(profile)
        self.profiling = False
        self.first_loss: float | None = None
        self.progress, self.train_miou = self._progress(), float("nan")

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prints why the first step takes long."""
        self.progress = self._progress()
        self.progress.write(
            f"compiling the training step; {self.run.total_steps - self.run.step} steps remaining"
        )

    def _progress(self) -> Progress:
        run = self.run
        return Progress(run.total_steps, "step", start=run.step, images_per_step=run.batch_size)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Restores the metric of a resumed run, and starts the profiler at its first step."""
        self.run.restore_counts()  # here, because `fit` resets the metrics before the first step
        if self.profile and not self.profiling and self.run.step + 1 == self.profile[0]:
            self.run.engine.start_profiler(self.run.workdir.path / "tensorboard")
            self.profiling = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the step, checks its loss and updates the averages and the progress line."""
        run, logs = self.run, dict(logs or {})
        run.step += 1
        run.meter.update()
        loss = float(logs["loss"])
        if self.first_loss is None:
            # The first step includes the compilation, so it does not count for the speed.
            self.progress, self.first_loss = self._progress(), loss
        self._check(loss, float(logs["gradient_norm"]))
        run.loss_sum, run.steps_in_round = run.loss_sum + loss, run.steps_in_round + 1
        self.train_miou = next(
            (float(value) for name, value in logs.items() if name.endswith("miou")), float("nan")
        )
        run.update_averages(self.model)
        if self.profiling and run.step >= min(self.profile[1], run.total_steps):
            self.stop_profiler()
            self.progress.write(
                f"profiled steps {self.profile[0]} to {run.step}; view the profile with: "
                f"tensorboard --logdir={run.workdir.path}"
            )
        self.progress.update(run.step, loss=run.loss, mIoU=self.train_miou, lr=run.learning_rate())

    def stop_profiler(self) -> None:
        """Stops the profiler if it is recording, also when the run ends early."""
        if self.profiling:
            self.run.engine.stop_profiler()
            self.profiling = False

    def _check(self, loss: float, gradient_norm: float) -> None:
        """Raises `UserError` if the run has diverged."""
        bound = DIVERGED * max(self.first_loss or 0.0, 1.0)
        if math.isfinite(loss) and math.isfinite(gradient_norm) and loss <= bound:
            return
        self.model.stop_training = True
        self.model.sync()
        reason = f"the loss is {loss:.4g}"
        if bound < loss < math.inf:
            reason += f", more than {DIVERGED:g} times the first step's loss"
        elif math.isfinite(loss):
            reason = f"the gradient norm is {gradient_norm:.4g}"
        run = self.run
        summary, advice = describe(
            run, self.batch_of(run.step), {"loss": loss, "gradient_norm": gradient_norm}
        )
        raise UserError(
            f"training diverged at step {run.step} (learning rate {run.learning_rate():.3g}): "
            f"{reason}; {summary}; {advice}, and use a new `train_logdir`"
        )
