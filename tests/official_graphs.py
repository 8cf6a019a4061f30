"""Frozen graphs as the official export_model.py writes them, built from TF1 operations.

MobileNetV2 with ASPP, and MobileNetV3 with LR-ASPP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1
STRIDES = {
    "MobilenetV2": (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1),
    "MobilenetV3": (2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1),
}
RELU_BLOCKS = 3  # of MobileNetV3-small; the blocks behind them have hard-swish


@dataclasses.dataclass
class Builder:
    """Builds one graph; call it through `frozen`."""

    tensors: dict[str, np.ndarray]
    fold: bool

    def constant(self, value: Any, name: str) -> tf.Tensor:
        return tf.identity(tf.constant(value, name=name), name=f"{name}/read")

    def conv(
        self, x: tf.Tensor, layer: str, stride: int = 1, rate: int = 1, act: str = ""
    ) -> tf.Tensor:
        depthwise = f"{layer}/depthwise_weights" in self.tensors
        name = f"{layer}/{'depthwise_weights' if depthwise else 'weights'}"
        kernel = self.constant(self.tensors[name], name)
        size = kernel.shape[0]
        padding = "SAME"
        if depthwise and rate > 1:
            pad = (size - 1) * rate // 2
            more = [(-(int(length) + 2 * pad)) % rate for length in x.shape[1:3]]
            pads = [[pad, pad + more[0]], [pad, pad + more[1]]]
            x = tf.space_to_batch(x, [rate, rate], pads, name=f"{layer}/depthwise/SpaceToBatchND")
            padding = "VALID"
        if depthwise:
            y = tf.nn.depthwise_conv2d(
                x, kernel, (1, stride, stride, 1), padding, name=f"{layer}/depthwise"
            )
        else:
            y = tf.nn.conv2d(x, kernel, stride, padding, dilations=rate, name=f"{layer}/Conv2D")
        if padding == "VALID":
            crops = [[0, more[0]], [0, more[1]]]
            y = tf.batch_to_space(y, [rate, rate], crops, name=f"{layer}/depthwise/BatchToSpaceND")
        return self.activation(self.norm(y, layer), act, layer)

    def norm(self, y: tf.Tensor, layer: str) -> tf.Tensor:
        if f"{layer}/biases" in self.tensors:
            return tf.nn.bias_add(
                y,
                self.constant(self.tensors[f"{layer}/biases"], f"{layer}/biases"),
                name=f"{layer}/BiasAdd",
            )
        names = [
            f"{layer}/BatchNorm/{part}"
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        ]
        epsilon = 1e-3 if layer.startswith("Mobilenet") else 1e-5
        if self.fold:  # as left around dilated layers: a multiplication and an addition
            gamma, beta, mean, variance = (self.tensors[name] for name in names)
            scale = gamma / np.sqrt(variance + np.float32(epsilon))
            y = tf.multiply(y, tf.constant(scale), name=f"{layer}/BatchNorm/mul")
            return tf.add(y, tf.constant(beta - mean * scale), name=f"{layer}/BatchNorm/add")
        values = [self.constant(self.tensors[name], name) for name in names]
        return v1.nn.fused_batch_norm(
            y,
            *values,
            epsilon=epsilon,
            is_training=False,
            name=f"{layer}/BatchNorm/FusedBatchNormV3",
        )[0]

    def activation(self, x: tf.Tensor, kind: str, layer: str) -> tf.Tensor:
        if kind in ("Relu", "Relu6"):
            return getattr(tf.nn, kind.lower())(x, name=f"{layer}/{kind}")
        if kind == "gate":
            clipped = tf.nn.relu6(tf.add(x, 3.0, name=f"{layer}/add"), name=f"{layer}/Relu6")
            return tf.multiply(clipped, 0.16667, name=f"{layer}/mul")
        if kind == "hard_swish":
            clipped = tf.nn.relu6(
                tf.add(x, 3.0, name=f"{layer}/hard_swish/add"), name=f"{layer}/hard_swish/Relu6"
            )
            product = tf.multiply(x, clipped, name=f"{layer}/hard_swish/mul")
            return tf.multiply(product, np.float32(1 / 6), name=f"{layer}/hard_swish/mul_1")
        return x

    def backbone(self, x: tf.Tensor, output_stride: int) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        scope = next(name.partition("/")[0] for name in self.tensors)
        v3 = scope == "MobilenetV3"
        x = self.conv(x, f"{scope}/Conv", 2, 1, "hard_swish" if v3 else "Relu6")
        running, rate, taps = 2, 1, {}
        for block, stride in enumerate(STRIDES[scope]):
            layer = f"{scope}/expanded_conv" + (f"_{block}" if block else "")
            act = "Relu6" if not v3 else "Relu" if block < RELU_BLOCKS else "hard_swish"
            own_rate = rate
            if running * stride > output_stride:
                rate, stride = rate * stride, 1
            running *= stride
            y = (
                self.conv(x, f"{layer}/expand", act=act)
                if f"{layer}/expand/weights" in self.tensors
                else x
            )
            y = taps[layer] = self.conv(y, f"{layer}/depthwise", stride, own_rate, act)
            if f"{layer}/squeeze_excite/Conv/weights" in self.tensors:
                gate = tf.reduce_mean(y, [1, 2], keepdims=True, name=f"{layer}/squeeze_excite/Mean")
                gate = self.conv(gate, f"{layer}/squeeze_excite/Conv", act="Relu")
                gate = self.conv(gate, f"{layer}/squeeze_excite/Conv_1", act="gate")
                y = tf.multiply(y, gate, name=f"{layer}/squeeze_excite/mul")
            y = self.conv(y, f"{layer}/project")
            x = (
                tf.add(y, x, name=f"{layer}/add")
                if stride == 1 and y.shape[-1] == x.shape[-1]
                else y
            )
        return (self.conv(x, f"{scope}/Conv_1", act="hard_swish") if v3 else x), taps


def resize(x: tf.Tensor, size: tuple[int, int], name: str) -> tf.Tensor:
    return v1.image.resize_bilinear(x, size, align_corners=True, name=name)


def frozen(
    tensors: dict[str, np.ndarray],
    size: tuple[int, int],
    *,
    output_stride: int,
    rates: tuple[int, ...] = (),
    pool: tuple[tuple[int, int], tuple[int, int]] | None = None,
    fold: bool = False,
    raw: bool = True,
) -> tf.compat.v1.GraphDef:
    """Returns the graph of a network with these weights.

    Args:
        tensors: The weights by official name; they determine the architecture.
        size: (height, width) of the image.
        output_stride: Output stride of the backbone.
        rates: Atrous rates of ASPP.
        pool: Window and stride of image pooling; `None` for the whole map.
        fold: Folds batch norms into a multiplication and an addition.
        raw: The input is an image in 0..255 of at most `size`, which the graph pads. Otherwise the
            input is the normalized image.
    """
    build = Builder(tensors, fold)
    with tf.Graph().as_default() as graph:
        if raw:
            image = v1.placeholder(tf.uint8, (1, None, None, 3), name="ImageTensor")
            x = tf.cast(tf.squeeze(image, 0), tf.float32)
            shape = tf.shape(x)
            pads = [[0, size[0] - shape[0]], [0, size[1] - shape[1]], [0, 0]]
            x = tf.expand_dims(tf.pad(x - 127.5, pads) + 127.5, 0)
            x = tf.subtract(tf.multiply(np.float32(2 / 255), x, name="scale"), 1.0, name="shift")
            x.set_shape((1, *size, 3))
        else:
            x = v1.placeholder(tf.float32, (1, *size, 3), name="sub_7")
        features, taps = build.backbone(x, output_stride)
        height, width = map(int, features.shape[1:3])
        window, strides = pool or ((height, width), (1, 1))
        pooled = tf.nn.avg_pool2d(features, window, strides, "VALID", name="AvgPool2D/AvgPool")
        if "concat_projection/weights" in tensors:
            branches = [
                resize(
                    build.conv(pooled, "image_pooling", act="Relu"),
                    (height, width),
                    "ResizeBilinear",
                )
            ]
            branches.append(build.conv(features, "aspp0", act="Relu"))
            for index, rate in enumerate(rates, 1):
                y = build.conv(features, f"aspp{index}_depthwise", 1, rate, "Relu")
                branches.append(build.conv(y, f"aspp{index}_pointwise", act="Relu"))
            y = build.conv(tf.concat(branches, 3, name="concat"), "concat_projection", act="Relu")
            scores = build.conv(y, "logits/semantic")
        else:
            gate = resize(
                build.conv(pooled, "image_pooling", act="gate"), (height, width), "ResizeBilinear"
            )
            low = taps["MobilenetV3/expanded_conv_2"]
            y = tf.multiply(build.conv(features, "aspp0", act="Relu"), gate, name="mul_1")
            low_scores = build.conv(low, "decoder/feature_projection0")
            y = resize(y, tuple(map(int, low.shape[1:3])), "decoder/ResizeBilinear")
            scores = tf.add(build.conv(y, "decoder/decoder_conv0"), low_scores, name="decoder/add")
        scores = resize(scores, size, "ResizeBilinear_2")
        tf.argmax(scores, 3, name="ArgMax")
    return graph.as_graph_def()


def run(graph: tf.compat.v1.GraphDef, image: np.ndarray) -> np.ndarray:
    """Returns the logits of a uint8 image `[height, width, 3]`."""
    with tf.Graph().as_default() as own:
        tf.import_graph_def(graph, name="")
        with v1.Session(graph=own) as session:
            if any(node.name == "ImageTensor" for node in graph.node):
                return session.run("ResizeBilinear_2:0", {"ImageTensor:0": image[None]})
            return session.run(
                "ResizeBilinear_2:0",
                {"sub_7:0": image[None].astype(np.float32) / np.float32(127.5) - 1},
            )


def tflite(
    graph: tf.compat.v1.GraphDef,
    output: str = "ArgMax:0",
    *,
    half: bool = False,
    images: Sequence[np.ndarray] = (),
) -> bytes:
    """Returns the graph as a TFLite file.

    Args:
        graph: A graph that takes the normalized image.
        output: The output tensor.
        half: Whether the weights are float16.
        images: Normalized images `[1, height, width, 3]` from which the ranges of an 8-bit file are
            computed.
    """

    def imported(image: tf.Tensor) -> list[tf.Tensor]:
        return tf.import_graph_def(
            graph, input_map={"sub_7:0": image}, return_elements=[output], name=""
        )

    (placeholder,) = (node for node in graph.node if node.name == "sub_7")
    shape = [dim.size for dim in placeholder.attr["shape"].shape.dim]
    function = tf.function(
        imported, input_signature=[tf.TensorSpec(shape, tf.float32, name="image")]
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    if half:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    if images:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: [[image] for image in images]
    return converter.convert()
