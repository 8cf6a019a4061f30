"""Converts strides into dilation rates once the output stride is reached, for all backbones."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config import ModelConfig


@dataclasses.dataclass
class StridePlan:
    """Returns the stride and dilation of each block in turn, beginning with the stem.

    `config.dilation_placement` selects one of three conventions, see
    docs/reference/sssegmentation.md#conventions and
    docs/reference/official_deeplab.md#output-stride-and-dilation.
    """

    config: ModelConfig
    stride: int = 1
    nominal_stride: int = 1
    dilation: int = 1

    def next(self, stride: int, first_of_stage: bool = True) -> tuple[int, int]:
        """Returns the stride and dilation of the next block; `stride` is the one in its table."""
        before = self.dilation
        self.nominal_stride *= stride
        if self.stride * stride > self.config.output_stride:
            self.dilation *= stride
            stride = 1
        self.stride *= stride
        if self.config.dilation_placement == "after":
            return stride, before
        if self.config.dilation_placement == "first" and not first_of_stage:
            return stride, 1
        return stride, self.dilation

    @property
    def level(self) -> str:
        """Name of the last block's feature, from c1 for nominal stride 2 to c5 for 32."""
        return f"c{self.nominal_stride.bit_length() - 1}"
