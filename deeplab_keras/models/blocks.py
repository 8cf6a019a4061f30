"""Functional building blocks of backbones and heads.

The `name` of a block is the prefix of the names of its weights: `<name>_conv/kernel`,
`<name>_bn/gamma` and so on. These names are the weight file's ABI.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.concat_conv import ConcatConv2D
from deeplab_keras.models.layers import (
    DATA_FORMAT,
    BatchNormalization,
    Conv2D,
    DepthwiseConv2D,
    Tensor,
    q_sigmoid,
)


@dataclasses.dataclass(frozen=True)
class BlockStyle:
    """The conventions of a model family that the blocks of a backbone or head need."""

    padding: str = "symmetric"
    bn_epsilon: float = 1e-5
    bn_momentum: float = 0.9
    gate: str = "hard_sigmoid"
    initialization: str = "pytorch"  # or "truncated_normal", "xavier"


def backbone_style(config: ModelConfig) -> BlockStyle:
    """Returns the conventions of the backbone's blocks."""
    return BlockStyle(
        padding=config.padding,
        bn_epsilon=config.backbone_bn_epsilon,
        bn_momentum=config.backbone_bn_momentum,
        gate="q_sigmoid" if config.q_sigmoid else "hard_sigmoid",
        initialization="pytorch" if config.initialization == "pytorch" else "truncated_normal",
    )


def head_style(config: ModelConfig) -> BlockStyle:
    """Returns the conventions of the head's blocks."""
    return BlockStyle(
        padding=config.padding,
        bn_epsilon=config.head_bn_epsilon,
        bn_momentum=config.head_bn_momentum,
        initialization="pytorch" if config.initialization == "pytorch" else "xavier",
    )


