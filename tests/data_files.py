"""Small datasets in folders, and masks in all forms of PNG, for the tests of the data package."""

from __future__ import annotations

import pathlib
import struct
import zlib

import numpy as np
from PIL import Image

CLASSES = ("wall", "floor", "lamp")


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise over ramps, so that a JPEG of it contains all frequencies."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    ramps = np.stack([across, down, np.full((height, width), 90)], -1)
    return (ramps + rng.integers(0, 56, ramps.shape)).astype(np.uint8)


def mask(
    height: int, width: int, seed: int = 0, ids: tuple[int, ...] = (0, 1, 2, 255)
) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(ids, np.uint8), (height, width))


def write_dataset(
    root: pathlib.Path,
    split: str = "train",
    count: int = 3,
    *,
    labels: str = "labels",
    suffix: str = ".jpg",
) -> pathlib.Path:
    """Writes `images/<split>/pic_N` and masks of at least 20x30 pixels, without classes.txt.

    The masks hold three classes and the ignore label.
    """
    for index in range(count):
        height, width = 20 + index, 30 + 2 * index
        for folder in ("images", labels):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(height, width, index)).save(
            root / "images" / split / f"pic_{index}{suffix}", quality=90
        )
        Image.fromarray(mask(height, width, index)).save(root / labels / split / f"pic_{index}.png")
    return root


def truncate(path: pathlib.Path) -> None:
    """Truncates a file; its header remains."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])


def write_png(
    path: pathlib.Path, pixels: np.ndarray, bit_depth: int, palette: bytes | None = None
) -> None:
    """Writes a gray or palette PNG of any bit depth, which Pillow cannot do."""
    height, width = pixels.shape
    if bit_depth == 16:
        rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        bits = np.unpackbits(pixels.astype(np.uint8)[..., None], axis=-1)[
            ..., 8 - bit_depth :
        ].reshape(height, -1)
        rows = np.packbits(bits, axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bit_depth, 3 if palette else 0, 0, 0, 0)
    colors = chunk(b"PLTE", palette) if palette else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + colors
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def write_mat(path: pathlib.Path, ids: np.ndarray, structure: str = "GTcls") -> None:
    """Writes a file of SBD's folder cls as MATLAB does: a compressed structure of three fields."""

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    def matrix(array_class: int, rows: int, columns: int, name: bytes, content: bytes) -> bytes:
        head = element(6, struct.pack("<II", array_class, 0)) + element(
            5, struct.pack("<ii", rows, columns)
        )
        return element(14, head + element(1, name) + content)

    fields = (
        matrix(1, 20, 1, b"", b"".join(matrix(6, 0, 0, b"", element(9, b"")) for _ in range(20))),
        matrix(9, *ids.shape, b"", element(2, ids.astype(np.uint8).T.tobytes())),
        matrix(6, 1, 1, b"", element(9, struct.pack("<d", 3.0))),
    )
    names = b"".join(
        name.ljust(32, b"\0") for name in (b"Boundaries", b"Segmentation", b"CategoriesPresent")
    )
    content = struct.pack("<HHI", 5, 4, 32) + element(1, names) + b"".join(fields)
    data = zlib.compress(matrix(2, 1, 1, structure.encode(), content))
    header = (
        b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + struct.pack("<II", 15, len(data)) + data)


def png16(path: pathlib.Path, values: np.ndarray) -> None:
    """Writes a gray or RGB PNG with 16 bits per channel."""
    rows = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
    header = struct.pack(
        ">IIBBBBB", values.shape[1], values.shape[0], 16, 2 if values.ndim == 3 else 0, 0, 0, 0
    )
    chunks = (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    )
    data = b"".join(
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
