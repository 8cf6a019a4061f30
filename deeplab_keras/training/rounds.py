"""What happens at the end of every round: a checkpoint, an evaluation, the best model, CSV and TensorBoard."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.checkpoints import folder
from deeplab_keras.evaluation.report import Report
from deeplab_keras.training.run import Run, Stopped
from deeplab_keras.training.steps import Steps
from deeplab_keras.visualization import confusion_matrix_figure


class Rounds(keras.callbacks.Callback):
    """Saves first and evaluates then: what comes in between costs an evaluation and no training.

    Args:
        run: the training.
        steps: its step counter and progress line.
        round_steps: steps between two evaluations.
        save_steps: steps between two training checkpoints; 0: at the evaluations only.
        patience: evaluations in a row without a better mIoU after which the training ends; 0: it
            goes on.
        histograms: shows TensorBoard the weights' distributions.
        evaluate: evaluates the model.
        pictures: draws validation panels, uint8 `[height, width, 3]`, all of one size or not.
        conclude: is given the last evaluation's report when the training is over.
        measure: measures batch norm's statistics for the weights that are evaluated; empty: the
            running ones are used.
        diagnose: is given a report, and says in a line why validation is far below training; "": it
            is not.
    """

    def __init__(
        self,
        run: Run,
        steps: Steps,
        *,
        round_steps: int,
        save_steps: int,
        patience: int,
        histograms: bool,
        evaluate: Callable[[], Report],
        pictures: Callable[[], list[np.ndarray]],
        conclude: Callable[[Report], None],
        measure: Callable[[], dict[str, np.ndarray]],
        diagnose: Callable[[Report], str],
    ) -> None:
        super().__init__()
        self.run, self.steps = run, steps
        self.round_steps, self.save_steps, self.patience = round_steps, save_steps, patience
        self.evaluate, self.pictures, self.conclude, self.histograms = (
            evaluate,
            pictures,
            conclude,
            histograms,
        )
        self.measure, self.diagnose = measure, diagnose
        self.writer = tf.summary.create_file_writer(str(run.workdir.path / "tensorboard"))
        self.round_start = (run.step, time.monotonic())
        self.finished = False

    def resume(self) -> None:
        """Ends the round at whose end the run was stopped, if it was; the checkpoint is older than its evaluation."""
        if self.run.step and self._ends_round():
            self.end_round()
            self.run.start_round()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Does what is due at this step."""
        run, ends = self.run, self._ends_round()
        if ends:
            seconds = max(time.monotonic() - self.round_start[1], 1e-9)
            speed = (run.step - self.round_start[0]) * run.batch_size / seconds
            run.row = {
                "loss": run.loss,
                "train_miou": self.steps.train_miou,
                "images_per_second": speed,
            }
        if ends or run.stop_requested or (self.save_steps and run.step % self.save_steps == 0):
            run.save()
        if ends:
            started = time.monotonic()
            self.end_round()
            self.model.reset_metrics()
            run.start_round()
            self.steps.progress.pause(time.monotonic() - started)
            self.round_start = (run.step, time.monotonic())
        if self.finished or run.stop_requested:
            self.model.stop_training = True

    def _ends_round(self) -> bool:
        return self.run.step % self.round_steps == 0 or self.run.step >= self.run.total_steps

    def end_round(self) -> None:
        """Evaluates, keeps the best, writes CSV and TensorBoard; leaves off where the run is told to stop."""
        run = self.run
        try:
            with run.may_be_left():
                statistics = self.measure()
                with run.averaged(statistics):
                    report, panels = self.evaluate(), self.pictures()
                diagnosis = self.diagnose(report)
        except Stopped:
            return
        run.last_report = report
        is_best = report.miou > run.best_miou
        run.stale_rounds = 0 if is_best else run.stale_rounds + 1
        if is_best:
            run.best_miou = report.miou
            metrics = {**report.to_dict(), "step": run.step}
            best = run.workdir.path / folder.BEST
            weights = {**run.weights(), **statistics}
            folder.save_checkpoint(
                best, run.model, run.config, run.info, metrics=metrics, weights=weights
            )
        nothing = float("nan")
        row = {
            "step": run.step,
            "loss": run.row.get("loss", nothing),
            "train_miou": run.row.get("train_miou", nothing),
            "learning_rate": run.learning_rate(),
            "val_miou": report.miou,
            "val_pixel_accuracy": report.pixel_accuracy,
            "images_per_second": run.row.get("images_per_second", nothing),
        }
        run.workdir.log_row(row)
        self._summarise(row, report, panels)
        text = (
            f"step {run.step}: validation mIoU {report.miou:.4f}, pixel accuracy "
            f"{report.pixel_accuracy:.4f}"
        )
        self._say(text + (", the best so far" if is_best else f" (best {run.best_miou:.4f})"))
        if diagnosis:
            self._say(f"warning: {diagnosis}")
        self.finished = run.step >= run.total_steps
        if self.patience and run.stale_rounds >= self.patience and not self.finished:
            self.finished = True
            stale = (
                "the last evaluation was"
                if run.stale_rounds == 1
                else f"{run.stale_rounds} evaluations in a row were"
            )
            self._say(f"stopped early: {stale} no better than the best")
        if self.finished:
            with contextlib.suppress(Stopped), run.averaged(statistics), run.may_be_left():
                self.conclude(report)

    def _say(self, text: str) -> None:
        self.steps.progress.write(text)

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
            if panels and importlib.util.find_spec("matplotlib"):
                tf.summary.image(
                    "validation/confusion_matrix", confusion_matrix_figure(report)[None]
                )
            for name, weight in self.run.weights().items() if self.histograms else ():
                tf.summary.histogram(name, weight)
        self.writer.flush()
