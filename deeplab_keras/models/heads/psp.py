"""PSPNet's pyramid pooling (Zhao et al., arXiv:1612.01105)."""

from __future__ import annotations

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.blocks import conv_bn_act, head_style
from deeplab_keras.models.heads.classifier import classify
from deeplab_keras.models.heads.project import project
from deeplab_keras.models.layers import AdaptiveAveragePooling, Tensor


def psp(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Concatenates c5 with its averages over bins, then a 3x3 convolution and the classifier.

    `pool_scales` has the numbers of bins per side, 1, 2, 3 and 6 in the paper. See
    docs/reference/sssegmentation.md#pspnet-head.
    """
    x, style = features["c5"], head_style(config)
    levels, names = [x], {}
    for bins in config.pool_scales:
        pooled = AdaptiveAveragePooling(bins, name=f"psp{bins}_pool")(x)
        names[len(levels)] = f"psp{bins}_resize"
        levels.append(conv_bn_act(pooled, config.head_channels, name=f"psp{bins}", style=style))
    return classify(project(levels, names, config, 3, name="psp"), config)
