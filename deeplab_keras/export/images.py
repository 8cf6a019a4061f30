"""Images for the check of an export and for the ranges of int8 files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.data.files.reading import find_image_files, read_photo
from deeplab_keras.data.source import Source
from deeplab_keras.inference.images import as_image
from deeplab_keras.inference.resizing import letterbox_size

Images = Source | Sequence[np.ndarray] | str | os.PathLike[str]


def read_images(images: Images, limit: int, channels: int = 3) -> list[np.ndarray]:
    """Returns at most `limit` evenly spaced uint8 images `[height, width, channels]`.

    Args:
        images: A split of a dataset, a folder of images (searched recursively), or the images: what
            a `Predictor` takes.
        limit: The largest number of images to return.
        channels: The number of input channels of the network. Images with others are converted as
            a `Predictor` does.

    Raises:
        UserError: The folder does not exist, or an image cannot be read or converted.
    """
    given: Any = images
    if isinstance(images, str | os.PathLike):
        given = find_image_files(images, os.fspath(images))
    if isinstance(given, Sequence):
        return [_pixels(given[index], index, channels) for index in _spread(len(given), limit)]
    if not hasattr(given, "load"):
        raise UserError(
            f"images of an export must be a folder, a list of arrays or a split of a dataset, not "
            f"{type(images).__name__}; to limit their number, give `checked`"
        )
    return read_pairs(given, limit, channels)[0]


def read_pairs(
    source: Source, limit: int, channels: int = 3
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns at most `limit` evenly spaced images of a split, and their labels."""
    pairs = [(index, *source.load(index)) for index in _spread(len(source), limit)]
    images = [_pixels(image, index, channels) for index, image, _ in pairs]
    return images, [label for _, _, label in pairs]


def _pixels(image: Any, index: int, channels: int) -> np.ndarray:
    """Returns an image or the image of a path as uint8 `[height, width, channels]`."""
    name = f"image {index} of the export"
    if isinstance(image, str | os.PathLike):
        name = os.fspath(image)
        image = Image.fromarray(read_photo(image))
    try:
        return np.round(as_image(image, channels)).astype(np.uint8)
    except UserError as error:
        raise UserError(f"{name}: {error.text}") from error


def image_sizes(images: Images, limit: int, channels: int = 3) -> list[tuple[int, int]]:
    """Returns the (height, width) of at most `limit` evenly spaced images, one in memory at a time.

    Args:
        images: See `read_images`.
        limit: The largest number of images.
        channels: The number of input channels of the network.
    """
    if hasattr(images, "load"):
        source = cast(Source, images)
        return [source.load(index)[0].shape[:2] for index in _spread(len(source), limit)]
    return [image.shape[:2] for image in read_images(images, limit, channels)]


def _spread(length: int, limit: int) -> list[int]:
    return np.unique(np.linspace(0, length - 1, min(length, limit)).round().astype(int)).tolist()


@dataclasses.dataclass(frozen=True)
class Fit:
    """How images get the input size of a file.

    Attributes:
        size: The (height, width) of the file's input.
        color: The color in 0..255 that fills the rest of a letterboxed image. `None` stretches
            images instead.
    """

    size: tuple[int, int]
    color: tuple[float, ...] | None = None

    def _shown(self, size: tuple[int, ...]) -> tuple[int, int]:
        return self.size if self.color is None else letterbox_size(size, self.size)

    def image(self, image: np.ndarray) -> np.ndarray:
        """Returns the image at the input size, resized bilinearly, uint8."""
        return self._filled(resize(image, self._shown(image.shape[:2])), self.color)

    def labels(self, labels: np.ndarray, ignore_label: int) -> np.ndarray:
        """Returns the labels at the input size, resized by nearest neighbor."""
        shown = self._shown(labels.shape)
        if labels.shape != shown:
            labels = tf.image.resize(labels[..., None], shown, "nearest")[..., 0].numpy()
        return self._filled(labels, ignore_label)

    def _filled(self, x: np.ndarray, value: Any) -> np.ndarray:
        if x.shape[:2] == self.size:
            return x
        filled = np.empty((*self.size, *x.shape[2:]), x.dtype)
        filled[:] = np.round(value)
        filled[: x.shape[0], : x.shape[1]] = x
        return filled


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image bilinearly, to uint8."""
    if image.shape[:2] == tuple(size):
        return image
    return tf.cast(tf.round(tf.image.resize(image, size)), tf.uint8).numpy()


def synthetic_images(size: tuple[int, int], channels: int, count: int = 4) -> list[np.ndarray]:
    """Returns synthetic images: flat and textured rectangles on a gradient, with noise.

    They have edges, large areas and texture, so that a trained network predicts several classes.
    All calls return the same images.
    """
    random = np.random.default_rng(0)
    height, width = size
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    pictures = []
    for _ in range(count):
        slope = random.uniform(-200, 200, (2, channels))
        picture = 128 + (rows[..., None] - 0.5) * slope[0] + (columns[..., None] - 0.5) * slope[1]
        for _ in range(8):
            top, left = random.integers(0, (height, width))
            area = picture[top : top + height // 2, left : left + width // 3]
            area[:] = random.uniform(0, 255, channels) + random.normal(
                0, random.choice((0, 40)), area.shape
            )
        pictures.append(
            np.clip(picture + random.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        )
    return pictures
