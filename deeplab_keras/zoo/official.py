"""The official DeepLab's MobileNet models: the meaning of its flags, and its released models.

See docs/reference/official_deeplab.md#heads and docs/reference/official_deeplab.md#released-models.
`registry` lists these models together with SSSegmentation's systems.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from deeplab_keras.config import CONVENTIONS, ModelConfig, UserError, unknown_option

# Backbone -> stride -> the features that the decoder reads at this stride
# (networks_to_feature_maps in core/feature_extractor.py).
DECODER_TAPS: dict[str, dict[int, str]] = {
    "mobilenet_v2": {4: "block3_depthwise", 8: "block6_depthwise", 16: "block13_depthwise"},
    "mobilenet_v3_large_seg": {
        4: "block3_depthwise",
        8: "block6_depthwise",
        16: "block12_depthwise",
    },
    "mobilenet_v3_small_seg": {
        4: "block1_depthwise",
        8: "block3_depthwise",
        16: "block8_depthwise",
    },
    "mobilenet_edgetpu": {},
}


def official_config(
    model_variant: str = "mobilenet_v2",
    *,
    num_classes: int = 21,
    output_stride: int = 16,
    atrous_rates: tuple[int, ...] | None = None,
    depth_multiplier: float = 1.0,
    divisible_by: int | None = None,
    add_image_level_feature: bool = True,
    image_pooling_crop_size: tuple[int, ...] | None = None,
    image_pooling_stride: tuple[int, ...] = (1, 1),
    image_se_uses_qsigmoid: bool = False,
    aspp_with_batch_norm: bool = True,
    aspp_with_separable_conv: bool = True,
    aspp_with_concat_projection: bool = True,
    aspp_with_squeeze_and_excitation: bool = False,
    aspp_convs_filters: int = 256,
    logits_kernel_size: int = 1,
    decoder_output_stride: tuple[int, ...] | None = None,
    decoder_use_separable_conv: bool = True,
    decoder_use_sum_merge: bool = False,
    decoder_filters: int = 256,
    decoder_output_is_logits: bool = False,
    use_bounded_activation: bool = False,
) -> ModelConfig:
    """Returns the config of the network that the official scripts build for these flags.

    Names and defaults are those of the official flags.

    Raises:
        UserError: If the official code has no such MobileNet or decoder stride, or does not use
            this combination of flags.
    """
    if model_variant not in DECODER_TAPS:
        raise unknown_option("model_variant", model_variant, DECODER_TAPS)
    taps = _taps(model_variant, decoder_output_stride or ())
    shared: dict[str, Any] = dict(
        conventions=CONVENTIONS["official_deeplab"],
        backbone=model_variant,
        num_classes=num_classes,
        output_stride=output_stride,
        depth_multiplier=depth_multiplier,
        channel_divisor=divisible_by or CONVENTIONS["official_deeplab"].channel_divisor,
        head_channels=aspp_convs_filters,
        image_pooling_crop_size=image_pooling_crop_size or (),
        image_pooling_stride=image_pooling_stride,
        use_bounded_activation=use_bounded_activation,
    )
    if aspp_with_squeeze_and_excitation and add_image_level_feature:
        _require_lraspp(
            atrous_rates=not atrous_rates,
            aspp_with_concat_projection=not aspp_with_concat_projection,
            aspp_with_batch_norm=aspp_with_batch_norm,
            decoder_output_stride=len(decoder_output_stride or ()) == 1,
            decoder_use_sum_merge=decoder_use_sum_merge,
            decoder_output_is_logits=decoder_output_is_logits,
            decoder_filters=decoder_filters == num_classes,
        )
        gate = "q_sigmoid" if image_se_uses_qsigmoid else "sigmoid"
        return ModelConfig(
            **shared,
            head="lraspp",
            low_level_features=taps,
            low_level_channels=(),
            image_pooling_gate=gate,
            image_pooling_batch_norm=False,
            image_pooling_bias=True,
        )
    if decoder_output_is_logits:
        raise UserError(
            "`decoder_output_is_logits=True` requires `aspp_with_squeeze_and_excitation=True` "
            "(LR-ASPP)"
        )
    decoder: dict[str, Any] = dict(head="deeplab_v3")
    if taps:
        decoder = dict(
            head="deeplab_v3_plus",
            low_level_features=taps,
            low_level_channels=(48,) * len(taps),
            decoder_filters=decoder_filters,
            decoder_use_separable_conv=decoder_use_separable_conv,
            decoder_use_sum_merge=decoder_use_sum_merge,
        )
    return ModelConfig(
        **shared,
        **decoder,
        atrous_rates=atrous_rates or (),
        add_image_level_feature=add_image_level_feature,
        aspp_with_batch_norm=aspp_with_batch_norm,
        aspp_with_separable_conv=aspp_with_separable_conv,
        aspp_projection_kernel=int(aspp_with_concat_projection),
        logits_kernel_size=logits_kernel_size,
    )


def _taps(model_variant: str, strides: tuple[int, ...]) -> tuple[str, ...]:
    known = DECODER_TAPS[model_variant]
    for stride in strides:
        if stride not in known:
            allowed = ", ".join(map(str, known))
            rule = f"must be one of {allowed}" if known else "must be empty: there is no decoder"
            raise UserError(f"`decoder_output_stride={stride}`: for {model_variant} it {rule}")
    return tuple(known[stride] for stride in strides)


def _require_lraspp(**holds: bool) -> None:
    """Requires all settings of LR-ASPP together (docs/reference/official_deeplab.md#lr-aspp)."""
    wrong = [f"`{flag}`" for flag, ok in holds.items() if not ok]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: with `aspp_with_squeeze_and_excitation=True` the network is "
            "LR-ASPP, which requires no `atrous_rates`, `aspp_with_concat_projection=False`, "
            "`decoder_use_sum_merge=True`, a single `decoder_output_stride`, "
            "`decoder_output_is_logits=True` and `decoder_filters` equal to `num_classes`"
        )


