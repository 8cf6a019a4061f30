"""The convolution over concatenated maps, computed map by map.

A convolution is linear, so that of concatenated maps is the sum of one a map, each with its part of
the kernel. Nothing is copied, and a part of the kernel stays in the processor's cache. Of a small
map that would be enlarged before, the sums over the channels are taken at its own size, and only
they are enlarged: in PSPNet's and ASPP's projections pooled maps are four fifths and one fifth of
the channels. The result is the same but for the order of its sums.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from deeplab_keras.models.layers import PACKAGE, Conv2D, Tensor, interpolation


@keras.saving.register_keras_serializable(PACKAGE)
class ConcatConv2D(Conv2D):
    """`Conv2D(...)(Concatenate()(maps))` for a list of maps, without a stride or dilation, padded to the maps' size.

    The kernel is that convolution's: `[height, width, channels of all maps in their order,
    filters]`.

    Args:
        filters: as of Conv2D.
        kernel_size: as of Conv2D.
        resized: which of the maps, by their place in the list, are resized before, bilinearly, to
            the size of the others.
        align_corners: how they are, see `layers.ResizeTo`.
        **kwargs: as of Conv2D.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        resized: tuple[int, ...] = (),
        align_corners: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **{"padding": "same", **kwargs})
        self.resized, self.align_corners = tuple(resized), align_corners
        self.input_spec = None  # Keras' own wants a single input

    def build(self, input_shape: list[tuple[int | None, ...]]) -> None:
        super().build((*input_shape[0][:-1], sum(shape[-1] or 0 for shape in input_shape)))
        self.input_spec = None

    def call(self, inputs: list[Tensor]) -> Tensor:
        kernel, first = ops.convert_to_tensor(self.kernel), 0
        size = ops.shape(inputs[self._reference(len(inputs))])[1:3]
        total = None
        for index, x in enumerate(inputs):
            part = kernel[:, :, first : first + x.shape[-1]]
            first += x.shape[-1]
            y = (
                self._of_small(x, part, size)
                if index in self.resized
                else self.convolution_op(x, part)
            )
            total = y if total is None else total + y
        return total + ops.convert_to_tensor(self.bias) if self.use_bias else total

    def _reference(self, count: int) -> int:
        return next(index for index in range(count) if index not in self.resized)

    def _of_small(self, x: Tensor, kernel: Tensor, size: tuple[Any, Any]) -> Tensor:
        """The convolution of `x` resized to `size`: each tap of the kernel at the size of `x`, then resized and moved."""
        (rows, columns), channels = self.kernel_size, x.shape[-1]
        height, width = ops.shape(x)[1:3]
        taps = ops.reshape(
            ops.transpose(kernel, (2, 0, 1, 3)), (channels, rows * columns * self.filters)
        )
        dtype = (
            "float64" if self.compute_dtype == "float64" else "float32"
        )  # of what is added up here, even in half precision
        y = ops.cast(ops.matmul(ops.reshape(x, (-1, height * width, channels)), taps), dtype)
        y = ops.reshape(y, (-1, height, width, rows, columns * self.filters))
        y = ops.reshape(
            ops.transpose(y, (0, 3, 1, 2, 4)), (-1, rows * height, width * columns * self.filters)
        )
        y = ops.matmul(self._moved(height, size[0], rows, dtype), y)
        y = ops.reshape(y, (-1, size[0], width, columns, self.filters))
        y = ops.reshape(
            ops.transpose(y, (0, 1, 3, 2, 4)), (-1, size[0], columns * width, self.filters)
        )
        return ops.cast(
            ops.matmul(self._moved(width, size[1], columns, dtype), y), self.compute_dtype
        )

    def _moved(self, source: Any, target: Any, taps: int, dtype: str) -> Tensor:
        """`[target, taps * source]`: the weights that resize a side, for each tap moved by its place, 0 from outside."""
        before = (taps - 1) // 2
        weights = ops.pad(
            interpolation(source, target, self.align_corners, dtype),
            ((before, taps - 1 - before), (0, 0)),
        )
        return ops.concatenate([weights[tap : tap + target] for tap in range(taps)], axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        if not isinstance(
            input_shape[0], list | tuple
        ):  # of the concatenated maps, as `build` asks
            return super().compute_output_shape(input_shape)
        return (*input_shape[self._reference(len(input_shape))][:3], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "resized": self.resized,
            "align_corners": self.align_corners,
        }
