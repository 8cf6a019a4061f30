"""Images as network input, from files of any color mode, arrays and PIL images."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from deeplab_keras.config import UserError
from deeplab_keras.data.files.reading import (
    DECODE_ERRORS,
    check_png,
    has_colors_of_16_bits,
    require_brightness,
    upper_bits,
)
from deeplab_keras.io.foreign import reading


def open_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file of any color mode as uint8 `[height, width, 3]` RGB; see `open_picture`.

    Raises:
        UserError: The file cannot be read as an image.
    """
    return np.asarray(open_picture(path))


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Reads an image file of any color mode as a PIL image in mode RGB, rotated according to EXIF.

    Drops an alpha channel, keeps the high byte of 16-bit values, and reads the first of several
    frames.

    Raises:
        UserError: The file cannot be read as an image, or has at least twice
            `PIL.Image.MAX_IMAGE_PIXELS` pixels; see `allow_pixels`.
    """
    with reading(path, "an image", "replace it"):
        return _decoded(path)


def _decoded(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as picture:
            in_colors_of_16_bits = has_colors_of_16_bits(picture)
            picture.load()
            if picture.format == "PNG":  # Pillow does not verify the checksums of pixel data
                with open(path, "rb") as file:
                    data = file.read()
                check_png(data)
                if in_colors_of_16_bits:
                    require_brightness(np.asarray(picture.convert("RGB")), data)
            ImageOps.exif_transpose(picture, in_place=True)
            return _to_rgb(picture)
    except UnidentifiedImageError:
        reason = (
            "empty"
            if os.path.getsize(path) == 0
            else "not an image, or a format that Pillow does not read"
        )
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        hint = "raise `max_megapixels`, or split it into several files"
        raise UserError(f"{os.fspath(path)}: more than {limit:.0f} megapixels; {hint}") from None
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{os.fspath(path)}: cannot be read ({reason}); replace it")


@contextlib.contextmanager
def allow_pixels(megapixels: float) -> Iterator[None]:
    """Context in which images up to this size can be opened, in all threads.

    Pillow's own limit is 179 megapixels.

    Args:
        megapixels: The largest size. A small file can contain an image that fills the memory.
    """
    before = Image.MAX_IMAGE_PIXELS
    # Pillow warns above this limit, and raises an error above twice the limit.
    Image.MAX_IMAGE_PIXELS = round(megapixels * 1e6 / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":  # without convert's copy, which matters for huge images
        return picture
    if picture.mode.startswith("I"):
        return Image.fromarray(upper_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "F":
        raise ValueError("its values are floats; save it with 8 or 16 bits per channel")
    if picture.mode == "LAB":
        return ImageCms.profileToProfile(  # type: ignore[return-value]
            picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return picture.convert("RGB")


def as_image(image: Any, channels: int = 3) -> np.ndarray:
    """Returns an image as network input: `[height, width, channels]`, uint8 or float32, in 0..255.

    Repeats a gray channel three times, drops an alpha channel, and converts 8-bit PIL images of any
    mode to RGB.

    Args:
        image: An array `[height, width]` or `[height, width, channels]` of integers or floats in
            0..255, with 1 channel (gray), 3 (RGB) or 4 (RGBA), or a PIL image.
        channels: The number of input channels of the network.

    Raises:
        UserError: The image has another shape, values outside 0..255, or floats in 0..1.
    """
    # The values of the modes I and F can exceed 255, so they are checked like arrays.
    if isinstance(image, Image.Image) and not image.mode.startswith(("I", "F")):
        image = image.convert("L" if channels == 1 else "RGB")
    array = _as_array(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.size == 0:
        raise UserError(
            f"image of shape {np.shape(image)}; must be [height, width] or [height, width, "
            "channels]"
        )
    return _fitting(array, channels)


def as_batch(images: Any, channels: int = 3) -> np.ndarray:
    """Returns a batch of images as network input, checked and converted as in `as_image`.

    Args:
        images: An array `[batch, height, width, channels]` of integers or floats in 0..255, with
            the channels of `as_image`.
        channels: The number of input channels of the network.

    Returns:
        uint8 or float32 `[batch, height, width, channels]`.

    Raises:
        UserError: The images have another shape or dtype, values outside 0..255 (also NaN), or
            floats in 0..1.
    """
    array = _as_array(images)
    if array.ndim != 4 or array.size == 0:
        hint = (
            "; for one image call predictor(image), or give image[None]"
            if array.ndim in (2, 3)
            else ""
        )
        raise UserError(
            f"batch of images of shape {array.shape}; must be [batch, height, width, "
            f"channels]{hint}"
        )
    return _fitting(array, channels)


def as_labels(labels: Any, images: np.ndarray) -> np.ndarray:
    """Returns the true labels of a batch of images as an array.

    Args:
        labels: Integers `[batch, height, width]`.
        images: The images, `[batch, height, width, channels]`.

    Raises:
        UserError: The labels have another shape or dtype.
    """
    array = _as_array(labels)
    if array.shape != images.shape[:3] or array.dtype.kind not in "ui":
        raise UserError(
            f"labels of shape {array.shape} and dtype {array.dtype}; must be integers of shape "
            f"{images.shape[:3]}, one class per pixel"
        )
    return array


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # images of several sizes, objects
        raise UserError(
            f"cannot be converted to an array ({str(error)[:80]}); give images of one size as one "
            "array"
        ) from error


def _fitting(array: np.ndarray, channels: int) -> np.ndarray:
    """Converts images to `[..., channels]`, and checks their values."""
    given = array.shape[-1]
    if given == 1 and channels == 3:
        array = np.repeat(array, 3, axis=-1)
    elif given == 4 and channels == 3:
        array = array[..., :3]
    elif given != channels:
        raise UserError(f"image with {given} channels; the model takes {channels}")
    return array if array.dtype == np.uint8 else _checked_values(array)


def _checked_values(array: np.ndarray) -> np.ndarray:
    """Casts integers to uint8 and floats to float32, after checking that they are in 0..255."""
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole and not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"image of dtype {array.dtype}; must be integers or floats in 0..255")
    low, high = array.min(), array.max()
    values = f"image of dtype {array.dtype} with values {low:g} to {high:g}"
    if not (low >= 0 and high <= 255):
        hint = "; divide 16-bit values by 257" if array.dtype == np.uint16 else ""
        raise UserError(f"{values}; must be 0 to 255{hint}")
    if not whole and 0 < high <= 1:
        raise UserError(f"{values}; must be 0 to 255: multiply by 255")
    return array.astype(np.uint8 if whole else np.float32)
