"""The model zoo: configs and reported scores of released models by name."""

from __future__ import annotations

import fnmatch
import json
import pathlib
from collections.abc import Iterable

from deeplab_keras.config import CONVENTIONS, ModelConfig, UserError, unknown_name
from deeplab_keras.zoo.official import OFFICIAL, OFFICIAL_MIOU

_LRASPP = ModelConfig(
    head="lraspp",
    head_channels=128,
    low_level_features=("c2", "c1"),
    low_level_channels=(64, 32),
    image_pooling_size=(49, 49),
    image_pooling_stride=(16, 20),
    conventions=CONVENTIONS["sssegmentation_v3"],
)

# SSSegmentation's six architectures (docs/reference/sssegmentation.md#merged-configs).
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
# Models of the same architecture differ only in the number of classes.
CLASSES = {"voc": 21, "ade20k": 150, "cityscapes": 19}

# mIoU in percent on the validation set, one scale, not flipped (from SSSegmentation's
# docs/modelzoo/mobilenet/README.md).
SSSEGMENTATION_MIOU: dict[str, tuple[float, float, float]] = {
    "fcn_mobilenetv2os8": (59.89, 30.85, 70.77),
    "pspnet_mobilenetv2os8": (68.40, 35.09, 73.64),
    "deeplabv3_mobilenetv2os8": (70.08, 37.55, 76.74),
    "deeplabv3plus_mobilenetv2os8": (70.04, 37.66, 76.68),
    "lrasppnet_mobilenetv3sos8": (62.13, 26.09, 65.06),
    "lrasppnet_mobilenetv3los8": (67.90, 30.06, 69.98),
}

_TORCHVISION = ModelConfig(
    backbone="mobilenet_v3_large",
    output_stride=16,
    dilation_placement="all",
    backbone_bn_epsilon=1e-3,
    backbone_bn_momentum=0.99,
)
# torchvision's segmentation models, trained on the images of COCO that have VOC's classes.
TORCHVISION: dict[str, ModelConfig] = {
    "lraspp_mobilenet_v3_large": _TORCHVISION.replace(
        head="lraspp",
        head_channels=128,
        low_level_features=("block4",),
        low_level_channels=(),
        image_pooling_batch_norm=False,
        dropout_rate=0.0,
    ),
    "deeplabv3_mobilenet_v3_large": _TORCHVISION.replace(
        head="deeplab_v3",
        head_channels=256,
        aspp_projection_kernel=1,
        aspp_output_convs=1,
        auxiliary_head=True,
        auxiliary_feature="block4",
        auxiliary_channels=10,
        dropout_rate=0.5,
        dropout_placement="aspp",
    ),
}
# mIoU in percent on COCO val2017 with VOC's classes, as torchvision reports it.
TORCHVISION_MIOU = {"lraspp_mobilenet_v3_large": 57.9, "deeplabv3_mobilenet_v3_large": 60.3}

MODELS: dict[str, ModelConfig] = {
    f"{system}_{dataset}": config.replace(name=f"{system}_{dataset}", num_classes=classes)
    for dataset, classes in CLASSES.items()
    for system, config in SSSEGMENTATION.items()
} | {name: config.replace(name=name) for name, config in (OFFICIAL | TORCHVISION).items()}

REPORTED_MIOU: dict[str, float] = (
    {
        f"{system}_{dataset}": miou
        for system, row in SSSEGMENTATION_MIOU.items()
        for dataset, miou in zip(CLASSES, row, strict=True)
    }
    | OFFICIAL_MIOU
    | TORCHVISION_MIOU
)

# Trained models that are part of the package, named after their recipes: checkpoint folders in
# zoo/bundled, written by benchmarks/bundled_model.py.
BUNDLED = ("synthetic_demo",)
# Models named after recipes whose weights cannot be part of the package.
NOT_BUNDLED = {
    "camvid_deeplab_v3_plus_mobilenet_v2": (
        "the license of CamVid (CC BY-NC) does not allow this package to include weights trained "
        "on it; train them: `python scripts/train.py` "
        "--flagfile=configs/camvid/deeplab_v3_plus_mobilenet_v2_os16.flags "
        "--dataset_dir=datasets/camvid --train_logdir=runs/camvid (docs/datasets.md)"
    )
}


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Returns the names of models of the zoo.

    The released models come first, then those that are part of the package.

    Args:
        pattern: A pattern with the wildcards `*`, `?` and `[...]`, or a part of the names.
        pretrained: Whether to return only models with weights that `load_model` finds in the
            package or can download because their authors released them.

    Example:
        >>> len(dk.list_models())
        33
        >>> dk.list_models("*mobilenetv3*voc*", pretrained=True)
        ['lrasppnet_mobilenetv3sos8_voc', 'lrasppnet_mobilenetv3los8_voc']
        >>> dk.list_models("ade20k")[-1]
        'deeplabv3_mnv2_ade20k_train'
    """
    return matching((*MODELS, *BUNDLED), pattern)  # the zoo only has models with weights


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Returns the names that contain a text, or match it if it has wildcards."""
    if not isinstance(pattern, str):
        raise UserError(f"`pattern` must be text, not {type(pattern).__name__}", value=pattern)
    if not set("*?[") & set(pattern):
        pattern = f"*{pattern}*"
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def get_config(name: str) -> ModelConfig:
    """Returns the architecture of a model of the zoo.

    Args:
        name: A name from `list_models`.

    Returns:
        A `ModelConfig`, which can be changed with `config.replace(...)`.

    Raises:
        UserError: If the zoo has no model of this name.

    Example:
        >>> config = dk.get_config("deeplabv3plus_mobilenetv2os8_voc")
        >>> config.backbone, config.head, config.num_classes
        ('mobilenet_v2', 'deeplab_v3_plus', 21)
        >>> config.replace(num_classes=11).num_classes
        11
    """
    if not isinstance(name, str):
        raise unknown_name("model", name, list_models())
    if name in BUNDLED:
        values = json.loads((bundled_folder(name) / "config.json").read_text(encoding="utf-8"))
        return ModelConfig.from_saved(values)
    require_bundled(name)
    if name not in MODELS:
        raise unknown_name("model", name, list_models())
    return MODELS[name]


def bundled_folder(name: str) -> pathlib.Path:
    """Returns the checkpoint folder of a model in `BUNDLED`."""
    return pathlib.Path(__file__).with_name("bundled") / name


def require_bundled(name: str) -> None:
    """Raises UserError for a model in `NOT_BUNDLED`, with the command that trains it."""
    if name in NOT_BUNDLED:
        raise UserError(f"{name}: not part of the package: {NOT_BUNDLED[name]}")


def reported(name: str) -> float | None:
    """Returns the mIoU in percent that the model's authors reported, or `None` if they did not.

    It was measured on the validation set, except for official models trained on the validation set
    (`..._trainval`), which were measured on the test set.
    """
    return REPORTED_MIOU.get(name)
