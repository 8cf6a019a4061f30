"""Quantization-aware training: convolutions compute with inputs and kernels rounded to int8.

The rounding is that of an int8 TFLite file (Jacob et al. 2018, https://arxiv.org/abs/1712.05877):

* A kernel has one scale per output channel and is symmetric around 0.
* A layer's input has one scale and zero point, for a range that follows the data.
* The gradient passes through the rounding unchanged, and is 0 where a value was clipped.

Batch norm does not have to be folded into the kernel. Folding multiplies each channel and its scale
by the same factor, so the same values are rounded to the same steps.

The network keeps the names of its layers and thus its weight file. Each quantized layer adds the
ranges of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import keras
from keras import ops

from deeplab_keras.models.layers import PACKAGE, ResizeTo, Tensor

BITS = 8
MOMENTUM = 0.99  # momentum of the ranges
# Names of the variables that a quantized layer adds.
RANGES = ("input_low", "input_high", "input_batches")
WITH_KERNEL = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
T = TypeVar("T")


def round_within(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Rounds `x` to the 256 values of an int8 tensor for the range [low, high].

    The range is shifted so that 0 is one of the values.
    """
    low, high = ops.minimum(low, 0.0), ops.maximum(high, 1e-6)
    return keras.quantizers.fake_quant_with_min_max_vars(x, low, high, num_bits=BITS)


def round_kernel(kernel: Tensor, depthwise: bool) -> Tensor:
    """Rounds a kernel to 255 values per output channel, symmetric around 0.

    Args:
        kernel: `[height, width, in, out]`, or `[height, width, channels, multiplier]` for a
            depthwise kernel, which has `channels * multiplier` output channels.
        depthwise: Whether the kernel is a depthwise kernel.
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
    """Wraps a layer so that it computes with 8-bit inputs and an 8-bit kernel; keeps its name.

    In training, the range of an input is the running mean of the batches' smallest and largest
    values.

    Args:
        layer: The layer to wrap.
        **kwargs: Arguments of every layer.
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(layer, **{"name": layer.name, "dtype": layer.dtype_policy, **kwargs})

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        has_several = isinstance(input_shape[0], list | tuple)
        # The second input of ResizeTo only has the size.
        count = len(input_shape) if has_several and not isinstance(self.layer, ResizeTo) else 1
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
            self._update_ranges(several[:count])
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
        # The layer uses the rounded kernel instead of its variable.
        with keras.StatelessScope(state_mapping=[(self.layer.kernel, kernel)]):
            return self.layer(layer_inputs)

    def _update_ranges(self, inputs: list[Tensor]) -> None:
        """Updates the ranges with a batch. The first batches are averaged with equal weights."""
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
        # The ranges of a network that has not been trained yet are unknown.
        return ops.cond(
            self.batches[index] > 0,
            lambda: round_within(x, low, high),
            lambda: ops.convert_to_tensor(x),
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)


def quantized(model: keras.Model) -> keras.Model:
    """Returns a clone of a segmentor, with new weights, whose layers compute in 8 bits.

    It quantizes the inputs of convolutions, sums, products, activations that TFLite does not fuse
    into a convolution (such as hard-swish), and the last resize of the logits. All other layers
    stay the same.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        copy = type(layer).from_config(layer.get_config())
        kinds = (*WITH_KERNEL, keras.layers.Add, keras.layers.Multiply, keras.layers.Activation)
        return Quantized(copy) if isinstance(copy, kinds) or copy.name == "resized_logits" else copy

    return keras.models.clone_model(model, clone_function=clone)


def without_ranges(weights: Mapping[str, T]) -> dict[str, T]:
    """Returns the weights of a network by name, without those that quantization added."""
    return {name: value for name, value in weights.items() if name.rpartition("/")[2] not in RANGES}
