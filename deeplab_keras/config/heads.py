"""The options of each head."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class HeadConfig(Config):
    """Options that every head has."""

    head_channels: int = option(
        512, "number of channels of the head's convolutions", flag="aspp_convs_filters"
    )
    dropout_rate: float = option(0.1, "dropout rate of the head in training")

    def validate(self) -> None:
        self._require(self.head_channels >= 1, "head_channels", "must be at least 1")
        self._require(0 <= self.dropout_rate < 1, "dropout_rate", "must be at least 0 and below 1")

    def _require_positive(self, name: str) -> None:
        self._require(
            all(value >= 1 for value in getattr(self, name)),
            name,
            "must be whole numbers of at least 1",
        )


@dataclasses.dataclass(frozen=True)
class FCNConfig(HeadConfig):
    """FCN (arXiv:1411.4038)."""


@dataclasses.dataclass(frozen=True)
class PSPConfig(HeadConfig):
    """PSPNet's pyramid pooling (arXiv:1612.01105)."""

    pool_scales: tuple[int, ...] = option(
        (1, 2, 3, 6), "PSPNet: number of bins per side of each pyramid level"
    )

    def validate(self) -> None:
        super().validate()
        self._require(
            bool(self.pool_scales) and len(set(self.pool_scales)) == len(self.pool_scales),
            "pool_scales",
            "must be one or more different whole numbers",
        )
        self._require_positive("pool_scales")


@dataclasses.dataclass(frozen=True)
class ImagePoolingConfig(HeadConfig):
    """Options of the heads that have image pooling."""

    image_pooling_size: tuple[int, ...] = option(
        (), "window of image pooling in feature pixels, as height,width; empty: the whole map"
    )
    image_pooling_crop_size: tuple[int, ...] = option(
        (),
        "window of image pooling in input pixels, as height,width, which is divided by "
        "`output_stride`; replaces `image_pooling_size`",
    )
    image_pooling_stride: tuple[int, ...] = option(
        (1, 1), "stride of the image-pooling window, as height,width"
    )
    use_bounded_activation: bool = option(False, "uses ReLU6 instead of ReLU in the head")

    def validate(self) -> None:
        super().validate()
        for name in ("image_pooling_size", "image_pooling_crop_size", "image_pooling_stride"):
            value = getattr(self, name)
            self._require(
                len(value) in (0, 2) and all(length >= 1 for length in value),
                name,
                "must be two whole numbers of at least 1, the height and the width",
            )


@dataclasses.dataclass(frozen=True)
class ASPPConfig(ImagePoolingConfig):
    """Options of atrous spatial pyramid pooling, in DeepLabV3 and DeepLabV3+."""

    atrous_rates: tuple[int, ...] = option(
        (12, 24, 36), "atrous rates of ASPP's 3x3 branches; empty: no such branches"
    )
    aspp_with_batch_norm: bool = option(
        True,
        "False: DeepLabV2's head: one classifier per atrous rate on the backbone's features; "
        "their logits are added",
    )
    aspp_with_separable_conv: bool = option(
        False, "uses depthwise-separable convolutions in ASPP's 3x3 branches"
    )
    aspp_projection_kernel: int = option(
        3, "kernel size of the convolution after ASPP's concatenation: 3 or 1; 0: no convolution"
    )
    add_image_level_feature: bool = option(True, "adds an image-pooling branch to ASPP")
    logits_kernel_size: int = option(
        1, "kernel size of the classifiers with `aspp_with_batch_norm=False`"
    )

    def validate(self) -> None:
        super().validate()
        self._require(
            self.aspp_projection_kernel in (0, 1, 3),
            "aspp_projection_kernel",
            "must be 0, 1 or 3",
        )
        self._require_positive("atrous_rates")
        self._require(
            self.logits_kernel_size == 1
            or (not self.aspp_with_batch_norm and bool(self.atrous_rates)),
            "logits_kernel_size",
            "must be 1, except with `aspp_with_batch_norm=False` and `atrous_rates`",
        )


@dataclasses.dataclass(frozen=True)
class DeepLabV3Config(ASPPConfig):
    """DeepLabV3 (arXiv:1706.05587)."""

    aspp_output_convs: int = option(
        0,
        "number of 3x3 convolutions between ASPP and DeepLabV3's classifier; torchvision has one",
    )

    def validate(self) -> None:
        super().validate()
        self._require(self.aspp_output_convs >= 0, "aspp_output_convs", "must be at least 0")


@dataclasses.dataclass(frozen=True)
class DeepLabV3PlusConfig(ASPPConfig):
    """DeepLabV3+ (arXiv:1802.02611)."""

    low_level_features: tuple[str, ...] = option(
        ("c2",), "names of the backbone features that the decoder merges, coarse to fine"
    )
    low_level_channels: tuple[int, ...] = option(
        (48,),
        "number of channels to which each low-level feature is reduced; LR-ASPP: empty adds logits "
        "instead (the paper's form)",
    )
    decoder_filters: int = option(512, "channels of the DeepLabV3+ decoder")
    decoder_use_separable_conv: bool = option(
        True, "uses depthwise-separable convolutions in the DeepLabV3+ decoder"
    )
    decoder_use_sum_merge: bool = option(
        False, "adds the low-level features in the DeepLabV3+ decoder instead of concatenating"
    )

    def validate(self) -> None:
        super().validate()
        self._require(
            len(self.low_level_channels) == len(self.low_level_features) > 0,
            "low_level_channels",
            f"must have one number per feature of `low_level_features={self.low_level_features}`",
        )
        self._require_positive("low_level_channels")
        self._require(self.decoder_filters >= 1, "decoder_filters", "must be at least 1")


@dataclasses.dataclass(frozen=True)
class LRASPPConfig(ImagePoolingConfig):
    """LR-ASPP (arXiv:1905.02244, section 6.4)."""

    low_level_features: tuple[str, ...] = option(
        ("c2",), "names of the backbone features that the decoder merges, coarse to fine"
    )
    low_level_channels: tuple[int, ...] = option(
        (48,),
        "number of channels to which each low-level feature is reduced; LR-ASPP: empty adds logits "
        "instead (the paper's form)",
    )
    image_pooling_gate: str = option(
        "sigmoid",
        "activation of LR-ASPP's gate",
        choices=("sigmoid", "hard_sigmoid", "q_sigmoid"),
    )
    image_pooling_batch_norm: bool = option(
        True, "adds batch norm after LR-ASPP's image-pooling convolution"
    )
    image_pooling_bias: bool = option(False, "adds a bias to LR-ASPP's image-pooling convolution")


# Name of the head -> the class of its options. `models.heads.HEADS` has the builders.
HEADS: dict[str, type[HeadConfig]] = {
    "fcn": FCNConfig,
    "psp": PSPConfig,
    "deeplab_v3": DeepLabV3Config,
    "deeplab_v3_plus": DeepLabV3PlusConfig,
    "lraspp": LRASPPConfig,
}
