"""The network's config, and the conventions in which the reference implementations differ."""

from __future__ import annotations

import dataclasses
from typing import Any

from deeplab_keras.config.base import Config, option

OUTPUT_STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class ModelConfig(Config):
    """A segmentation network, completely: two equal configs give two equal graphs.

    The reference implementations differ in a few conventions, which are the fields under
    "Conventions". `CONVENTIONS` has one consistent set of values per family. The defaults are those
    of SSSegmentation's MobileNetV2 systems (docs/reference/sssegmentation.md#merged-configs).
    """

    name: str = option(
        "",
        "the model of the zoo to start from, which the other model flags then change; "
        "list_models.py lists them",
        flag="model",
    )
    backbone: str = option("mobilenet_v2", "backbone network", flag="model_variant")
    head: str = option(
        "deeplab_v3_plus", "decoding head: fcn, psp, deeplab_v3, deeplab_v3_plus or lraspp"
    )
    num_classes: int = option(21, "number of classes, the background counted if it is one")
    output_stride: int = option(
        8, "input size over the size of the backbone's last features: 8, 16 or 32"
    )
    depth_multiplier: float = option(1.0, "width of the backbone as a factor on its channels")
    input_channels: int = option(3, "channels of the input image")

    # --- Head ---
    auxiliary_head: bool = option(False, "adds FCN's auxiliary head on c4 for training")
    auxiliary_feature: str = option("c4", "backbone features that the auxiliary head reads")
    auxiliary_channels: int = option(512, "channels of the auxiliary head's 3x3 convolution")
    dropout_rate: float = option(0.1, "rate of the head's dropout in training")
    head_channels: int = option(
        512, "channels of the head's convolutions", flag="aspp_convs_filters"
    )
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
    aspp_output_convs: int = option(
        0, "3x3 convolutions between ASPP and DeepLabV3's classifier; torchvision has one"
    )
    add_image_level_feature: bool = option(True, "ASPP has an image-pooling branch")
    image_pooling_first: bool = option(
        False, "image pooling is the first of ASPP's concatenated branches, not the last"
    )
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
    image_pooling_gate: str = option(
        "sigmoid", "LR-ASPP's gate", choices=("sigmoid", "hard_sigmoid", "q_sigmoid")
    )
    image_pooling_batch_norm: bool = option(
        True, "LR-ASPP's image-pooling convolution is followed by batch norm"
    )
    image_pooling_bias: bool = option(False, "LR-ASPP's image-pooling convolution has a bias")
    pool_scales: tuple[int, ...] = option((1, 2, 3, 6), "PSPNet: bins a side of each pyramid level")
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
    logits_kernel_size: int = option(
        1, "kernel of the classifiers where aspp_with_batch_norm is false"
    )
    use_bounded_activation: bool = option(False, "the head uses ReLU6 instead of ReLU")

    image_pyramid: tuple[float, ...] = option(
        (), "scales of the image that the network sees, each with the same weights; empty: 1 alone"
    )
    merge_method: str = option(
        "max", "how the class scores of image_pyramid are merged", choices=("max", "avg")
    )

    # --- Arithmetic ---
    branchwise: bool = option(
        True,
        "3x3 convolutions over concatenated branches are computed branch by branch, and for "
        "pooled branches at the pooled size: "
        "the same result, faster; False: concatenated, as 8-bit files have it",
    )
    quantization_aware: bool = option(
        False,
        "inputs and kernels are rounded as an int8 file has them, for training on from "
        "--tf_initial_checkpoint=RUN towards tflite_int8",
    )

    # --- Conventions: one value a family, see CONVENTIONS ---
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

    def validate(self) -> None:
        self._require(
            self.num_classes >= 2,
            "num_classes",
            "at least 2 classes; for one class against the rest, the background is the other",
        )
        self._require(
            self.output_stride in OUTPUT_STRIDES, "output_stride", "allowed are 8, 16, 32"
        )
        self._require(0.1 <= self.depth_multiplier <= 4, "depth_multiplier", "between 0.1 and 4")
        self._require(self.input_channels >= 1, "input_channels", "at least 1 channel")
        self._require(0 <= self.dropout_rate < 1, "dropout_rate", "at least 0 and below 1")
        self._require(
            self.aspp_projection_kernel in (0, 1, 3),
            "aspp_projection_kernel",
            "allowed are 0, 1, 3",
        )
        self._require(self.aspp_output_convs >= 0, "aspp_output_convs", "0 or more")
        self._require(self.channel_divisor >= 1, "channel_divisor", "at least 1")
        self._require(
            all(scale > 0 for scale in self.image_pyramid), "image_pyramid", "scales above 0"
        )
        self._require(
            not (self.quantization_aware and self.image_pyramid),
            "image_pyramid",
            "not together with --quantization_aware; give one of them",
        )
        self._require(
            all(rate >= 1 for rate in self.atrous_rates), "atrous_rates", "rates of at least 1"
        )
        self._require(
            self.logits_kernel_size == 1
            or (not self.aspp_with_batch_norm and bool(self.atrous_rates)),
            "logits_kernel_size",
            "other than 1 only with --aspp_with_batch_norm=false and --atrous_rates",
        )
        for field in ("image_pooling_size", "image_pooling_crop_size", "image_pooling_stride"):
            value = getattr(self, field)
            self._require(
                len(value) in (0, 2) and all(v >= 1 for v in value),
                field,
                "two numbers: height,width",
            )
        self._require(
            self.normalization != "imagenet" or self.input_channels == 3,
            "input_channels",
            "ImageNet normalization has 3 channels; give --normalization=unit_range for another "
            "number",
        )

    @property
    def image_pooling_window(self) -> tuple[int, ...]:
        """Window of image pooling in feature pixels; empty: the whole map."""
        return (
            tuple(-(-length // self.output_stride) for length in self.image_pooling_crop_size)
            or self.image_pooling_size
        )


CONVENTIONS: dict[str, dict[str, Any]] = {
    # docs/reference/sssegmentation.md#conventions
    "sssegmentation_v2": {},
    "sssegmentation_v3": dict(
        padding="same", backbone_bn_epsilon=1e-3, head_bn_epsilon=1e-3, dilation_placement="all"
    ),
    # docs/reference/official_deeplab.md#conventions
    "official_deeplab": dict(
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
    "torchvision": dict(
        dilation_placement="all",
        backbone_bn_epsilon=1e-3,
        backbone_bn_momentum=0.99,
    ),
}

# Normalization -> (mean, standard deviation) of RGB in 0..255. What is padded around an image has
# the mean, so that it is 0 to the network.
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "unit_range": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