# === The released models (docs/reference/official_deeplab.md#released-models) ===

# The official page says http. The same server also supports https, which authenticates it.
ADDRESS = "https://download.tensorflow.org/models/"


@dataclasses.dataclass(frozen=True)
class Release:
    """A released model.

    Attributes:
        config: Its network, at the output stride of the reported score.
        file: The name of the archive. The model's name is this name without the date.
        zoo_name: The name in model_zoo.md.
        split: The dataset split of the reported scores.
        miou: mIoU in percent at one scale without flipping; `None` if it is not reported.
        miou_multi_scale: mIoU in percent at output stride 8, at `scales` and flipped; `None` if it
            is not reported.
        scales: The scales of `miou_multi_scale`, as first:step:last.
        note: What users of the model should know.
        checksum: The checksum of the archive in the format of `checkpoints.download.fetch`; empty
            if none was published.
    """

    config: ModelConfig
    file: str
    zoo_name: str
    split: str
    miou: float | None
    miou_multi_scale: float | None = None
    scales: str = ""
    note: str = ""
    checksum: str = ""

    @property
    def url(self) -> str:
        """The address of the archive."""
        return ADDRESS + self.file


_LRASPP: dict[str, Any] = dict(
    num_classes=19,
    output_stride=32,
    image_pooling_crop_size=(769, 769),
    image_pooling_stride=(4, 5),
    aspp_convs_filters=128,
    aspp_with_concat_projection=False,
    aspp_with_squeeze_and_excitation=True,
    decoder_use_sum_merge=True,
    decoder_filters=19,
    decoder_output_is_logits=True,
    image_se_uses_qsigmoid=True,
    decoder_output_stride=(8,),
)
_QUANTIZED = (
    "trained with simulated 8-bit quantization, which the float network here does not simulate"
)
_EDGETPU = (
    "the released checkpoints were not available; the layers of this backbone were compared with "
    "the released 8-bit file of the slim model, without its rounding: all labels are equal"
)

