"""Checks of the labels and sample weights passed to losses and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deeplab_keras.config import UserError


def class_ids(labels: Any, shape: Sequence[int | None]) -> Any:
    """Returns labels as one class id per pixel, without a last axis of length 1.

    Checks only static shapes, which costs nothing in a compiled step.

    Args:
        labels: Class ids of `shape`, optionally with a last axis of length 1.
        shape: The shape of the predictions without the class axis; `None` for unknown lengths.

    Returns:
        The labels, of `shape`.

    Raises:
        UserError: The labels are one-hot or have another shape.
    """
    given, expected = tuple(labels.shape), tuple(shape)
    # If the last length is None, one-hot labels raise an error when the step runs.
    squeezed = len(given) == len(expected) + 1 and given[-1] in (1, None)
    found = given[:-1] if squeezed else given
    shapes = f"labels {given} for predictions of {expected} pixels"
    if len(found) != len(expected):
        raise UserError(
            f"{shapes}: labels must have one class id per pixel; convert one-hot labels with "
            "argmax(axis=-1)"
        )
    if any(a != b for a, b in zip(found, expected, strict=True) if a is not None and b is not None):
        difference = "differ in height or width; resize the predictions to the labels first"
        if None not in (found[0], expected[0]) and found[0] != expected[0]:
            difference = "differ in the number of images"
        raise UserError(f"{shapes} {difference}")
    return ops.reshape(labels, ops.shape(labels)[:-1]) if squeezed else labels


def as_int32(labels: Any) -> Any:
    """Returns labels as int32, with -1 for those that are not whole numbers of 32 bits.

    A plain cast would turn 1.5 and `2**32 + 1` into class 1.
    """
    labels = ops.convert_to_tensor(labels)
    index = ops.cast(labels, "int32")
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if keras.backend.is_float_dtype(dtype) or dtype in ("int64", "uint32", "uint64"):
        index = ops.where(ops.equal(ops.cast(index, dtype), labels), index, -1)
    return index


def refuse_sample_weight(sample_weight: Any) -> None:
    """Raises UserError for sample weights, which not all losses and metrics can apply."""
    if sample_weight is not None:
        raise UserError(
            "sample_weight is not supported; use class_weights, or the ignore label for pixels"
        )
