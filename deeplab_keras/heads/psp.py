"""PSPNet's pyramid pooling (Zhao et al., arXiv:1612.01105)."""

from __future__ import annotations

import keras

from deeplab_keras.blocks import conv_bn_act, head_style
from deeplab_keras.config import ModelConfig
from deeplab_keras.heads.classifier import classify
from deeplab_keras.layers import AdaptiveAveragePooling, ResizeTo, Tensor


def psp(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """c5 beside its averages over 1, 2, 3 and 6 bins a side, a 3x3 convolution (spec/sssegmentation.md, section 4.2)."""
    x, style = features["c5"], head_style(config)
    levels = [x]
    for bins in config.pool_scales:
        pooled = AdaptiveAveragePooling(bins, name=f"psp{bins}_pool")(x)
        pooled = conv_bn_act(pooled, config.head_channels, name=f"psp{bins}", style=style)
        levels.append(ResizeTo(config.align_corners, name=f"psp{bins}_resize")([pooled, x]))
    y = keras.layers.Concatenate(name="psp_concat")(levels)
    return classify(conv_bn_act(y, config.head_channels, 3, name="psp_project", style=style), config)
