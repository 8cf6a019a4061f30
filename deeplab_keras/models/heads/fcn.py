"""FCN's head (Long et al., arXiv:1411.4038) as SSSegmentation has it, also the auxiliary head of the other systems."""

from __future__ import annotations

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.models.blocks import conv_bn_act, head_style
from deeplab_keras.models.heads.classifier import classify
from deeplab_keras.models.layers import Tensor


def fcn(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Two 3x3 convolutions on c5 and the classifier (docs/reference/sssegmentation.md#fcn-head)."""
    x = features["c5"]
    for index in (1, 2):
        x = conv_bn_act(x, config.head_channels, 3, name=f"fcn{index}", style=head_style(config))
    return classify(x, config)


def auxiliary(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """One 3x3 convolution and a classifier named "auxiliary_logits" (docs/reference/sssegmentation.md#auxiliary-head)."""
    if config.auxiliary_feature not in features:
        raise UserError(
            f"`auxiliary_feature={config.auxiliary_feature}`: {config.backbone} has "
            f"{', '.join(features)}"
        )
    x = conv_bn_act(
        features[config.auxiliary_feature],
        config.auxiliary_channels,
        3,
        name="auxiliary",
        style=head_style(config),
    )
    return classify(x, config, name="auxiliary_logits")
