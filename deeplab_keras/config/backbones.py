"""The options of each family of backbones."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class BackboneConfig(Config):
    """Options that every backbone has."""

    depth_multiplier: float = option(1.0, "factor on the backbone's number of channels")

    def validate(self) -> None:
        self._require(
            0.1 <= self.depth_multiplier <= 4, "depth_multiplier", "must be between 0.1 and 4"
        )


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config(BackboneConfig):
    """MobileNetV2."""


@dataclasses.dataclass(frozen=True)
class MobileNetV3Config(BackboneConfig):
    """MobileNetV3, large and small, and the `_seg` variants of the official DeepLab."""


@dataclasses.dataclass(frozen=True)
class MobileNetEdgeTPUConfig(BackboneConfig):
    """MobileNet-EdgeTPU."""

    finegrain_classification_mode: bool = option(
        False,
        "mobilenet_edgetpu: whether the last convolution has 1280 channels at every depth "
        "multiplier, as in the released 8-bit model of edgetpu-deeplab-slim",
    )


# Name of the backbone -> the class of its options. `models.backbones.BACKBONES` has the builders.
BACKBONES: dict[str, type[BackboneConfig]] = {
    "mobilenet_v2": MobileNetV2Config,
    "mobilenet_v3_large": MobileNetV3Config,
    "mobilenet_v3_small": MobileNetV3Config,
    "mobilenet_v3_large_seg": MobileNetV3Config,
    "mobilenet_v3_small_seg": MobileNetV3Config,
    "mobilenet_edgetpu": MobileNetEdgeTPUConfig,
}
