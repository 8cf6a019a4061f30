"""Models with trained weights, by path or by name.

Released weights are downloaded once, verified, converted and kept in the cache folder
(`checkpoints.download.cache_folder`). The models in `registry.BUNDLED` are part of the package.
"""

from __future__ import annotations

import difflib
import logging
import os
import pathlib

import keras

from deeplab_keras.checkpoints import download, folder
from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import ModelConfig, UserError, number, unknown_name
from deeplab_keras.convert.conversion import convert, dataset_info
from deeplab_keras.convert.initial import initialize
from deeplab_keras.io.foreign import reading
from deeplab_keras.models import segmentor
from deeplab_keras.models.layer_groups import layers_in_group
from deeplab_keras.zoo.downloads import IMAGENET, download_of
from deeplab_keras.zoo.registry import (
    BUNDLED,
    MODELS,
    bundled_folder,
    get_config,
    list_models,
    require_bundled,
)

logger = logging.getLogger(__name__)


def load_model(
    source: str | os.PathLike[str],
    input_size: tuple[int, int] | None = None,
    *,
    num_classes: int | None = None,
) -> keras.Model:
    """Loads a model with trained weights.

    Args:
        source: A checkpoint folder, a workdir, a name of `list_models`, or a `.keras` file.
        input_size: (height, width) of the images; `None` for any size. Must be `None` for a
            `.keras` file, which has its own input size.
        num_classes: The number of classes; `None` for that of the weights. With another number,
            the classifiers start from random weights, and a warning names them.

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
        >>> dk.load_model("runs/demo", num_classes=2).output_shape[-1]
        2
    """
    _require_path(source, "source")
    if os.fspath(source).endswith(".keras"):
        given = {"input_size": input_size, "num_classes": num_classes}
        for option, value in given.items():
            if value is not None:
                raise UserError(
                    f"`{option}={value}`: {source} has the {option.replace('_', ' ')} it was saved "
                    f"with; omit `{option}`"
                )
        if not os.path.isfile(source):
            raise UserError(f"{source}: no such file; give a file that model.save wrote")
        with reading(source, "a Keras model", "save it again with model.save"):
            return keras.saving.load_model(source)
    path = checkpoint_folder(source)
    config = folder.read_config(path)
    if num_classes is None or number(num_classes, int, "num_classes") == config.num_classes:
        return folder.load_checkpoint(path, input_size).model
    config = config.replace(num_classes=num_classes)
    model = segmentor.build_segmentor(config, input_size)
    initialize(model, config, str(path), option="source")
    logger.warning(
        "%s has %d classes, not %d: random weights in %s; train them before use",
        source,
        folder.read_config(path).num_classes,
        num_classes,
        ", ".join(layers_in_group(model, "classifiers")),
    )
    return model


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
        weights: `None` for random weights, "imagenet" for a backbone trained on ImageNet, a name of
            `list_models` or of an ImageNet backbone such as "openmmlab_mobilenet_v2", or the path
            of a checkpoint: a folder, a workdir, a `.pth` file, or a TF1 checkpoint. Layers that
            the checkpoint does not have keep random weights, and so do classifiers with another
            number of classes. A log line names them.

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
        _require_path(weights, "weights")
        initialize(model, config, initial_weights(weights), option="weights")
    return model


def open_checkpoint(
    source: str | os.PathLike[str], input_size: tuple[int, int] | None = None
) -> LoadedCheckpoint:
    """Builds the model of a checkpoint and loads its weights, with its config and its classes.

    Args:
        source: A checkpoint folder, a workdir, or a name of `list_models`.
        input_size: (height, width) of the images; `None` for any size.

    Raises:
        UserError: See `checkpoint_folder` and `checkpoints.folder.load_checkpoint`.
    """
    return folder.load_checkpoint(checkpoint_folder(source), input_size)