RELEASES: dict[str, Release] = {
    "deeplabv3_mnv2_dm05_pascal_trainaug": Release(
        official_config(depth_multiplier=0.5),
        "deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01.tar.gz",
        "mobilenetv2_dm05_coco_voc_trainaug",
        "VOC val",
        70.19,
    ),
    "deeplabv3_mnv2_dm05_pascal_trainval": Release(
        official_config(depth_multiplier=0.5, output_stride=8),
        "deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01.tar.gz",
        "mobilenetv2_dm05_coco_voc_trainval",
        "VOC test",
        71.83,
    ),
    "deeplabv3_mnv2_pascal_train_aug": Release(
        official_config(),
        "deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz",
        "mobilenetv2_coco_voc_trainaug",
        "VOC val",
        75.32,
        77.33,
        "0.5:0.25:1.75",
        # From the mirror of this archive in Open Model Zoo (models/public/deeplabv3/model.yml).
        checksum="sha384:d3f2b27bb00c485ca45d68731f7198a23926cb865dd010fc444bcad9158e3341"
        "3cd60da2588a9be3ff1e8c9b4557362b",
    ),
    "deeplabv3_mnv2_pascal_trainval": Release(
        official_config(output_stride=8),
        "deeplabv3_mnv2_pascal_trainval_2018_01_29.tar.gz",
        "mobilenetv2_coco_voc_trainval",
        "VOC test",
        None,
        80.25,
        "0.5:0.25:1.75",
    ),
    "deeplabv3_mnv2_dm05_pascal_train_aug_8bit": Release(
        official_config(depth_multiplier=0.5),
        "deeplabv3_mnv2_dm05_pascal_train_aug_8bit_2019_04_26.tar.gz",
        "mobilenetv2_dm05_coco_voc_trainaug_8bit",
        "VOC val",
        69.65,
        note=_QUANTIZED,
    ),
    "deeplabv3_mnv2_pascal_train_aug_8bit": Release(
        official_config(),
        "deeplabv3_mnv2_pascal_train_aug_8bit_2019_04_26.tar.gz",
        "mobilenetv2_coco_voc_trainaug_8bit",
        "VOC val",
        74.26,
        note=_QUANTIZED,
    ),
    "deeplabv3_mnv2_cityscapes_train": Release(
        official_config(num_classes=19),
        "deeplabv3_mnv2_cityscapes_train_2018_02_05.tar.gz",
        "mobilenetv2_coco_cityscapes_trainfine",
        "Cityscapes val",
        70.71,
        73.57,
        "0.75:0.25:1.25",
    ),
    "deeplab_mnv3_large_cityscapes_trainfine": Release(
        official_config("mobilenet_v3_large_seg", **_LRASPP),
        "deeplab_mnv3_large_cityscapes_trainfine_2019_11_15.tar.gz",
        "mobilenetv3_large_cityscapes_trainfine",
        "Cityscapes val",
        72.41,
    ),
    "deeplab_mnv3_small_cityscapes_trainfine": Release(
        official_config("mobilenet_v3_small_seg", **_LRASPP),
        "deeplab_mnv3_small_cityscapes_trainfine_2019_11_15.tar.gz",
        "mobilenetv3_small_cityscapes_trainfine",
        "Cityscapes val",
        68.99,
    ),
    "edgetpu-deeplab": Release(
        official_config("mobilenet_edgetpu", num_classes=19),
        "edgetpu-deeplab_2020_03_09.tar.gz",
        "EdgeTPU-DeepLab",
        "Cityscapes val",
        74.1,
        note=f"70.6 at output stride 32; {_EDGETPU}",
    ),
    "edgetpu-deeplab-slim": Release(
        official_config(
            "mobilenet_edgetpu", num_classes=19, depth_multiplier=0.75, aspp_convs_filters=128
        ),
        "edgetpu-deeplab-slim_2020_03_09.tar.gz",
        "EdgeTPU-DeepLab-slim",
        "Cityscapes val",
        73.2,
        note=f"70.0 at output stride 32; {_EDGETPU}",
    ),
    "deeplabv3_mnv2_ade20k_train": Release(
        official_config(num_classes=151, decoder_output_stride=(4,)),
        "deeplabv3_mnv2_ade20k_train_2018_12_03.tar.gz",
        "mobilenetv2_ade20k_train",
        "ADE20K val",
        32.04,
        note="for images with a longest side of 257; class 0 is the ignored background",
    ),
}

OFFICIAL: dict[str, ModelConfig] = {name: release.config for name, release in RELEASES.items()}
# The scores that scripts/list_models.py shows: single-scale if reported, else multi-scale.
OFFICIAL_MIOU: dict[str, float] = {
    name: miou
    for name, release in RELEASES.items()
    if (miou := release.miou or release.miou_multi_scale)
}
