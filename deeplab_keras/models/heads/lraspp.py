"""LR-ASPP, the lightweight head of MobileNetV3 (Howard et al., arXiv:1905.02244, section 6.4)."""

from __future__ import annotations

import keras

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.blocks import activation, batch_norm, conv, conv_bn_act, head_style
from deeplab_keras.models.heads.aspp import image_pooling
from deeplab_keras.models.heads.classifier import classify
from deeplab_keras.models.layers import ResizeTo, Tensor


def lraspp(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Multiplies a 1x1 convolution of c5 by a gate, then merges low-level features.

    The gate is pooled from c5. With `low_level_channels`, the low-level features are concatenated
    one after another, as in SSSegmentation (docs/reference/sssegmentation.md#lr-aspp-head).
    Otherwise, the class scores of a single low-level feature are added, as in the paper, the
    official DeepLab (docs/reference/official_deeplab.md#lr-aspp) and torchvision.
    """
    x, style = features["c5"], head_style(config)
    act = "relu6" if config.use_bounded_activation else "relu"
    y = conv_bn_act(x, config.head_channels, name="aspp0", style=style, act=act)
    y = keras.layers.Multiply(name="gate_multiply")([y, _gate(x, config)])
    if config.low_level_channels:
        return _concatenating_decoder(y, features, config)
    return _summing_decoder(y, features, config)


def _gate(x: Tensor, config: ModelConfig) -> Tensor:
    style, gate = head_style(config), image_pooling(x, config)
    gate = conv(
        gate,
        config.head_channels,
        name="image_pooling_conv",
        style=style,
        use_bias=config.image_pooling_bias,
    )
    if config.image_pooling_batch_norm:
        gate = batch_norm(gate, name="image_pooling_bn", style=style)
    gate = activation(gate, config.image_pooling_gate, "image_pooling_act")
    return ResizeTo(config.align_corners, name="image_pooling_resize")([gate, x])


def _concatenating_decoder(y: Tensor, features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    style = head_style(config)
    y = conv(y, config.head_channels, name="bottleneck", style=style)
    for index, (key, channels) in enumerate(
        zip(config.low_level_features, config.low_level_channels, strict=True)
    ):
        low = conv(features[key], channels, name=f"branch{index}", style=style)
        y = ResizeTo(config.align_corners, name=f"branch{index}_resize")([y, low])
        y = keras.layers.Concatenate(name=f"branch{index}_concat")([y, low])
        y = conv_bn_act(y, config.head_channels, name=f"branch{index}_merge", style=style)
    return classify(y, config)


def _summing_decoder(y: Tensor, features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    style, low = head_style(config), features[config.low_level_features[0]]
    y = ResizeTo(config.align_corners, name="high_resize")([y, low])
    scores = [
        conv(
            part,
            config.num_classes,
            name=name,
            style=style,
            use_bias=True,
            dtype=keras.config.floatx(),
        )
        for part, name in ((y, "logits_high"), (low, "logits_low"))
    ]
    return keras.layers.Add(name="logits", dtype=keras.config.floatx())(scores)
