"""Strides that become dilations once the output stride is reached: the one rule that all backbones share."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config import ModelConfig


@dataclasses.dataclass
class StridePlan:
    """Walks the blocks from the stem on and returns the stride and dilation that each block uses.

    `config.dilation_placement` selects one of three conventions
    (docs/reference/sssegmentation.md#conventions, docs/reference/official_deeplab.md#output-stride-and-dilation).
    """

    config: ModelConfig
    stride: int = 1
    nominal_stride: int = 1
    dilation: int = 1

    def next(self, stride: int, first_of_stage: bool = True) -> tuple[int, int]:
        """The stride and dilation of the next block, whose table gives `stride`."""
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
        """The feature key of the block just planned: c1 for nominal stride 2, to c5 for 32."""
        return f"c{self.nominal_stride.bit_length() - 1}"
