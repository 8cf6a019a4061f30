"""Opens trained models of every kind as a `Network`."""

from __future__ import annotations

import os
import pathlib

import keras

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.inference.exported import Path, is_exported, open_exported
from deeplab_keras.inference.network import Network
from deeplab_keras.zoo.loading import load_model, open_checkpoint


def as_network(model: keras.Model | Network | Path) -> Network:
    """Returns a model as a `Network`.

    Args:
        model: A model, a `Network`, or what `open_network` takes.
    """
    return open_network(model)[0] if isinstance(model, str | os.PathLike) else Network.of(model)


def open_network(source: Path) -> tuple[Network, DatasetInfo]:
    """Opens a trained model.

    Args:
        source: A checkpoint, a workdir, the name of a model of the zoo, a .keras file, or an
            exported model: a .tflite or .onnx file, or the folder of a SavedModel.

    Returns:
        The network and its classes. A .keras file has no names of classes, so they are numbered.

    Raises:
        UserError: The path has no model, or the model is damaged.
    """
    path = pathlib.Path(source)
    if is_exported(path):
        exported = open_exported(path)
        return exported, exported.info
    if path.suffix == ".keras":
        network = Network(load_model(path))
        names = [f"class_{number}" for number in range(network.num_classes)]
        return network, info_for_classes(path.stem, names)
    if path.is_file():
        raise UserError(
            f"{path}: not a model; give a checkpoint folder, a workdir, a .keras, .tflite or .onnx "
            "file, or the folder of a SavedModel"
        )
    exports = [file for file in sorted(path.glob("*")) if is_exported(file)]
    if exports and not any(path.rglob("weights.npz")):
        raise UserError(
            f"{path}: contains exported models; give one of them: `checkpoint_dir={exports[0]}`"
        )
    checkpoint = open_checkpoint(source)
    return Network(checkpoint.model), checkpoint.info