def make_divisible(value: float, divisor: int = 8) -> int:
    """Rounds `value` to a multiple of `divisor`, and never down by more than 10 %.

    This is the rule of MobileNetV2's reference code.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def activation(x: Tensor, kind: str | None, name: str) -> Tensor:
    """Applies an activation: a name of Keras or "q_sigmoid", or `None` for no activation."""
    if kind is None:
        return x
    if kind == "relu":
        return keras.layers.ReLU(name=name)(x)
    if kind == "relu6":
        return keras.layers.ReLU(max_value=6, name=name)(x)
    return keras.layers.Activation(q_sigmoid if kind == "q_sigmoid" else kind, name=name)(x)


def conv(
    x: Tensor,
    filters: int,
    kernel_size: int = 1,
    *,
    name: str,
    style: BlockStyle,
    stride: int = 1,
    dilation: int = 1,
    use_bias: bool = False,
    stddev: float | None = None,
    dtype: str | None = None,
) -> Tensor:
    """Applies a convolution with the padding and initial weights of the model family.

    `stddev` is the standard deviation of this layer's initial weights in the official DeepLab.
    """
    x, padding = _pad(x, kernel_size, stride, name, style)
    fan_in = int(x.shape[-1]) * kernel_size**2
    return Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=use_bias,
        kernel_initializer=_initializer(style, fan_in, stddev),
        bias_initializer=_initializer(style, fan_in, None)
        if style.initialization == "pytorch"
        else "zeros",
        dtype=dtype,
        name=name,
    )(x)


def concat_conv(
    maps: Sequence[Tensor],
    filters: int,
    kernel_size: int,
    *,
    name: str,
    style: BlockStyle,
    resized: tuple[int, ...] = (),
    align_corners: bool = False,
) -> Tensor:
    """Applies a `ConcatConv2D` without bias, with the initial weights of the model family."""
    fan_in = sum(int(x.shape[-1]) for x in maps) * kernel_size**2
    return ConcatConv2D(
        filters,
        kernel_size,
        resized=resized,
        align_corners=align_corners,
        use_bias=False,
        kernel_initializer=_initializer(style, fan_in, None),
        name=name,
    )(list(maps))


def depthwise_conv(
    x: Tensor,
    kernel_size: int,
    *,
    name: str,
    style: BlockStyle,
    stride: int = 1,
    dilation: int = 1,
    stddev: float | None = None,
) -> Tensor:
    """Applies a depthwise convolution without bias, in the conventions of the model family."""
    x, padding = _pad(x, kernel_size, stride, name, style)
    return DepthwiseConv2D(
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        depthwise_initializer=_initializer(style, kernel_size**2, stddev),
        name=name,
    )(x)


def _pad(
    x: Tensor, kernel_size: int, stride: int, name: str, style: BlockStyle
) -> tuple[Tensor, str]:
    # Without a stride, "same" pads symmetrically. With a stride, PyTorch pads both sides, but
    # TensorFlow pads the end first.
    if stride == 1 or style.padding == "same" or kernel_size == 1:
        return x, "same"
    return keras.layers.ZeroPadding2D(
        kernel_size // 2, data_format=DATA_FORMAT, name=f"{name}_pad"
    )(x), "valid"


def _initializer(
    style: BlockStyle, fan_in: int, stddev: float | None
) -> keras.initializers.Initializer:
    """Returns the weight initializer of PyTorch or of the official DeepLab.

    Some layers of the official DeepLab have their own `stddev`. See
    docs/reference/sssegmentation.md#head-initialization and
    docs/reference/official_deeplab.md#weight-initialization.
    """
    if style.initialization == "pytorch":
        limit = fan_in**-0.5
        return keras.initializers.RandomUniform(-limit, limit)
    if style.initialization == "xavier" and stddev is None:
        return keras.initializers.GlorotUniform()
    return keras.initializers.TruncatedNormal(stddev=stddev or 0.09)


def batch_norm(x: Tensor, *, name: str, style: BlockStyle) -> Tensor:
    """Applies batch norm in the conventions of the model family, synchronized over replicas."""
    return BatchNormalization(
        momentum=style.bn_momentum, epsilon=style.bn_epsilon, synchronized=True, name=name
    )(x)


def bn_act(x: Tensor, act: str | None, *, name: str, style: BlockStyle) -> Tensor:
    """Applies batch norm and an activation."""
    return activation(batch_norm(x, name=f"{name}_bn", style=style), act, f"{name}_act")


def conv_bn_act(
    x: Tensor,
    filters: int,
    kernel_size: int = 1,
    *,
    name: str,
    style: BlockStyle,
    act: str | None = "relu",
    stride: int = 1,
    dilation: int = 1,
    stddev: float | None = None,
) -> Tensor:
    """Applies a convolution without bias, batch norm and an activation."""
    x = conv(
        x,
        filters,
        kernel_size,
        name=f"{name}_conv",
        style=style,
        stride=stride,
        dilation=dilation,
        stddev=stddev,
    )
    return bn_act(x, act, name=name, style=style)


def depthwise_bn_act(
    x: Tensor,
    kernel_size: int,
    *,
    name: str,
    style: BlockStyle,
    act: str | None = "relu",
    stride: int = 1,
    dilation: int = 1,
    stddev: float | None = None,
) -> Tensor:
    """Applies a depthwise convolution, batch norm and an activation."""
    x = depthwise_conv(
        x,
        kernel_size,
        name=f"{name}_conv",
        style=style,
        stride=stride,
        dilation=dilation,
        stddev=stddev,
    )
    return bn_act(x, act, name=name, style=style)


def separable_conv_bn_act(
    x: Tensor,
    filters: int,
    kernel_size: int = 3,
    *,
    name: str,
    style: BlockStyle,
    act: str = "relu",
    dilation: int = 1,
) -> Tensor:
    """Applies a depthwise and a 1x1 convolution, each followed by batch norm and an activation."""
    x = depthwise_bn_act(
        x,
        kernel_size,
        name=f"{name}_depthwise",
        style=style,
        act=act,
        dilation=dilation,
        stddev=0.33,
    )
    return conv_bn_act(x, filters, name=f"{name}_pointwise", style=style, act=act, stddev=0.06)


def squeeze_excite(x: Tensor, channels: int, *, name: str, style: BlockStyle) -> Tensor:
    """Multiplies each channel by a gate that is computed from the mean over the image.

    Args:
        x: `[batch, h, w, channels]`.
        channels: Number of channels between the two convolutions that compute the gate.
        name: Prefix of the layer names.
        style: The conventions of the model family.
    """
    gate = keras.layers.GlobalAveragePooling2D(DATA_FORMAT, keepdims=True, name=f"{name}_pool")(x)
    gate = conv(gate, channels, name=f"{name}_reduce", style=style, use_bias=True)
    gate = activation(gate, "relu", f"{name}_reduce_act")
    gate = conv(gate, int(x.shape[-1]), name=f"{name}_expand", style=style, use_bias=True)
    return keras.layers.Multiply(name=f"{name}_multiply")(
        [x, activation(gate, style.gate, f"{name}_expand_act")]
    )


def inverted_residual(
    x: Tensor,
    filters: int,
    *,
    name: str,
    style: BlockStyle,
    expanded: int,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    se_channels: int = 0,
    act: str = "relu6",
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """Applies the block of MobileNetV2 and V3: expand, depthwise, squeeze-and-excite, project, add.

    Returns:
        The block's output, and the features that the official decoder uses: those after the
        depthwise activation, before squeeze-and-excite.
    """
    y = x
    if expanded != x.shape[-1]:
        y = conv_bn_act(y, expanded, name=f"{name}_expand", style=style, act=act)
    y = tap = depthwise_bn_act(
        y,
        kernel_size,
        name=f"{name}_depthwise",
        style=style,
        act=act,
        stride=stride,
        dilation=dilation,
    )
    if se_channels:
        y = squeeze_excite(y, se_channels, name=f"{name}_se", style=style)
    return _project(y, x if residual else None, filters, name=name, style=style), tap


def fused_inverted_residual(
    x: Tensor,
    filters: int,
    *,
    name: str,
    style: BlockStyle,
    expanded: int,
    kernel_size: int = 3,
    stride: int = 1,
    dilation: int = 1,
    act: str = "relu",
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    """Applies the early block of MobileNet EdgeTPU: full convolution, project, add.

    The full convolution replaces the expansion and the depthwise convolution.

    Returns:
        The block's output, and the features before the projection.
    """
    y = x
    if expanded != x.shape[-1]:
        y = conv_bn_act(
            y,
            expanded,
            kernel_size,
            name=f"{name}_expand",
            style=style,
            act=act,
            stride=stride,
            dilation=dilation,
        )
    return _project(y, x if residual else None, filters, name=name, style=style), y


def _project(
    x: Tensor, shortcut: Tensor | None, filters: int, *, name: str, style: BlockStyle
) -> Tensor:
    """Applies a 1x1 convolution and batch norm, and adds the shortcut if its channels match."""
    x = conv_bn_act(x, filters, name=f"{name}_project", style=style, act=None)
    if shortcut is None or shortcut.shape[-1] != filters:
        return x
    return keras.layers.Add(name=f"{name}_add")([shortcut, x])
