"""Describes a segmentor as plain data, from which a peer builds the same network."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from benchmarks.peers import Step
from deeplab_keras.config import UserError
from deeplab_keras.models import layers

SAME = {"Dropout", "SpatialDropout2D"}  # the identity at inference
MERGES = {
    "Add": "add",
    "Multiply": "multiply",
    "Concatenate": "concatenate",
    "Maximum": "maximum",
    "Average": "average",
}


def describe(model: keras.Model) -> list[Step]:
    """Returns the operations of a segmentor in an order in which they can be run.

    Args:
        model: A segmentor that was built for a fixed image size.

    Raises:
        UserError: If the peers do not support a layer.
    """
    steps = []
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            steps.append(Step(layer.name, "input", ()))
            continue
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        inputs = tuple(value._keras_history.operation.name for value in given)
        steps.append(_step(layer, inputs))
    return _needed(steps, model.outputs[0]._keras_history.operation.name)


def _needed(steps: list[Step], last: str) -> list[Step]:
    """Returns the steps that the last one depends on. They do not include the auxiliary head."""
    needed, kept = {last}, []
    for step in reversed(steps):
        if step.name in needed:
            kept.append(step)
            needed.update(step.inputs)
    return kept[::-1]


def _step(layer: keras.layers.Layer, inputs: tuple[str, ...]) -> Step:
    kind = type(layer).__name__
    if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
        return _convolution(layer, inputs)
    if isinstance(layer, keras.layers.BatchNormalization):
        arrays = {
            name: getattr(layer, name)
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        }
        weights = {name: np.asarray(value) for name, value in arrays.items()}
        return Step(layer.name, "batch_norm", inputs, {"epsilon": layer.epsilon}, weights)
    if isinstance(layer, layers.ResizeTo):
        return Step(
            layer.name,
            "resize",
            inputs[:1],
            {"size": layer.output.shape[1:3], "align_corners": layer.align_corners},
        )
    if isinstance(layer, layers.WindowPooling):
        return Step(
            layer.name, "window_pool", inputs, {"size": layer.pool_size, "strides": layer.strides}
        )
    if isinstance(layer, layers.Normalize):
        return Step(layer.name, "normalize", inputs, {"mean": layer.mean, "std": layer.std})
    if kind == "ReLU":
        return Step(layer.name, "relu6" if layer.max_value else "relu", inputs)
    if kind == "Activation":
        return Step(layer.name, layer.activation.__name__, inputs)
    if kind == "ZeroPadding2D":
        return Step(layer.name, "pad", inputs, {"margins": layer.padding})
    if kind == "GlobalAveragePooling2D":
        return Step(layer.name, "global_pool", inputs)
    if kind == "AdaptiveAveragePooling":
        return Step(layer.name, "adaptive_pool", inputs, {"bins": layer.bins})
    if kind in MERGES:
        return Step(layer.name, MERGES[kind], inputs)
    if kind in SAME or kind == "AuxiliaryOutputs":
        return Step(layer.name, "same", inputs[:1])
    raise UserError(
        f"--against=torch does not support layers of type {kind}. Received: layer {layer.name}; "
        "leave out torch for this model"
    )


def _convolution(layer: Any, inputs: tuple[str, ...]) -> Step:
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    lengths, margins = layer.input.shape[1:3], []
    for length, kernel, stride, dilation in zip(
        lengths, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
    ):
        reach = dilation * (kernel - 1)
        total = (
            max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
            if layer.padding == "same"
            else 0
        )
        margins.append((total // 2, total - total // 2))
    kernel = np.asarray(layer.kernel)
    # PyTorch's kernels are [out, in, height, width], Keras' [height, width, in, out], or [height,
    # width, channels, 1] if depthwise.
    arrays = {"kernel": kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(3, 2, 0, 1)}
    if layer.use_bias:
        arrays["bias"] = np.asarray(layer.bias)
    groups = len(arrays["kernel"]) if depthwise else 1
    settings = {
        "strides": layer.strides,
        "dilation": layer.dilation_rate,
        "margins": tuple(margins),
        "groups": groups,
    }
    return Step(layer.name, "conv", inputs, settings, arrays)
