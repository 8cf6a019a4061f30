"""What a training does with its validation images: scores at every round, pictures, and a page at the end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deeplab_keras.config import EvalConfig, TrainConfig, UserError
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.loop import evaluate
from deeplab_keras.evaluation.output import draw_panel, write_report
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.training.run import Run

GAP = 0.1  # mIoU that validation may be below training without a word about it
BATCHES, IMAGES = 20, 64  # what a diagnosis measures statistics on, and evaluates


class Validation:
    """Evaluates a run on the images of a source.

    Args:
        run: its model has the weights to evaluate whenever a method is called.
        source: the validation images.
        config: how they are inferred.
        training: how many pictures are drawn, and whether there is a page.
        split: its name in the reports.
        train_source: the training images.
        measure: measures batch norm's statistics for the run's weights on so many training batches.
    """

    def __init__(
        self,
        run: Run,
        source: Source,
        config: EvalConfig,
        training: TrainConfig,
        split: str,
        train_source: Source,
        measure: Callable[[int], dict[str, np.ndarray]],
    ) -> None:
        self.run, self.source, self.config, self.training, self.split = (
            run,
            source,
            config,
            training,
            split,
        )
        self.train_source, self.measure, self.diagnosed = train_source, measure, False
        self.network = Network(run.model)
        self.predictor = Predictor(self.network, config)
        self.details: Details | None = None

    def evaluate(self) -> Report:
        """The scores; those of the last step with what the page needs."""
        return self._evaluate(self.training.html_report and self.run.step >= self.run.total_steps)

    def pictures(self) -> list[np.ndarray]:
        """Panels of the first images, uint8 `[height, width, 3]`."""
        count = min(self.training.summary_images, len(self.source))
        samples = [self.source.load(index) for index in range(count)]
        return [draw_panel(self.predictor, image, label, self.run.info) for image, label in samples]

    def diagnose(self, report: Report) -> str:
        """Why validation is far below training, in one line; "" where it is not, or was said before.

        The running statistics of batch norm are the usual reason in a short training: the steps
        themselves use those of the batch. So they are measured anew; where that does not help,
        training images are inferred as validation images are.

        Args:
            report: the evaluation that a diagnosis is wanted of.
        """
        trained = self.run.row.get("train_miou", math.nan)
        if not trained - report.miou > GAP or (
            self.diagnosed and self.run.step < self.run.total_steps
        ):
            return ""
        self.diagnosed = True
        gap = f"validation mIoU is {report.miou:.4f} and training mIoU {trained:.4f}"
        try:
            now, anew = (
                self._some(self.source, statistics) for statistics in ({}, self.measure(BATCHES))
            )
            if self.training.fine_tune_batch_norm and anew - now > (trained - report.miou) / 2:
                return (
                    f"{gap} because the running statistics of batch norm lag behind the weights: "
                    f"measured anew on {BATCHES} "
                    f"training batches they give {anew:.4f}; the same command with "
                    f"`recalibrate_batch_norm={BATCHES}` evaluates "
                    "and saves such statistics; a new run can have lower `backbone_bn_momentum` "
                    "and `head_bn_momentum`"
                )
            known = self._some(self.train_source, {})
        except UserError:  # of a dataset that can be trained on and not be evaluated
            return ""
        cause = (
            "the network knows these images better than others: more images, more "
            "augmentation or fewer steps help"
        )
        if trained - known > GAP:
            cause = (
                "inference differs from training: compare the size of the images with "
                "`train_crop_size`, and `inference`"
            )
        return f"{gap}; training images evaluated like validation images give {known:.4f}: {cause}"

    def _some(self, source: Source, statistics: dict[str, np.ndarray]) -> float:
        """The mIoU of the first images with the run's weights and, where they are given, these statistics of batch norm."""
        with self.run.averaged(statistics):
            return evaluate(
                self.network, source, self.config, progress=False, limit=min(IMAGES, len(source))
            ).miou

    def conclude(self, report: Report) -> None:
        """Writes the last evaluation's metrics and report.html into the run's folder."""
        if self.training.html_report and self.details is None:  # the training has stopped early
            report = self._evaluate(detailed=True)
        folder = self.run.workdir.path
        write_report(
            folder,
            report,
            self.details,
            self.predictor,
            self.source,
            training_csv=folder / "training.csv",
        )

    def _evaluate(self, detailed: bool) -> Report:
        self.details = Details(self.run.info, boundaries=False) if detailed else None
        name = self.run.config.name
        return evaluate(
            self.network,
            self.source,
            self.config,
            model_name=name,
            split=self.split,
            details=self.details,
        )
