"""Backbones by name, and the contract they keep.

A backbone is a function `(image, config) -> dict[str, KerasTensor]`: from a normalised image
`[batch, height, width, channels]` to features by name. `c1` to `c5` are the last outputs at nominal
stride 2, 4, 8, 16 and 32; once the network's output stride is reached, later stages keep that size.
`block<i>` is the output of block i, `block<i>_depthwise` the same block's features after its
depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.backbones import mobilenet_edgetpu, mobilenet_v2, mobilenet_v3
from deeplab_keras.models.layers import Tensor

Features = dict[str, Tensor]

BACKBONES: dict[str, Callable[[Tensor, ModelConfig], Features]] = {
    "mobilenet_v2": mobilenet_v2.mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3.mobilenet_v3_small,
    "mobilenet_v3_large_seg": mobilenet_v3.mobilenet_v3_large_seg,
    "mobilenet_v3_small_seg": mobilenet_v3.mobilenet_v3_small_seg,
    "mobilenet_edgetpu": mobilenet_edgetpu.mobilenet_edgetpu,
}


def build_backbone(image: Tensor, config: ModelConfig) -> Features:
    """The features of `config.backbone` for a normalised image `[batch, height, width, channels]`."""
    return BACKBONES[config.backbone](image, config)
