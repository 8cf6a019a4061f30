"""FCN's head (Long et al., arXiv:1411.4038) as in SSSegmentation, and the auxiliary head."""

from __future__ import annotations

from deeplab_keras.config import ModelConfig, OptionError
from deeplab_keras.models.blocks import conv_bn_act, head_style
from deeplab_keras.models.heads.classifier import classify
from deeplab_keras.models.layers import Tensor


def fcn(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Applies two 3x3 convolutions to c5, then the classifier.

    See docs/reference/sssegmentation.md#fcn-head.
    """
    x = features["c5"]
    for index in (1, 2):
        x = conv_bn_act(x, config.head_channels, 3, name=f"fcn{index}", style=head_style(config))
    return classify(x, config)


def auxiliary(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Applies a 3x3 convolution, then a classifier named "auxiliary_logits".

    See docs/reference/sssegmentation.md#auxiliary-head.
    """
    if config.auxiliary_feature not in features:
        raise OptionError(
            "auxiliary_feature",
            config.auxiliary_feature,
            f"must be a feature of {config.backbone}: {', '.join(features)}",
            allowed=features,
        )
    x = conv_bn_act(
        features[config.auxiliary_feature],
        config.auxiliary_channels,
        3,
        name="auxiliary",
        style=head_style(config),
    )
    return classify(x, config, name="auxiliary_logits")
