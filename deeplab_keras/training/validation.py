"""Validation during a run: the scores of each round, pictures, and reports at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deeplab_keras.config import DataConfig, EvalConfig, TrainConfig, UserError
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.loop import evaluate
from deeplab_keras.evaluation.output import draw_panel, write_report
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.training.card import write_card
from deeplab_keras.training.run import Run

MAX_GAP = 0.1  # largest difference of training and validation mIoU without a diagnosis
EXPLAINED = 0.25  # share of that difference above which measured statistics explain it
BATCHES = 20  # number of training batches on which a diagnosis measures statistics
IMAGES = 64  # number of images that a diagnosis evaluates


class Validation:
    """Evaluates a run on the images of a source.

    Args:
        run: The run. Its model must have the weights to evaluate when a method is called.
        source: The validation images.
        config: How predictions are computed.
        training: The number of pictures to draw, and whether to write the reports.
        data: The settings of the data, with the name of the validation split.
        train_source: The training images.
        measure: Measures the statistics of batch norm for the run's weights. Its argument is the
            number of training batches.
    """

    def __init__(
        self,
        run: Run,
        source: Source,
        config: EvalConfig,
        training: TrainConfig,
        data: DataConfig,
        train_source: Source,
        measure: Callable[[int], dict[str, np.ndarray]],
    ) -> None:
        self.run, self.config, self.training = run, config, training
        self.source, self.data, self.train_source = source, data, train_source
        self.measure = measure
        self.diagnosed = False
        self.network = KerasNetwork(run.model)
        self.predictor = Predictor(self.network, config)
        self.details: Details | None = None

    def evaluate(self) -> Report:
        """Evaluates the model. After the last step, also collects the details for report.html."""
        return self._evaluate(self.training.html_report and self.run.step >= self.run.total_steps)

    def pictures(self) -> list[np.ndarray]:
        """Draws panels of the first validation images, uint8 `[height, width, 3]`."""
        count = min(self.training.summary_images, len(self.source))
        samples = [self.source.load(index) for index in range(count)]
        return [draw_panel(self.predictor, image, label, self.run.info) for image, label in samples]

    def diagnose(self, report: Report) -> str:
        """Returns one line that explains why the validation mIoU is far below the training mIoU.

        In short runs, the usual reason is that the running statistics of batch norm lag behind the
        weights, because training steps use the statistics of the batch instead. So this method
        evaluates with newly measured statistics first. If they do not help, it evaluates training
        images in the same way as validation images.

        Args:
            report: The report of an evaluation.

        Returns:
            The explanation, or "" if the difference is small or has been explained before.
        """
        train_miou = self.run.row.get("train_miou", math.nan)
        if not train_miou - report.miou > MAX_GAP or (
            self.diagnosed and self.run.step < self.run.total_steps
        ):
            return ""
        self.diagnosed = True
        gap = f"validation mIoU is {report.miou:.4f}, but training mIoU is {train_miou:.4f}"
        try:
            running, measured = (
                self._miou(self.source, statistics) for statistics in ({}, self.measure(BATCHES))
            )
            if self.training.fine_tune_batch_norm and measured - running > EXPLAINED * (
                train_miou - report.miou
            ):
                return (
                    f"{gap}, because the running statistics of batch norm lag behind the weights: "
                    f"with statistics measured on {BATCHES} training batches, validation mIoU is "
                    f"{measured:.4f}; run the same command with `recalibrate_batch_norm={BATCHES}` "
                    "to evaluate and save such statistics, or start a new run with a lower "
                    "`backbone_bn_momentum` and `head_bn_momentum`"
                )
            on_training_images = self._miou(self.train_source, {})
        except UserError:  # the dataset can be used for training, but not for evaluation
            return ""
        cause = "the model overfits: use more images, more augmentation or fewer steps"
        if train_miou - on_training_images > MAX_GAP:
            cause = (
                "inference differs from training: compare the size of the images with "
                "`train_crop_size`, and check `inference`"
            )
        return (
            f"{gap}; training images evaluated like validation images have mIoU "
            f"{on_training_images:.4f}: {cause}"
        )

    def _miou(self, source: Source, statistics: dict[str, np.ndarray]) -> float:
        """Returns the mIoU of the first images, with the given statistics of batch norm."""
        with self.run.averaged(statistics):
            return evaluate(
                self.network, source, self.config, progress=False, limit=min(IMAGES, len(source))
            ).miou

    def conclude(self, report: Report) -> None:
        """Writes the metrics, report.html and the model card to the workdir."""
        if self.training.html_report and self.details is None:  # the run stopped early
            report = self._evaluate(detailed=True)
        folder = self.run.workdir.path
        worst = write_report(
            folder,
            report,
            self.details,
            self.predictor,
            self.source,
            training_csv=folder / "training.csv",
        )
        if self.training.html_report:
            sources = self.train_source, self.source
            write_card(self.run, report, worst, self.predictor, self.training, self.data, sources)

    def _evaluate(self, detailed: bool) -> Report:
        self.details = Details(self.run.info, boundaries=False) if detailed else None
        name = self.run.config.name
        return evaluate(
            self.network,
            self.source,
            self.config,
            model_name=name,
            split=self.data.eval_split,
            details=self.details,
        )
