"""torchvision's names for our layers.

* Classifiers, as backbones: mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small. Also files of
  MobileNetV2 that are older than torchvision's
  (docs/reference/pytorch.md#mobilenetv2-before-torchvision).
* Complete segmentation models: lraspp_mobilenet_v3_large, deeplabv3_mobilenet_v3_large.
"""

from __future__ import annotations

from collections.abc import Iterable

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert.sssegmentation import COUNTERS
from deeplab_keras.convert.transfer import TORCH, Rules
from deeplab_keras.models.backbones.mobilenet_v3 import LARGE, LARGE_END, SMALL, SMALL_END, Row

V3_ROWS: dict[str, tuple[Row, ...]] = {
    "mobilenet_v3_large": LARGE + LARGE_END,
    "mobilenet_v3_small": SMALL + SMALL_END,
}
V2_BLOCKS = 17


def rules(config: ModelConfig) -> Rules:
    """Returns the rules for a complete segmentation model.

    Raises:
        UserError: If torchvision has no such backbone or head.
    """
    if config.head not in HEADS:
        raise UserError(
            f"`head={config.head}`: for torchvision's weights it must be one of {', '.join(HEADS)}"
        )
    layers = backbone_layers(config, "backbone") | HEADS[config.head] | AUXILIARY
    return Rules(layers, TORCH, ignored=(COUNTERS,))


def imagenet_rules(config: ModelConfig, names: Iterable[str] = ()) -> Rules:
    """Returns the rules for the backbone of an ImageNet classifier.

    Args:
        config: The architecture.
        names: The names of the file's tensors. They tell a MobileNetV2 that is older than
            torchvision's.
    """
    unused = r"classifier\..*" + (
        rf"|features\.{V2_BLOCKS + 1}\..*" if config.backbone == "mobilenet_v2" else ""
    )
    is_old = config.backbone == "mobilenet_v2" and "features.1.conv.0.weight" in set(names)
    layers = _old_mobilenet_v2("features") if is_old else backbone_layers(config, "features")
    return Rules(layers, TORCH, ignored=(COUNTERS, unused), group="backbone")


def backbone_layers(config: ModelConfig, prefix: str) -> dict[str, str]:
    """Returns the table of the backbone: their layer -> our layer."""
    if config.backbone == "mobilenet_v2":
        return _mobilenet_v2(prefix)
    if config.backbone in V3_ROWS:
        return _mobilenet_v3(prefix, V3_ROWS[config.backbone])
    raise UserError(
        f"`backbone={config.backbone}`: for torchvision's weights it must be one of mobilenet_v2, "
        f"{', '.join(V3_ROWS)}"
    )


def _conv_and_bn(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.0": f"{ours}_conv", f"{theirs}.1": f"{ours}_bn"}


def _mobilenet_v2(prefix: str) -> dict[str, str]:
    layers = _conv_and_bn(f"{prefix}.0", "stem")
    for block in range(1, V2_BLOCKS + 1):
        theirs, ours = f"{prefix}.{block}.conv", f"block{block}"
        parts = ("depthwise",) if block == 1 else ("expand", "depthwise")
        for position, part in enumerate(parts):
            layers |= _conv_and_bn(f"{theirs}.{position}", f"{ours}_{part}")
        # Their projection is not a separate block: its convolution and batch norm continue the
        # numbering of the block.
        layers |= {
            f"{theirs}.{len(parts)}": f"{ours}_project_conv",
            f"{theirs}.{len(parts) + 1}": f"{ours}_project_bn",
        }
    return layers


def _old_mobilenet_v2(prefix: str) -> dict[str, str]:
    """Returns the table of a MobileNetV2 whose blocks number their layers in one sequence.

    These are convolution, batch norm and activation of each part. The projection has no activation.
    """
    layers = _conv_and_bn(f"{prefix}.0", "stem")
    for block in range(1, V2_BLOCKS + 1):
        parts = ("depthwise", "project") if block == 1 else ("expand", "depthwise", "project")
        for position, part in enumerate(parts):
            theirs, ours = f"{prefix}.{block}.conv", f"block{block}_{part}"
            layers |= {
                f"{theirs}.{3 * position}": f"{ours}_conv",
                f"{theirs}.{3 * position + 1}": f"{ours}_bn",
            }
    return layers


def _mobilenet_v3(prefix: str, rows: tuple[Row, ...]) -> dict[str, str]:
    layers, inputs = _conv_and_bn(f"{prefix}.0", "stem"), 16
    for block, (_, expanded, channels, se, *_) in enumerate(rows, start=1):
        parts = ["expand", "depthwise", "se", "project"]
        if expanded == inputs:
            parts.remove("expand")
        if not se:
            parts.remove("se")
        for position, part in enumerate(parts):
            theirs, ours = f"{prefix}.{block}.block.{position}", f"block{block}_{part}"
            if part == "se":
                layers |= {f"{theirs}.fc1": f"{ours}_reduce", f"{theirs}.fc2": f"{ours}_expand"}
            else:
                layers |= _conv_and_bn(theirs, ours)
        inputs = channels
    return layers | _conv_and_bn(f"{prefix}.{len(rows) + 1}", "last")


HEADS: dict[str, dict[str, str]] = {
    "deeplab_v3": {
        "classifier.0.convs.{n}.0": "aspp{n}_conv",
        "classifier.0.convs.{n}.1": "aspp{n}_bn",
        "classifier.0.convs.4.1": "image_pooling_conv",
        "classifier.0.convs.4.2": "image_pooling_bn",
        **_conv_and_bn("classifier.0.project", "aspp_project"),
        "classifier.1": "aspp_output1_conv",
        "classifier.2": "aspp_output1_bn",
        "classifier.4": "logits",
    },
    "lraspp": {
        **_conv_and_bn("classifier.cbr", "aspp0"),
        "classifier.scale.1": "image_pooling_conv",
        "classifier.low_classifier": "logits_low",
        "classifier.high_classifier": "logits_high",
    },
}
AUXILIARY = {**_conv_and_bn("aux_classifier", "auxiliary"), "aux_classifier.4": "auxiliary_logits"}
