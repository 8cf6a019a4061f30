"""Reading one image or one mask rightly, in every form that they come in.

Masks are read as the ids they hold, never as the colours they show, unless the colours are asked
for.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplab_keras.config import UserError
from deeplab_keras.data.files.archives import read_bytes
from deeplab_keras.data.files.mat import read_mat_segmentation
from deeplab_keras.data.info import Colour

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
START = 1 << 16  # bytes of a file in an archive that are read to see its header
# a 16-bit picture has larger values; those of 12-bit cameras and of 8 bits saved as 16 stay below
DARKEST = 4096
ORIENTATION = (
    0x0112  # EXIF: 1 as stored, 2 to 8 mirrored or turned, 5 to 8 with width and height exchanged
)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
KINDS = {
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"RIFF": "WebP",
}

REMEDY = "replace it, or leave such files out with `skip_broken_files`"

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
    """A picture that is not a map of ids."""

    kind = "masks that are no map of ids"


def _broken(path: str, error: Exception | str) -> BrokenFileError:
    if isinstance(error, UnidentifiedImageError):
        error = "not a picture"
    elif isinstance(error, OSError) and error.strerror:
        error = error.strerror
    elif isinstance(error, MemoryError):
        error = "reading it needs more memory than there is"
    elif isinstance(error, Exception) and not isinstance(error, (OSError, ValueError, SyntaxError)):
        error = f"{type(error).__name__}: {error}"
    return BrokenFileError(
        f"{path}: cannot be decoded ({next(iter(str(error).splitlines()), '')[:200]})",
        hint=REMEDY,
    )


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """`io.foreign.reading` for the files of pairs: turns any exception of a decoder into a `BrokenFileError`.

    Raises:
        BrokenFileError: the body raised any exception that is not a `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _broken(path, error) from error


@contextmanager
def open_picture(path: str, *, header: bool = False) -> Iterator[Image.Image]:
    """A picture, wherever it lies; with `header`, its size and mode only are wanted.

    The checksums of a PNG file are verified at the block's end, because Pillow skips those of the
    pixels.

    Raises:
        BrokenFileError: it cannot be decoded; also for what goes wrong in the `with` block.
    """
    with decoding(path):
        data = read_bytes(path, START if header else -1)
        try:
            picture = Image.open(io.BytesIO(data))
        except Exception:
            if not header:
                raise
            picture = Image.open(io.BytesIO(read_bytes(path)))  # a header longer than that
        with picture:
            yield picture
        if not header:
            check_png(data)


def check_png(data: bytes) -> None:
    """Compares the checksum of each chunk of a PNG file with the chunk, up to the end of the pixels; other files pass.

    Raises:
        ValueError: a checksum differs, or a chunk is cut off.
    """
    if not data.startswith(PNG_SIGNATURE):
        return
    view, place = memoryview(data), len(PNG_SIGNATURE)
    while place < len(data):
        if place + 12 > len(data):
            raise ValueError("its end is missing")
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            raise ValueError("its end is missing")
        if zlib.crc32(view[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(
                f"the checksum of its chunk at byte {place} is wrong: the file is damaged"
            )
        if view[place + 4 : place + 8] == b"IEND":
            return
        place = end + 4
    raise ValueError("its end is missing")


def turn_of(picture: Image.Image, *, late: bool = False) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 where it has none.

    Args:
        picture: a JPEG, an MPO, a PNG or another file that holds EXIF data.
        late: also looks behind the pixels of a PNG file, where some programs write it. Needs the
            whole file.
    """
    if not (
        late or {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & picture.info.keys()
    ):
        return 1
    try:
        turn = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data turns nothing
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def turned_to_fit(picture: Image.Image, size: Size | None) -> bool:
    """Whether a picture gets a mask's size by its EXIF turn, and has not got it as it is stored. Needs the whole file."""
    if size is None or picture.size == size or picture.size[::-1] != size:
        return False
    return turn_of(picture, late=picture.format == "PNG") >= 5


def read_image(path: str, mask_size: Size | None = None) -> np.ndarray:
    """An image file as uint8 `[height, width, 3]` RGB.

    The pixels are those stored: an EXIF turn counts only where the mask's size says that the mask
    was drawn on the turned image. Alpha is left out, of 16 bits the upper 8 count.

    Args:
        path: of the file.
        mask_size: width and height of its mask.

    Raises:
        BrokenFileError: the file cannot be decoded, or it has 16 bits of which it uses so few that
            it would become black.
    """
    with open_picture(path) as picture:
        in_colors_of_16_bits = has_colors_of_16_bits(picture)
        upright = ImageOps.exif_transpose(picture) if turned_to_fit(picture, mask_size) else picture
        if picture.mode == "F":
            raise ValueError("its values are fractions; save it with 8 or 16 bits per channel")
        if picture.mode.startswith("I"):  # 16-bit grey, whose high byte counts
            grey = upper_bits(np.asarray(upright))
            return np.repeat(grey[..., None], 3, axis=-1)
        pixels = np.asarray(upright.convert("RGB"))
    if in_colors_of_16_bits:
        with decoding(path):
            require_brightness(pixels, read_bytes(path))
    return pixels


def has_colors_of_16_bits(picture: Image.Image) -> bool:
    """Whether a picture that is not loaded yet has 16 bits per color channel, of which Pillow gives the high bytes alone."""
    return (
        any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
        and picture.mode[0] != "I"
    )


def require_brightness(pixels: np.ndarray, data: bytes) -> None:
    """Refuses a color PNG of 16 bits that uses so few of them that its high bytes are black.

    Args:
        pixels: the high bytes.
        data: the file.

    Raises:
        ValueError: see `upper_bits`.
    """
    if pixels.max(initial=0) < DARKEST >> 8:
        upper_bits(tf.io.decode_png(data, dtype=tf.uint16).numpy())


def upper_bits(values: np.ndarray) -> np.ndarray:
    """The high byte of 16-bit values.

    Raises:
        ValueError: values are outside 0..65535, or so small that little more than black would
            remain.
    """
    lowest, highest = int(values.min(initial=0)), int(values.max(initial=0))
    if lowest < 0 or highest > 65535:
        raise ValueError(
            f"its values go from {lowest} to {highest}; save it with 8 or 16 bits per channel"
        )
    if 0 < highest < DARKEST:
        raise ValueError(
            f"it has 16 bits per channel but values up to {highest} only, which are black as 8 "
            "bits; save it with 8 bits, or "
            "scaled to 0..65535"
        )
    return (values >> 8).astype(np.uint8)


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
        kind = next(
            (kind for signature, kind in KINDS.items() if start.startswith(signature)), None
        )
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
        colours: the id of each colour, for masks in which the colour counts; a grey level is a
            colour too.

    Raises:
        BrokenFileError: the file cannot be decoded.
        UserError: it is no map of ids, or a colour is that of no id.
    """
    if _is_mat(path):
        with decoding(path):
            return read_mat_segmentation(read_bytes(path))
    header = read_png_header(path)
    with open_picture(path) as picture:
        if colours is not None:
            return ids_of_colours(path, opaque_colours(path, picture), colours)
        ids = np.asarray(picture)
    if header.coloured or header.colour_type == PngHeader.GREY_ALPHA:
        ids = _one_channel(path, header, ids)
    elif header.colour_type == PngHeader.GREY and header.bit_depth in (2, 4):
        ids = ids // (255 // (2**header.bit_depth - 1))  # Pillow spreads the few greys over 0..255
    if ids.max(initial=0) > 255:
        raise NoMaskUserError(f"{path}: the mask holds the id {ids.max()}; ids are 0 to 255")
    return ids.astype(np.uint8)


def _one_channel(path: str, header: PngHeader, pixels: np.ndarray) -> np.ndarray:
    """The ids of a mask that was saved with three equal channels, or with an alpha channel."""
    colours = 1 if header.colour_type == PngHeader.GREY_ALPHA and pixels.shape[-1] == 2 else 3
    if (
        header.bit_depth == 16 and not pixels[..., :colours].any()
    ):  # Pillow gives the upper 8 bits, where no id is
        raise NoMaskUserError(
            f"{path}: the mask has 16 bits per channel; save it with one channel (grey) and 8 bits"
        )
    if not (pixels[..., :1] == pixels[..., :colours]).all():
        raise NoMaskUserError(
            f"{path}: the mask is a colour picture; a mask has one channel (grey or palette) with "
            "each pixel's class id: "
            "`mask_format='colour'` reads the colours that classes.txt gives, "
            "scripts/convert_masks.py --from=rgb makes ids of them"
        )
    require_drawing(path, pixels[..., :colours], pixels)
    return pixels[..., 0]


def require_drawing(path: str, colours: np.ndarray, pixels: np.ndarray) -> None:
    """Refuses a mask whose drawing is in the alpha channel alone, where it would be read as one class.

    Args:
        path: for the message.
        colours: `[height, width, 1 or 3]`.
        pixels: `[height, width, 2 or 4]` with the alpha channel last; with another number of
            channels there is none.

    Raises:
        NoMaskUserError: all colors are one, and alpha has several values.
    """
    alpha = pixels[..., -1] if pixels.ndim == 3 and pixels.shape[-1] in (2, 4) else np.zeros(0)
    if alpha.size and (alpha != alpha[0, 0]).any() and (colours == colours[0, 0]).all():
        raise NoMaskUserError(
            f"{path}: the mask has one colour everywhere, "
            f"#{bytes(np.broadcast_to(colours[0, 0], 3)).hex()}, and its drawing is "
            "in the alpha channel, which is not read; export each pixel's class id, as a grey or "
            "palette PNG without alpha"
        )


def opaque_colours(path: str, picture: Image.Image) -> np.ndarray:
    """The RGB pixels of a mask in colors, uint8 `[height, width, 3]`.

    Raises:
        NoMaskUserError: its drawing is in the alpha channel alone.
    """
    pixels = np.asarray(picture.convert("RGB"))
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        require_drawing(path, pixels, np.asarray(picture.convert("RGBA")))
    return pixels


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
