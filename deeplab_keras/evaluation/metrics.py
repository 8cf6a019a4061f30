"""The confusion matrix and what is read from it: mIoU, per-class IoU and the accuracies.

`MeanIoU` counts inside a compiled step. `Scores` turns the finished counts into numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from deeplab_keras.config import UserError
from deeplab_keras.evaluation.labels import class_ids, refuse_sample_weight

# JAX has no 64-bit numbers unless it is told to.
COUNTS, SHARES = ("uint32", "float32") if keras.backend.backend() == "jax" else ("int64", "float64")


@keras.saving.register_keras_serializable(package="deeplab_keras")
class MeanIoU(keras.metrics.Metric):
    """Mean intersection over union of all pixels since the last reset, from a confusion matrix.

    The counts in `matrix` are int64: a float32 counter stops at 2**24 pixels, a few Cityscapes
    images. On JAX they are uint32, which holds 4.29 billion pixels per pair of classes. A class
    that occurs in neither the labels nor the predictions is left out of the mean. Without any
    counted pixel the result is 0.

    A pixel whose label is neither a class nor the ignore label, or whose prediction is not a class,
    is counted in `out_of_range` only. If that is not 0, the labels do not match the list of
    classes.

    Example:
    ```python
    metric = MeanIoU(num_classes=2, ignore_label=255)
    metric.update_state([[[0, 0, 1, 255]]], [[[0, 1, 1, 1]]])
    metric.result()  # 0.5: (1/2 + 1/2) / 2
    ```

    Args:
        num_classes: number of classes C.
        ignore_label: label of the pixels to ignore.
        name: name in the logs.
        dtype: dtype of the result.

    Raises:
        UserError: fewer than two classes.
    """

    def __init__(
        self, num_classes: int, ignore_label: int = 255, name: str = "miou", dtype: Any = None
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        if num_classes < 2:
            raise UserError(
                f"MeanIoU: num_classes={num_classes}; at least 2, the background counted "
                "if it is one"
            )
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.matrix = self.add_variable(
            (num_classes, num_classes), "zeros", dtype=COUNTS, name="matrix"
        )
        self.out_of_range = self.add_variable((), "zeros", dtype=COUNTS, name="out_of_range")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch.

        Args:
            y_true: class ids `[batch, height, width]` or `[batch, height, width, 1]`, as
                `SegmentationLoss` takes them.
            y_pred: logits, float `[batch, height, width, num_classes]`, or predicted labels, int
                `[batch, height, width]`.
            sample_weight: must be None. The ignore label excludes pixels.

        Raises:
            UserError: one-hot labels, shapes that do not match, scores of another number of
                classes, or sample weights.
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
                    f"MeanIoU of {self.num_classes} classes: scores of shape "
                    f"{tuple(predictions.shape)}; their last axis "
                    "has one score per class, and predicted labels are integers"
                )
            predictions = ops.argmax(predictions, axis=-1)
        labels = ops.cast(labels, "int32")
        labels, predictions = (
            ops.reshape(labels, [-1]),
            ops.reshape(ops.cast(predictions, "int32"), [-1]),
        )

        # Two cells behind the matrix take what is not counted there, so that one pass over the
        # pixels does it all. A segment sum, because XLA cannot compile a bincount.
        size = self.num_classes
        known = (labels >= 0) & (labels < size) & (predictions >= 0) & (predictions < size)
        cells = ops.where(known, labels * size + predictions, size * size)
        cells = ops.where(labels == self.ignore_label, size * size + 1, cells)
        counts = ops.segment_sum(ops.ones_like(cells), cells, num_segments=size * size + 2)
        counts = ops.cast(counts, COUNTS)
        self.matrix.assign_add(ops.reshape(counts[: size * size], (size, size)))
        self.out_of_range.assign_add(counts[size * size])

    def result(self) -> Any:
        """Mean IoU so far, a float scalar."""
        matrix = ops.cast(ops.convert_to_tensor(self.matrix), SHARES)
        intersection = ops.diagonal(matrix)
        union = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - intersection
        present = ops.cast(union > 0, SHARES)
        iou = intersection / ops.maximum(union, 1.0)
        return ops.cast(ops.sum(iou) / ops.maximum(ops.sum(present), 1.0), self.dtype)

    def scores(self) -> Scores:
        """All scores of the counts so far; outside of a compiled function."""
        return Scores.from_matrix(ops.convert_to_numpy(self.matrix))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "ignore_label": self.ignore_label,
        }


ConfusionMatrix = MeanIoU  # its former name


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of a confusion matrix, all in 0..1; NaN where the matrix is empty.

    Attributes:
        miou: mean IoU over the classes in the labels or the predictions.
        per_class_iou: IoU of each class; None for a class in neither.
        pixel_accuracy: share of the pixels with the right class.
        mean_accuracy: mean recall over the classes in the labels.
        frequency_weighted_iou: mean IoU weighted by the classes' shares of the labelled pixels.
    """

    miou: float
    per_class_iou: tuple[float | None, ...]
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> Scores:
        """Scores of an integer matrix `[label, prediction]` of pixel counts."""
        counts = np.asarray(matrix, np.float64)
        total = counts.sum()
        if total == 0:
            return cls(np.nan, (None,) * len(counts), np.nan, np.nan, np.nan)
        intersection, labelled = np.diagonal(counts), counts.sum(1)
        union = labelled + counts.sum(0) - intersection
        iou = intersection / np.maximum(union, 1)
        return cls(
            miou=float(iou[union > 0].mean()),
            per_class_iou=tuple(
                float(value) if area > 0 else None for value, area in zip(iou, union, strict=True)
            ),
            pixel_accuracy=float(intersection.sum() / total),
            mean_accuracy=float((intersection / np.maximum(labelled, 1))[labelled > 0].mean()),
            frequency_weighted_iou=float((labelled * iou).sum() / total),
        )


def count_pixels(
    labels: np.ndarray, predictions: np.ndarray, num_classes: int, ignore_label: int = 255
) -> np.ndarray:
    """Confusion matrix of label maps on the host.

    Args:
        labels: int label maps of any shape; each value a class or the ignore label.
        predictions: predicted classes of the same shape.
        num_classes: number of classes C.
        ignore_label: label of pixels that do not count.

    Returns:
        int64 `[C, C]`, rows: label, columns: prediction.
    """
    # The ignore label has a row of its own, then dropped: three times faster than picking the
    # counted pixels.
    rows = max(num_classes, ignore_label + 1)
    cells = labels.astype(np.int64) * num_classes + predictions
    counts = np.bincount(cells.ravel(), minlength=rows * num_classes).reshape(rows, num_classes)
    counts[ignore_label] = 0
    return counts[:num_classes]
