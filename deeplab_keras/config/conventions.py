"""The conventions in which the reference implementations differ, one consistent set per family."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class Conventions(Config):
    """How a family of networks pads, resizes, normalizes, dilates and initializes.

    The defaults are those of SSSegmentation's MobileNetV2 systems
    (docs/reference/sssegmentation.md#merged-configs).
    """

    normalization: str = option(
        "imagenet",
        "imagenet: (x - mean) / std with the ImageNet colours; unit_range: x / 127.5 - 1; none",
        choices=("imagenet", "unit_range", "none"),
    )
    padding: str = option(
        "symmetric",
        "padding of strided convolutions: symmetric (PyTorch) or same (TensorFlow)",
        choices=("symmetric", "same"),
    )
    align_corners: bool = option(
        False, "bilinear resizing aligns the corner pixels (official DeepLab), not the pixel areas"
    )
    backbone_bn_epsilon: float = option(1e-5, "epsilon of the backbone's batch norm")
    backbone_bn_momentum: float = option(
        0.9, "share of the old running statistics kept at a step, backbone"
    )
    head_bn_epsilon: float = option(1e-5, "epsilon of the head's batch norm")
    head_bn_momentum: float = option(
        0.9, "share of the old running statistics kept at a step, head"
    )
    dilation_placement: str = option(
        "first",
        "where the dilation of a removed stride goes: first: the first block of each stage; all: "
        "the de-strided block and all after it; "
        "after: all blocks after the de-strided one",
        choices=("first", "all", "after"),
    )
    residual_by_table: bool = option(
        True, "a block has a residual by its tabulated stride, not by the one really used"
    )
    channel_divisor: int = option(
        8,
        "output channels under a depth multiplier are rounded to multiples of this",
        flag="divisible_by",
    )
    initialization: str = option(
        "pytorch",
        "first weights: pytorch's uniform ones, or the official DeepLab's truncated normal and "
        "Xavier ones",
        choices=("pytorch", "tf_slim"),
    )
    q_sigmoid: bool = option(
        False, "squeeze-and-excite gates multiply by 0.16667 (official DeepLab) instead of 1/6"
    )
    dropout_placement: str = option(
        "classifier",
        "classifier: whole channels, before the classifier; aspp: single values, after ASPP's "
        "projection (official DeepLab)",
        choices=("classifier", "aspp"),
    )
    image_pooling_first: bool = option(
        False, "image pooling is the first of ASPP's concatenated branches, not the last"
    )

    def validate(self) -> None:
        self._require(self.channel_divisor >= 1, "channel_divisor", "must be at least 1")


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

# Normalization -> (mean, standard deviation) of RGB in 0..255. What is padded around an image has
# the mean, so that it is 0 to the network.
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit_range": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