def checkpoint_folder(source: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the checkpoint folder of a path or of a model of the zoo.

    The first call with the name of a released model downloads and converts the weights.

    Args:
        source: A checkpoint folder, a workdir, or a name of `list_models`. An existing checkpoint
            takes precedence over a name.

    Raises:
        UserError: If no checkpoint is found, if the name is unknown, if the weights are damaged or
            those of another model, or if they cannot be downloaded. The message then says what to
            download manually and where to put it.
    """
    _require_path(source, "source")
    path, name = pathlib.Path(source), os.fspath(source)
    if is_name(source):
        if name in BUNDLED:
            return bundled_folder(name)
        cached = download.cache_folder() / "models" / name
        if not _is_current(cached, name):
            _download_and_convert(name, cached)
        return cached
    if not os.path.exists(path) and path.name == name:
        require_bundled(name)
        if difflib.get_close_matches(name, list_models(), n=1, cutoff=0.8):
            raise unknown_name("folder or model", name, list_models())
        if name == "imagenet" or name in IMAGENET:
            raise UserError(
                f"{name}: a backbone trained on ImageNet, not a segmentation model; train one from "
                f"it with `initial_checkpoint={name}`"
            )
        parts = name.lower().split("_")
        if alike := [model for model in list_models() if all(part in model for part in parts)]:
            raise UserError(
                f"{name}: no such folder; models with this in their name: {', '.join(alike)}"
            )
        raise UserError(
            f"{name}: no such folder; give a checkpoint folder, the `train_logdir` of a training "
            "run, or the name of a model, which `python scripts/list_models.py` lists"
        )
    return folder.find_checkpoint(path)


def _require_path(source: object, argument: str) -> None:
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"`{argument}` must be a path or a name, not {type(source).__name__}")


def is_name(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is the name of a model of the zoo, and not the path of a checkpoint."""
    name = os.fspath(source)
    if name not in MODELS and name not in BUNDLED:
        return False
    try:
        folder.find_checkpoint(name)
    except UserError:  # nothing of this name, or a folder with something else
        return True
    return False


def results_folder(source: str) -> pathlib.Path:
    """Returns the folder for results of a checkpoint: the workdir itself, or `runs/NAME`."""
    return pathlib.Path("runs", source) if is_name(source) else pathlib.Path(source)


def initial_weights(source: str | os.PathLike[str]) -> str:
    """Returns the path of initial weights, for `convert.initial.initialize`.

    Args:
        source: A path, "imagenet", a name of `list_models`, or the name of an ImageNet backbone in
            `zoo.downloads.IMAGENET`.

    Raises:
        UserError: If the name is similar to a known one, or its file cannot be downloaded.
    """
    name = os.fspath(source)
    if len(name) > 4000 or max(map(len, name.split("/"))) > 255:  # the system's limits
        raise UserError(f"{name[:200]}...: no such file, folder or model; the path is too long")
    if os.path.exists(name) and not is_name(name):
        return name
    if is_name(name):
        return str(checkpoint_folder(name))
    require_bundled(name)
    if name in IMAGENET:
        found = IMAGENET[name]
        path = download.fetch(found.urls, download.cache_folder() / "downloads", found.checksum)
        download.record(path)
        return str(path)
    known = {"imagenet", *list_models(), *IMAGENET}
    if name not in known and difflib.get_close_matches(name, known, n=1, cutoff=0.8):
        raise unknown_name("file, folder or model", name, known)
    return name


def _is_current(path: pathlib.Path, name: str) -> bool:
    """Whether the folder has the model's weights and its current config."""
    try:
        return (path / folder.WEIGHTS).exists() and folder.read_config(path) == MODELS[name]
    except UserError:
        return False


def _download_and_convert(name: str, target: pathlib.Path) -> None:
    found = download_of(name)
    downloads = download.cache_folder() / "downloads"
    existed = any((downloads / url.rpartition("/")[2]).exists() for url in found.urls)
    path = download.fetch(found.urls, downloads, found.checksum)
    url = next(url for url in found.urls if url.endswith(f"/{path.name}"))
    try:
        model, proof = convert(found.source, str(path), MODELS[name])
    except UserError as error:
        if existed:
            raise UserError(f"{error.text}; delete it to download it again from {url}") from error
        path.unlink()  # the server may have sent something else, such as a login page
        raise UserError(f"{error.text}; the download from {url} was deleted") from error
    logger.info("%s: %s", path, proof)
    folder.save_checkpoint(
        target, model, MODELS[name], dataset_info(MODELS[name], source=found.source)
    )
    download.record(path)  # the proof has shown that the file is correct
