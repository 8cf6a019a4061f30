"""The confusion matrix and its scores: mIoU, IoU per class and accuracies.

`MeanIoU` counts pixels inside a compiled step. `Scores` computes all scores from the counts.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from deeplab_keras.config import UserError, number
from deeplab_keras.evaluation.labels import as_int32, class_ids, refuse_sample_weight
from deeplab_keras.models.layers import sum_over_replicas

__all__ = ["ConfusionMatrix", "MeanIoU", "Scores", "count_pixels"]

# JAX has no 64-bit numbers by default.
COUNTS, SHARES = ("uint32", "float32") if keras.backend.backend() == "jax" else ("int64", "float64")


@keras.saving.register_keras_serializable(package="deeplab_keras")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union of all pixels since the last reset, from a confusion matrix.

    The counts in `matrix` are int64, because a float32 counter stops at 2**24 pixels, a few
    Cityscapes images. On JAX they are uint32, up to 4.29 billion pixels per pair of classes. The
    mean does not include classes that occur in neither the labels nor the predictions. Without any
    counted pixel the result is 0.

    A pixel whose label is neither a class nor the ignore label, whose prediction is not a class, or
    whose scores contain NaN is only counted in `out_of_range`. If that is not 0, the labels do not
    match the list of classes, or the model has diverged.

    Args:
        num_classes: The number of classes C, including the background if it is one.
        ignore_label: The label of pixels to ignore.
        name: The name in logs.
        dtype: The dtype of the result.

    Raises:
        UserError: If there are fewer than two classes, or an argument is not a whole number.

    Example:
        >>> metric = dk.metrics.MeanIoU(num_classes=2, ignore_label=255)
        >>> metric.update_state([[[0, 0, 1, 255]]], [[[0, 1, 1, 1]]])
        >>> float(metric.result())  # (1/2 + 1/2) / 2
        0.5
        >>> metric.scores().per_class_iou
        (0.5, 0.5)
        >>> model = dk.load_model("runs/demo")
        >>> model.compile(metrics=[dk.metrics.MeanIoU(10)])
    """

    def __init__(
        self, num_classes: int, ignore_label: int = 255, name: str = "miou", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_classes = number(num_classes, int, "num_classes")
        if num_classes < 2:
            raise UserError(
                f"num_classes must be at least 2, including the background. Received: "
                f"num_classes={num_classes}"
            )
        self.ignore_label = number(ignore_label, int, "ignore_label")
        self.matrix = self.add_variable(
            (num_classes, num_classes), "zeros", dtype=COUNTS, name="matrix"
        )
        self.out_of_range = self.add_variable((), "zeros", dtype=COUNTS, name="out_of_range")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch.

        Args:
            y_true: Class ids `[batch, height, width]` or `[batch, height, width, 1]`, as in
                `SegmentationLoss`.
            y_pred: Logits, float `[batch, height, width, num_classes]`, or predicted labels, int
                `[batch, height, width]`.
            sample_weight: Must be `None`. Use the ignore label to exclude pixels.

        Raises:
            UserError: If the labels are one-hot, the shapes do not match, the scores have another
                number of classes, or sample weights are given.
        """
        refuse_sample_weight(sample_weight)
        predictions = ops.convert_to_tensor(y_pred)
        are_scores = keras.backend.is_float_dtype(
            keras.backend.standardize_dtype(predictions.dtype)
        )
        labels = class_ids(
            ops.convert_to_tensor(y_true),
            predictions.shape[:-1] if are_scores else predictions.shape,
        )
        if are_scores:
            if predictions.shape[-1] not in (None, self.num_classes):
                raise UserError(
                    f"MeanIoU with {self.num_classes} classes: the last axis of scores must have "
                    f"one score per class. Received: scores of shape {tuple(predictions.shape)}; "
                    "predicted labels must be integers"
                )
            broken = ops.isnan(ops.sum(predictions, axis=-1))  # argmax would return a class
            predictions = ops.where(broken, -1, ops.cast(ops.argmax(predictions, axis=-1), "int32"))
        labels = ops.reshape(as_int32(labels), [-1])
        predictions = ops.reshape(as_int32(predictions), [-1])

        # Two more cells after the matrix count all other pixels, so that one pass is enough. A
        # segment sum, because XLA cannot compile a bincount.
        size = self.num_classes
        known = (labels >= 0) & (labels < size) & (predictions >= 0) & (predictions < size)
        cells = ops.where(known, labels * size + predictions, size * size)
        cells = ops.where(labels == self.ignore_label, size * size + 1, cells)
        counts = ops.segment_sum(ops.ones_like(cells), cells, num_segments=size * size + 2)
        counts = ops.cast(counts, COUNTS)
        self.matrix.assign_add(ops.reshape(counts[: size * size], (size, size)))
        self.out_of_range.assign_add(counts[size * size])

    def result(self) -> Any:
        """Returns the mean IoU so far, a float scalar.

        In a distributed step, the counts are those of all replicas.
        """
        matrix = sum_over_replicas(ops.cast(ops.convert_to_tensor(self.matrix), SHARES))
        intersection = ops.diagonal(matrix)
        union = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - intersection
        present = ops.cast(union > 0, SHARES)
        iou = intersection / ops.maximum(union, 1.0)
        return ops.cast(ops.sum(iou) / ops.maximum(ops.sum(present), 1.0), self.dtype)

    def scores(self) -> Scores:
        """Returns all `Scores` of the counts so far. Call it outside of compiled functions."""
        return Scores.from_matrix(ops.convert_to_numpy(self.matrix))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
        }


ConfusionMatrix = MeanIoU  # the former name of MeanIoU


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a confusion matrix, in 0..1; NaN for an empty matrix.

    Attributes:
        miou: The mean IoU over the classes in the labels or predictions.
        per_class_iou: The IoU of each class, `None` for a class in neither.
        pixel_accuracy: The share of pixels with the correct class.
        mean_accuracy: The mean recall over the classes in the labels.
        frequency_weighted_iou: The mean IoU weighted by the classes' shares of the labeled pixels.

    Example:
        >>> scores = dk.metrics.Scores.from_matrix(np.array([[3, 1], [0, 4]]))
        >>> scores.pixel_accuracy, scores.per_class_iou
        (0.875, (0.75, 0.8))
    """

    miou: float
    per_class_iou: tuple[float | None, ...]
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Scores:
        """Computes the scores of a matrix of pixel counts `[label, prediction]`."""
        counts = np.asarray(matrix, np.float64)
        total = counts.sum()
        if total == 0:
            return cls(np.nan, (None,) * len(counts), np.nan, np.nan, np.nan)
        intersection, labeled = np.diagonal(counts), counts.sum(1)
        union = labeled + counts.sum(0) - intersection
        iou = intersection / np.maximum(union, 1)
        return cls(
            miou=float(iou[union > 0].mean()),
            per_class_iou=tuple(
                float(value) if area > 0 else None for value, area in zip(iou, union, strict=True)
            ),
            pixel_accuracy=float(intersection.sum() / total),
            mean_accuracy=float((intersection / np.maximum(labeled, 1))[labeled > 0].mean()),
            frequency_weighted_iou=float((labeled * iou).sum() / total),
        )


def count_pixels(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, ignore_label: int = 255
) -> np.ndarray:
    """Computes the confusion matrix of label maps in NumPy.

    Args:
        labels: Label maps of any shape, integers; each value is a class or the ignore label.
        predictions: Predicted classes of the same shape.
        num_classes: The number of classes C.
        ignore_label: The label of pixels to ignore.

    Returns:
        int64 `[C, C]`, with labels as rows and predictions as columns.

    Raises:
        UserError: If the shapes differ, or a value is not allowed.

    Example:
        >>> labels, predictions = np.array([0, 0, 1, 255]), np.array([0, 1, 1, 1])
        >>> dk.metrics.count_pixels(labels, predictions, num_classes=2).tolist()
        [[1, 1], [0, 1]]
    """
    number(ignore_label, int, "ignore_label", low=0)
    # Counting the ignore label in a separate row, which is then dropped, is three times faster than
    # selecting the counted pixels.
    rows = max(number(num_classes, int, "num_classes", low=1), ignore_label + 1)
    if labels.shape != predictions.shape:
        raise UserError(
            f"labels of shape {labels.shape} and predictions of shape {predictions.shape} must "
            "have the same shape; resize the predictions to the labels first"
        )
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.dtype.kind not in "ui":
            raise UserError(f"{name} of dtype {values.dtype}; must be integers")
    if labels.size and not (
        0 <= labels.min() <= labels.max() < rows
        and 0 <= predictions.min() <= predictions.max() < num_classes
    ):
        raise _not_classes(labels, predictions, num_classes, ignore_label)
    cells = labels.astype(np.int64) * num_classes + predictions
    counts = np.bincount(cells.ravel(), minlength=rows * num_classes).reshape(rows, num_classes)
    counts[ignore_label] = 0
    if counts[num_classes:].any():
        raise _not_classes(labels, predictions, num_classes, ignore_label)
    return counts[:num_classes]


def _not_classes(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, ignore_label: int
) -> UserError:
    return UserError(
        f"labels from {labels.min()} to {labels.max()} and predictions from {predictions.min()} to "
        f"{predictions.max()} for {num_classes} classes and the ignore label {ignore_label}; map "
        "all other labels to the ignore label"
    )
