"""Heads by name, and the contract they keep.

A head is a function `(features, config) -> logits`: from the backbone's dict of features to
unsoftmaxed class scores `[batch, h, w, num_classes]` at the stride of the finest feature it reads,
float32, the output of a layer named "logits". The segmentor resizes them, once.
"""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.models.heads import aspp, fcn, lraspp, psp
from deeplab_keras.models.layers import Tensor

HEADS: dict[str, Callable[[dict[str, Tensor], ModelConfig], Tensor]] = {
    "fcn": fcn.fcn,
    "psp": psp.psp,
    "deeplab_v3": aspp.deeplab_v3,
    "deeplab_v3_plus": aspp.deeplab_v3_plus,
    "lraspp": lraspp.lraspp,
}


def build_head(features: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """The logits of `config.head` on the backbone's features."""
    for key in getattr(config.head_config, "low_level_features", ()):
        if key not in features:
            raise UserError(
                f"`low_level_features={key}`: {config.backbone} has {', '.join(features)}"
            )
    return HEADS[config.head](features, config)
