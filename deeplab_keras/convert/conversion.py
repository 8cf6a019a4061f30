"""Converts foreign checkpoints to our models, and our checkpoints to SSSegmentation's."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import keras

from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import ModelConfig, UserError, unknown_option
from deeplab_keras.convert import keras_applications, official_deeplab, sssegmentation, torchvision
from deeplab_keras.convert.pictures import Images, find_for_comparison, find_for_statistics
from deeplab_keras.convert.pth import read_pth, write_pth
from deeplab_keras.convert.transfer import (
    Proof,
    dump_weights,
    load_weights,
    mismatched_classifiers,
    prove,
)
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.models.segmentor import build_segmentor

# Fields of ModelConfig that only affect training, or differ between datasets. SSSegmentation's
# systems may differ in them.
IGNORED_FIELDS = {
    "name",
    "num_classes",
    "dropout_rate",
    "dropout_placement",
    "initialization",
    "backbone_bn_momentum",
    "head_bn_momentum",
}


_BARE_BACKBONE = r"(conv\d|layer\d+)\."


def convert(
    source: str,
    path: str,
    config: ModelConfig,
    *,
    skip_mismatched_classifiers: bool = False,
    check: bool = True,
    check_photos: Images | None = None,
    restore_batch_norm: Images | None = None,
) -> tuple[keras.Model, Proof]:
    """Builds a model and loads foreign weights. An ImageNet file only has weights of the backbone.

    Args:
        source: Where the weights are from, one of `SOURCES`.
        path: The file or folder of the weights.
        config: The architecture.
        skip_mismatched_classifiers: Whether classifiers keep their initial weights if the file has
            another number of classes than the config. By default, this is an error.
        check: Whether a graph (.pb, .tflite) is compared with the model: its operations, and the
            outputs of both on a few images. If false, weights are loaded by their names and
            nothing else is compared.
        check_photos: A folder of images, or uint8 images `[height, width, 3]`, on which a graph is
            compared with the model. `None` for a few synthetic images, on which 8-bit files agree
            less with a float model than on photographs.
        restore_batch_norm: A folder of images, or uint8 images `[height, width, 3]`, on which the
            statistics of batch norm are measured that was folded into the convolutions. What the
            model computes does not change, but it can be trained with statistics that are updated.

    Returns:
        The model, and the proof to print.

    Raises:
        UserError: If the source is unknown, the file cannot be read, the weights do not fit the
            config, the graph computes something else, or batch norm cannot be restored.
    """
    if source not in SOURCES:
        raise unknown_option("source", source, SOURCES)
    if source == "official_deeplab":
        # Checked before the network is built, which takes seconds.
        if restore_batch_norm is not None:
            restore_batch_norm = find_for_statistics(restore_batch_norm)
        if check_photos is not None:
            check_photos = find_for_comparison(check_photos)
        model = build_segmentor(config)
        return model, official_deeplab.load(
            model,
            config,
            path,
            skip_mismatched_classifiers=skip_mismatched_classifiers,
            check=check,
            check_photos=check_photos,
            restore_batch_norm=restore_batch_norm,
        )
    if restore_batch_norm is not None:
        raise UserError(
            f"`restore_batch_norm`: weights of `source={source}` have the statistics of their "
            "training; omit `restore_batch_norm`"
        )
    if check_photos is not None:
        raise UserError(
            f"`check_photos`: weights of `source={source}` come without a graph that can be run; "
            "omit `check_photos`"
        )
    model = build_segmentor(config)
    return model, SOURCES[source](model, config, path, skip_mismatched_classifiers)


def load_pth(
    model: keras.Model,
    config: ModelConfig,
    path: str,
    *,
    skip_mismatched_classifiers: bool = False,
    skip_layers: Collection[str] = (),
) -> Proof:
    """Loads the weights of a .pth file of SSSegmentation, OpenMMLab or torchvision.

    The names of its tensors tell which one it is.

    Args:
        model: A segmentor.
        config: Its architecture.
        path: The file.
        skip_mismatched_classifiers: See `convert`.
        skip_layers: Layers that keep their initial weights in any case.

    Raises:
        UserError: See `convert`.
    """
    tensors = read_pth(path)
    if {"conv1.conv.weight", "layer0.conv.weight"} & tensors.keys():
        # A backbone of OpenMMLab, saved without the prefix of a classifier's.
        tensors = {
            f"backbone.{name}" if re.match(_BARE_BACKBONE, name) else name: value
            for name, value in tensors.items()
        }
    if any(name.startswith("features.") for name in tensors):
        rules = torchvision.imagenet_rules(config, tensors)
    elif any(re.match(r"backbone\.\d", name) for name in tensors):
        rules = torchvision.rules(config)
    elif any(re.match(r"backbone\.(conv|layer)", name) for name in tensors):
        rules = sssegmentation.imagenet_rules(config)
    else:
        rules = sssegmentation.rules(config)
    if skip_mismatched_classifiers and rules.group != "backbone":
        skip_layers = {*skip_layers, *mismatched_classifiers(model, tensors, rules)}
    return load_weights(model, tensors, rules, skip_layers=skip_layers, origin=str(path))


def _official(model: keras.Model, config: ModelConfig, path: str, skip_mismatched: bool) -> Proof:
    return official_deeplab.load(model, config, path, skip_mismatched_classifiers=skip_mismatched)


def _pth(model: keras.Model, config: ModelConfig, path: str, skip_mismatched: bool) -> Proof:
    proof = load_pth(model, config, path, skip_mismatched_classifiers=skip_mismatched)
    return _with_note(proof, config, "PyTorch checkpoint")


def _keras_applications(
    model: keras.Model, config: ModelConfig, path: str, skip_mismatched: bool
) -> Proof:
    return _with_note(
        keras_applications.load_imagenet(model, config, path, option="checkpoint"),
        config,
        "Keras weights file",
    )


def _with_note(proof: Proof, config: ModelConfig, kind: str) -> Proof:
    return dataclasses.replace(proof, notes=(official_deeplab.not_proven(config, kind),))


SOURCES: dict[str, Callable[[keras.Model, ModelConfig, str, bool], Proof]] = {
    "sssegmentation": _pth,
    "official_deeplab": _official,
    "torchvision": _pth,
    "keras_applications": _keras_applications,
}


def dataset_info(
    config: ModelConfig, class_names: Sequence[str] = (), source: str = ""
) -> DatasetInfo:
    """Returns the classes of a converted model.

    Args:
        config: The architecture.
        class_names: The names of the classes. If empty, they are the classes of the dataset in the
            model's name or `source`, or else numbers.
        source: Where the weights are from, one of `SOURCES`.

    Raises:
        UserError: If there are more or fewer names than classes.
    """
    if class_names:
        if len(class_names) != config.num_classes:
            raise UserError(
                f"`class_names`: {len(class_names)} names for `num_classes={config.num_classes}`; "
                "give one name per class"
            )
        return info_for_classes("converted", class_names)
    # Imported here because these modules need TensorFlow, which the models do not.
    from deeplab_keras.data.datasets import ade20k, cityscapes, voc2012

    # Part of a model's name or source -> the dataset it was trained on, if it has as many classes.
    datasets = (
        ("voc", voc2012.VOC2012),
        ("pascal", voc2012.VOC2012),
        ("torchvision", voc2012.VOC2012),
        ("ade20k", ade20k.ADE20K),
        ("ade20k", ade20k.ADE20K_151),
        ("cityscapes", cityscapes.CITYSCAPES),
    )
    for part, info in datasets:
        if part in f"{config.name} {source}" and info.num_classes == config.num_classes:
            return info
    return info_for_classes("converted", [f"class_{index}" for index in range(config.num_classes)])


# === Conversion to SSSegmentation ===


def write_sssegmentation(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    systems: Mapping[str, ModelConfig],
) -> Proof:
    """Writes one of our checkpoints as a .pth file that SSSegmentation's code loads strictly.

    Args:
        checkpoint: A checkpoint folder or a workdir.
        path: The file to write.
        systems: SSSegmentation's architectures by name.

    Returns:
        The proof: the file is read again and compared with the model.

    Raises:
        UserError: If the checkpoint cannot be read, SSSegmentation has no such network, or the
            file cannot be written.
    """
    loaded = load_checkpoint(checkpoint)
    name = find_system(loaded.config, systems, str(checkpoint))
    rules = sssegmentation.rules(systems[name])
    write_pth(path, dump_weights(loaded.model, rules))
    return prove(loaded.model, read_pth(path), rules)


def find_system(config: ModelConfig, systems: Mapping[str, ModelConfig], origin: str) -> str:
    """Returns the name of the SSSegmentation system with the architecture of `config`.

    Raises:
        UserError: If there is none. The message says how the most similar one differs.
    """
    differences = {name: _differences(config, system) for name, system in systems.items()}
    name = min(differences, key=lambda name: len(differences[name]))
    if differences[name]:
        raise UserError(
            f"{origin}: SSSegmentation has no such network; its {name} differs in "
            f"{', '.join(differences[name])}; only networks of its systems can be converted to it"
        )
    return name


def _differences(config: ModelConfig, system: ModelConfig) -> list[str]:
    ours, theirs = config.to_dict(), system.to_dict()
    return [
        f"`{name}={theirs.get(name)}` (not {ours.get(name)})"
        for name in ours | theirs
        if name not in IGNORED_FIELDS and ours.get(name) != theirs.get(name)
    ]
