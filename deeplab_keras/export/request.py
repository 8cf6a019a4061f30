"""Checks before an export: formats, file names, input size and images."""

from __future__ import annotations

import collections
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import cast

import numpy as np

from deeplab_keras.config import ExportConfig, UserError, unknown_option
from deeplab_keras.data.source import Source
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.export.images import (
    Fit,
    Images,
    image_sizes,
    read_images,
    read_pairs,
    synthetic_images,
)

logger = logging.getLogger(__name__)

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
MIN_AGREEMENT = 0.995  # default share of labels that a file must have in common with Keras
# Formats without a default minimum: weights or arithmetic in 8 bits always change labels.
APPROXIMATE = ("tflite_dynamic", *INT8_KINDS)
MIN_REPRESENTATIVE, MAX_REPRESENTATIVE = 16, 100
PATTERN = set("[]*?")  # wildcards for TensorFlow's SavedModel loader
MAX_TENSOR = 2**31  # bytes; the runtimes count them in 32 bits
MEASURED = 100  # images whose size is read for the default of `input_size`


def input_size(config: ExportConfig) -> tuple[int, int] | None:
    """Returns the (height, width) of the input of TFLite and ONNX files, `None` if not given."""
    return (config.input_size[0], config.input_size[1]) if config.input_size else None


def usual_size(images: Images | None, source: Exportable) -> tuple[int, int] | None:
    """Returns the default size of an input: the most common size of the images of the check.

    It is at least the smallest size that the network takes. A network of a fixed input size has no
    other. Returns `None` without images.
    """
    height, width = source.model.input_shape[1:3]
    if height and width:
        return height, width
    found = [] if images is None else image_sizes(images, MEASURED, source.channels)
    if not found:
        return None
    ((usual, count),) = collections.Counter(found).most_common(1)
    size = (max(usual[0], source.smallest[0]), max(usual[1], source.smallest[1]))
    logger.info(
        "input size %dx%d: the most common size is %dx%d, of %d of %d images%s",
        *size,
        *usual,
        count,
        len(found),
        "" if size == usual else "; the network takes no smaller ones",
    )
    return size


def targets(path: pathlib.Path, formats: Sequence[str], overwrite: bool) -> dict[str, pathlib.Path]:
    """Returns the file or folder to write for each format.

    Raises:
        UserError: A format is unknown, or `path` exists or does not suit the formats.
    """
    for name in formats:
        if name not in FORMATS:
            raise unknown_option("formats", name, FORMATS)
    if not formats:
        raise UserError(f"`formats` is empty; give one or more of {', '.join(FORMATS)}")
    if "saved_model" in formats and PATTERN.intersection(str(path.expanduser().absolute())):
        raise UserError(
            f"`export_path={path}`: TensorFlow treats [ ] * ? in a path as wildcards and cannot "
            "read a SavedModel there; give a path without them, or leave saved_model out of "
            "`formats`"
        )
    exists = f"`export_path={path}`: exists"
    if path.suffix in (".tflite", ".onnx"):
        if len(formats) > 1 or pathlib.Path(FORMATS[formats[0]]).suffix != path.suffix:
            asked = ",".join(formats)
            raise UserError(
                f"`export_path={path}`: not a file name for `formats={asked}`; give a folder"
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


def fit(config: ExportConfig, source: Exportable) -> Fit | None:
    """Returns how images get the input size of TFLite and ONNX files, `None` without a size."""
    size = input_size(config)
    color = source.pad_value if config.resize == "letterbox" else None
    return Fit(size, color) if size else None


def check_size(source: Exportable, size: tuple[int, int]) -> None:
    """Raises UserError for an input size that the model or the runtimes cannot take."""
    built = source.model.input_shape[1:3]
    if None not in built and tuple(size) != tuple(built):
        raise UserError(
            f"`input_size={size[0]},{size[1]}`: the model was built for {built[0]}x{built[1]} "
            f"only; give `input_size={built[0]},{built[1]}`"
        )
    source.check_size(*size)
    largest = size[0] * size[1] * source.info.num_classes * 4
    if largest >= MAX_TENSOR:
        raise UserError(
            f"`input_size={size[0]},{size[1]}`: too large: the class scores would take "
            f"{largest / 2**30:.3g} GiB, and the runtimes allow less than {MAX_TENSOR >> 30} GiB "
            "per tensor; give a smaller size"
        )


def representative(
    images: Images | None, fit: Fit | None, kind: str, channels: int = 3
) -> list[np.ndarray]:
    """Returns the images that determine the ranges of an int8 file, at the file's input size.

    Raises:
        UserError: There are fewer than `MIN_REPRESENTATIVE` images.
    """
    found = [] if images is None else read_images(images, MAX_REPRESENTATIVE, channels)
    if len(found) < MIN_REPRESENTATIVE:
        place = f" in {os.fspath(images)}" if isinstance(images, str | os.PathLike) else ""
        raise UserError(
            f"`formats={kind}` needs at least {MIN_REPRESENTATIVE} representative images for its "
            f"ranges. Received: {len(found)}{place}; give `representative_dir='FOLDER'` with "
            "images, or the dataset with `dataset` and `dataset_dir`"
        )
    assert fit
    return [fit.image(image) for image in found]


def split(images: Images | None) -> Source | None:
    """Returns images that are a split of a dataset, which has labels, or `None`."""
    has_labels = not isinstance(images, str | os.PathLike | Sequence) and hasattr(images, "load")
    return cast(Source, images) if has_labels else None


def check_images(
    images: Images | None, limit: int, source: Exportable, size: tuple[int, int] | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the images of the check, and their labels.

    There are labels only if `images` is a dataset with the classes of the model.

    Args:
        images: See `export_model`; `None`: synthetic images.
        limit: The number of images, 0 for all.
        source: The model to export.
        size: The (height, width) of the synthetic images; `None`: the model's own, or a default.

    Raises:
        UserError: There are no images.
    """
    limit = limit or sys.maxsize
    if images is None:
        return synthetic_images(size or source.usual_size, source.channels), []
    labels: list[np.ndarray] = []
    labeled = split(images)
    if labeled is None:
        found = read_images(images, limit, source.channels)
    else:
        found, labels = read_pairs(labeled, limit, source.channels)
        if labeled.info.class_names != source.info.class_names:
            labels = []
    if not found:
        raise UserError(
            "no images for the check of the export; give at least one, or omit `check_images` for "
            "a check on synthetic images"
        )
    return found, labels
