"""Draws polygons and run lengths as label maps, pixel for pixel as pycocotools does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo

IGNORE_LABEL = DatasetInfo.ignore_label
LARGEST = 1 << 27  # pixels of an image; drawing more would take gigabytes
# Coordinates are clipped to this many pixels outside the image. pycocotools interpolates each
# edge pixel by pixel, so a point far away would take gigabytes.
MARGIN = 10_000
ORDERS = ("file", "area")

Size = tuple[int, int]  # height, width
Point = tuple[float, float]  # x, y


class UndrawableError(ValueError):
    """A shape whose pixels are unknown, such as a polygon with NaN."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """An annotated object.

    Attributes:
        label: The name of its class.
        draw: Function from the size of the image to its pixels, bool `[height, width]`. Raises
            `UndrawableError` if they are unknown.
        crowd: Whether the region is to be ignored: a crowd of objects, or an object without a
            known outline.
    """

    label: str
    draw: Callable[[Size], np.ndarray]
    crowd: bool = False


def require_pycocotools() -> Any:
    """Returns the module `pycocotools.mask`.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError(
            "polygons and run lengths need pycocotools: pip install pycocotools"
        ) from error
    return mask


def draw_shapes(
    shapes: Sequence[Shape], size: Size, ids: Mapping[str, int], order: str = "file"
) -> np.ndarray:
    """Draws a label map, uint8 `[height, width]`. Pixels outside all shapes are 0.

    Crowds are drawn first, so that objects inside them keep their class.

    Args:
        shapes: The objects.
        size: Height and width of the image.
        ids: The class id of each label.
        order: "file": each shape covers the previous ones. "area": smaller shapes cover larger
            ones.

    Raises:
        UndrawableError: The pixels of a shape are unknown.
    """
    require_drawable(size)
    canvas = np.zeros(size, np.uint8)
    objects = sorted(shapes, key=lambda shape: not shape.crowd)
    if order == "area":
        objects = sorted(objects, key=lambda shape: (not shape.crowd, -shape.draw(size).sum()))
    for shape in objects:
        canvas[shape.draw(size)] = IGNORE_LABEL if shape.crowd else ids[shape.label]
    return canvas


def require_drawable(size: Size) -> None:
    """Checks that an image has pixels, and not too many.

    Raises:
        UndrawableError: It does not.
    """
    height, width = size
    if height < 1 or width < 1 or height * width > LARGEST:
        raise UndrawableError(f"an image of {width}x{height} pixels cannot be drawn")


# --- Polygons ---


