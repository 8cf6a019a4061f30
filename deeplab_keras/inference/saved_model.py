"""SavedModels of `export_model` and of Keras' `model.export`, which TensorFlow runs."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.inference import arrays
from deeplab_keras.inference.exported import ABOUT, AGAIN, EXTRAS, Runtime
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.on_tensorflow import explaining
from deeplab_keras.io.foreign import reading


def _load(path: pathlib.Path) -> Any:
    if set("[]*?").intersection(str(path.absolute())):
        raise UserError(
            f"{path}: TensorFlow treats [ ] * ? in a path as wildcards; move the SavedModel to a "
            "path without them"
        )
    return tf.saved_model.load(str(path))


def open_saved_model(path: pathlib.Path) -> Runtime:
    """Opens the folder of a SavedModel that `export_model` wrote.

    Raises:
        UserError: The folder is damaged, or something else wrote it.
    """
    with reading(path, "a SavedModel", AGAIN):
        signatures = _load(path).signatures
        if not {"serving_default", "logits"} <= set(signatures):
            raise UserError(
                f"{path}: not written by `export_model.py` but, for example, by Keras' "
                f"model.export: it has the signatures {', '.join(sorted(signatures)) or 'none'} "
                f"and no {ABOUT}; give an exported model or a checkpoint"
            )
        default, logits = signatures["serving_default"], signatures["logits"]
        spec = default.structured_input_signature[1]["image"]
        files = {file.name: file.read_text(encoding="utf-8") for file in (path / EXTRAS).glob("*")}
        height, width = spec.shape[1:3]

    def logits_of(images: np.ndarray) -> np.ndarray:
        with explaining(images):
            return logits(image=tf.constant(images))["logits"].numpy()

    def labels_of(images: np.ndarray) -> np.ndarray:
        with explaining(images):
            return signatures["labels"](image=tf.constant(images))["labels"].numpy()

    return Runtime(
        np.uint8,
        (height, width) if height and width else None,
        files,
        logits_of,
        labels_of if "labels" in default.structured_outputs else None,
    )


class KerasExport(Network):
    """The folder that Keras' `model.export` wrote, as a `Network`, whose scores are NumPy arrays.

    Args:
        path: The folder.

    Raises:
        UserError: The folder is damaged, or its signature does not take a batch of images and
            return one score per pixel and class.
    """

    arithmetic = arrays

    def __init__(self, path: pathlib.Path) -> None:
        with reading(path, "a SavedModel", AGAIN):
            # Kept, because the signature does not keep the variables of its model.
            self._model = _load(path)
            run = self._model.signatures.get("serving_default")
            inputs = list(run.structured_input_signature[1].values()) if run else []
            outputs = list(run.structured_outputs.values()) if run else []
        shapes = [tuple(tensor.shape) for tensor in (*inputs, *outputs) if tensor.shape.rank == 4]
        if len(inputs) != 1 or len(outputs) != 1 or len(shapes) != 2:
            raise UserError(
                f"{path}: neither `export_model.py` nor Keras' model.export of a segmentation "
                "model wrote it: its signature serving_default must take one batch of images "
                "[batch, height, width, channels] and return one batch of scores [batch, height, "
                "width, classes]; give an exported model or a checkpoint"
            )
        (_, height, width, channels), (*_, classes) = shapes
        if channels is None or classes is None or classes < 2:
            raise UserError(
                f"{path}: takes images of shape {shapes[0]} and returns scores of shape "
                f"{shapes[1]}; the channels and at least 2 classes must be known; export a "
                "segmentation model"
            )
        super().__init__(
            path.name, (height, width) if height and width else None, channels, classes
        )
        self.path, self._run, self._spec = path, run, inputs[0]

    @property
    def pad_value(self) -> tuple[float, ...]:
        """Raises `UserError`: the folder does not state how its model normalizes images."""
        raise UserError(
            f"{self.name}: Keras' model.export does not store the color that the model normalizes "
            "to 0, with which `inference='official'` pads images; give `inference='whole'` or a "
            "checkpoint"
        )

    def _logits(self, images: Any) -> np.ndarray:
        with explaining(images):
            given = {self._spec.name: tf.cast(images, self._spec.dtype)}
            (scores,) = self._run(**given).values()
        return np.asarray(scores).astype(np.float32, copy=False)
