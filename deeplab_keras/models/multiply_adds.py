"""Counts the multiply-adds of a network."""

from __future__ import annotations

import math

import keras

from deeplab_keras.config import UserError


def count_multiply_adds(model: keras.Model, auxiliary: bool = False) -> int:
    """Returns the multiply-adds of a segmentor's convolutions on one image of its input size.

    As in the papers, batch norm, pooling and resizing do not count.

    Args:
        model: A segmentor.
        auxiliary: Whether to count the auxiliary head too, which inference does not compute.

    Raises:
        UserError: If the model accepts images of any size.
    """
    if None in model.input_shape[1:3]:
        raise UserError(
            f"the model {model.name} must have a fixed input size to count multiply-adds. "
            f"Received: input shape {model.input_shape}; build it with `input_size`"
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
    """Returns whether a layer of a segmentor belongs to its auxiliary head."""
    return str(layer.name).startswith("auxiliary_")
