"""Conventions in which the reference implementations differ: one consistent set per family."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class Conventions(Config):
    """Conventions for padding, resizing, normalization, dilation and initialization.

    The defaults are those of SSSegmentation's MobileNetV2 systems
    (docs/reference/sssegmentation.md#merged-configs).
    """

    normalization: str = option(
        "imagenet",
        "imagenet: (x - mean) / std with the ImageNet statistics; unit_range: x / 127.5 - 1; none",
        choices=("imagenet", "unit_range", "none"),
    )
    padding: str = option(
        "symmetric",
        "padding of strided convolutions: symmetric (PyTorch) or same (TensorFlow)",
        choices=("symmetric", "same"),
    )
    align_corners: bool = option(
        False,
        "bilinear resizing with aligned corners (official DeepLab) instead of half-pixel centers",
    )
    backbone_bn_epsilon: float = option(1e-5, "epsilon of the backbone's batch norm")
    backbone_bn_momentum: float = option(
        0.9, "momentum of the backbone's batch norm, as Keras defines it"
    )
    head_bn_epsilon: float = option(1e-5, "epsilon of the head's batch norm")
    head_bn_momentum: float = option(0.9, "momentum of the head's batch norm, as Keras defines it")
    dilation_placement: str = option(
        "first",
        "blocks that get the dilation when a stride is removed: first: the first block of each "
        "stage; all: the block without its stride and all later ones; after: only the later ones",
        choices=("first", "all", "after"),
    )
    residual_by_table: bool = option(
        True, "decides on a block's residual by its nominal stride, not by the actual one"
    )
    channel_divisor: int = option(
        8,
        "rounds the output channels to multiples of this after applying the depth multiplier",
        flag="divisible_by",
    )
    initialization: str = option(
        "pytorch",
        "random initialization: pytorch: PyTorch's uniform; tf_slim: the official DeepLab's "
        "truncated normal and Xavier",
        choices=("pytorch", "tf_slim"),
    )
    q_sigmoid: bool = option(
        False, "multiplies by 0.16667 (official DeepLab) instead of 1/6 in squeeze-and-excite gates"
    )
    dropout_placement: str = option(
        "classifier",
        "classifier: drops whole channels before the classifier; aspp: drops single values after "
        "ASPP's projection (official DeepLab)",
        choices=("classifier", "aspp"),
    )
    image_pooling_first: bool = option(
        False, "puts image pooling first among ASPP's concatenated branches instead of last"
    )

    def validate(self) -> None:
        self._require(self.channel_divisor >= 1, "channel_divisor", "must be at least 1")
        for name in ("backbone_bn_epsilon", "head_bn_epsilon"):
            self._require(0 < getattr(self, name) < 1, name, "must be above 0 and below 1")
        for name in ("backbone_bn_momentum", "head_bn_momentum"):
            self._require(0 <= getattr(self, name) < 1, name, "must be at least 0 and below 1")


CONVENTIONS: dict[str, Conventions] = {
    # docs/reference/sssegmentation.md#conventions
    "sssegmentation_v2": Conventions(),
    "sssegmentation_v3": Conventions(
        padding="same", backbone_bn_epsilon=1e-3, head_bn_epsilon=1e-3, dilation_placement="all"
    ),
    # docs/reference/official_deeplab.md#conventions
    "official_deeplab": Conventions(
        normalization="unit_range",
        padding="same",
        align_corners=True,
        dilation_placement="after",
        residual_by_table=False,
        backbone_bn_epsilon=1e-3,
        backbone_bn_momentum=0.997,
        head_bn_epsilon=1e-5,
        head_bn_momentum=0.9997,
        q_sigmoid=True,
        image_pooling_first=True,
        initialization="tf_slim",
        dropout_placement="aspp",
        channel_divisor=1,
    ),
    # torchvision's models/segmentation on MobileNetV3
    "torchvision": Conventions(
        dilation_placement="all", backbone_bn_epsilon=1e-3, backbone_bn_momentum=0.99
    ),
}

# Normalization -> (mean, standard deviation) of RGB in 0..255. Images are padded with the mean,
# which the normalization turns into 0.
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit_range": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
