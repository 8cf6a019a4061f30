"""Opens trained models of every kind as a `Network`."""

from __future__ import annotations

import os
import pathlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.inference.exported import ABOUT, EXTRAS, Path, is_exported, open_exported
from deeplab_keras.inference.network import Network

if TYPE_CHECKING:
    import keras


def as_network(model: keras.Model | Network | Path) -> Network:
    """Returns a model as a `Network`.

    Args:
        model: A model, a `Network`, or what `open_network` takes.

    Raises:
        UserError: It is something else, or the model's output is not one score per pixel and class.
    """
    if isinstance(model, Network):
        return model
    if isinstance(model, str | os.PathLike):
        return open_network(model)[0]
    keras = sys.modules.get("keras")  # a Keras model exists only if Keras was imported
    if keras is None or not isinstance(model, keras.Model):
        raise UserError(
            f"`model` must be a keras.Model, not {type(model).__name__}; dk.load_model(path) "
            "returns one"
        )
    return _keras_network(model)


def _keras_network(model: keras.Model) -> Network:
    from deeplab_keras.inference.keras_network import KerasNetwork  # imports Keras and its backend

    return KerasNetwork(model)


def _loading(path: pathlib.Path) -> ModuleType:
    """Imports `zoo.loading`, which needs Keras and its backend."""
    try:
        from deeplab_keras.zoo import loading
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: checkpoints and names of models need the package {error.name}; pip install "
            "tensorflow keras, or give a .tflite or .onnx file, which needs neither"
        ) from error
    return loading


def open_network(source: Path) -> tuple[Network, DatasetInfo]:
    """Opens a trained model.

    Args:
        source: A checkpoint, a workdir, the name of a model of the zoo, a .keras file, or an
            exported model: a .tflite or .onnx file, or the folder of a SavedModel.

    Returns:
        The network and its classes. A .keras file and a SavedModel of Keras' `model.export` have no
        names of classes, so they are numbered.

    Raises:
        UserError: The path has no model, or the model is damaged.
    """
    path = pathlib.Path(source)
    if (path / "saved_model.pb").is_file() and not (path / EXTRAS / ABOUT).is_file():
        from deeplab_keras.inference.saved_model import KerasExport  # imports TensorFlow

        export = KerasExport(path)
        return export, _numbered(path.name, export.num_classes)
    if is_exported(path):
        exported = open_exported(path)
        return exported, exported.info
    if path.suffix == ".keras":
        network = _keras_network(_loading(path).load_model(path))
        return network, _numbered(path.stem, network.num_classes)
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
    checkpoint = _loading(path).open_checkpoint(source)
    return _keras_network(checkpoint.model), checkpoint.info


def _numbered(name: str, num_classes: int) -> DatasetInfo:
    return info_for_classes(name, [f"class_{number}" for number in range(num_classes)])
