"""Atrous spatial pyramid pooling (ASPP), and the heads of DeepLabV3 and DeepLabV3+.

DeepLabV3 is arXiv:1706.05587, DeepLabV3+ is arXiv:1802.02611.
"""

from __future__ import annotations

import keras

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.blocks import conv_bn_act, head_style, separable_conv_bn_act
from deeplab_keras.models.heads.classifier import classify
from deeplab_keras.models.heads.project import project
from deeplab_keras.models.layers import DATA_FORMAT, ResizeTo, Tensor, WindowPooling


def deeplab_v3(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Applies ASPP to c5, then the classifier.

    See docs/reference/sssegmentation.md#deeplabv3-head and docs/reference/official_deeplab.md#aspp.
    """
    x = aspp(features["c5"], config)
    for index in range(1, config.aspp_output_convs + 1):
        x = conv_bn_act(
            x,
            config.head_channels,
            3,
            name=f"aspp_output{index}",
            style=head_style(config),
            act=_activation(config),
        )
    return classify(x, config, rates=_classifier_rates(config))


def deeplab_v3_plus(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Applies ASPP to c5, merges the result with the low-level features, then the classifier.

    Two 3x3 convolutions merge each low-level feature. See
    docs/reference/sssegmentation.md#deeplabv3plus-head and
    docs/reference/official_deeplab.md#decoder.
    """
    x, act = aspp(features["c5"], config), _activation(config)
    for index, (key, channels) in enumerate(
        zip(config.low_level_features, config.low_level_channels, strict=True)
    ):
        name = "decoder" if index == 0 else f"decoder{index + 1}"
        channels = config.decoder_filters if config.decoder_use_sum_merge else channels
        low = conv_bn_act(
            features[key], channels, name=f"{name}_low_level", style=head_style(config), act=act
        )
        x = ResizeTo(config.align_corners, name=f"{name}_resize")([x, low])
        if config.decoder_use_sum_merge:
            x = keras.layers.Add(name=f"{name}_add")(
                [_decoder_conv(x, config, f"{name}_conv1"), low]
            )
        else:
            x = keras.layers.Concatenate(name=f"{name}_concat")([x, low])
            x = _decoder_conv(_decoder_conv(x, config, f"{name}_conv1"), config, f"{name}_conv2")
    return classify(x, config, rates=_classifier_rates(config))


def aspp(x: Tensor, config: ModelConfig) -> Tensor:
    """Computes the branches of ASPP in parallel, concatenates and projects them.

    The branches are a 1x1 convolution, a dilated 3x3 convolution for each of `atrous_rates`, and
    image pooling.
    """
    if not config.aspp_with_batch_norm:
        return x
    style, act, channels = head_style(config), _activation(config), config.head_channels
    branches = [conv_bn_act(x, channels, name="aspp0", style=style, act=act)]
    for index, rate in enumerate(config.atrous_rates, start=1):
        block = separable_conv_bn_act if config.aspp_with_separable_conv else conv_bn_act
        branches.append(
            block(x, channels, 3, name=f"aspp{index}", style=style, act=act, dilation=rate)
        )
    names = {}
    if config.add_image_level_feature:
        pooled = conv_bn_act(
            image_pooling(x, config), channels, name="image_pooling", style=style, act="relu"
        )
        place = 0 if config.image_pooling_first else len(branches)
        branches.insert(place, pooled)
        names[place] = "image_pooling_resize"
    y = project(branches, names, config, config.aspp_projection_kernel, name="aspp", act=act)
    if not config.aspp_projection_kernel:
        return y
    if config.dropout_placement == "aspp" and config.dropout_rate:
        y = keras.layers.Dropout(config.dropout_rate, name="aspp_dropout")(y)
    return y


def image_pooling(x: Tensor, config: ModelConfig) -> Tensor:
    """Averages over the whole map, `[batch, 1, 1, channels]`, or over a sliding window."""
    if not config.image_pooling_window:
        return keras.layers.GlobalAveragePooling2D(
            DATA_FORMAT, keepdims=True, name="image_pooling_pool"
        )(x)
    return WindowPooling(
        config.image_pooling_window,
        output_stride=config.output_stride,
        crop_size=config.image_pooling_crop_size,
        strides=config.image_pooling_stride or 1,
        padding="valid",
        name="image_pooling_pool",
    )(x)


def _classifier_rates(config: ModelConfig) -> tuple[int, ...]:
    return () if config.aspp_with_batch_norm else config.atrous_rates


def _decoder_conv(x: Tensor, config: ModelConfig, name: str) -> Tensor:
    block = separable_conv_bn_act if config.decoder_use_separable_conv else conv_bn_act
    return block(
        x, config.decoder_filters, 3, name=name, style=head_style(config), act=_activation(config)
    )


def _activation(config: ModelConfig) -> str:
    return "relu6" if config.use_bounded_activation else "relu"
