"""Initial weights of a training run: another checkpoint, or ImageNet weights."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Collection, Mapping

import keras
import numpy as np

from deeplab_keras.checkpoints.folder import (
    CONFIG,
    DATASET,
    assign_weights,
    find_checkpoint,
    model_variables,
    named_weights,
    read_config,
    read_info,
    read_weights,
)
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert import official_deeplab
from deeplab_keras.convert.conversion import load_pth
from deeplab_keras.convert.keras_applications import load_imagenet
from deeplab_keras.convert.official_files import is_official_file
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.models.layer_groups import is_in_group
from deeplab_keras.models.quantization import without_ranges

logger = logging.getLogger(__name__)

PTH = (".pth", ".pt", ".pth.tar")
LISTED = 8  # layers in a log line
MOMENTA = ("backbone_bn_momentum", "head_bn_momentum")


def initialize(
    model: keras.Model,
    config: ModelConfig,
    source: str,
    *,
    skip_layers: Collection[str] = (),
    info: DatasetInfo | None = None,
    option: str = "tf_initial_checkpoint",
) -> None:
    """Loads initial weights, and logs which layers keep their random weights.

    Of our checkpoints, the backbone is always loaded, and the head if it is of the same kind. Some
    layers keep their random weights:

    * classifiers, if the number of classes differs; with a warning also if the names or the order
      of the classes differ,
    * the auxiliary head, if the checkpoint has none.

    Args:
        model: The segmentor.
        config: Its architecture.
        source: A checkpoint folder or workdir, "imagenet", a file of ImageNet weights, a .pth file
            of SSSegmentation, OpenMMLab or torchvision, or a file from which the official DeepLab
            can start: a TF1 checkpoint or a release archive.
        skip_layers: Names of layers that keep their random weights in any case, such as those of
            `models.layer_groups.layers_in_group(model, "head")`.
        info: The classes of the training run. If `None`, a checkpoint of ours is assumed to have
            the same classes.
        option: The option that has `source`, for error messages.

    Raises:
        UserError: If the source does not exist, or its weights do not fit.
    """
    if source.endswith(PTH):
        proof = load_pth(
            model, config, source, skip_mismatched_classifiers=True, skip_layers=skip_layers
        )
    elif is_official_file(source):
        proof = official_deeplab.start_from(model, config, source, skip_layers)
    elif source == "imagenet" or not pathlib.Path(source).is_dir():
        proof = load_imagenet(model, config, source, option)
    else:
        _from_folder(model, config, source, skip_layers, info, option)
        return
    logger.info("%s: %s", source, proof)


def start_config(source: str) -> ModelConfig:
    """Returns the architecture of an initial checkpoint, with the default batch norm momenta.

    The checkpoint's momenta depend on the length of its training run, not on its weights. With the
    official 0.9997, batch norm takes ten thousand steps to forget old statistics.

    Args:
        source: A checkpoint folder or workdir.
    """
    folder, defaults = find_checkpoint(source), ModelConfig()
    theirs = read_config(folder)
    ours = theirs.replace(**{name: getattr(defaults, name) for name in MOMENTA})
    if ours != theirs:
        changes = ", ".join(
            f"`{name}={getattr(ours, name):g}` (not {getattr(theirs, name):g})" for name in MOMENTA
        )
        logger.info("%s: the batch norm momenta are not taken from it: %s", folder, changes)
    return ours


def _from_folder(
    model: keras.Model,
    config: ModelConfig,
    source: str,
    skip_layers: Collection[str],
    info: DatasetInfo | None,
    option: str,
) -> None:
    folder = find_checkpoint(source)
    theirs = read_config(folder)
    weights = read_weights(folder)
    initial = named_weights(model)
    names = {*initial, *weights}
    if theirs.head != config.head:
        skipped = {name for name in names if not is_in_group(_layer(name), "backbone")}
        fits = (
            f"`model={theirs.name}`"
            if theirs.name
            else f"`head={theirs.head}` with the other settings of {folder / CONFIG}"
        )
        logger.warning(
            "%s has the head %s, so only its backbone is loaded and the head %s starts from random "
            "weights; %s would use the checkpoint's head",
            folder,
            theirs.head,
            config.head,
            fits,
        )
    else:
        skipped = {name for name in names if _layer(name) in skip_layers}
        classifiers = {name for name in names if is_in_group(_layer(name), "classifiers")}
        if not classifiers <= skipped and (
            theirs.num_classes != config.num_classes or _relabels(folder, info)
        ):
            skipped |= classifiers
        if theirs.quantization_aware != config.quantization_aware:
            skipped |= names - without_ranges(dict.fromkeys(names)).keys()
        if theirs.auxiliary_head != config.auxiliary_head:
            skipped |= {name for name in names if name.startswith("auxiliary")}
    assigned = {name: value for name, value in weights.items() if name not in skipped}
    assigned |= {name: value for name, value in initial.items() if name in skipped}
    _require_same_head(config, theirs, initial, assigned, f"`{option}={source}`")
    assign_weights(model, assigned, source=f"`{option}={source}`")
    random = without_ranges(
        dict.fromkeys(name for name in model_variables(model) if name in skipped)
    )
    layers = list(dict.fromkeys(map(_layer, random)))
    listed = ", ".join(layers[:LISTED]) + (
        f" and {len(layers) - LISTED} more" if len(layers) > LISTED else ""
    )
    logger.info(
        "%d weights from %s%s",
        len(assigned) - len(random),
        folder,
        f"; layers with random weights: {listed}" if layers else "",
    )


def _require_same_head(
    config: ModelConfig,
    theirs: ModelConfig,
    initial: Mapping[str, np.ndarray],
    assigned: Mapping[str, np.ndarray],
    source: str,
) -> None:
    """Raises `UserError` if the heads are of one kind, but differ in options and so in layers."""
    if theirs.head != config.head:
        return
    own, other = config.head_config.to_dict(), theirs.head_config.to_dict()
    differing = [name for name in own if own[name] != other[name]]
    misfits = initial.keys() ^ assigned.keys() | {
        name
        for name in initial.keys() & assigned.keys()
        if initial[name].shape != assigned[name].shape
    }
    if differing and misfits and all(is_in_group(_layer(name), "head") for name in misfits):
        options = ", ".join(f"`{name}={_written(other[name])}`" for name in differing)
        raise UserError(
            f"{source}: the head {config.head} has {options} there and therefore other layers; use "
            "these options, or start the whole head from random weights with "
            "`initialize_last_layer=False` and `last_layers_contain_logits_only=False`"
        )


def _written(value: object) -> str:
    """Returns the value of an option as on the command line."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _layer(weight: str) -> str:
    """Returns the layer of a weight, named `<layer>/<variable>`."""
    return weight.split("/")[0]


def _relabels(folder: pathlib.Path, info: DatasetInfo | None) -> bool:
    """Whether a checkpoint's classes have other names or another order; then logs a warning."""
    if info is None:
        return False
    theirs = read_info(folder)
    other = theirs.renamed(info)
    if not other:
        return False
    same = sorted(theirs.plain_names) == sorted(info.plain_names)
    more = f" and {len(other) - 1} more" if len(other) > 1 else ""
    logger.warning(
        "%s was trained on %s: class %d is %r there and %r here%s; the classifiers start from "
        "random weights; to load them, give the classes the %s of %s",
        folder,
        "these classes in another order" if same else "other classes",
        other[0],
        theirs.class_names[other[0]],
        info.class_names[other[0]],
        more,
        "order" if same else "names",
        folder / DATASET,
    )
    return True
