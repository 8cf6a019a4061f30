"""The last layers of all heads: dropout and the convolution to the classes."""

from __future__ import annotations

import keras

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.blocks import conv, head_style
from deeplab_keras.models.layers import DATA_FORMAT, Tensor


def classify(
    x: Tensor, config: ModelConfig, name: str = "logits", rates: tuple[int, ...] = ()
) -> Tensor:
    """Returns class scores, `[batch, h, w, num_classes]`, float32.

    Args:
        x: The features, `[batch, h, w, channels]`.
        config: The architecture.
        name: Name of the layer that computes the scores.
        rates: Dilation rates. If given, each has a classifier of `logits_kernel_size`, and their
            scores are added (docs/reference/official_deeplab.md#logits).
    """
    if config.dropout_rate and config.dropout_placement == "classifier":
        x = keras.layers.SpatialDropout2D(config.dropout_rate, DATA_FORMAT, name=f"{name}_dropout")(
            x
        )
    kernel_size = config.logits_kernel_size if rates else 1

    def scores(name: str, rate: int) -> Tensor:
        return conv(
            x,
            config.num_classes,
            kernel_size,
            name=name,
            style=head_style(config),
            dilation=rate,
            use_bias=True,
            stddev=0.01,
            dtype=keras.config.floatx(),
        )

    if len(rates) < 2:
        return scores(name, *rates or (1,))
    branches = [scores(f"{name}{index}", rate) for index, rate in enumerate(rates)]
    return keras.layers.Add(name=name, dtype=keras.config.floatx())(branches)
