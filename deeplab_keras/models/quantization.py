"""Quantization-aware training: a network whose convolutions see their inputs and kernels as an int8 file will have them.

A kernel is rounded with a scale for each of its channels, symmetric around 0; what goes into a
layer with one scale and zero point, over a range that follows the data. So does TFLite. Batch norm
needs no folding for that: folded, it multiplies each channel of the kernel by a number, and that
channel's scale with it, so that the same values round to the same steps. The gradient passes
through the rounding as if there were none, and is 0 where a value was cut off (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877).

The network keeps its layers' names, and so its weight file; each quantized layer adds the ranges of
its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import keras
from keras import ops

from deeplab_keras.models.layers import PACKAGE, ResizeTo, Tensor

BITS = 8
MOMENTUM = 0.99  # of the ranges
RANGES = (
    "input_low",
    "input_high",
    "input_batches",
)  # names of the variables that a quantized layer adds
WITH_KERNEL = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
T = TypeVar("T")


def round_within(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """`x` rounded to the 256 values of an int8 tensor for the range [low, high], which is moved so that 0 is one of them."""
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 1e-6)
    return keras.quantizers.fake_quant_with_min_max_vars(x, low, high, num_bits=BITS)


def round_kernel(kernel: Tensor, depthwise: bool) -> Tensor:
    """A kernel `[height, width, in, out]` rounded to 255 values for each output channel, symmetric around 0.

    A depthwise kernel, `[height, width, channels, multiplier]`, has `channels * multiplier` output
    channels.
    """
    shape = tuple(kernel.shape)
    flat = ops.reshape(kernel, (-1, shape[2] * shape[3] if depthwise else shape[3]))
    largest = ops.maximum(ops.max(ops.abs(flat), axis=0), 1e-12)
    largest = keras.ops.stop_gradient(largest)
    rounded = keras.quantizers.fake_quant_with_min_max_vars(
        flat, -largest, largest, num_bits=BITS, narrow_range=True, axis=1
    )
    return ops.reshape(rounded, shape)


@keras.saving.register_keras_serializable(PACKAGE)
class Quantized(keras.layers.Wrapper):
    """A layer that gets its input, or each of several, and its kernel in 8 bits; it has the layer's name.

    In training, the range of an input is the running mean of the batches' smallest and largest
    values.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(layer, **{"name": layer.name, "dtype": layer.dtype_policy, **kwargs})

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        count = (
            len(input_shape) if isinstance(input_shape[0], list | tuple) else 1
        )  # of several inputs, a shape each
        count = (
            1 if isinstance(self.layer, ResizeTo) else count
        )  # its second input only tells the size
        self.low, self.high, self.batches = (
            self.add_weight(
                shape=(count,),
                initializer="zeros",
                trainable=False,
                dtype="float32",
                autocast=False,
                aggregation="mean",
                name=name,
            )
            for name in RANGES
        )

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        several = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        count = int(self.low.shape[0])
        if training:
            self._follow(several[:count])
        rounded = [
            self._round(x, index, training) for index, x in enumerate(several[:count])
        ] + several[count:]
        layer_inputs = rounded if isinstance(inputs, list | tuple) else rounded[0]
        if not isinstance(self.layer, WITH_KERNEL):
            return self.layer(layer_inputs)
        kernel = round_kernel(
            ops.convert_to_tensor(self.layer.kernel),
            isinstance(self.layer, keras.layers.DepthwiseConv2D),
        )
        with keras.StatelessScope(
            state_mapping=[(self.layer.kernel, kernel)]
        ):  # the layer reads this in its place
            return self.layer(layer_inputs)

    def _follow(self, inputs: list[Tensor]) -> None:
        """Moves the ranges towards those of this batch; the first batches count as in a plain mean."""
        inputs = [ops.cast(ops.stop_gradient(x), "float32") for x in inputs]
        lows, highs = (
            ops.stack([ops.min(x) for x in inputs]),
            ops.stack([ops.max(x) for x in inputs]),
        )
        share = ops.maximum(1 / (self.batches + 1), 1 - MOMENTUM)
        self.low.assign(self.low + share * (lows - self.low))
        self.high.assign(self.high + share * (highs - self.high))
        self.batches.assign(self.batches + 1)

    def _round(self, x: Tensor, index: int, training: bool | None) -> Tensor:
        low, high = (ops.convert_to_tensor(value)[index] for value in (self.low, self.high))
        if training:
            return round_within(x, low, high)
        # Of a network that has not been trained yet no range is known.
        return ops.cond(
            self.batches[index] > 0,
            lambda: round_within(x, low, high),
            lambda: ops.convert_to_tensor(x),
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)


def quantized(model: keras.Model) -> keras.Model:
    """A clone of a segmentor, with fresh weights, whose layers compute with inputs and kernels in 8 bits.

    Quantized are convolutions, sums and products, activations that are no part of a convolution in
    TFLite (hard-swish and its like), and the logits before their last resize. Everything else
    passes on what it got.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        copy = type(layer).from_config(layer.get_config())
        kinds = (*WITH_KERNEL, keras.layers.Add, keras.layers.Multiply, keras.layers.Activation)
        return Quantized(copy) if isinstance(copy, kinds) or copy.name == "resized_logits" else copy

    return keras.models.clone_model(model, clone_function=clone)


def without_ranges(weights: Mapping[str, T]) -> dict[str, T]:
    """The weights of a network, by name, less what quantization added to them."""
    return {name: value for name, value in weights.items() if name.rpartition("/")[2] not in RANGES}
