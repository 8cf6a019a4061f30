"""Reads an image or a mask, in every file format and color mode that datasets use.

Masks are read as the ids they hold, not as the colors they show, unless colors are requested.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pathlib
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplab_keras.config import UserError
from deeplab_keras.data.files.archives import read_bytes
from deeplab_keras.data.files.mat import read_mat_segmentation
from deeplab_keras.data.info import Color

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
START = 1 << 16  # bytes that are read to get the header of a file
# A 16-bit image should have larger values. 12-bit cameras, and 8 bits saved as 16, stay below.
DARKEST = 4096
# EXIF tag: 1 as stored, 2 to 8 mirrored or rotated, 5 to 8 with width and height exchanged.
ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
SEVERAL_FRAMES = ("GIF", "TIFF", "WEBP")  # formats that can hold more than one image
MASK_FORMATS = ("PNG", "BMP", *SEVERAL_FRAMES)  # formats that can store ids without loss
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF files, and a value

REMEDY = "replace it, or skip such files with `skip_broken_files`"
COLOR_IMAGE = (
    "the mask is a color image; a mask must have one channel (gray or palette) with the class id "
    "of each pixel: `mask_format='color'` reads the colors listed in classes.txt, "
    "`scripts/convert_masks.py` --from=rgb converts colors to ids"
)
LOSSES = (
    "changes ids, so export the mask again as PNG; if the masks are black and white, run "
    "`scripts/convert_masks.py` --from=binary"
)

Size = tuple[int, int]  # width, height


class FileUserError(UserError):
    """A problem with a file of a dataset; `kind` is the group of problems it is counted in."""

    kind = "wrong files"


class BrokenFileError(FileUserError):
    """A file that cannot be decoded; --skip_broken_files skips it."""

    kind = "unreadable files"


class MissingFileError(BrokenFileError):
    """A file that does not exist; --skip_broken_files skips it."""

    kind = "missing files"


class LossyFileError(BrokenFileError):
    """A mask in a format that changes ids; --skip_broken_files skips it."""

    kind = "masks in a lossy format"


class NoMaskUserError(FileUserError):
    """A mask file that is not a label map."""

    kind = "masks that are not label maps"


def _broken(path: str, error: Exception | str) -> BrokenFileError:
    if isinstance(error, UnidentifiedImageError):
        error = "not an image"
    elif isinstance(error, OSError) and error.strerror:
        error = error.strerror
    elif isinstance(error, MemoryError):
        error = "not enough memory to read it"
    elif isinstance(error, Exception) and not isinstance(error, (OSError, ValueError, SyntaxError)):
        error = f"{type(error).__name__}: {error}"
    return BrokenFileError(
        f"{path}: cannot be decoded ({next(iter(str(error).splitlines()), '')[:200]})",
        hint=REMEDY,
    )


def _lossy(path: str, reason: str) -> LossyFileError:
    return LossyFileError(f"{path}: cannot be decoded ({reason})", hint=REMEDY)


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """Context that turns any exception of a decoder into a `BrokenFileError`.

    This is `io.foreign.reading` for the files of a dataset.

    Raises:
        BrokenFileError: The body raised an exception that is not a `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _broken(path, error) from error


@contextmanager
def open_picture(path: str, *, header: bool = False) -> Iterator[Image.Image]:
    """Opens an image, which may be in an archive or a record file.

    The checksums of a PNG file are verified at the end of the `with` block, because Pillow does not
    verify those of the pixels.

    Args:
        path: The path of the image.
        header: Whether only the header is needed (size and mode), not the pixels.

    Raises:
        BrokenFileError: The image cannot be decoded, or the `with` block raised an error.
    """
    with decoding(path):
        data = read_bytes(path, START if header else -1)
        try:
            picture = Image.open(io.BytesIO(data))
            complete = not header or picture.format not in SEVERAL_FRAMES
        except Exception:
            if not header:
                raise
            complete = False  # the header is longer than START
        if not complete:
            picture = Image.open(io.BytesIO(read_bytes(path)))
        with picture:
            if picture.format in SEVERAL_FRAMES and getattr(picture, "is_animated", False):
                raise ValueError("it holds several frames or pages; save each as its own file")
            yield picture
        if not header:
            check_png(data)


def check_png(data: bytes) -> None:
    """Verifies the checksums of a PNG file's chunks, up to the end of the pixels.

    Other files are not checked.

    Raises:
        ValueError: A checksum differs, or a chunk is truncated.
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
    """Returns the EXIF orientation of an image, 1 to 8; 1 if it has none.

    Args:
        picture: A JPEG, an MPO, a PNG or another file that can have EXIF data.
        late: Whether to look after the pixels of a PNG file too, where some programs write it. This
            needs the whole file.
    """
    if not (
        late or {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"} & picture.info.keys()
    ):
        return 1
    try:
        turn = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data is ignored
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def turned_to_fit(picture: Image.Image, size: Size | None) -> bool:
    """Whether an image has the size of its mask only when rotated by its EXIF orientation.

    Needs the whole file.
    """
    if size is None or picture.size == size or picture.size[::-1] != size:
        return False
    return turn_of(picture, late=picture.format == "PNG") >= 5


def find_image_files(folder: str | os.PathLike[str], where: str) -> list[pathlib.Path]:
    """Returns the image files of a folder and its subfolders, sorted by their paths.

    Args:
        folder: The folder.
        where: The folder or the option with it, for the error message.

    Raises:
        UserError: The folder does not exist.
    """
    path = pathlib.Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"{where}: no such folder; give one with images ({' '.join(SUFFIXES)})")
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


def read_image(path: str, mask_size: Size | None = None) -> np.ndarray:
    """Reads an image file as uint8 `[height, width, 3]` RGB.

    The pixels are returned as stored. The EXIF orientation is applied only if the mask's size shows
    that the mask was drawn on the rotated image. Alpha is dropped. Of 16-bit channels, the upper 8
    bits are used.

    Args:
        path: The path of the file.
        mask_size: Width and height of the mask.

    Raises:
        BrokenFileError: The file cannot be decoded, or it has 16 bits per channel but such small
            values that it would become black.
    """
    with open_picture(path) as picture:
        in_colors_of_16_bits = has_colors_of_16_bits(picture)
        upright = ImageOps.exif_transpose(picture) if turned_to_fit(picture, mask_size) else picture
        if picture.mode == "F":
            raise ValueError("its values are floats; save it with 8 or 16 bits per channel")
        if picture.mode.startswith("I"):  # 16-bit gray
            gray = upper_bits(np.asarray(upright))
            return np.repeat(gray[..., None], 3, axis=-1)
        pixels = np.asarray(upright.convert("RGB"))
    if in_colors_of_16_bits:
        with decoding(path):
            require_brightness(pixels, read_bytes(path))
    return pixels


def read_photo(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image that is not part of a dataset; see `read_image`.

    Raises:
        UserError: The file cannot be decoded.
    """
    try:
        return read_image(os.fspath(path))
    except BrokenFileError as error:  # its hint names an option of datasets
        raise UserError(error.message, hint="replace or remove it") from error


def has_colors_of_16_bits(picture: Image.Image) -> bool:
    """Whether an image has 16 bits per color channel, of which Pillow returns only the high bytes.

    Args:
        picture: The image; its pixels must not be loaded yet.
    """
    return (
        any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
        and picture.mode[0] != "I"
    )


def require_brightness(pixels: np.ndarray, data: bytes) -> None:
    """Refuses a 16-bit color image whose values are so small that its high bytes are black.

    Args:
        pixels: The high bytes.
        data: The file.

    Raises:
        ValueError: See `upper_bits`.
    """
    if pixels.max(initial=0) < DARKEST >> 8:
        decode_png = _decoder_of_16_bits() if data.startswith(PNG_SIGNATURE) else None
        if decode_png is None:
            raise ValueError(
                f"it has 16 bits per channel but only values below {DARKEST}, which are black in "
                "8 bits; save it with 8 bits, or scaled to 0..65535"
            )
        upper_bits(decode_png(data))


def _decoder_of_16_bits() -> Callable[[bytes], np.ndarray] | None:
    """Returns a function that decodes PNG files to uint16, or `None` without TensorFlow."""
    try:
        import tensorflow as tf  # only for such files, because it takes seconds
    except ImportError:
        return None
    return lambda data: tf.io.decode_png(data, dtype=tf.uint16).numpy()


def upper_bits(values: np.ndarray) -> np.ndarray:
    """Returns the high byte of 16-bit values.

    Raises:
        ValueError: Values are outside 0..65535, or so small that the result would be nearly black.
    """
    lowest, highest = int(values.min(initial=0)), int(values.max(initial=0))
    if lowest < 0 or highest > 65535:
        raise ValueError(
            f"its values range from {lowest} to {highest}; save it with 8 or 16 bits per channel"
        )
    if 0 < highest < DARKEST:
        raise ValueError(
            f"it has 16 bits per channel but only values up to {highest}, which are black in 8 "
            "bits; save it with 8 bits, or scaled to 0..65535"
        )
    return (values >> 8).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class PngHeader:
    """The header of a PNG file."""

    width: int
    height: int
    bit_depth: int
    color_type: int

    GRAY, PALETTE, GRAY_ALPHA = 0, 3, 4

    @property
    def plain(self) -> bool:
        """Whether each pixel is one byte, the id itself, so that any decoder reads it correctly."""
        return self.color_type == self.GRAY and self.bit_depth == 8

    @property
    def colored(self) -> bool:
        """Whether each pixel has three or four values."""
        return self.color_type not in (self.GRAY, self.PALETTE, self.GRAY_ALPHA)


def read_png_header(path: str) -> PngHeader:
    """Reads the header of a PNG mask.

    Raises:
        BrokenFileError: The file cannot be read or is not a PNG.
    """
    header = _png_header(path)
    if header is None:
        raise _broken(path, "not a PNG file")
    return header


def _png_header(path: str) -> PngHeader | None:
    """Returns the header of a PNG file; `None` if the file has another format.

    Raises:
        BrokenFileError: The file cannot be read or is a JPEG.
    """
    try:
        start = read_bytes(path, 26)
    except OSError as error:
        raise _broken(path, error) from error
    if start.startswith(JPEG_SIGNATURE):
        raise _lossy(path, f"not a PNG file but JPEG; JPEG {LOSSES}")
    if len(start) < 26 or start[:8] != PNG_SIGNATURE:
        return None
    return PngHeader(*struct.unpack(">IIBB", start[16:26]))


def plain_label(path: str) -> bool:
    """Whether TensorFlow's PNG decoder reads a mask correctly.

    Raises:
        BrokenFileError: The file cannot be read or is a JPEG.
    """
    if _is_mat(path):
        return False
    header = _png_header(path)
    return header is not None and header.plain


@contextmanager
def _open_mask(path: str, *, header: bool = False) -> Iterator[Image.Image]:
    """Opens a mask that is not a PNG file; see `open_picture`.

    Raises:
        BrokenFileError: The file cannot be decoded, or its format does not keep ids.
    """
    with open_picture(path, header=header) as picture:
        kind = picture.format or "unknown"
        if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
            raise NoMaskUserError(f"{path}: {COLOR_IMAGE}")
        if kind not in MASK_FORMATS:
            raise ValueError(f"not a PNG, GIF, BMP, TIFF or lossless WebP file but {kind}")
        if kind == "TIFF" and "jpeg" in str(picture.info.get("compression")):
            raise _lossy(path, f"a TIFF file with JPEG compression, which {LOSSES}")
        if kind == "WEBP" and not _is_lossless_webp(read_bytes(path)):
            raise _lossy(path, f"a lossy WebP file; lossy WebP {LOSSES}")
        tags = getattr(picture, "tag_v2", {})
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            raise ValueError(
                "its gray levels are inverted (PhotometricInterpretation is WhiteIsZero), so its "
                "ids are not defined; save it as PNG"
            )
        yield picture


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the first image of a WebP file is in the lossless format."""
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind in (b"VP8 ", b"VP8L"):
            return bool(kind == b"VP8L")
        place += 8 + length + length % 2
    return False


def _is_mat(path: str) -> bool:
    return path.endswith(".mat")


def label_size(path: str) -> Size:
    """Returns the width and the height of a mask.

    Raises:
        BrokenFileError: The file is not a mask.
    """
    if _is_mat(path):
        height, width = read_label(path).shape
        return width, height
    if header := _png_header(path):
        return header.width, header.height
    with _open_mask(path, header=True) as picture:
        return picture.size


def read_label(path: str, colors: Mapping[Color, int] | None = None) -> np.ndarray:
    """Reads the ids of a mask, uint8 `[height, width]`, whatever colors a palette shows them with.

    Args:
        path: A PNG, GIF, BMP, TIFF or lossless WebP, or a .mat file of the Semantic Boundaries
            Dataset.
        colors: The id of each color, for masks that encode ids as colors. Gray levels are colors
            too. `None`: The mask holds ids.

    Raises:
        BrokenFileError: The file cannot be decoded.
        UserError: The file is not a label map, or has a color without an id.
    """
    if _is_mat(path):
        with decoding(path):
            return read_mat_segmentation(read_bytes(path))
    header = _png_header(path)
    with open_picture(path) if header else _open_mask(path) as picture:
        if colors is not None:
            return ids_of_colors(path, opaque_colors(path, picture), colors)
        bits = header.bit_depth if header else _tiff_bits(picture)
        ids = np.asarray(picture)
    if ids.ndim == 3:
        ids = _one_channel(path, bits, ids)
    elif picture.mode == "L" and bits in (2, 4):
        ids = ids // (255 // (2**bits - 1))  # Pillow scales the gray levels to 0..255
    if ids.dtype.kind == "f":
        raise NoMaskUserError(f"{path}: the mask holds floats; save it with 8 bits per pixel")
    for extreme in (ids.min(initial=0), ids.max(initial=0)):
        if not 0 <= extreme <= 255:
            raise NoMaskUserError(f"{path}: the mask holds the id {extreme}; ids must be 0 to 255")
    return ids.astype(np.uint8)


def _tiff_bits(picture: Image.Image) -> int:
    """Returns the bits per channel of a TIFF file; 8 for other files."""
    bits = getattr(picture, "tag_v2", {}).get(BITS_PER_SAMPLE, 8)
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _one_channel(path: str, bits: int, pixels: np.ndarray) -> np.ndarray:
    """Returns the ids of a mask that was saved with three equal channels or an alpha channel."""
    colors = 1 if pixels.shape[-1] == 2 else 3
    # Pillow returns the upper 8 bits, and ids are in the lower ones.
    if bits == 16 and not pixels[..., :colors].any():
        raise NoMaskUserError(
            f"{path}: the mask has 16 bits per channel; save it with one channel (gray) and 8 bits"
        )
    if not (pixels[..., :1] == pixels[..., :colors]).all():
        raise NoMaskUserError(f"{path}: {COLOR_IMAGE}")
    require_drawing(path, pixels[..., :colors], pixels)
    return pixels[..., 0]


def require_drawing(path: str, colors: np.ndarray, pixels: np.ndarray) -> None:
    """Refuses a mask that is drawn only in the alpha channel and would be read as one class.

    Args:
        path: The path of the mask, for the message.
        colors: `[height, width, 1 or 3]`.
        pixels: `[height, width, 2 or 4]`, the alpha channel last; with any other number of channels
            there is no alpha channel.

    Raises:
        NoMaskUserError: All pixels have the same color, and alpha has several values.
    """
    alpha = pixels[..., -1] if pixels.ndim == 3 and pixels.shape[-1] in (2, 4) else np.zeros(0)
    if alpha.size and (alpha != alpha[0, 0]).any() and (colors == colors[0, 0]).all():
        raise NoMaskUserError(
            f"{path}: the mask has the same color everywhere, "
            f"#{bytes(np.broadcast_to(colors[0, 0], 3)).hex()}, and is drawn in the alpha channel, "
            "which is not read; export the class id of each pixel as a gray or palette PNG without "
            "alpha"
        )


def opaque_colors(path: str, picture: Image.Image) -> np.ndarray:
    """Returns the RGB pixels of a color mask, uint8 `[height, width, 3]`.

    Raises:
        NoMaskUserError: The mask is drawn only in the alpha channel.
    """
    pixels = np.asarray(picture.convert("RGB"))
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        require_drawing(path, pixels, np.asarray(picture.convert("RGBA")))
    return pixels


@functools.lru_cache(maxsize=8)
def _sorted_codes(colors: tuple[tuple[Color, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    codes = np.array([red << 16 | green << 8 | blue for (red, green, blue), _ in colors], np.int32)
    order = np.argsort(codes)
    return codes[order], np.array([label for _, label in colors], np.uint8)[order]


def color_codes(pixels: np.ndarray) -> np.ndarray:
    """Returns each RGB color `[..., 3]` as a single number 0xRRGGBB."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


def ids_of_colors(path: str, pixels: np.ndarray, colors: Mapping[Color, int]) -> np.ndarray:
    """Returns the ids of a color mask, uint8 `[height, width]`.

    Args:
        path: The path of the mask, for the message.
        pixels: uint8 `[height, width, 3]`.
        colors: The id of each color.

    Raises:
        UserError: A color has no id; the message lists the most frequent ones.
    """
    known, ids = _sorted_codes(tuple(colors.items()))
    codes = color_codes(pixels)
    places = np.searchsorted(known, codes).clip(max=len(known) - 1)
    strange = known[places] != codes
    if not strange.any():
        return ids[places]
    found, counts = np.unique(codes[strange], return_counts=True)
    shown = ", ".join(f"#{found[i]:06x}" for i in np.argsort(-counts)[:4])
    blended = len(found) > 32
    advice = (
        "this many colors usually come from JPEG or smooth resizing: export the masks again"
        if blended
        else "add each to classes.txt, as a class or as a line 'ignore #rrggbb'"
    )
    raise NoMaskUserError(
        f"{path}: {strange.mean():.2%} of the pixels have a color without a class: {shown}"
        f"{f' and {len(found) - 4} more' if len(found) > 4 else ''}; {advice}"
    )