def ring_of(numbers: Any) -> np.ndarray | None:
    """Returns a polygon's coordinates x, y, x, y, ... as float64; None if it has no area.

    Raises:
        UndrawableError: The coordinates are not finite numbers.
    """
    try:
        ring = np.array(numbers, np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise UndrawableError("a polygon with coordinates that are not numbers") from error
    if len(ring) % 2:
        raise UndrawableError("a polygon with an odd number of coordinates")
    if not np.isfinite(ring).all():
        raise UndrawableError("a polygon with NaN or infinite coordinates")
    return ring if len(ring) >= 6 else None


def fill_polygons(rings: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """Returns the pixels inside any of the polygons, bool `[height, width]`."""
    height, width = size
    pycoco = require_pycocotools()
    near = [ring for ring in (_clipped(ring, size) for ring in rings) if len(ring) >= 6]
    if not near:
        return np.zeros(size, bool)
    encoded = pycoco.frPyObjects([ring.tolist() for ring in near], height, width)
    return pycoco.decode(pycoco.merge(encoded)).astype(bool)


def _clipped(ring: np.ndarray, size: Size) -> np.ndarray:
    """Clips a polygon that extends more than `MARGIN` beyond the image (Sutherland-Hodgman)."""
    points = ring.reshape(-1, 2)
    low, high = -float(MARGIN), np.array(size[::-1], np.float64) + MARGIN
    if (points >= low).all() and (points <= high).all():
        return ring
    points = points.clip(-1e15, 1e15)  # differences of larger numbers could overflow
    for axis in (0, 1):
        for limit, sign in ((low, 1.0), (high[axis], -1.0)):
            if not len(points):
                return points.ravel()
            inside = sign * (points[:, axis] - limit) >= 0
            following = np.roll(points, -1, axis=0)
            crossing = inside != np.roll(inside, -1)
            span = following[:, axis] - points[:, axis]
            share = (limit - points[:, axis]) / np.where(crossing, span, 1.0)
            cut = points + (following - points) * share[:, None]
            cut[:, axis] = limit
            both = np.stack([points, cut], axis=1).reshape(-1, 2)
            points = both[np.stack([inside, crossing], axis=1).ravel()]
    return points.ravel()


def rectangle(
    corner: Point, extent: Point, rotation: float = 0.0, *, center: bool = True
) -> np.ndarray:
    """Returns the polygon of a rectangle.

    Args:
        corner: Its upper left corner x, y, before the rotation.
        extent: Its width and height.
        rotation: Clockwise, in degrees.
        center: Whether it is rotated about its center, instead of its upper left corner.
    """
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float64)
    pivot = np.array(extent) / 2 * center
    return (_turned(unit * extent - pivot, rotation) + pivot + corner).ravel()


def ellipse(middle: Point, radii: Point, rotation: float = 0.0) -> np.ndarray:
    """Returns an ellipse as a polygon of 360 points; the rotation is clockwise, in degrees."""
    angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    points = np.stack([np.cos(angles) * radii[0], np.sin(angles) * radii[1]], axis=1)
    return (_turned(points, rotation) + middle).ravel()


def _turned(points: np.ndarray, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


# --- Run lengths ---


def decode_counts(text: str) -> np.ndarray:
    """Decodes the run lengths of a compressed RLE string of COCO.

    This is not pycocotools' decoder, because that reads beyond the end of damaged strings.

    Raises:
        UndrawableError: The string is damaged.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int64)
    last = (codes & 0x20) == 0  # the last character of each number
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise UndrawableError("a damaged RLE string")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 7:  # numbers of more than 40 bits
        raise UndrawableError("a damaged RLE string")
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    values -= ((codes[ends] & 0x10) > 0) * (np.int64(1) << (5 * (ends - starts + 1)))
    # From the fourth on, each is the difference from the one two places before.
    counts = values.copy()
    counts[1::2] = np.cumsum(values[1::2])
    counts[2::2] = np.cumsum(values[2::2])
    return counts


def fill_counts(counts: np.ndarray | str, stated: Any, size: Size) -> np.ndarray:
    """Returns the pixels of an RLE of COCO, bool `[height, width]`.

    Args:
        counts: Run lengths by columns, starting with zeros, or their compressed string.
        stated: The size in the RLE, `[height, width]`.
        size: The size of the image.

    Raises:
        UndrawableError: The RLE is damaged or has another size.
    """
    height, width = size
    if list(stated) != [height, width]:
        raise UndrawableError(f"an RLE of {_shown(stated)} in an image of height, width {size}")
    runs = decode_counts(counts) if isinstance(counts, str) else counts
    return _filled(runs, height * width).reshape(width, height).T


def compress_counts(counts: np.ndarray, size: Size) -> str:
    """Returns run lengths by columns, starting with zeros, as a compressed string of COCO."""
    height, width = size
    plain = {"counts": counts.tolist(), "size": [height, width]}
    return require_pycocotools().frPyObjects(plain, height, width)["counts"].decode("ascii")


def fill_rows(counts: np.ndarray, box: tuple[int, int, int, int], size: Size) -> np.ndarray:
    """Returns the pixels of run lengths by rows inside a box, as CVAT writes them.

    Args:
        counts: Run lengths, starting with zeros.
        box: Left, top, width and height of the box; what is outside the image is clipped.
        size: The size of the image.

    Raises:
        UndrawableError: The run lengths do not fill the box.
    """
    left, top, width, height = box
    if width < 1 or height < 1 or width * height > LARGEST:
        raise UndrawableError(f"a mask of {width}x{height} pixels")
    inside = _filled(counts, width * height).reshape(height, width)
    canvas = np.zeros(size, bool)
    rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    target = canvas[rows, columns] if rows.stop > 0 and columns.stop > 0 else canvas[:0, :0]
    part = inside[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    target[:] = part
    return canvas


def _filled(counts: np.ndarray, pixels: int) -> np.ndarray:
    if counts.ndim != 1 or (counts < 0).any() or (counts > pixels).any():
        raise UndrawableError("an RLE with impossible run lengths")
    if counts.sum() != pixels:
        raise UndrawableError(f"an RLE of {counts.sum()} pixels in a mask of {pixels}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def runs_of(numbers: Any) -> np.ndarray:
    """Returns a list of run lengths as int64.

    Raises:
        UndrawableError: They are not whole numbers.
    """
    try:
        counts = np.array(numbers)
        if counts.size == 0 or (counts.ndim == 1 and counts.dtype.kind in "iu"):
            return counts.astype(np.int64).ravel()
    except (TypeError, ValueError, OverflowError) as error:
        raise UndrawableError("an RLE with counts that are not numbers") from error
    raise UndrawableError("an RLE with counts that are not whole numbers")


def _shown(value: Any) -> str:
    return repr(value)[:40]
