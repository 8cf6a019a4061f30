"""Heads by name.

A head is a function `(features, config) -> logits`. It takes the backbone's dict of features and
returns class scores without softmax, `[batch, h, w, num_classes]`, float32, at the stride of the
finest feature that it uses. They are the output of a layer named "logits". The segmentor resizes
them once.
"""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import ModelConfig, OptionError
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
    """Builds the head of a config on the backbone's features, and returns its logits."""
    for key in config.get("low_level_features", ()):
        if key not in features:
            raise OptionError(
                "low_level_features",
                key,
                f"must be features of {config.backbone}: {', '.join(features)}",
                allowed=features,
            )
    return HEADS[config.head](features, config)
