"""The official DeepLab's MobileNet models: the meaning of its flags, and its released models by name.

spec/official-deeplab.md, sections 2.1, 4 and 8. `zoo.py` lists the models beside SSSegmentation's systems.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from deeplab_keras.config import CONVENTIONS, ModelConfig, UserError, unknown_name

# Backbone -> stride -> the features that the decoder reads there (networks_to_feature_maps in core/feature_extractor.py).
DECODER_TAPS: dict[str, dict[int, str]] = {
    "mobilenet_v2": {4: "block3_depthwise", 8: "block6_depthwise", 16: "block13_depthwise"},
    "mobilenet_v3_large_seg": {4: "block3_depthwise", 8: "block6_depthwise", 16: "block12_depthwise"},
    "mobilenet_v3_small_seg": {4: "block1_depthwise", 8: "block3_depthwise", 16: "block8_depthwise"},
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
    """The network that the official scripts build for these flags; every name and default is theirs.

    Raises:
        UserError: a backbone or decoder stride that the official code has no MobileNet for, or a combination of flags
            that it does not use.
    """
    if model_variant not in DECODER_TAPS:
        raise unknown_name("official MobileNet (--model_variant)", model_variant, DECODER_TAPS)
    shared: dict[str, Any] = dict(
        CONVENTIONS["official_deeplab"],
        backbone=model_variant,
        num_classes=num_classes,
        output_stride=output_stride,
        depth_multiplier=depth_multiplier,
        channel_divisor=divisible_by or CONVENTIONS["official_deeplab"]["channel_divisor"],
        head_channels=aspp_convs_filters,
        atrous_rates=atrous_rates or (),
        image_pooling_crop_size=image_pooling_crop_size or (),
        image_pooling_stride=image_pooling_stride,
        use_bounded_activation=use_bounded_activation,
        low_level_features=_taps(model_variant, decoder_output_stride or ()),
    )
    if aspp_with_squeeze_and_excitation and add_image_level_feature:
        _require_lraspp(
            atrous_rates=not atrous_rates, aspp_with_concat_projection=not aspp_with_concat_projection,
            aspp_with_batch_norm=aspp_with_batch_norm, decoder_output_stride=len(decoder_output_stride or ()) == 1,
            decoder_use_sum_merge=decoder_use_sum_merge, decoder_output_is_logits=decoder_output_is_logits,
            decoder_filters=decoder_filters == num_classes,
        )
        gate = "q_sigmoid" if image_se_uses_qsigmoid else "sigmoid"
        return ModelConfig(
            **shared, head="lraspp", low_level_channels=(), image_pooling_gate=gate, image_pooling_batch_norm=False,
            image_pooling_bias=True,
        )
    if decoder_output_is_logits:
        raise UserError("--decoder_output_is_logits=true: only with --aspp_with_squeeze_and_excitation=true (LR-ASPP)")
    return ModelConfig(
        **shared,
        head="deeplab_v3_plus" if decoder_output_stride else "deeplab_v3",
        add_image_level_feature=add_image_level_feature,
        aspp_with_batch_norm=aspp_with_batch_norm,
        aspp_with_separable_conv=aspp_with_separable_conv,
        aspp_projection_kernel=int(aspp_with_concat_projection),
        logits_kernel_size=logits_kernel_size,
        low_level_channels=(48,) * len(decoder_output_stride or ()),
        decoder_filters=decoder_filters,
        decoder_use_separable_conv=decoder_use_separable_conv,
        decoder_use_sum_merge=decoder_use_sum_merge,
    )


def _taps(model_variant: str, strides: tuple[int, ...]) -> tuple[str, ...]:
    known = DECODER_TAPS[model_variant]
    for stride in strides:
        if stride not in known:
            allowed = ", ".join(map(str, known)) or "none: this backbone has no decoder"
            raise UserError(f"--decoder_output_stride={stride}: {model_variant} has {allowed}")
    return tuple(known[stride] for stride in strides)


def _require_lraspp(**holds: bool) -> None:
    """LR-ASPP is seven flags that only make sense together (spec, section 4.4)."""
    wrong = [f"--{flag}" for flag, ok in holds.items() if not ok]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: with --aspp_with_squeeze_and_excitation=true the network is LR-ASPP, which needs no "
            "--atrous_rates, --aspp_with_concat_projection=false, --decoder_use_sum_merge=true, one --decoder_output_stride, "
            "--decoder_output_is_logits=true and --decoder_filters equal to the number of classes"
        )


OFFICIAL: dict[str, ModelConfig] = {}
OFFICIAL_MIOU: dict[str, float] = {}
