"""What an evaluation can measure beside the confusion matrix: each image's scores, boundaries, calibration.

Boundary IoU is Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation"
(2021), on semantic
labels: of each class only the pixels count that lie within d of another class or of the image's
    edge, d being 2 % of
the image's diagonal. Ignored pixels are ignored in both maps, so that their outlines count for
neither side. Calibration error is Guo et al., "On Calibration of Modern Neural Networks" (2017), of
every pixel's top probability.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation.metrics import count_pixels
from deeplab_keras.evaluation.report import Report

BOUNDARY_SHARE = 0.02  # of the diagonal
CONFIDENCE_BINS = 15


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """One image's counts of each class, int64 `[num_classes]`: pixels hit, labelled, predicted."""

    name: str
    hits: np.ndarray
    labelled: np.ndarray
    predicted: np.ndarray

    @property
    def miou(self) -> float:
        """mIoU of this image alone, over the classes in its label or its prediction; NaN where nothing is labelled."""
        union = self.labelled + self.predicted - self.hits
        return (
            float((self.hits / np.maximum(union, 1))[union > 0].mean()) if union.any() else math.nan
        )

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels with the right class; NaN where nothing is labelled."""
        return float(self.hits.sum() / self.labelled.sum()) if self.labelled.any() else math.nan


class Details:
    """Collects what `evaluate(..., details=Details(info))` sees.

    Args:
        info: the classes.
        boundaries: measures boundary IoU too, which is its largest cost.

    Attributes:
        images: an `ImageScore` each, in no particular order.
    """

    def __init__(self, info: DatasetInfo, boundaries: bool = True) -> None:
        self.info, self.boundaries = info, boundaries
        self.images: list[ImageScore] = []
        self.boundary_counts = np.zeros(
            (3, info.num_classes), np.int64
        )  # both, label's, prediction's
        self.bins = np.zeros((3, CONFIDENCE_BINS))  # pixels, sum of confidence, hits

    def add(
        self,
        names: Sequence[str],
        labels: np.ndarray,
        predictions: np.ndarray,
        confidence: np.ndarray,
    ) -> np.ndarray:
        """Counts a batch.

        Args:
            names: of the images.
            labels: int `[batch, height, width]`.
            predictions: likewise.
            confidence: probability of the predicted class, float `[batch, height, width]`.

        Returns:
            The batch's confusion matrix, int64 `[num_classes, num_classes]`.
        """
        total = np.zeros((self.info.num_classes,) * 2, np.int64)
        for name, label, prediction in zip(names, labels, predictions, strict=True):
            matrix = count_pixels(label, prediction, self.info.num_classes, self.info.ignore_label)
            self.images.append(
                ImageScore(name, np.diagonal(matrix).copy(), matrix.sum(1), matrix.sum(0))
            )
            total += matrix
            if self.boundaries:
                self.boundary_counts += count_boundaries(label, prediction, self.info)
        counted = labels != self.info.ignore_label
        self.bins += count_confidence(confidence[counted], (labels == predictions)[counted])
        return total

    def complete(self, report: Report) -> Report:
        """The report with what was collected."""
        pixels, confidence, hits = self.bins
        error = float(np.abs(confidence - hits).sum() / pixels.sum())
        if not self.boundaries:
            return dataclasses.replace(report, expected_calibration_error=error)
        both, labelled, predicted = self.boundary_counts
        union = labelled + predicted - both
        ious = [float(hit / area) if area else None for hit, area in zip(both, union, strict=True)]
        return dataclasses.replace(
            report,
            expected_calibration_error=error,
            boundary_iou=float(np.mean([iou for iou in ious if iou is not None]))
            if union.any()
            else 0.0,
            per_class_boundary_iou=dict(zip(report.per_class_iou, ious, strict=True)),
        )


def count_confidence(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels, sum of their confidence and number of right ones in equal bins of the confidence: float64 `[3, bins]`."""
    index = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    weights = (None, confidence, right)
    return np.stack(
        [np.bincount(index, weights=weight, minlength=CONFIDENCE_BINS) for weight in weights]
    )


def count_boundaries(label: np.ndarray, prediction: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Pixels of each class near its outlines, int64 `[3, num_classes]`: in both maps alike, in the label, in the prediction."""
    ignored = label == info.ignore_label
    prediction = np.where(ignored, label, prediction)
    distance = max(1, round(BOUNDARY_SHARE * math.hypot(*label.shape)))
    at_label, at_prediction = (
        near_boundary(labels, distance) & ~ignored for labels in (label, prediction)
    )
    both = at_label & at_prediction & (label == prediction)
    parts = (label[both], label[at_label], prediction[at_prediction])
    return np.stack(
        [
            np.bincount(part.ravel(), minlength=info.num_classes)[: info.num_classes]
            for part in parts
        ]
    )


def near_boundary(labels: np.ndarray, distance: int) -> np.ndarray:
    """Which pixels have another label, or the image's outside, within `distance` pixels across, along or diagonally."""
    near = np.ones(labels.shape, bool)
    near[distance : labels.shape[0] - distance, distance : labels.shape[1] - distance] = False
    for axis in (0, 1):
        # A window holds two labels where it holds two neighbours with different ones.
        changes = np.diff(labels.astype(np.int32), axis=axis) != 0
        for direction in (0, 1):
            changes = _any_within(changes, distance, direction, pairs=direction == axis)
        near |= changes
    return near


def _any_within(mask: np.ndarray, distance: int, axis: int, pairs: bool) -> np.ndarray:
    """Whether any pixel of a mask within `distance` along an axis is true.

    With `pairs` an entry stands between two pixels, itself and the next, and the answer has one
    entry more.
    """
    before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
    before[axis], after[axis] = (distance + 1, 0), (0, distance)
    sums = np.cumsum(np.pad(np.pad(mask, after), before), axis=axis, dtype=np.int32)
    window, count = 2 * distance + (not pairs), mask.shape[axis] + pairs
    return (sums.take(range(window, window + count), axis) - sums.take(range(count), axis)) > 0
