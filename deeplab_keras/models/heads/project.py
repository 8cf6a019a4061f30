"""The projection of PSPNet and ASPP: concatenates the branches of a head and convolves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.blocks import bn_act, concat_conv, conv_bn_act, head_style
from deeplab_keras.models.layers import ResizeTo, Tensor


def project(
    branches: Sequence[Tensor],
    resized: Mapping[int, str],
    config: ModelConfig,
    kernel_size: int,
    *,
    name: str,
    act: str = "relu",
) -> Tensor:
    """Resizes, concatenates and convolves branches.

    Args:
        branches: `[batch, h, w, channels]`. Sizes and channels may differ.
        resized: Names of the layers that resize a branch to the size of the others, by the index of
            the branch.
        config: The architecture.
        kernel_size: Kernel size of the convolution. 0 leaves the convolution out.
        name: Prefix of the layer names: "<name>_concat", "<name>_project_conv" and so on.
        act: The activation.

    Returns:
        `[batch, h, w, config.head_channels]`, or the concatenated branches without a convolution.
    """
    style = head_style(config)
    # In 8 bits, the sum of each branch would be rounded, so quantized networks concatenate.
    if (
        config.branchwise
        and not config.quantization_aware
        and kernel_size > 1
        and len(branches) > 1
    ):
        y = concat_conv(
            branches,
            config.head_channels,
            kernel_size,
            name=f"{name}_project_conv",
            style=style,
            resized=tuple(resized),
            align_corners=config.align_corners,
        )
        return bn_act(y, act, name=f"{name}_project", style=style)
    whole = next(branch for place, branch in enumerate(branches) if place not in resized)
    same_size = [
        ResizeTo(config.align_corners, name=resized[place])([branch, whole])
        if place in resized
        else branch
        for place, branch in enumerate(branches)
    ]
    y = (
        keras.layers.Concatenate(name=f"{name}_concat")(same_size)
        if len(same_size) > 1
        else same_size[0]
    )
    return (
        conv_bn_act(
            y, config.head_channels, kernel_size, name=f"{name}_project", style=style, act=act
        )
        if kernel_size
        else y
    )
