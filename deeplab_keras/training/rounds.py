"""The end of each round: a checkpoint, an evaluation, the best model, training.csv, TensorBoard.

A round is the steps between two evaluations.
"""

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
from deeplab_keras.config import render_options
from deeplab_keras.evaluation.report import Report
from deeplab_keras.training.run import Run, StopRequested
from deeplab_keras.training.steps import Steps
from deeplab_keras.visualization import confusion_matrix_figure


class Rounds(keras.callbacks.Callback):
    """Saves and evaluates at the end of each round.

    Saves before it evaluates, so that an interrupted evaluation loses no training steps.

    Args:
        run: The run.
        steps: The run's step counter and progress line.
        round_steps: Number of steps between two evaluations.
        save_steps: Number of steps between two training checkpoints. 0 saves only before
            evaluations.
        patience: Number of consecutive evaluations without a better mIoU after which the run ends.
            0 turns early stopping off.
        histograms: Whether to write histograms of the weights to TensorBoard.
        evaluate: Evaluates the model.
        pictures: Draws validation panels, uint8 `[height, width, 3]`. Their sizes may differ.
        conclude: Called with the report of the last evaluation when the run ends.
        measure: Measures the statistics of batch norm for the weights to evaluate. Returns an empty
            dict to use the running statistics.
        diagnose: Returns one line that explains why the validation mIoU in a report is far below
            the training mIoU, or "" if it is not.
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
        self.histograms = histograms
        self.evaluate, self.pictures, self.conclude = evaluate, pictures, conclude
        self.measure, self.diagnose = measure, diagnose
        self.writer = tf.summary.create_file_writer(str(run.workdir.path / "tensorboard"))
        self.round_start = (run.step, time.monotonic())
        self.finished = False

    def resume(self) -> None:
        """Evaluates a run that was stopped between the checkpoint and the evaluation of a round."""
        if self.run.step and self._ends_round():
            self.end_round()
            self.run.start_round()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves, evaluates and stops, where this step requires it."""
        run, ends = self.run, self._ends_round()
        if ends:
            seconds = max(time.monotonic() - self.round_start[1], 1e-9)
            speed = (run.step - self.round_start[0]) * run.batch_size / seconds
            run.row = {
                "loss": run.loss,
                "train_miou": self.steps.train_miou,
                "images_per_second": speed,
            }
        saves = self.save_steps and run.step % self.save_steps == 0
        if ends or run.stop_requested or saves:
            self.model.sync()
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
        """Evaluates, saves the best model and writes training.csv and TensorBoard events.

        Returns without a result if the run is asked to stop meanwhile.
        """
        run = self.run
        try:
            with run.interruptible():
                statistics = self.measure()
                with run.averaged(statistics):
                    report, panels = self.evaluate(), self.pictures()
                diagnosis = self.diagnose(report)
        except StopRequested:
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
        unknown = float("nan")
        row = {
            "step": run.step,
            "loss": run.row.get("loss", unknown),
            "train_miou": run.row.get("train_miou", unknown),
            "learning_rate": run.learning_rate(),
            "val_miou": report.miou,
            "val_pixel_accuracy": report.pixel_accuracy,
            "images_per_second": run.row.get("images_per_second", unknown),
        }
        run.workdir.log_row(row)
        self._write_summaries(row, report, panels)
        text = (
            f"step {run.step}: validation mIoU {report.miou:.4f}, pixel accuracy "
            f"{report.pixel_accuracy:.4f}"
        )
        self._print(text + (" (new best)" if is_best else f" (best: {run.best_miou:.4f})"))
        if diagnosis:
            self._print(f"warning: {diagnosis}")
        self.finished = run.step >= run.total_steps
        if self.patience and run.stale_rounds >= self.patience and not self.finished:
            self.finished = True
            evaluations = (
                "the last evaluation"
                if run.stale_rounds == 1
                else f"{run.stale_rounds} evaluations"
            )
            self._print(f"stopped early: mIoU did not improve in {evaluations}")
        if self.finished:
            with contextlib.suppress(StopRequested), run.averaged(statistics), run.interruptible():
                self.conclude(report)

    def _print(self, text: str) -> None:
        self.steps.progress.write(render_options(text))

    def _write_summaries(
        self, row: dict[str, Any], report: Report, panels: list[np.ndarray]
    ) -> None:
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
