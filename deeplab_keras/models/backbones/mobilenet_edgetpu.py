"""MobileNet EdgeTPU, a variant of MobileNetV3.

Its early blocks fuse the expansion and the depthwise convolution. The official DeepLab uses slim's
`V3_EDGETPU` (research/slim/nets/mobilenet/mobilenet_v3.py, see
docs/reference/official_deeplab.md#mobilenet-edgetpu).
"""

from __future__ import annotations

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.backbones.dilation import StridePlan
from deeplab_keras.models.blocks import (
    backbone_style,
    conv_bn_act,
    fused_inverted_residual,
    inverted_residual,
    make_divisible,
)
from deeplab_keras.models.layers import Tensor

# Blocks 1 to 22: fused, expansion, output channels, kernel size, stride, residual.
Row = tuple[bool, int, int, int, int, bool]
FUSED, SEPARATE = True, False

ROWS: tuple[Row, ...] = (
    (FUSED, 1, 16, 3, 1, True),
    (FUSED, 8, 32, 3, 2, True),
    *3 * ((FUSED, 4, 32, 3, 1, True),),
    (FUSED, 8, 48, 3, 2, True),
    *3 * ((FUSED, 4, 48, 3, 1, True),),
    (SEPARATE, 8, 96, 3, 2, True),
    *3 * ((SEPARATE, 4, 96, 3, 1, True),),
    (SEPARATE, 8, 96, 3, 1, False),
    *3 * ((SEPARATE, 4, 96, 3, 1, True),),
    (SEPARATE, 8, 160, 5, 2, True),
    *3 * ((SEPARATE, 4, 160, 5, 1, True),),
    (SEPARATE, 8, 192, 3, 1, True),
)


def mobilenet_edgetpu(image: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the features c1 to c5, and those of the blocks 1 to 22.

    At depth multiplier 1, c1 to c5 have 16, 32, 48, 96 and 1280 channels. With
    `finegrain_classification_mode`, c5 has 1280 channels at every depth multiplier.
    """
    style = backbone_style(config)
    plan = StridePlan(config)

    def width(channels: int) -> int:
        return make_divisible(channels * config.depth_multiplier, 8)

    stride, _ = plan.next(2)
    x = conv_bn_act(image, width(32), 3, name="stem", style=style, act="relu", stride=stride)
    features = {plan.level: x}
    for index, (fused, expansion, channels, kernel_size, table_stride, may_add) in enumerate(
        ROWS, start=1
    ):
        stride, dilation = plan.next(table_stride)
        block = fused_inverted_residual if fused else inverted_residual
        x, tap = block(
            x,
            width(channels),
            name=f"block{index}",
            style=style,
            expanded=make_divisible(int(x.shape[-1]) * expansion, 8),
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            act="relu",
            residual=may_add and (table_stride if config.residual_by_table else stride) == 1,
        )
        features |= {plan.level: x, f"block{index}": x, f"block{index}_depthwise": tap}
    last = 1280 if config.finegrain_classification_mode else width(1280)
    features[plan.level] = conv_bn_act(x, last, name="last", style=style, act="relu")
    return features
