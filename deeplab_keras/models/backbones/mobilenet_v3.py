"""MobileNetV3 large and small (Howard et al., arXiv:1905.02244), and their `_seg` variants.

The last stage of the `_seg` variants has half the channels.
"""

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

RE, HS = "relu", "hard_swish"

# Kernel, expanded channels, output channels, squeeze-and-excite, activation, stride (tables 1 and 2
# of the paper).
Row = tuple[int, int, int, bool, str, int]

LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
)
LARGE_END: tuple[Row, ...] = (
    (5, 672, 160, True, HS, 2),
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
)
LARGE_SEG_END: tuple[Row, ...] = (
    (5, 336, 80, True, HS, 2),
    (5, 480, 80, True, HS, 1),
    (5, 480, 80, True, HS, 1),
)

SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
)
SMALL_END: tuple[Row, ...] = (
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
)
SMALL_SEG_END: tuple[Row, ...] = (
    (5, 144, 48, True, HS, 2),
    (5, 288, 48, True, HS, 1),
    (5, 288, 48, True, HS, 1),
)


def mobilenet_v3_large(image: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the features c1 to c5, and those of the blocks 1 to 15.

    At depth multiplier 1, c1 to c5 have 16, 24, 40, 112 and 960 channels.
    """
    return _mobilenet_v3(image, config, LARGE + LARGE_END, last_channels=960)


def mobilenet_v3_small(image: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the features c1 to c5, and those of the blocks 1 to 11.

    At depth multiplier 1, c1 to c5 have 16, 16, 24, 48 and 576 channels.
    """
    return _mobilenet_v3(image, config, SMALL + SMALL_END, last_channels=576)


def mobilenet_v3_large_seg(image: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the features of the official DeepLab's large variant, whose c5 has 480 channels.

    See docs/reference/official_deeplab.md#mobilenetv3-large-seg.
    """
    return _mobilenet_v3(image, config, LARGE + LARGE_SEG_END, last_channels=480)


def mobilenet_v3_small_seg(image: Tensor, config: ModelConfig) -> dict[str, Tensor]:
    """Returns the features of the official DeepLab's small variant, whose c5 has 288 channels.

    See docs/reference/official_deeplab.md#mobilenetv3-small-seg.
    """
    return _mobilenet_v3(image, config, SMALL + SMALL_SEG_END, last_channels=288)


def _mobilenet_v3(
    image: Tensor, config: ModelConfig, rows: tuple[Row, ...], last_channels: int
) -> dict[str, Tensor]:
    style = backbone_style(config)
    plan = StridePlan(config)

    def width(channels: float) -> int:
        return make_divisible(channels * config.depth_multiplier, 8)

    stride, _ = plan.next(2)
    x = conv_bn_act(image, width(16), 3, name="stem", style=style, act=HS, stride=stride)
    features = {plan.level: x}
    nominal_inputs = 16
    for index, (kernel_size, expanded, channels, se, act, table_stride) in enumerate(rows, start=1):
        stride, dilation = plan.next(table_stride)
        # The table's expansion relative to the block's input, so that it scales with the width.
        expanded = make_divisible(int(x.shape[-1]) * expanded / nominal_inputs, 8)
        x, tap = inverted_residual(
            x,
            width(channels),
            name=f"block{index}",
            style=style,
            expanded=expanded,
            kernel_size=kernel_size,
            stride=stride,
            dilation=dilation,
            se_channels=make_divisible(expanded // 4, 8) if se else 0,
            act=act,
            residual=(table_stride if config.residual_by_table else stride) == 1,
        )
        nominal_inputs = channels
        features |= {plan.level: x, f"block{index}": x, f"block{index}_depthwise": tap}
    features[plan.level] = conv_bn_act(x, width(last_channels), name="last", style=style, act=HS)
    return features
