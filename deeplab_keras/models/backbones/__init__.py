"""Backbones by name.

A backbone is a function `(image, config) -> features`. It takes a normalized image,
`[batch, height, width, channels]`, and returns a dict of features by name:

* `c1` to `c5`: the last outputs at nominal stride 2, 4, 8, 16 and 32. Stages after the network's
  output stride keep the size of that stride.
* `block<i>`: the output of block i.
* `block<i>_depthwise`: the features of block i after its depthwise convolution.
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
    """Builds the backbone of a config on a normalized image, and returns its features by name."""
    return BACKBONES[config.backbone](image, config)
