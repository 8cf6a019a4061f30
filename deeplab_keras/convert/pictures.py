"""Images on which networks are compared, and statistics measured."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.files.reading import find_image_files, read_image

Images = str | os.PathLike[str] | Sequence[np.ndarray] | Sequence[pathlib.Path]


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
        UserError: If the folder does not exist, or there are too few images.
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
    return [found[index] for index in chosen]


def pixels_of(image: Any, option: str, channels: int) -> np.ndarray:
    """Returns an image of `find_images` as an array, `[height, width, channels]`.

    Raises:
        UserError: If the file cannot be read, or the array has another shape.
    """
    pixels = read_image(str(image)) if isinstance(image, pathlib.Path) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != channels:
        raise UserError(
            f"`{option}`: an image of shape {pixels.shape}; must be [height, width, {channels}]"
        )
    return pixels
