"""A convolution over concatenated feature maps, computed map by map.

A convolution is linear, so the convolution over concatenated maps is the sum of one convolution per
map, each with its part of the kernel. This avoids the copy, and a part of the kernel fits into the
processor's cache. A small map that would be enlarged before the convolution is first summed over
its channels at its own size, and only these sums are enlarged. Such pooled maps have four fifths of
the channels in PSPNet's projection, and one fifth in ASPP's. The result is the same except for the
order of summation.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from deeplab_keras.models.layers import PACKAGE, Conv2D, Tensor, interpolation, resize_bilinear


@keras.saving.register_keras_serializable(PACKAGE)
class ConcatConv2D(Conv2D):
    """Computes `Conv2D(...)(Concatenate()(maps))` for a list of maps, with padding "same".

    Strides and dilation are not supported. The kernel has the same shape as that of the `Conv2D`:
    `[height, width, channels of all maps in their order, filters]`.

    Args:
        filters: See `Conv2D`.
        kernel_size: See `Conv2D`.
        resized: Indices of the maps that are resized, bilinearly, to the size of the others before
            the convolution.
        align_corners: How they are resized, see `layers.ResizeTo`.
        concatenated: Whether to concatenate the maps and compute a single convolution. 8-bit files
            need this, because each of several sums would be rounded.
        **kwargs: Other arguments of `Conv2D`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        resized: tuple[int, ...] = (),
        align_corners: bool = False,
        concatenated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **{"padding": "same", **kwargs})
        self.resized, self.align_corners = tuple(resized), align_corners
        self.concatenated = concatenated
        self.input_spec = None  # the one of Conv2D requires a single input

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        super().build((*input_shape[0][:-1], sum(shape[-1] or 0 for shape in input_shape)))
        self.input_spec = None

    def call(self, inputs: list[Tensor]) -> Tensor:
        kernel, first = ops.convert_to_tensor(self.kernel), 0
        size = ops.shape(inputs[self._reference(len(inputs))])[1:3]
        if self.concatenated:
            maps = [
                resize_bilinear(x, size, self.align_corners) if index in self.resized else x
                for index, x in enumerate(inputs)
            ]
            return super().call(ops.concatenate(maps, axis=-1))
        total = None
        for index, x in enumerate(inputs):
            part = kernel[:, :, first : first + x.shape[-1]]
            first += x.shape[-1]
            y = (
                self._resized_conv(x, part, size)
                if index in self.resized
                else self.convolution_op(x, part)
            )
            total = y if total is None else total + y
        return total + ops.convert_to_tensor(self.bias) if self.use_bias else total

    def _reference(self, count: int) -> int:
        return next(index for index in range(count) if index not in self.resized)

    def _resized_conv(self, x: Tensor, kernel: Tensor, size: tuple[Any, Any]) -> Tensor:
        """Returns the convolution over `x` resized to `size`.

        Computes each tap of the kernel at the size of `x`, then resizes and shifts it.
        """
        (rows, columns), channels = self.kernel_size, x.shape[-1]
        height, width = ops.shape(x)[1:3]
        taps = ops.reshape(
            ops.transpose(kernel, (2, 0, 1, 3)), (channels, rows * columns * self.filters)
        )
        # Sums are computed in float32, also in half precision.
        dtype = "float64" if self.compute_dtype == "float64" else "float32"
        y = ops.cast(ops.matmul(ops.reshape(x, (-1, height * width, channels)), taps), dtype)
        y = ops.reshape(y, (-1, height, width, rows, columns * self.filters))
        y = ops.reshape(
            ops.transpose(y, (0, 3, 1, 2, 4)), (-1, rows * height, width * columns * self.filters)
        )
        y = ops.matmul(self._shifted(height, size[0], rows, dtype), y)
        y = ops.reshape(y, (-1, size[0], width, columns, self.filters))
        y = ops.reshape(
            ops.transpose(y, (0, 1, 3, 2, 4)), (-1, size[0], columns * width, self.filters)
        )
        return ops.cast(
            ops.matmul(self._shifted(width, size[1], columns, dtype), y), self.compute_dtype
        )

    def _shifted(self, source: Any, target: Any, taps: int, dtype: str) -> Tensor:
        """Returns weights that resize a side and shift each tap, `[target, taps * source]`.

        Samples from outside the side are 0.
        """
        before = (taps - 1) // 2
        weights = ops.pad(
            interpolation(source, target, self.align_corners, dtype),
            ((before, taps - 1 - before), (0, 0)),
        )
        return ops.concatenate([weights[tap : tap + target] for tap in range(taps)], axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        if not isinstance(input_shape[0], list | tuple):
            # The shape of the concatenated maps, with which `build` calls the base class.
            return super().compute_output_shape(input_shape)
        return (*input_shape[self._reference(len(input_shape))][:3], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "resized": self.resized,
            "align_corners": self.align_corners,
            "concatenated": self.concatenated,
        }
