"""What happens around the steps of a training: the progress line, evaluation, checkpoints, TensorBoard.

A training is one call of `fit` with one long epoch. These callbacks cut it into rounds by the step, so that a resumed
run, which starts anywhere, does everything at the same steps as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation import Report
from deeplab_keras.progress import Progress


@dataclasses.dataclass
class Run:
    """One training as its callbacks see it: the model, where it is saved, and how far it is."""

    model: keras.Model
    config: ModelConfig
    info: DatasetInfo
    optimizer: keras.optimizers.Optimizer
    workdir: Workdir
    total_steps: int
    batch_size: int
    step: int = 0
    best_miou: float = -1.0
    last_report: Report | None = None
    stop_requested: bool = False
    averages: dict[str, tf.Variable] = dataclasses.field(default_factory=dict)
    average_momentum: float = 0.0

    def learning_rate(self) -> float:
        """The rate that the last step used."""
        rate = self.optimizer._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return float(rate(max(self.step - 1, 0)))
        return float(rate)

    # --- Averaged weights ---

    def start_averages(self) -> None:
        """From now on, with --ema_momentum, keeps a running average of all weights, the statistics of batch norm included.

        Keras' own averages leave these out, so that they are evaluated with the statistics of other weights
        (measured on CamVid after 10 passes: mIoU 0.10 where the weights themselves have 0.61).
        """
        if not self.average_momentum:
            return
        variables = folder.model_variables(self.model)
        self.averages = {name: tf.Variable(v.value, trainable=False, name="average") for name, v in variables.items()}

    def update_averages(self) -> None:
        """Takes the present weights into the averages; the first steps' count less for long than momentum would have it."""
        if self.averages:
            momentum = min(self.average_momentum, (1 + self.step) / (10 + self.step))
            variables = folder.model_variables(self.model)
            _average([variables[name].value for name in self.averages], list(self.averages.values()), tf.constant(momentum))

    def weights(self) -> dict[str, np.ndarray]:
        """The weights to evaluate and to use: averaged ones where there are some."""
        averages = {name: average.numpy() for name, average in self.averages.items()}
        return {**folder.named_weights(self.model), **averages}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has its averaged weights."""
        variables, raw = folder.model_variables(self.model), {}
        for name, average in self.averages.items():
            raw[name] = keras.ops.convert_to_numpy(variables[name])
            variables[name].assign(average)
        try:
            yield
        finally:
            for name, value in raw.items():
                variables[name].assign(value)

    # --- Saving and going on ---

    def random_states(self) -> list[keras.Variable]:
        """The states of the dropout layers' random generators, in order; their names say how many were made before."""
        return [variable for variable in self.model.variables if "seed_generator" in variable.path]

    def save(self) -> None:
        """Writes a training checkpoint of this step."""
        state = {f"optimizer/{i}": v.numpy() for i, v in enumerate(self.optimizer.variables)}
        state |= {f"random/{i}": v.numpy() for i, v in enumerate(self.random_states())}
        if self.averages:
            state |= {f"raw/{name}": value for name, value in folder.named_weights(self.model).items()}
        state |= {"step": np.int64(self.step), "best_miou": np.float64(self.best_miou)}
        self.workdir.save_step(self.step, self.model, self.config, self.info, weights=self.weights(), state=state)

    def restore(self) -> bool:
        """Goes on from the newest training checkpoint; False where there is none."""
        newest = self.workdir.newest()
        if newest is None:
            return False
        weights, state = newest
        raw = {name.removeprefix("raw/"): value for name, value in state.items() if name.startswith("raw/")}
        folder.assign_weights(self.model, raw or weights, source=str(self.workdir.path))
        self.start_averages()
        for name, average in self.averages.items():
            average.assign(weights[name])
        for index, variable in enumerate(self.optimizer.variables):
            variable.assign(state[f"optimizer/{index}"])
        for index, variable in enumerate(self.random_states()):
            variable.assign(state[f"random/{index}"])
        self.step, self.best_miou = int(state["step"]), float(state["best_miou"])
        return True


@tf.function
def _average(values: list[tf.Tensor], averages: list[tf.Variable], momentum: tf.Tensor) -> None:
    for value, average in zip(values, averages, strict=True):
        average.assign(momentum * average + (1 - momentum) * value)


