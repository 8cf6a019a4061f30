"""Reading one image or one mask rightly, in every form that they come in.

Masks are read as the ids they hold, never as the colours they show, unless the colours are asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplab_keras.config import UserError
from deeplab_keras.data.archives import read_bytes, split_member
from deeplab_keras.data.info import Colour
from deeplab_keras.data.mat import read_mat_segmentation

DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
START = 1 << 16  # bytes of a file in an archive that are read to see its header
ORIENTATION = 0x0112  # EXIF: 1 as stored, 2 to 8 mirrored or turned, 5 to 8 with width and height exchanged
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = {b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF": "WebP"}

REMEDY = "; replace it, or leave such files out with --skip_broken_files"

Size = tuple[int, int]  # width, height


class FileUserError(UserError):
    """Something wrong with a file of a dataset; `kind` says what, for counting."""

    kind = "wrong files"


class BrokenFileError(FileUserError):
    """A file that cannot be decoded; --skip_broken_files leaves it out."""

    kind = "unreadable files"


class MissingFileError(BrokenFileError):
    """A file that is not there; --skip_broken_files leaves it out."""

    kind = "missing files"


class NoMaskUserError(FileUserError):
    """A picture that is no map of ids."""

    kind = "masks that are no map of ids"


def _broken(path: str, error: Exception | str) -> BrokenFileError:
    if isinstance(error, UnidentifiedImageError):
        error = "not a picture"
    elif isinstance(error, OSError) and error.strerror:
        error = error.strerror
    return BrokenFileError(f"{path}: cannot be decoded ({error}){REMEDY}")


@contextmanager
def open_picture(path: str, *, header: bool = False) -> Iterator[Image.Image]:
    """A picture, wherever it lies; with `header`, its size and mode only are wanted.

    Raises:
        BrokenFileError: it cannot be decoded; also for what goes wrong in the `with` block.
    """
    try:
        file = io.BytesIO(read_bytes(path, START if header else -1)) if split_member(path) else path
        try:
            picture = Image.open(file)
        except DECODE_ERRORS:
            if file is path or not header:
                raise
            picture = Image.open(io.BytesIO(read_bytes(path)))  # a header longer than that
        with picture:
            yield picture
    except DECODE_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise _broken(path, error) from error


def turn_of(picture: Image.Image) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; other files have none that counts."""
    if picture.format != "JPEG" or "exif" not in picture.info:
        return 1
    try:
        turn = picture.getexif().get(ORIENTATION, 1)
    except DECODE_ERRORS:
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def turned_to_fit(picture: Image.Image, size: Size | None) -> bool:
    """Whether a picture gets a mask's size by its EXIF turn, and has not got it as it is stored."""
    return size is not None and picture.size != size and turn_of(picture) >= 5 and picture.size[::-1] == size


def read_image(path: str, mask_size: Size | None = None) -> np.ndarray:
    """An image file as uint8 `[height, width, 3]` RGB.

    The pixels are those stored: an EXIF turn counts only where the mask's size says that the mask was drawn on the
    turned image. Alpha is left out, of 16 bits the upper 8 count.

    Args:
        path: of the file.
        mask_size: width and height of its mask.

    Raises:
        BrokenFileError: the file cannot be decoded.
    """
    with open_picture(path) as picture:
        upright = ImageOps.exif_transpose(picture) if turned_to_fit(picture, mask_size) else picture
        if picture.mode.startswith("I"):  # 16-bit grey, whose high byte counts
            grey = (np.asarray(upright) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=-1)
        return np.asarray(upright.convert("RGB"))


@dataclasses.dataclass(frozen=True)
class PngHeader:
    """What a PNG file's first bytes say."""

    width: int
    height: int
    bit_depth: int
    colour_type: int

    GREY, PALETTE, GREY_ALPHA = 0, 3, 4

    @property
    def plain(self) -> bool:
        """One byte a pixel that is the id itself, so that any decoder reads it rightly."""
        return self.colour_type == self.GREY and self.bit_depth == 8

    @property
    def coloured(self) -> bool:
        """Three or four values a pixel."""
        return self.colour_type not in (self.GREY, self.PALETTE, self.GREY_ALPHA)


