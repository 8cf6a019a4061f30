"""Images on which networks are compared, and statistics measured."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.files.reading import find_image_files, read_photo

# Image pooling has one value per image and channel. With 16 of them, the standard error of a
# variance is a third. The official DeepLab requires more than 12 images to update statistics
# (docs/reference/official_deeplab.md#batch-norm).
MIN_IMAGES = 16
MAX_IMAGES = 1000
COMPARED = 10  # images on which a graph and a model are compared

Images = str | os.PathLike[str] | Sequence[np.ndarray] | Sequence[pathlib.Path]


def find_for_statistics(images: Images) -> list[Any]:
    """Returns the images on which statistics of batch norm are measured; see `find_images`."""
    reason = ", but image pooling has one value per image for its statistics"
    return find_images(
        images, "restore_batch_norm", least=MIN_IMAGES, most=MAX_IMAGES, reason=reason
    )


def find_for_comparison(images: Images) -> list[Any]:
    """Returns the images on which a graph is compared with a model; see `find_images`."""
    return find_images(images, "check_photos", least=1, most=COMPARED)


def find_images(
    images: Images, option: str, *, least: int, most: int, reason: str = ""
) -> list[Any]:
    """Returns the images of a folder as paths, or the given images.

    Args:
        images: A folder of images (searched recursively), or the images.
        option: The name of the option, for error messages.
        least: The smallest number of images.
        most: The largest number. Of more images, evenly spaced ones are returned.
        reason: Explains the minimum in the error message.

    Raises:
        UserError: If the folder does not exist, there are too few images, or one cannot be read.
    """
    found: Sequence[Any]
    if isinstance(images, str | os.PathLike):
        where = f"`{option}={images}`"
        found = find_image_files(images, where)
    else:
        found, where = images, f"`{option}`"
    if len(found) < least:
        raise UserError(
            f"{where}: {len(found)} images{reason}; give at least {least}, such as those for "
            "training"
        )
    chosen = np.linspace(0, len(found) - 1, min(len(found), most)).round().astype(int)
    used = [found[index] for index in chosen]
    if isinstance(images, str | os.PathLike):
        for path in used:  # before minutes are spent on the others
            read_photo(path)
    return used


def pixels_of(image: Any, option: str, channels: int) -> np.ndarray:
    """Returns an image of `find_images` as an array, `[height, width, channels]`.

    Raises:
        UserError: If the file cannot be read, or the array has another shape or dtype.
    """
    pixels = read_photo(image) if isinstance(image, pathlib.Path) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != channels or pixels.dtype != np.uint8:
        raise UserError(
            f"`{option}`: an image of shape {pixels.shape} and dtype {pixels.dtype}; must be uint8 "
            f"[height, width, {channels}]"
        )
    if not pixels.size:
        raise UserError(f"`{option}`: an image of shape {pixels.shape} has no pixels; omit it")
    return pixels
