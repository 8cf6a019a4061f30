"""MobileNetV2 (Sandler et al., arXiv:1801.04381) without its last convolution (1280 channels)."""

from __future__ import annotations

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.backbones.dilation import StridePlan
from deeplab_keras.models.blocks import (
    backbone_style,
    conv_bn_act,
    inverted_residual,
    make_divisible,
)
from deeplab_keras.models.layers import Tensor

# Expansion, output channels, blocks, stride of the first block (table 2 of the paper).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(image: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the features c1 to c5, and those of the blocks 1 to 17.

    At depth multiplier 1, c1 to c5 have 16, 24, 32, 96 and 320 channels.
    """
    style = backbone_style(config)
    plan = StridePlan(config)

    def width(channels: int) -> int:
        return make_divisible(channels * config.depth_multiplier, config.channel_divisor)

    stride, _ = plan.next(2)
    x = conv_bn_act(image, width(32), 3, name="stem", style=style, act="relu6", stride=stride)
    features = {plan.level: x}
    index = 0
    for expansion, channels, blocks, stage_stride in STAGES:
        for block in range(blocks):
            index += 1
            table_stride = stage_stride if block == 0 else 1
            stride, dilation = plan.next(table_stride, first_of_stage=block == 0)
            inputs = int(x.shape[-1])
            x, tap = inverted_residual(
                x,
                width(channels),
                name=f"block{index}",
                style=style,
                expanded=make_divisible(inputs * expansion, 8) if expansion > 1 else inputs,
                stride=stride,
                dilation=dilation,
                residual=(table_stride if config.residual_by_table else stride) == 1,
            )
            features |= {plan.level: x, f"block{index}": x, f"block{index}_depthwise": tap}
    return features
