"""How much a network computes."""

from __future__ import annotations

import math

import keras

from deeplab_keras.config import UserError


def count_multiply_adds(model: keras.Model, auxiliary: bool = False) -> int:
    """Multiply-adds of a segmentor's convolutions on one image of the model's input size.

    Counted as the papers do: convolutions alone, without batch norm, pooling and resizing.

    Args:
        model: a segmentor.
        auxiliary: counts the auxiliary head too, which is not computed at inference.

    Raises:
        UserError: the model takes images of any size.
    """
    if None in model.input_shape[1:3]:
        raise UserError(
            f"{model.name} takes any image size; build it with an input_size to count multiply-adds"
        )
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D) and (
            auxiliary or not is_auxiliary(layer)
        ):
            height, width = layer.output.shape[1:3]
            total += height * width * math.prod(layer.kernel.shape)
    return total


def is_auxiliary(layer: keras.layers.Layer) -> bool:
    """Whether a segmentor's layer belongs to its auxiliary head."""
    return str(layer.name).startswith("auxiliary_")
