"""The options of each head."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class HeadConfig(Config):
    """Options that every head has."""

    head_channels: int = option(
        512, "channels of the head's convolutions", flag="aspp_convs_filters"
    )
    dropout_rate: float = option(0.1, "rate of the head's dropout in training")

    def validate(self) -> None:
        self._require(0 <= self.dropout_rate < 1, "dropout_rate", "must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True)
class FCNConfig(HeadConfig):
    """FCN (arXiv:1411.4038)."""


@dataclasses.dataclass(frozen=True)
class PSPConfig(HeadConfig):
    """PSPNet's pyramid pooling (arXiv:1612.01105)."""

    pool_scales: tuple[int, ...] = option((1, 2, 3, 6), "PSPNet: bins a side of each pyramid level")


@dataclasses.dataclass(frozen=True)
class ImagePoolingConfig(HeadConfig):
    """Options of the heads that have image pooling."""

    image_pooling_size: tuple[int, ...] = option(
        (), "window of image pooling in feature pixels, as height,width; empty: the whole map"
    )
    image_pooling_crop_size: tuple[int, ...] = option(
        (),
        "window of image pooling in pixels of the input, as height,width, so that it follows "
        "output_stride; in place of image_pooling_size",
    )
    image_pooling_stride: tuple[int, ...] = option(
        (1, 1), "stride of the image-pooling window, as height,width"
    )
    use_bounded_activation: bool = option(False, "the head uses ReLU6 instead of ReLU")

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
        (12, 24, 36), "dilations of ASPP's 3x3 branches; empty: none of them"
    )
    aspp_with_batch_norm: bool = option(
        True,
        "False: DeepLab before ASPP: a classifier for each of atrous_rates on the backbone's "
        "features, their scores added",
    )
    aspp_with_separable_conv: bool = option(False, "ASPP's 3x3 branches are depthwise-separable")
    aspp_projection_kernel: int = option(
        3, "kernel of the convolution after ASPP's concatenation: 3 or 1; 0: none"
    )
    add_image_level_feature: bool = option(True, "ASPP has an image-pooling branch")
    logits_kernel_size: int = option(
        1, "kernel of the classifiers where aspp_with_batch_norm is false"
    )

    def validate(self) -> None:
        super().validate()
        self._require(
            self.aspp_projection_kernel in (0, 1, 3),
            "aspp_projection_kernel",
            "must be 0, 1 or 3",
        )
        self._require(
            all(rate >= 1 for rate in self.atrous_rates),
            "atrous_rates",
            "must be whole numbers of at least 1",
        )
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
        0, "3x3 convolutions between ASPP and DeepLabV3's classifier; torchvision has one"
    )

    def validate(self) -> None:
        super().validate()
        self._require(self.aspp_output_convs >= 0, "aspp_output_convs", "must be at least 0")


@dataclasses.dataclass(frozen=True)
class DeepLabV3PlusConfig(ASPPConfig):
    """DeepLabV3+ (arXiv:1802.02611)."""

    low_level_features: tuple[str, ...] = option(
        ("c2",), "backbone features that the decoder merges, coarse to fine"
    )
    low_level_channels: tuple[int, ...] = option(
        (48,),
        "channels to which each low-level feature is reduced; LR-ASPP: empty adds class scores "
        "instead (the paper's form)",
    )
    decoder_filters: int = option(512, "channels of the DeepLabV3+ decoder")
    decoder_use_separable_conv: bool = option(
        True, "the DeepLabV3+ decoder's convolutions are depthwise-separable"
    )
    decoder_use_sum_merge: bool = option(
        False, "the DeepLabV3+ decoder adds the low-level features instead of concatenating them"
    )


@dataclasses.dataclass(frozen=True)
class LRASPPConfig(ImagePoolingConfig):
    """LR-ASPP (arXiv:1905.02244, section 6.4)."""

    low_level_features: tuple[str, ...] = option(
        ("c2",), "backbone features that the decoder merges, coarse to fine"
    )
    low_level_channels: tuple[int, ...] = option(
        (48,),
        "channels to which each low-level feature is reduced; LR-ASPP: empty adds class scores "
        "instead (the paper's form)",
    )
    image_pooling_gate: str = option(
        "sigmoid", "LR-ASPP's gate", choices=("sigmoid", "hard_sigmoid", "q_sigmoid")
    )
    image_pooling_batch_norm: bool = option(
        True, "LR-ASPP's image-pooling convolution is followed by batch norm"
    )
    image_pooling_bias: bool = option(False, "LR-ASPP's image-pooling convolution has a bias")


# Name of the head -> its options. `models.heads.HEADS` builds it.
HEADS: dict[str, type[HeadConfig]] = {
    "fcn": FCNConfig,
    "psp": PSPConfig,
    "deeplab_v3": DeepLabV3Config,
    "deeplab_v3_plus": DeepLabV3PlusConfig,
    "lraspp": LRASPPConfig,
}
