"""What an unknown weights file seems to be, told from the names in it, and what to do with it: an error's hints."""

from __future__ import annotations

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

# What it is -> beginnings of names that only it has; every one must be there. The first row that
# fits is taken.
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
# Names of classifiers' biases, whose length is the number of classes.
CLASSIFIERS = (
    "decoder.7.bias",
    "decoder.3.bias",
    "decoder.1.bias",
    "classifier.high_classifier.bias",
    "classifier.4.bias",
    "logits/semantic/biases",
)
DATASETS = {
    21: "voc",
    150: "ade20k",
    19: "cityscapes",
}  # SSSegmentation's, by their number of classes


def hints(shapes: Shapes, model: str) -> str:
    """The end of an error's line about a file that does not fit `model`: what it seems to be, and what to do."""
    seems = identify(shapes)
    if not seems:
        return f"; it is unknown here, its tensors are called {', '.join(list(shapes)[:3])}, ..."
    return "".join(
        f"; {hint}" for hint in (seems and f"it seems to be {seems}", advice(seems, model)) if hint
    )


def identify(shapes: Shapes) -> str:
    """What the file with these tensors seems to be, with its number of classes; "" if nobody knows."""
    for what, beginnings in SIGNATURES.items():
        if all(any(name.startswith(beginning) for name in shapes) for beginning in beginnings):
            classes = next(
                (
                    shapes[name][0]
                    for name in CLASSIFIERS
                    if name in shapes and len(shapes[name]) == 1
                ),
                None,
            )
            return what if classes is None else f"{what}, {classes} classes"
    return ""


def advice(seems: str, model: str) -> str:
    """The flags with which a file fits that does not fit `model`, by what `identify` said; "" if nobody knows."""
    system = re.fullmatch(r"SSSegmentation's (\w+)(?:, (\d+) classes)?", seems)
    if system:
        name, classes = system[1], int(system[2] or 21)
        fitting = f"{name}_{DATASETS.get(classes, 'voc')}"
        flags = f"`model={fitting}`" + ("" if classes in DATASETS else f" `num_classes={classes}`")
        if not model.startswith(name):
            return f"give {flags}"
        return (
            ""
            if fitting == model
            else f"give {flags}, or `num_classes` as well to start the classifiers anew"
        )
    whole = re.match(r"torchvision's (\w+_mobilenet_v3_large)", seems)
    if whole:
        return f"give `flagfile=configs/base/torchvision_{whole[1]}.flags`"
    backbone = re.search(r"classifier mobilenet_(\w+)|OpenMMLab's MobileNet(V\d) classifier", seems)
    return "give a model on its backbone (`backbone`)" if backbone else ""
