"""Backbones by name.

A backbone is a function `(image, config) -> features`. It takes a normalized image,
`[batch, height, width, channels]`, and returns a dict of features by name:

* `c1` to `c5`: the last outputs at nominal stride 2, 4, 8, 16 and 32. Stages after the network's
  output stride keep the size of that stride.
* `block<i>`: the output of block i.
* `block<i>_depthwise`: the features of block i after its depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.models.backbones import mobilenet_edgetpu, mobilenet_v2, mobilenet_v3
from deeplab_keras.models.layers import Tensor


class Features(dict[str, Tensor]):
    """The features of a backbone by name.

    Args:
        backbone: The name of the backbone, for messages.
        features: The features.
    """

    def __init__(self, backbone: str, features: Mapping[str, Tensor]) -> None:
        super().__init__(features)
        self._backbone = backbone

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"the backbone {self._backbone} has no features {name!r}, which the head reads; it has "
            f"{', '.join(self)}"
        )


BACKBONES: dict[str, Callable[[Tensor, ModelConfig], dict[str, Tensor]]] = {
    "mobilenet_v2": mobilenet_v2.mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3.mobilenet_v3_large,
    "mobilenet_v3_small": mobilenet_v3.mobilenet_v3_small,
    "mobilenet_v3_large_seg": mobilenet_v3.mobilenet_v3_large_seg,
    "mobilenet_v3_small_seg": mobilenet_v3.mobilenet_v3_small_seg,
    "mobilenet_edgetpu": mobilenet_edgetpu.mobilenet_edgetpu,
}


def build_backbone(image: Tensor, config: ModelConfig) -> Features:
    """Builds the backbone of a config on a normalized image, and returns its features by name."""
    return Features(config.backbone, BACKBONES[config.backbone](image, config))
