"""Batches for training benchmarks: noise, or crops of a dataset from an .npz file."""

from __future__ import annotations

import dataclasses
import os
import zipfile
import zlib

import numpy as np

from deeplab_keras.config import NORMALIZATIONS, DataConfig, ModelConfig, UserError
from deeplab_keras.io.writing import replacing

IGNORE_LABEL = 255
NAMES = ("images", "labels", "num_classes", "ignore_label")
WRITE = "write it with `python scripts/benchmark.py --what=batch` on a machine with TensorFlow"


@dataclasses.dataclass(frozen=True)
class TrainingBatch:
    """Images and labels.

    Attributes:
        images: `[batch, height, width, channels]`, float32 in 0..255.
        labels: `[batch, height, width]`, int32.
        classes: Number of classes.
        ignore_label: The label of pixels without a class.
        source: What the batch is, for tables.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    ignore_label: int
    source: str


def noise(shape: tuple[int, ...], classes: int, ignore_label: int = IGNORE_LABEL) -> TrainingBatch:
    """Returns a batch of random images and labels of a shape `[batch, height, width, channels]`."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, shape).astype(np.float32)
    labels = random.integers(0, classes, shape[:3]).astype(np.int32)
    return TrainingBatch(images, labels, classes, ignore_label, f"noise of {classes} classes")


def write_batch(
    path: str | os.PathLike[str], model: ModelConfig, data: DataConfig
) -> TrainingBatch:
    """Writes the first training batch of a dataset to an .npz file. Requires TensorFlow.

    Args:
        path: The file.
        model: The network, whose normalization has the color of the padding.
        data: The dataset, augmentation, crop size and batch size.
    """
    from deeplab_keras.data import pipeline
    from deeplab_keras.data.registry import open_dataset

    source = open_dataset(data, data.train_split)
    stream = pipeline.train_dataset(source, data, NORMALIZATIONS[model.normalization][0])
    images, labels = next(stream.as_numpy_iterator())
    info = source.info
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            images=np.clip(np.rint(images), 0, 255).astype(np.uint8),
            labels=labels.astype(np.int32),
            num_classes=np.int32(info.num_classes),
            ignore_label=np.int32(info.ignore_label),
        )
    return TrainingBatch(images, labels, info.num_classes, info.ignore_label, info.name)


def read_batch(path: str | os.PathLike[str], shape: tuple[int, ...]) -> TrainingBatch:
    """Reads a batch that `write_batch` wrote.

    Args:
        path: The file.
        shape: The required shape of the images, `[batch, height, width, channels]`.

    Raises:
        UserError: If the file cannot be read, lacks an array, or has other shapes or values.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in NAMES if name not in file]:
                raise UserError(f"`npz={path}`: has no array {', '.join(missing)}; {WRITE}")
            images, labels, classes, ignore_label = (file[name] for name in NAMES)
    except OSError as error:
        raise UserError(
            f"`npz={path}`: cannot be read ({error.strerror or error}); check the path "
            "and its permissions"
        ) from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"`npz={path}`: is not an .npz file of plain arrays; {WRITE}") from error
    for name, array, expected, dtype in (
        ("images", images, shape, np.uint8),
        ("labels", labels, shape[:3], np.int32),
        ("num_classes", classes, (), np.int32),
        ("ignore_label", ignore_label, (), np.int32),
    ):
        if array.shape != expected or array.dtype != dtype:
            raise UserError(
                f"`npz={path}`: {name} must be {np.dtype(dtype)} of shape {expected}. Received: "
                f"{array.dtype} of shape {array.shape}; {WRITE}"
            )
    counted = labels[labels != ignore_label]
    if classes < 2 or (counted.size and not 0 <= counted.min() <= counted.max() < classes):
        raise UserError(
            f"`npz={path}`: labels must be in 0..{classes - 1} or {ignore_label}, with num_classes "
            f"of at least 2; {WRITE}"
        )
    source = f"{os.path.basename(path)}, {classes} classes"
    return TrainingBatch(images.astype(np.float32), labels, int(classes), int(ignore_label), source)
