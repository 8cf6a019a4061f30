"""Images as the network takes them: files of any colour mode, arrays and PIL images."""

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
    """An image file of any colour mode as uint8 `[height, width, 3]` RGB; see `open_picture`.

    Raises:
        UserError: the file cannot be read as an image.
    """
    return np.asarray(open_picture(path))


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """An image file of any colour mode as a PIL image in mode RGB, turned upright as its EXIF note says.

    Alpha is left out. Of 16 bits the high byte counts. Of several frames the first one is taken.

    Raises:
        UserError: the file cannot be read as an image, or has twice `PIL.Image.MAX_IMAGE_PIXELS` or
            more; see `allow_pixels`.
    """
    with reading(path, "an image", "replace it"):
        return _decoded(path)


def _decoded(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as picture:
            in_colors_of_16_bits = has_colors_of_16_bits(picture)
            picture.load()
            if picture.format == "PNG":  # Pillow does not verify the checksums of the pixels
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
            else "not an image, or of a kind that Pillow does not read"
        )
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        hint = "raise `max_megapixels`, or cut it into several files"
        raise UserError(f"{os.fspath(path)}: more than {limit:.0f} megapixels; {hint}") from None
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{os.fspath(path)}: cannot be read ({reason}); replace it")


@contextlib.contextmanager
def allow_pixels(megapixels: float) -> Iterator[None]:
    """Within the block images up to this size are opened, in all threads; Pillow itself refuses more than 179 megapixels.

    Args:
        megapixels: the largest size; a small file may hold an image that fills the memory.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = round(
        megapixels * 1e6 / 2
    )  # Pillow warns above it and refuses more than twice of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _to_rgb(picture: Image.Image) -> Image.Image:
    if (
        picture.mode == "RGB"
    ):  # without the copy that a conversion makes: of a huge image it would be felt
        return picture
    if picture.mode.startswith("I"):
        return Image.fromarray(upper_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "F":
        raise ValueError("its values are fractions; save it with 8 or 16 bits a channel")
    if picture.mode == "LAB":
        return ImageCms.profileToProfile(  # type: ignore[return-value]
            picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return picture.convert("RGB")


def as_image(image: Any, channels: int = 3) -> np.ndarray:
    """An image as the network takes it: `[height, width, channels]`, uint8 or float32, in 0..255.

    Grey becomes RGB, an alpha channel is dropped, a PIL image of 8 bits in any mode becomes RGB.

    Args:
        image: an array `[height, width]` or `[height, width, 1, 3 or 4]` of whole numbers or floats
            in 0..255, or a PIL image.
        channels: what the network wants.

    Raises:
        UserError: another shape, or values outside of 0..255, or floats in 0..1.
    """
    if isinstance(image, Image.Image) and not image.mode.startswith(
        ("I", "F")
    ):  # their values may go beyond 255
        image = image.convert("L" if channels == 1 else "RGB")
    array = _as_array(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.size == 0:
        raise UserError(
            f"image of shape {np.shape(image)}; allowed are [height, width] and [height, width, "
            "channels]"
        )
    return _fitting(array, channels)


def as_batch(images: Any, channels: int = 3) -> np.ndarray:
    """A batch of images of one size as the network takes it, with the checks and conversions of `as_image`.

    Args:
        images: an array `[batch, height, width, 1, 3 or 4]` of whole numbers or floats in 0..255.
        channels: the number of channels that the network takes.

    Returns:
        uint8 or float32 `[batch, height, width, channels]`.

    Raises:
        UserError: another shape, another type, or values outside of 0..255, NaN among them, or
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
            f"batch of images of shape {array.shape}; allowed is [batch, height, width, "
            f"channels]{hint}"
        )
    return _fitting(array, channels)


def _as_array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:  # images of several sizes, objects
        raise UserError(
            f"cannot be made an array ({str(error)[:80]}); give images of one size as one array"
        ) from error


def _fitting(array: np.ndarray, channels: int) -> np.ndarray:
    """`[..., channels]` from what has another number of channels that can be converted, with checked values."""
    given = array.shape[-1]
    if given == 1 and channels == 3:
        array = np.repeat(array, 3, axis=-1)
    elif given == 4 and channels == 3:
        array = array[..., :3]
    elif given != channels:
        raise UserError(f"image with {given} channels; the model takes {channels}")
    return array if array.dtype == np.uint8 else _checked_values(array)


def _checked_values(array: np.ndarray) -> np.ndarray:
    """Whole numbers as uint8, floats as float32; refuses what is not in 0..255."""
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole and not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"image of dtype {array.dtype}; allowed are uint8, and whole numbers or floats in "
            "0..255"
        )
    low, high = array.min(), array.max()
    values = f"image of dtype {array.dtype} with values {low:g} to {high:g}"
    if not (low >= 0 and high <= 255):
        hint = "; divide 16-bit values by 257" if array.dtype == np.uint16 else ""
        raise UserError(f"{values}; allowed are 0 to 255{hint}")
    if not whole and 0 < high <= 1:
        raise UserError(f"{values}; 0 to 255 is wanted: multiply by 255")
    return array.astype(np.uint8 if whole else np.float32)
