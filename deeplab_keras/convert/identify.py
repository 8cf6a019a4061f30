"""Identifies unknown weights files by their tensors' names, for hints in error messages."""

from __future__ import annotations

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# What the file is -> prefixes of names, all of which must occur. The first row that fits is used.
SIGNATURES: dict[str, tuple[str, ...]] = {
    "SSSegmentation's pspnet_mobilenetv2os8": ("backbone_net.conv1.conv", "ppm_net."),
    "SSSegmentation's deeplabv3plus_mobilenetv2os8": (
        "backbone_net.conv1.conv",
        "aspp_net.",
        "shortcut.",
    ),
    "SSSegmentation's deeplabv3_mobilenetv2os8": ("backbone_net.conv1.conv", "aspp_net."),
    "SSSegmentation's fcn_mobilenetv2os8": ("backbone_net.conv1.conv", "decoder.7."),
    "SSSegmentation's lrasppnet_mobilenetv3los8": ("backbone_net.layer16.conv", "branch_ups."),
    "SSSegmentation's lrasppnet_mobilenetv3sos8": ("backbone_net.layer12.conv", "branch_ups."),
    "a system of SSSegmentation on another backbone": ("backbone_net.",),
    "torchvision's lraspp_mobilenet_v3_large": ("backbone.0.0.", "classifier.cbr."),
    "torchvision's deeplabv3_mobilenet_v3_large": ("backbone.0.0.", "classifier.0.convs."),
    "a PyTorch classifier mobilenet_v2, older than torchvision's": (
        "features.18.0.",
        "features.1.conv.3.",
    ),
    "torchvision's classifier mobilenet_v2": ("features.18.0.", "classifier.1."),
    "torchvision's classifier mobilenet_v3_large": (
        "features.16.0.",
        "features.15.block.",
        "classifier.3.",
    ),
    "torchvision's classifier mobilenet_v3_small": (
        "features.12.0.",
        "features.11.block.",
        "classifier.3.",
    ),
    "OpenMMLab's MobileNetV2 classifier": ("backbone.conv1.conv", "backbone.conv2.conv"),
    "OpenMMLab's MobileNetV3 classifier": ("backbone.layer0.conv", "backbone.layer1."),
    "an official DeepLab model on MobileNetV2": ("MobilenetV2/", "logits/semantic/"),
    "an official DeepLab model on MobileNetV3": ("MobilenetV3/", "logits/semantic/"),
    "an ImageNet classifier of TF-Slim": ("MobilenetV2/Logits/",),
}
# Names of classifier biases. Their length is the number of classes.
CLASSIFIER_BIASES = (
    "decoder.7.bias",
    "decoder.3.bias",
    "decoder.1.bias",
    "classifier.high_classifier.bias",
    "classifier.4.bias",
    "logits/semantic/biases",
)
# SSSegmentation's datasets by their number of classes.
DATASETS = {21: "voc", 150: "ade20k", 19: "cityscapes"}


def hints(shapes: Shapes, model: str) -> str:
    """Returns the end of an error message about a file that does not fit a model.

    Args:
        shapes: The shapes of the file's tensors by name.
        model: The name of the model.

    Returns:
        What the file seems to be and what to do, for appending to a message.
    """
    identity = identify(shapes)
    if not identity:
        return f"; its format is unknown, with tensors named {', '.join(list(shapes)[:3])}, ..."
    found = (f"it seems to be {identity}", advice(identity, model))
    return "".join(f"; {hint}" for hint in found if hint)


def identify(shapes: Shapes) -> str:
    """Returns what a file with these tensors seems to be and its number of classes.

    Returns "" if it is unknown.
    """
    for what, prefixes in SIGNATURES.items():
        if all(any(name.startswith(prefix) for name in shapes) for prefix in prefixes):
            classes = next(
                (
                    shapes[name][0]
                    for name in CLASSIFIER_BIASES
                    if name in shapes and len(shapes[name]) == 1
                ),
                None,
            )
            return what if classes is None else f"{what}, {classes} classes"
    return ""


def advice(identity: str, model: str) -> str:
    """Returns the options with which a file that does not fit a model can be converted.

    Args:
        identity: The result of `identify`.
        model: The name of the model.

    Returns:
        What to do, or "" if it is unknown.
    """
    system = re.fullmatch(r"SSSegmentation's (\w+)(?:, (\d+) classes)?", identity)
    if system:
        name, classes = system[1], int(system[2] or 21)
        fitting = f"{name}_{DATASETS.get(classes, 'voc')}"
        options = f"`model={fitting}`"
        if classes not in DATASETS:
            options += f" `num_classes={classes}`"
        if not model.startswith(name):
            return f"give {options}"
        if fitting == model:
            return ""
        return f"give {options}, or also `num_classes` to start with new classifiers"
    whole = re.match(r"torchvision's (\w+_mobilenet_v3_large)", identity)
    if whole:
        return f"give `flagfile=configs/base/torchvision_{whole[1]}.flags`"
    backbone = r"classifier mobilenet_(\w+)|OpenMMLab's MobileNet(V\d) classifier"
    return "give a model with its `backbone`" if re.search(backbone, identity) else ""
