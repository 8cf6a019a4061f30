"""The model zoo: configs, reported scores and weights of released models by name."""

from __future__ import annotations

import difflib
import logging
import os
import pathlib

import keras

from deeplab_keras.checkpoints import download
from deeplab_keras.checkpoints.folder import WEIGHTS, load_checkpoint, read_config, save_checkpoint
from deeplab_keras.config import (
    CONVENTIONS,
    ModelConfig,
    UserError,
    unknown_name,
)
from deeplab_keras.convert.conversion import convert, dataset_info
from deeplab_keras.convert.initial import initialize
from deeplab_keras.convert.pth import import_torch
from deeplab_keras.io.foreign import reading
from deeplab_keras.models import segmentor
from deeplab_keras.zoo.official import OFFICIAL, OFFICIAL_MIOU, RELEASES

logger = logging.getLogger(__name__)

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
    """Returns the names of all models of the zoo.

    Example:
        >>> names = dk.list_models()
        >>> len(names)
        30
        >>> names[0], names[-1]
        ('fcn_mobilenetv2os8_voc', 'deeplabv3_mnv2_ade20k_train')
    """
    return list(MODELS)


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
    if not isinstance(name, str) or name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def reported(name: str) -> float | None:
    """Returns the mIoU in percent that the model's authors reported, or `None` if they did not.

    It was measured on the validation set, except for official models trained on the validation set
    (`..._trainval`), which were measured on the test set.
    """
    return REPORTED_MIOU.get(name)


# === Weights ===

# The address of NAME.pth without NAME.pth, from SSSegmentation's docs/modelzoo/mobilenet/README.md.
SSSEGMENTATION_ADDRESS = (
    "https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_mobilenet/"
)


def load_model(
    source: str | os.PathLike[str], input_size: tuple[int, int] | None = None
) -> keras.Model:
    """Loads a model with trained weights.

    Args:
        source: A checkpoint folder, a workdir, the name of a model of the zoo (see
            `checkpoint_path`), or a `.keras` file.
        input_size: (height, width) of the images; `None` for any size. Must be `None` for a
            `.keras` file, which has its own input size.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]`, RGB in 0..255, to logits
        `[batch, height, width, num_classes]`.

    Raises:
        UserError: If the path does not exist, or if the weights cannot be downloaded or read.

    Example:
        >>> model = dk.load_model("runs/demo")
        >>> images = np.zeros((1, 64, 96, 3), np.uint8)
        >>> model.predict(images, verbose=0).argmax(-1).shape
        (1, 64, 96)
        >>> model.save("demo.keras")
        >>> dk.load_model("demo.keras").name == model.name
        True
    """
    if os.fspath(source).endswith(".keras"):
        if input_size is not None:
            raise UserError(
                f"`input_size={input_size}`: {source} has the input size it was saved with; omit "
                "`input_size`"
            )
        if not os.path.isfile(source):
            raise UserError(f"{source}: no such file; give a file that model.save wrote")
        with reading(source, "a Keras model", "save it again with model.save"):
            return keras.saving.load_model(source)
    return load_checkpoint(checkpoint_path(source), input_size).model


def build_segmentor(
    config: ModelConfig | str,
    input_size: tuple[int, int] | None = None,
    *,
    batch_size: int | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> keras.Model:
    """Builds a segmentation network.

    Args:
        config: The architecture, or the name of a model of the zoo.
        input_size: (height, width) of the images; `None` for any size.
        batch_size: Number of images in a batch; `None` for any.
        weights: `None` for random weights, "imagenet" for a backbone trained on ImageNet, or the
            path of a checkpoint: a folder, a workdir, a `.pth` file, or a TF1 checkpoint. Layers
            that the checkpoint does not have keep random weights, and so do classifiers with
            another number of classes. A log line names them.

    Returns:
        A functional `keras.Model`, see `models.segmentor.Segmentor`.

    Raises:
        UserError: If the name is unknown, the network cannot take images of this size, or the
            weights do not fit.

    Example:
        >>> config = dk.get_config("lrasppnet_mobilenetv3sos8_voc").replace(image_pooling_size=())
        >>> dk.build_segmentor(config, input_size=(64, 96)).output_shape
        (None, 64, 96, 21)
    """
    if isinstance(config, str):
        config = get_config(config)
    model = segmentor.build_segmentor(config, input_size, batch_size=batch_size)
    if weights is not None:
        if not isinstance(weights, str | os.PathLike):
            raise UserError(f"`weights` must be a path or 'imagenet', not {type(weights).__name__}")
        initialize(model, config, os.fspath(weights), option="weights")
    return model


def checkpoint_path(source: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a checkpoint: the given folder, or the folder of a model of the zoo.

    The weights of the zoo are those of the models' authors. The first call downloads and converts
    them; they are kept in the cache folder (`checkpoints.download.cache_folder`).

    Args:
        source: A checkpoint folder, a workdir, or a name from `list_models`. An existing folder
            takes precedence over a name.

    Raises:
        UserError: If the name is unknown, if the weights are damaged or those of another model, or
            if they cannot be downloaded. The message then says what to download manually and where
            to put it.
    """
    path, name = pathlib.Path(source), os.fspath(source)
    if path.exists():
        return path
    if name not in MODELS:
        if path.name == name and difflib.get_close_matches(name, MODELS, n=1, cutoff=0.8):
            raise unknown_name("folder or model", name, MODELS)
        if path.name == name and (alike := [model for model in MODELS if name.lower() in model]):
            raise UserError(
                f"{name}: no such folder; models with this in their name: {', '.join(alike)}"
            )
        return path
    folder = download.cache_folder() / "models" / name
    if not _is_current(folder, name):
        _download_and_convert(name, folder)
    return folder


def address(name: str) -> tuple[str, str, str]:
    """Returns the address of a model's weights, their checksum ("" if unknown) and their source.

    The source is a name in `convert.conversion.SOURCES`.
    """
    if name in RELEASES:
        return RELEASES[name].url, RELEASES[name].checksum, "official_deeplab"
    return f"{SSSEGMENTATION_ADDRESS}{name}.pth", "", "sssegmentation"


def _is_current(folder: pathlib.Path, name: str) -> bool:
    """Whether the folder has the model's weights and its current config."""
    try:
        return (folder / WEIGHTS).exists() and read_config(folder) == MODELS[name]
    except UserError:
        return False


def _download_and_convert(name: str, folder: pathlib.Path) -> None:
    url, checksum, source = address(name)
    if source == "sssegmentation":
        import_torch()  # fails before the download if torch is missing
    downloads = download.cache_folder() / "downloads"
    existed = (downloads / url.rpartition("/")[2]).exists()
    path = download.fetch(url, downloads, checksum)
    try:
        model, proof = convert(source, str(path), MODELS[name])
    except UserError as error:
        if existed:
            raise UserError(f"{error.text}; delete it to download it again from {url}") from error
        path.unlink()  # the server may have sent something else, such as a login page
        raise UserError(f"{error.text}; the download from {url} was deleted") from error
    logger.info("%s: %s", path, proof)
    save_checkpoint(folder, model, MODELS[name], dataset_info(MODELS[name]))
    download.record(path)  # the proof has shown that the file is correct
