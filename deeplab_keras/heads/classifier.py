"""The end that all heads share: dropout of whole channels and a 1x1 convolution to the classes."""

from __future__ import annotations

import keras

from deeplab_keras.blocks import conv, head_style
from deeplab_keras.config import ModelConfig
from deeplab_keras.layers import Tensor


def classify(x: Tensor, config: ModelConfig, name: str = "logits") -> Tensor:
    """Float32 class scores `[batch, h, w, num_classes]`; `name` is the layer's."""
    if config.dropout_rate:
        x = keras.layers.SpatialDropout2D(config.dropout_rate, name=f"{name}_dropout")(x)
    return conv(x, config.num_classes, name=name, style=head_style(config), use_bias=True, dtype="float32")
