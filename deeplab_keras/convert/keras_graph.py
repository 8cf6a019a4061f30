"""Reads one of our models as a `Graph`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from deeplab_keras.convert.graphs import ConvolutionGraph, Graph, Op, find_convolutions
from deeplab_keras.models.concat_conv import ConcatConv2D
from deeplab_keras.models.layers import ResizeTo, q_sigmoid

KINDS: dict[type, str] = {
    keras.layers.Add: "ADD", keras.layers.Multiply: "MUL", keras.layers.Concatenate: "CONCAT",
    keras.layers.ZeroPadding2D: "PAD", keras.layers.Dropout: "IDENTITY",
    keras.layers.SpatialDropout2D: "IDENTITY",
}  # fmt: skip
ACTIVATIONS: dict[Any, str] = {
    keras.activations.hard_silu: "HARD_SWISH", keras.activations.hard_sigmoid: "HARD_SIGMOID",
    q_sigmoid: "Q_SIGMOID", keras.activations.sigmoid: "SIGMOID",
}  # fmt: skip


def read_model(model: keras.Model) -> ConvolutionGraph:
    """Returns the convolutions of a segmentor. The first name of each is the layer's name."""
    constants: dict[str, Any] = {}
    ops = [
        op
        for layer, inputs, output in _calls(model)
        for op in _ops(layer, inputs, output, constants)
    ]

    def constant(name: str) -> np.ndarray | None:
        return keras.ops.convert_to_numpy(constants[name]) if name in constants else None

    return find_convolutions(
        Graph(ops, constant, _name(model.inputs[0]), (_name(model.outputs[0]),))
    )


def _calls(model: keras.Model) -> Iterator[tuple[Any, list[str], str]]:
    """Yields each layer with the names of its inputs and its output, in topological order."""
    for nodes in (
        model._nodes_by_depth[depth] for depth in sorted(model._nodes_by_depth, reverse=True)
    ):
        for node in nodes:
            if not node.is_input:
                yield (
                    node.operation,
                    [_name(tensor) for tensor in node.input_tensors],
                    _name(node.output_tensors[0]),
                )


def _name(tensor: Any) -> str:
    return f"tensor {id(tensor)}"


def _ops(layer: Any, inputs: list[str], output: str, constants: dict[str, Any]) -> Iterator[Op]:
    def own(*names: str) -> tuple[str, ...]:
        found = {f"{layer.name}/{name}": getattr(layer, name) for name in names}
        constants.update(found)
        return tuple(found)

    names = (layer.name,)
    if isinstance(layer, ConcatConv2D):
        resized = [
            f"{output} input {index}" if index in layer.resized else name
            for index, name in enumerate(inputs)
        ]
        for name, new in zip(inputs, resized, strict=True):
            if new != name:
                yield Op(
                    "RESIZE",
                    (name,),
                    new,
                    names,
                    {"align_corners": layer.align_corners, "half_pixel_centers": False},
                )
        yield Op("CONCAT", tuple(resized), f"{output} input", names)
        inputs = [f"{output} input"]
    if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
        kind = "DEPTHWISE" if isinstance(layer, keras.layers.DepthwiseConv2D) else "CONV"
        attributes = {
            "stride": layer.strides,
            "dilation": layer.dilation_rate,
            "padding": layer.padding,
        }
        yield Op(
            kind,
            (inputs[0], *own("kernel", *(("bias",) if layer.use_bias else ()))),
            output,
            names,
            attributes,
        )
    elif isinstance(layer, keras.layers.BatchNormalization):
        vectors = own("gamma", "beta", "moving_mean", "moving_variance")
        yield Op("BATCH_NORM", (inputs[0], *vectors), output, names, {"epsilon": layer.epsilon})
    elif isinstance(layer, keras.layers.ReLU):
        yield Op("RELU6" if layer.max_value else "RELU", (inputs[0],), output, names)
    elif isinstance(layer, keras.layers.Activation):
        yield Op(ACTIVATIONS.get(layer.activation, layer.name), (inputs[0],), output, names)
    elif isinstance(layer, ResizeTo):
        attributes = {
            "align_corners": layer.align_corners,
            "half_pixel_centers": not layer.align_corners,
        }
        yield Op("RESIZE", (inputs[0],), output, names, attributes)
    elif isinstance(layer, keras.layers.GlobalAveragePooling2D):
        yield Op("POOL", (inputs[0],), output, names, {"window": None, "stride": (1, 1)})
    elif isinstance(layer, keras.layers.AveragePooling2D):
        yield Op(
            "POOL",
            (inputs[0],),
            output,
            names,
            {"window": layer.pool_size, "stride": layer.strides},
        )
    else:
        yield Op(KINDS.get(type(layer), type(layer).__name__), tuple(inputs), output, names)
