"""Measurements in addition to the confusion matrix: scores per image, boundaries and calibration.

Boundary IoU follows Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation" (2021), applied to semantic labels: only those pixels of a class count that are within d
of another class or of the image's edge, with d = 2 % of the image's diagonal. Ignored pixels are
ignored in both maps, so their outlines count for neither.

The calibration error follows Guo et al., "On Calibration of Modern Neural Networks" (2017), applied
to the top probability of each pixel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation.metrics import count_pixels
from deeplab_keras.evaluation.regions import any_within
from deeplab_keras.evaluation.report import Report

BOUNDARY_SHARE = 0.02  # of the diagonal
CONFIDENCE_BINS = 15


@dataclasses.dataclass(frozen=True)
class ImageScore:
    """The counts of correct, labeled and predicted pixels of one image, int64 `[num_classes]`."""

    name: str
    hits: np.ndarray
    labeled: np.ndarray
    predicted: np.ndarray

    @property
    def miou(self) -> float:
        """The mIoU of this image over the classes in its label or prediction; NaN without any."""
        union = self.labeled + self.predicted - self.hits
        if not union.any():
            return math.nan
        return float((self.hits / np.maximum(union, 1))[union > 0].mean())

    @property
    def pixel_accuracy(self) -> float:
        """The share of labeled pixels with the correct class; NaN without labeled pixels."""
        return float(self.hits.sum() / self.labeled.sum()) if self.labeled.any() else math.nan


class Details:
    """Collects details during `evaluate(..., details=Details(info))`.

    Args:
        info: The classes.
        boundaries: Whether to measure boundary IoU, the most expensive part.

    Attributes:
        images: One `ImageScore` per image, in no particular order.
    """

    def __init__(self, info: DatasetInfo, boundaries: bool = True) -> None:
        self.info, self.boundaries = info, boundaries
        self.images: list[ImageScore] = []
        # Boundary pixels of each class in both maps, in the label, and in the prediction.
        self.boundary_counts = np.zeros((3, info.num_classes), np.int64)
        # For each bin of confidence: pixels, sum of their confidence, correct pixels.
        self.bins = np.zeros((3, CONFIDENCE_BINS))

    def add(
        self,
        names: Sequence[str],
        labels: np.ndarray,
        predictions: np.ndarray,
        confidence: np.ndarray,
    ) -> np.ndarray:
        """Counts a batch.

        Args:
            names: The names of the images.
            labels: True labels, int `[batch, height, width]`.
            predictions: Predicted labels, int `[batch, height, width]`.
            confidence: The probability of the predicted class, float `[batch, height, width]`.

        Returns:
            The confusion matrix of the batch, int64 `[num_classes, num_classes]`.
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
        """Returns the report with the collected details."""
        error = expected_error(self.bins)
        if not self.boundaries:
            return dataclasses.replace(report, expected_calibration_error=error)
        both, labeled, predicted = self.boundary_counts
        union = labeled + predicted - both
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
    """Returns pixels, sum of confidence and correct pixels per bin of confidence.

    Returns:
        float64 `[3, CONFIDENCE_BINS]`.
    """
    index = np.minimum((confidence * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
    weights = (None, confidence, right)
    return np.stack(
        [np.bincount(index, weights=weight, minlength=CONFIDENCE_BINS) for weight in weights]
    )


def expected_error(bins: np.ndarray) -> float:
    """Returns the expected calibration error, 0..1, of the counts of `count_confidence`."""
    pixels, confidence, hits = bins
    return float(np.abs(confidence - hits).sum() / pixels.sum())


def count_boundaries(label: np.ndarray, prediction: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Returns the boundary pixels of each class in both maps, in the label, and in the prediction.

    Returns:
        int64 `[3, num_classes]`.
    """
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
    """Returns a mask of pixels with another label or the image's edge within `distance` pixels.

    The neighborhood of a pixel is a square.
    """
    near = np.ones(labels.shape, bool)
    near[distance : labels.shape[0] - distance, distance : labels.shape[1] - distance] = False
    for axis in (0, 1):
        # A window has two labels if two neighbors in it differ.
        changes = np.diff(labels.astype(np.int32), axis=axis) != 0
        for direction in (0, 1):
            changes = any_within(changes, distance, direction, pairs=direction == axis)
        near |= changes
    return near
