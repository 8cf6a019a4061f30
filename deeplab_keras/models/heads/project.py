"""From the branches of a head to its channels: PSPNet's and ASPP's projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.blocks import activation, batch_norm, concat_conv, conv_bn_act, head_style
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
    """The branches resized, concatenated, convolved.

    Args:
        branches: `[batch, h, w, channels]`, each its own.
        resized: which of them, by their places, are resized to the size of the others; the names of
            the layers that do it.
        config: of the head.
        kernel_size: of the convolution; 0: none.
        name: of the layers: "<name>_concat", "<name>_project_conv" and so on.
        act: activation.

    Returns:
        `[batch, h, w, config.head_channels]`, without a convolution the concatenated branches.
    """
    style = head_style(config)
    # In 8 bits each branch's sum would be rounded, so files and trainings in 8 bits concatenate.
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
        return activation(
            batch_norm(y, name=f"{name}_project_bn", style=style), act, f"{name}_project_act"
        )
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
