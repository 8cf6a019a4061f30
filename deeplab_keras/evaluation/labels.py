"""What losses and metrics accept: labels with one class id per pixel, and no sample weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

from deeplab_keras.config import UserError


def class_ids(labels: Any, shape: Sequence[int | None]) -> Any:
    """Labels as one class id per pixel, without a last axis of length 1.

    Only static shapes are looked at, so that a compiled step does no more than before.

    Args:
        labels: class ids of `shape`, or with one more axis of length 1.
        shape: the shape of the predictions without the axis of the classes; None: a length that is
            not known.

    Returns:
        The labels, of `shape`.

    Raises:
        UserError: one-hot labels, or labels of another shape.
    """
    given, wanted = tuple(labels.shape), tuple(shape)
    squeezed = len(given) == len(wanted) + 1 and given[-1] in (
        1,
        None,
    )  # None: one-hot labels fail when the step runs
    found = given[:-1] if squeezed else given
    shapes = f"labels {given} for predictions of {wanted} pixels"
    if len(found) != len(wanted):
        raise UserError(
            f"{shapes}: allowed is one class id per pixel; one-hot labels become class ids by "
            "argmax(axis=-1)"
        )
    if any(a != b for a, b in zip(found, wanted, strict=True) if a is not None and b is not None):
        raise UserError(
            f"{shapes} differ in height or width; resize the predictions to the labels first"
        )
    return ops.reshape(labels, ops.shape(labels)[:-1]) if squeezed else labels


def refuse_sample_weight(sample_weight: Any) -> None:
    """Raises UserError for sample weights: Dice, Lovász and a confusion matrix of counts have no use for them."""
    if sample_weight is not None:
        raise UserError(
            "sample_weight is not supported; use class_weights, or the ignore label for pixels"
        )