class Steps(keras.callbacks.Callback):
    """Counts the steps, draws the progress line, and stops a training whose loss is no number.

    Must come first: the other callbacks read `run.step`.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.logs: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Says what the wait is for."""
        self.progress = self._progress()
        self.progress.write(f"compiling the training step; {self.run.total_steps - self.run.step} steps to go")
        self.first = True

    def _progress(self) -> Progress:
        run = self.run
        return Progress(run.total_steps, "step", start=run.step, images_per_step=run.batch_size)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts and shows."""
        run, self.logs = self.run, dict(logs or {})
        run.step += 1
        if self.first:  # it held the compilation, which says nothing about the speed
            self.progress, self.first = self._progress(), False
        loss = float(self.logs["loss"])
        if not math.isfinite(loss):
            self.model.stop_training = True
            raise UserError(
                f"the loss is {loss} at step {run.step} (learning rate {run.learning_rate():.3g}): the training has diverged; "
                f"give a lower --base_learning_rate or --warmup_steps, and a new --train_logdir"
            )
        run.update_averages()
        self.progress.update(run.step, loss=loss, mIoU=self.train_miou(), lr=run.learning_rate())

    def train_miou(self) -> float:
        """mIoU of the training crops since the last evaluation."""
        return next((float(value) for name, value in self.logs.items() if name.endswith("miou")), float("nan"))


class Rounds(keras.callbacks.Callback):
    """At every round's end: evaluates, keeps the best, saves a training checkpoint, writes CSV and TensorBoard.

    Args:
        run: the training.
        steps: its step counter and progress line.
        round_steps: steps between two evaluations.
        save_steps: steps between two training checkpoints; 0: at the evaluations only.
        evaluate: evaluates the model.
        pictures: draws validation panels, uint8 `[height, width, 3]`, all of one size or not.
    """

    def __init__(
        self, run: Run, steps: Steps, round_steps: int, save_steps: int, evaluate: Callable[[], Report],
        pictures: Callable[[], list[np.ndarray]],
    ) -> None:
        super().__init__()
        self.run, self.steps, self.round_steps, self.save_steps = run, steps, round_steps, save_steps
        self.evaluate, self.pictures = evaluate, pictures
        self.writer = tf.summary.create_file_writer(str(run.workdir.path / "tensorboard"))
        self.round_start = (run.step, time.monotonic())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Does what is due at this step."""
        run = self.run
        last = run.step >= run.total_steps
        if run.step % self.round_steps == 0 or last:
            self._end_round()
            run.save()
        elif run.stop_requested or (self.save_steps and run.step % self.save_steps == 0):
            run.save()
        if last or run.stop_requested:
            self.model.stop_training = True

    def _end_round(self) -> None:
        run, started = self.run, time.monotonic()
        speed = (run.step - self.round_start[0]) * run.batch_size / max(started - self.round_start[1], 1e-9)
        with run.averaged():
            report = run.last_report = self.evaluate()
            is_best = report.miou > run.best_miou
            if is_best:
                run.best_miou = report.miou
                metrics = {**report.to_dict(), "step": run.step}
                folder.save_checkpoint(run.workdir.path / folder.BEST, run.model, run.config, run.info, metrics=metrics)
            panels = self.pictures()
        logs, rate = self.steps.logs, run.learning_rate()
        row = {
            "step": run.step, "loss": float(logs["loss"]), "train_miou": self.steps.train_miou(), "learning_rate": rate,
            "val_miou": report.miou, "val_pixel_accuracy": report.pixel_accuracy, "images_per_second": speed,
        }
        run.workdir.log_row(row)
        self._summarise(row, report, panels)
        text = f"step {run.step}: validation mIoU {report.miou:.4f}, pixel accuracy {report.pixel_accuracy:.4f}"
        self.steps.progress.write(text + (", the best so far" if is_best else f" (best {run.best_miou:.4f})"))
        self.model.reset_metrics()
        self.steps.progress.pause(time.monotonic() - started)
        self.round_start = (run.step, time.monotonic())

    def _summarise(self, row: dict[str, Any], report: Report, panels: list[np.ndarray]) -> None:
        with self.writer.as_default(step=self.run.step):
            for name, value in row.items():
                if name != "step":
                    tf.summary.scalar(name, value)
            for name, iou in report.per_class_iou.items():
                if iou is not None:
                    tf.summary.scalar(f"val_iou/{name}", iou)
            for index, panel in enumerate(panels):
                tf.summary.image(f"validation/{index}", panel[None])
        self.writer.flush()


@contextlib.contextmanager
def stop_on_sigterm(run: Run) -> Iterator[None]:
    """Within the block SIGTERM (a preempted machine) lets the step end, saves it and ends the training."""

    def request_stop(number: int, frame: FrameType | None) -> None:
        run.stop_requested = True

    try:
        before = signal.signal(signal.SIGTERM, request_stop)
    except ValueError:  # not in the main thread, where signals cannot be caught
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
