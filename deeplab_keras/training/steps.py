"""Counts the steps, draws the progress line, and stops a training that has diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.io.progress import Progress
from deeplab_keras.training.divergence import Batch, describe
from deeplab_keras.training.run import Run

EXPLODED = 1000.0  # times the first step's loss, or times 1 where that is less


class Steps(keras.callbacks.Callback):
    """Must come first: the other callbacks read `run.step`.

    Args:
        run: the training.
        batch_of: gives the batch of a step, counted from 1, once more.
        profile: first and last step that TensorBoard's profiler records; empty: none.
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
        """Says what the wait is for."""
        self.progress = self._progress()
        self.progress.write(
            f"compiling the training step; {self.run.total_steps - self.run.step} steps to go"
        )

    def _progress(self) -> Progress:
        run = self.run
        return Progress(run.total_steps, "step", start=run.step, images_per_step=run.batch_size)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the profiler where it is due; continues counting where the checkpoint was written within a round."""
        self.run.restore_counts()  # `fit` has set the metrics back by now
        if self.profile and not self.profiling and self.run.step + 1 == self.profile[0]:
            tf.profiler.experimental.start(str(self.run.workdir.path / "tensorboard"))
            self.profiling = True

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts and shows."""
        run, logs = self.run, dict(logs or {})
        run.step += 1
        loss = float(logs["loss"])
        if (
            self.first_loss is None
        ):  # that step held the compilation, which says nothing about the speed
            self.progress, self.first_loss = self._progress(), loss
        self._check(loss, float(logs["gradient_norm"]))
        run.loss_sum, run.steps_in_round = run.loss_sum + loss, run.steps_in_round + 1
        self.train_miou = next(
            (float(value) for name, value in logs.items() if name.endswith("miou")), float("nan")
        )
        run.update_averages()
        if self.profiling and run.step >= min(self.profile[1], run.total_steps):
            self.stop_profiler()
            self.progress.write(
                f"steps {self.profile[0]} to {run.step} are profiled: tensorboard "
                f"--logdir={run.workdir.path}"
            )
        self.progress.update(run.step, loss=run.loss, mIoU=self.train_miou, lr=run.learning_rate())

    def stop_profiler(self) -> None:
        """Ends a recording that is on; also when training stops early."""
        if self.profiling:
            tf.profiler.experimental.stop()
            self.profiling = False

    def _check(self, loss: float, gradient_norm: float) -> None:
        """Raises UserError where there is nothing left to learn from."""
        bound = EXPLODED * max(self.first_loss or 0.0, 1.0)
        if math.isfinite(loss) and math.isfinite(gradient_norm) and loss <= bound:
            return
        self.model.stop_training = True
        what = f"the loss is {loss:.4g}"
        if bound < loss < math.inf:
            what += f", {EXPLODED:g} times the first step's"
        elif math.isfinite(loss):
            what = f"the gradient's norm is {gradient_norm:.4g}"
        run = self.run
        found = describe(
            run, self.batch_of(run.step), {"loss": loss, "gradient_norm": gradient_norm}
        )
        raise UserError(
            f"{what} at step {run.step} (learning rate {run.learning_rate():.3g}): the training "
            f"has diverged; {found}; "
            "give a lower `base_learning_rate`, `warmup_steps` or `clip_gradient_norm`, and a new "
            "`train_logdir`"
        )
