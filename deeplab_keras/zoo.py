"""The models by name: a table of configs, and the mIoU that their authors reported."""

from __future__ import annotations

import pathlib

import keras

from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import CONVENTIONS, ModelConfig, UserError, unknown_name
from deeplab_keras.zoo_official import OFFICIAL, OFFICIAL_MIOU

_LRASPP = ModelConfig(
    head="lraspp",
    head_channels=128,
    low_level_features=("c2", "c1"),
    low_level_channels=(64, 32),
    image_pooling_size=(49, 49),
    image_pooling_stride=(16, 20),
    **CONVENTIONS["sssegmentation_v3"],
)

# SSSegmentation's six architectures (spec/sssegmentation.md, section 1.1).
SSSEGMENTATION: dict[str, ModelConfig] = {
    "fcn_mobilenetv2os8": ModelConfig(head="fcn", auxiliary_head=True),
    "pspnet_mobilenetv2os8": ModelConfig(head="psp", auxiliary_head=True),
    "deeplabv3_mobilenetv2os8": ModelConfig(head="deeplab_v3", auxiliary_head=True),
    "deeplabv3plus_mobilenetv2os8": ModelConfig(
        head="deeplab_v3_plus", aspp_with_separable_conv=True, auxiliary_head=True
    ),
    "lrasppnet_mobilenetv3sos8": _LRASPP.replace(backbone="mobilenet_v3_small"),
    "lrasppnet_mobilenetv3los8": _LRASPP.replace(backbone="mobilenet_v3_large"),
}
# Within an architecture, the datasets differ in the number of classes alone.
CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19}

# mIoU in percent on the validation set, one scale, no flip (SSSegmentation's docs/modelzoo/mobilenet/README.md).
SSSEGMENTATION_MIOU: dict[str, tuple[float, float, float]] = {
    "fcn_mobilenetv2os8": (59.89, 30.85, 70.77),
    "pspnet_mobilenetv2os8": (68.40, 35.09, 73.64),
    "deeplabv3_mobilenetv2os8": (70.08, 37.55, 76.74),
    "deeplabv3plus_mobilenetv2os8": (70.04, 37.66, 76.68),
    "lrasppnet_mobilenetv3sos8": (62.13, 26.09, 65.06),
    "lrasppnet_mobilenetv3los8": (67.90, 30.06, 69.98),
}

MODELS: dict[str, ModelConfig] = {
    f"{system}_{dataset}": config.replace(name=f"{system}_{dataset}", num_classes=classes)
    for dataset, classes in CLASSES.items()
    for system, config in SSSEGMENTATION.items()
} | {name: config.replace(name=name) for name, config in OFFICIAL.items()}

REPORTED_MIOU: dict[str, float] = {
    f"{system}_{dataset}": miou
    for system, row in SSSEGMENTATION_MIOU.items()
    for dataset, miou in zip(CLASSES, row, strict=True)
} | OFFICIAL_MIOU


def list_models() -> list[str]:
    """Every name that `get_config` knows."""
    return list(MODELS)


def get_config(name: str) -> ModelConfig:
    """The architecture of a model of the zoo.

    Raises:
        UserError: no model of that name.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def reported(name: str) -> float | None:
    """The mIoU in percent that the model's authors reported; None: they reported none.

    On the validation set, for the official models trained on it (`..._trainval`) on the test set.
    """
    return REPORTED_MIOU.get(name)


def load_model(source: str, input_size: tuple[int, int] | None = None) -> keras.Model:
    """A model with trained weights.

    Args:
        source: a checkpoint folder or a workdir.
        input_size: (height, width) that the model takes; None: any.

    Raises:
        UserError: nothing there, or a name of the zoo: its weights must be converted first.
    """
    if not pathlib.Path(source).exists() and source in MODELS:
        raise UserError(
            f"{source}: a name of the zoo, whose weights are not in Keras' form; download them as docs/model_zoo.md says, "
            "convert them with scripts/convert_checkpoint.py, and give the folder"
        )
    return load_checkpoint(source, input_size).model