def read_png_header(path: str) -> PngHeader:
    """Reads the header of a mask.

    Raises:
        BrokenFileError: the file is no PNG.
    """
    try:
        start = read_bytes(path, 26)
    except OSError as error:
        raise _broken(path, error) from error
    if len(start) < 26 or start[:8] != PNG_SIGNATURE:
        kind = next((kind for signature, kind in KINDS.items() if start.startswith(signature)), None)
        losses = "; JPEG changes ids, so the mask has to be made anew" if kind == "JPEG" else ""
        raise _broken(path, f"not a PNG file{f' but {kind}' if kind else ''}{losses}")
    return PngHeader(*struct.unpack(">IIBB", start[16:26]))


def _is_mat(path: str) -> bool:
    return path.endswith(".mat")


def label_size(path: str) -> Size:
    """Width and height of a mask.

    Raises:
        BrokenFileError: the file is no mask.
    """
    if _is_mat(path):
        height, width = read_label(path).shape
        return width, height
    header = read_png_header(path)
    return header.width, header.height


def read_label(path: str, colours: Mapping[Colour, int] | None = None) -> np.ndarray:
    """A mask as uint8 `[height, width]` of the ids that it holds, whatever colours or greys they are shown with.

    Args:
        path: a PNG, or a .mat of the Semantic Boundaries Dataset.
        colours: the id of each colour, for masks in which the colour counts; a grey level is a colour too.

    Raises:
        BrokenFileError: the file cannot be decoded.
        UserError: it is no map of ids, or a colour is that of no id.
    """
    if _is_mat(path):
        try:
            return read_mat_segmentation(read_bytes(path))
        except DECODE_ERRORS as error:
            raise _broken(path, error) from error
    header = read_png_header(path)
    with open_picture(path) as picture:
        if colours is not None:
            return ids_of_colours(path, np.asarray(picture.convert("RGB")), colours)
        ids = np.asarray(picture)
    if header.coloured:
        ids = _one_channel(path, ids)
    elif header.colour_type == PngHeader.GREY_ALPHA:
        ids = ids[..., 0]
    elif header.colour_type == PngHeader.GREY and header.bit_depth in (2, 4):
        ids = ids // (255 // (2**header.bit_depth - 1))  # Pillow spreads the few greys over 0..255
    if ids.max(initial=0) > 255:
        raise NoMaskUserError(f"{path}: the mask holds the id {ids.max()}; ids are 0 to 255")
    return ids.astype(np.uint8)


def _one_channel(path: str, pixels: np.ndarray) -> np.ndarray:
    """The ids of a mask that was saved with three equal channels."""
    if not (pixels[..., :1] == pixels[..., :3]).all():
        raise NoMaskUserError(
            f"{path}: the mask is a colour picture; a mask has one channel (grey or palette) with each pixel's class id: "
            "--mask_format=colour reads the colours that classes.txt gives, scripts/convert_masks.py --from=rgb makes ids of them"
        )
    return pixels[..., 0]


@functools.lru_cache(maxsize=8)
def _sorted_codes(colours: tuple[tuple[Colour, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.array([red << 16 | green << 8 | blue for (red, green, blue), _ in colours], np.int32)
    order = np.argsort(codes)
    return codes[order], np.array([label for _, label in colours], np.uint8)[order]


def colour_codes(pixels: np.ndarray) -> np.ndarray:
    """Each RGB colour `[..., 3]` as the one number 0xRRGGBB."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def ids_of_colours(path: str, pixels: np.ndarray, colours: Mapping[Colour, int]) -> np.ndarray:
    """The ids of a coloured mask, uint8 `[height, width]`.

    Args:
        path: for messages.
        pixels: uint8 `[height, width, 3]`.
        colours: the id of each colour.

    Raises:
        UserError: a colour is that of no id; names the most frequent ones.
    """
    known, ids = _sorted_codes(tuple(colours.items()))
    codes = colour_codes(pixels)
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    strange = known[places] != codes
    if not strange.any():
        return ids[places]
    found, counts = np.unique(codes[strange], return_counts=True)
    shown = ", ".join(f"#{found[i]:06x}" for i in np.argsort(-counts)[:4])
    blended = len(found) > 32
    advice = (
        "so many colours come from saving as JPEG or from smooth resizing: export the masks again"
        if blended
        else "add each to classes.txt, as a class or as a line 'ignore #rrggbb'"
    )
    raise NoMaskUserError(
        f"{path}: {strange.mean():.2%} of the pixels have a colour of no class: {shown}"
        f"{f' and {len(found) - 4} more' if len(found) > 4 else ''}; {advice}"
    )

