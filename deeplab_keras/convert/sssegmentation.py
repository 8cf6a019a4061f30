"""SSSegmentation's names for our layers: five heads on MobileNetV2 and V3.

Also OpenMMLab's names for these backbones. The tables follow the order of the reference's
state_dict (docs/reference/sssegmentation.md#backbones and
docs/reference/sssegmentation.md#heads).
"""

from __future__ import annotations

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert.transfer import TORCH, Rules
from deeplab_keras.models.backbones.mobilenet_v2 import STAGES
from deeplab_keras.models.backbones.mobilenet_v3 import LARGE, LARGE_END, SMALL, SMALL_END

COUNTERS = r".*\.num_batches_tracked"  # counters of batch norm, which nothing reads
LAST_LAYER = {
    "mobilenet_v3_large": len(LARGE + LARGE_END) + 1,
    "mobilenet_v3_small": len(SMALL + SMALL_END) + 1,
}


def rules(config: ModelConfig) -> Rules:
    """Returns the rules for a complete system.

    Raises:
        UserError: If SSSegmentation has no such backbone or head.
    """
    if config.head not in HEADS:
        raise UserError(
            f"`head={config.head}`: for SSSegmentation's weights it must be one of "
            f"{', '.join(HEADS)}"
        )
    layers = backbone_layers(config, "backbone_net") | HEADS[config.head](config) | AUXILIARY
    return Rules(layers, TORCH, ignored=(COUNTERS,))


def imagenet_rules(config: ModelConfig) -> Rules:
    """Returns the rules for OpenMMLab's ImageNet classifiers.

    SSSegmentation's systems are trained from their weights.
    """
    classifier = r"backbone\.conv2\..*|(classifier|head)\..*"
    return Rules(
        backbone_layers(config, "backbone"),
        TORCH,
        ignored=(COUNTERS, classifier),
        group="backbone",
    )


def backbone_layers(config: ModelConfig, prefix: str) -> dict[str, str]:
    """Returns the table of the backbone: their layer -> our layer."""
    if config.backbone == "mobilenet_v2":
        return _mobilenet_v2(prefix)
    if config.backbone in LAST_LAYER:
        return _mobilenet_v3(prefix, LAST_LAYER[config.backbone])
    raise UserError(
        f"`backbone={config.backbone}`: for SSSegmentation's weights it must be one of "
        f"mobilenet_v2, {', '.join(LAST_LAYER)}"
    )


def _mobilenet_v2(prefix: str) -> dict[str, str]:
    blocks = [
        (stage, block) for stage, row in enumerate(STAGES, start=1) for block in range(row[2])
    ]
    layers = _conv_and_bn(f"{prefix}.conv1", "stem")
    for index, (stage, block) in enumerate(blocks, start=1):
        parts = ("depthwise", "project") if stage == 1 else ("expand", "depthwise", "project")
        for position, part in enumerate(parts):
            layers |= _conv_and_bn(
                f"{prefix}.layer{stage}.{block}.conv.{position}", f"block{index}_{part}"
            )
    return layers


def _mobilenet_v3(prefix: str, last: int) -> dict[str, str]:
    layers = _conv_and_bn(f"{prefix}.layer0", "stem")
    for n in range(1, last):
        layers |= {
            **_conv_and_bn(f"{prefix}.layer{n}.expand_conv", f"block{n}_expand"),
            **_conv_and_bn(f"{prefix}.layer{n}.depthwise_conv", f"block{n}_depthwise"),
            f"{prefix}.layer{n}.se.conv1.conv": f"block{n}_se_reduce",
            f"{prefix}.layer{n}.se.conv2.conv": f"block{n}_se_expand",
            **_conv_and_bn(f"{prefix}.layer{n}.linear_conv", f"block{n}_project"),
        }
    return layers | _conv_and_bn(f"{prefix}.layer{last}", "last")


def _conv_and_bn(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.conv": f"{ours}_conv", f"{theirs}.bn": f"{ours}_bn"}


def _sequential(theirs: str, ours: str, first: int = 0) -> dict[str, str]:
    """Returns rows for a convolution and its batch norm, from index `first` of a Sequential."""
    return {f"{theirs}.{first}": f"{ours}_conv", f"{theirs}.{first + 1}": f"{ours}_bn"}


def _separable(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.{half}_{part}": f"{ours}_{half}_{part}"
        for half in ("depthwise", "pointwise")
        for part in ("conv", "bn")
    }


def _fcn(config: ModelConfig) -> dict[str, str]:
    return {
        **_sequential("decoder", "fcn1"),
        **_sequential("decoder", "fcn2", first=3),
        "decoder.7": "logits",
    }


def _psp(config: ModelConfig) -> dict[str, str]:
    layers: dict[str, str] = {}
    for level, bins in enumerate(config.pool_scales):
        layers |= _sequential(f"ppm_net.branches.{level}", f"psp{bins}", first=1)
    return {**layers, **_sequential("ppm_net.bottleneck", "psp_project"), "decoder.1": "logits"}


def _aspp(config: ModelConfig) -> dict[str, str]:
    layers: dict[str, str] = {}
    for branch in range(len(config.atrous_rates) + 1):
        theirs, ours = f"aspp_net.parallel_branches.{branch}", f"aspp{branch}"
        separable = branch > 0 and config.aspp_with_separable_conv
        layers |= _separable(theirs, ours) if separable else _sequential(theirs, ours)
    layers |= _sequential("aspp_net.global_branch", "image_pooling", first=1)
    return layers | _sequential("aspp_net.bottleneck", "aspp_project")


def _deeplab_v3(config: ModelConfig) -> dict[str, str]:
    return {**_aspp(config), "decoder.1": "logits"}


def _deeplab_v3_plus(config: ModelConfig) -> dict[str, str]:
    return {
        **_aspp(config),
        **_sequential("shortcut", "decoder_low_level"),
        **_separable("decoder.0", "decoder_conv1"),
        **_separable("decoder.1", "decoder_conv2"),
        "decoder.3": "logits",
    }


def _lraspp(config: ModelConfig) -> dict[str, str]:
    return {
        # Their branches are numbered from the finest features, ours from the coarsest.
        "branch_convs.conv0": "branch1",
        "branch_convs.conv1": "branch0",
        **_sequential("branch_ups.conv0", "branch1_merge"),
        **_sequential("branch_ups.conv1", "branch0_merge"),
        **_sequential("aspp_conv", "aspp0"),
        **_sequential("image_pool", "image_pooling", first=1),
        "bottleneck": "bottleneck",
        "decoder.1": "logits",
    }


HEADS = {
    "fcn": _fcn,
    "psp": _psp,
    "deeplab_v3": _deeplab_v3,
    "deeplab_v3_plus": _deeplab_v3_plus,
    "lraspp": _lraspp,
}
AUXILIARY = {
    **_sequential("auxiliary_decoder", "auxiliary"),
    "auxiliary_decoder.4": "auxiliary_logits",
}
