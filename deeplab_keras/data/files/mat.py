"""Reads the masks of the Semantic Boundaries Dataset (SBD), which are MATLAB 5 files.

Only one field of one structure is read. The format is level 5 of MathWorks' "MAT-File Format". A
file consists of elements with a type, a length and data, padded to eight bytes. An array is an
element that contains elements, and may be compressed with zlib as a whole.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

MAT_SIGNATURE = b"MATLAB 5.0 MAT-file"
STRUCTURE, FIELD = "GTcls", "Segmentation"
_DTYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
LARGEST = 32 << 20  # an array may unpack to this many bytes plus four times its compressed size
_MATRIX, _COMPRESSED, _STRUCT_CLASS = 14, 15, 2


def read_mat_segmentation(data: bytes) -> np.ndarray:
    """Returns the label map in a file of SBD's folder `cls`, uint8 `[height, width]`.

    Raises:
        ValueError: The file is not such a file, or is damaged.
    """
    if not data.startswith(MAT_SIGNATURE) or len(data) < 128:
        raise ValueError("not a MATLAB 5 file")
    order = "<" if data[126:128] == b"IM" else ">"
    try:
        for kind, body in _elements(data[128:], order):
            if kind == _COMPRESSED:
                (kind, body), *_ = _elements(_unpacked(body), order)
            if kind == _MATRIX and (found := _segmentation(body, order)) is not None:
                return found
    except (struct.error, zlib.error, LookupError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged: {error}") from error
    raise ValueError(f"it has no {STRUCTURE}.{FIELD}; it must be a file of SBD's folder cls")


def _unpacked(data: bytes) -> bytes:
    decompressor = zlib.decompressobj()
    unpacked = decompressor.decompress(data, LARGEST + 4 * len(data))
    if decompressor.unconsumed_tail:
        raise ValueError("its data is too large when unpacked")
    if not decompressor.eof:
        raise ValueError("it is truncated")
    return unpacked


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields the type and the data of each element."""
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, position)
        if kind >> 16:  # data of up to four bytes is stored in the tag itself
            kind, length = kind & 0xFFFF, kind >> 16
            yield kind, data[position + 4 : position + 4 + length]
            position += 8
            continue
        if position + 8 + length > len(data):
            raise ValueError("it is truncated")
        yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + (-length % 8 if kind != _COMPRESSED else 0)


def _segmentation(matrix: bytes, order: str) -> np.ndarray | None:
    """Returns the field of the structure; None if this array is not the structure."""
    # The elements are: flags, size, name, length of a field name, field names, fields.
    flags, _, name, *rest = _elements(matrix, order)
    if (
        struct.unpack(order + "I", flags[1][:4])[0] & 0xFF != _STRUCT_CLASS
        or name[1].decode() != STRUCTURE
    ):
        return None
    (_, width), (_, names), *fields = rest
    (step,) = struct.unpack(order + "I", width[:4])
    known = [names[i : i + step].split(b"\0")[0].decode() for i in range(0, len(names), step)]
    _, size, _, values, *_ = _elements(fields[known.index(FIELD)][1], order)
    height, width_ = struct.unpack(order + "ii", size[1][:8])
    array = np.frombuffer(values[1], order + _DTYPES[values[0]])
    fits = height > 0 and width_ > 0 and array.size == height * width_
    if (
        not fits
        or not (array.min() >= 0 and array.max() <= 255)
        or (array != np.floor(array)).any()
    ):
        raise ValueError(f"{FIELD} is not a label map of {width_}x{height}")
    return array.reshape(width_, height).T.astype(np.uint8)
