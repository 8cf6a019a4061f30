"""What an export is asked for: the formats and their files, the size and the images, looked at before the work begins."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import UserError, unknown_option
from deeplab_keras.export.images import Images, made_images, read_images, read_pairs, resize
from deeplab_keras.inference import Network
from deeplab_keras.models.segmentor import check_input_size

# Format -> name of its file in the export folder.
FORMATS = {
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite_float16": "model_float16.tflite",
    "tflite_dynamic": "model_dynamic.tflite",
    "tflite_int8": "model_int8.tflite",
    "tflite_mixed": "model_mixed.tflite",
    "onnx": "model.onnx",
}
FLOAT_KINDS = {"tflite": "float32", "tflite_float16": "float16", "tflite_dynamic": "dynamic"}
INT8_KINDS = ("tflite_int8", "tflite_mixed")
OUTPUTS = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}
# What agreement with Keras is asked for by default. Weights or arithmetic in 8 bits change labels
# by their nature.
MIN_AGREEMENT = 0.995
APPROXIMATE = ("tflite_dynamic", *INT8_KINDS)
MIXED_AGREEMENT = 0.99
LABEL_TYPES = ("int32", "uint8")
MIN_REPRESENTATIVE, MAX_REPRESENTATIVE = 16, 100
CHECKED = 8
PATTERN = set("[]*?")  # in a path, to TensorFlow's reader of SavedModels
MAX_TENSOR = 2**31  # bytes of one tensor, which the runtimes count in 32 bits
ANY_SIZE_CHECK = (193, 257)  # size of the made pictures for a model that takes any size


def targets(path: pathlib.Path, formats: Sequence[str], overwrite: bool) -> dict[str, pathlib.Path]:
    """Format -> the file or folder to be written."""
    for name in formats:
        if name not in FORMATS:
            raise unknown_option("formats", name, FORMATS)
    if not formats:
        raise UserError(f"`formats` is empty; give one or more of {', '.join(FORMATS)}")
    if "saved_model" in formats and PATTERN.intersection(str(path.expanduser().absolute())):
        raise UserError(
            f"`export_path={path}`: TensorFlow takes [ ] * ? in a path for a pattern and cannot "
            "read a SavedModel there; "
            "give a path without them, or leave saved_model out of `formats`"
        )
    exists = f"`export_path={path}`: exists"
    if path.suffix in (".tflite", ".onnx"):
        if len(formats) > 1 or pathlib.Path(FORMATS[formats[0]]).suffix != path.suffix:
            asked = ",".join(formats)
            raise UserError(
                f"`export_path={path}`: no file for `formats={asked}`; give a folder for several "
                "formats"
            )
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{exists}; give another path, or `overwrite` to replace the file")
        return {formats[0]: path}
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{exists} and is a file; give a folder, or a name that ends in .tflite or .onnx"
        )
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UserError(
            f"{exists}; give another folder, or `overwrite` to replace the exported files in it"
        )
    return {name: path / FORMATS[name] for name in formats}


def check_classes(checkpoint: LoadedCheckpoint) -> None:
    """Raises UserError where the model's output is not one score for each class of the checkpoint."""
    classes = Network(checkpoint.model).num_classes
    if not classes == checkpoint.config.num_classes == checkpoint.info.num_classes:
        raise UserError(
            f"the model gives {classes} classes, its config has {checkpoint.config.num_classes} "
            "and its class list "
            f"{checkpoint.info.num_classes}; give a LoadedCheckpoint in which all three agree"
        )


def check_size(checkpoint: LoadedCheckpoint, size: tuple[int, int]) -> None:
    """Raises UserError for an input size that the model or the runtimes cannot take."""
    if len(size) != 2 or min(size) < 1:
        raise UserError(
            f"`input_size={','.join(map(str, size))}`: two numbers of at least 1, HEIGHT,WIDTH"
        )
    built = checkpoint.model.input_shape[1:3]
    if None not in built and tuple(size) != tuple(built):
        raise UserError(
            f"`input_size={size[0]},{size[1]}`: the model was built for {built[0]},{built[1]} alone"
        )
    check_input_size(checkpoint.config, *size)
    largest = size[0] * size[1] * checkpoint.config.num_classes * 4
    if largest >= MAX_TENSOR:
        raise UserError(
            f"`input_size={size[0]},{size[1]}`: too large: the class scores alone would take "
            f"{largest / 2**30:.3g} GiB, and the "
            f"runtimes take less than {MAX_TENSOR >> 30} GiB a tensor; give a smaller size"
        )


def representative(
    images: Images | None, size: tuple[int, int] | None, kind: str
) -> list[np.ndarray]:
    """The images from which an int8 file takes its ranges, of its size."""
    found = [] if images is None else read_images(images, MAX_REPRESENTATIVE)
    if len(found) < MIN_REPRESENTATIVE:
        place = f" in {os.fspath(images)}" if isinstance(images, str | os.PathLike) else ""
        raise UserError(
            f"`formats={kind}` takes its ranges from at least {MIN_REPRESENTATIVE} representative "
            "images, and got "
            f"{len(found)}{place}; give `representative_dir='FOLDER'` of pictures, or the dataset "
            "by `dataset` and `dataset_dir`"
        )
    assert size
    return [resize(image, size) for image in found]


def check_images(
    images: Images | None, limit: int, checkpoint: LoadedCheckpoint, size: tuple[int, int] | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The images of the check, and their labels where there are any."""
    limit = limit or sys.maxsize
    if images is None:
        built = checkpoint.model.input_shape[1:3]
        size = size or (ANY_SIZE_CHECK if None in built else built)
        return made_images(size, checkpoint.config.input_channels), []
    labels: list[np.ndarray] = []
    if isinstance(images, str | os.PathLike | Sequence):
        found = read_images(images, limit)
    else:
        found, labels = read_pairs(images, limit)
        if images.info.class_names != checkpoint.info.class_names:
            labels = []  # of other classes
    if not found:
        raise UserError(
            "no images for the check of the export; give some, or leave them out for made pictures"
        )
    return found, labels


def check_limits(
    min_agreement: float | None, mixed_agreement: float, max_miou_loss: float | None
) -> None:
    """Raises UserError for a limit that no file could keep or break."""
    for flag, value in (("min_agreement", min_agreement), ("mixed_agreement", mixed_agreement)):
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"`{flag}={value}`: a share of the pixels, 0 to 1")
    if max_miou_loss is not None and max_miou_loss < 0:
        raise UserError(f"`max_miou_loss={max_miou_loss}`: points of mIoU, 0 or more")


def check_label_type(label_type: str) -> None:
    """Raises UserError for a type of labels that there is not."""
    if label_type not in LABEL_TYPES:
        raise unknown_option("label_type", label_type, LABEL_TYPES)
