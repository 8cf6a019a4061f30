"""NumPy's bilinear resize, with the bits of TensorFlow's; labels by nearest neighbor.

It computes the same numbers as TensorFlow's kernel, operation by operation in float32, so that an
exported file gives the same labels with and without TensorFlow.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

STRIP_BYTES = 1 << 18  # of a resized image
MOST_CLASSES = 40  # with more, NumPy's argmax is faster for classes that lie next to each other


@functools.lru_cache(maxsize=32)  # strips of one image ask for the same ones
def positions(
    source: int, target: int, align_corners: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where the pixels along a resized side come from, as TensorFlow computes it.

    Args:
        source: The length of the side before the resize.
        target: The length after it.
        align_corners: Whether the first and last pixels stay in place. If `False`, uses half-pixel
            centers.

    Returns:
        For each pixel the two pixels to interpolate between, int32, and the share of the second
        one, float32.
    """
    place, half = np.arange(target, dtype=np.float32), np.float32(0.5)
    if align_corners:
        place *= np.float32(source - 1) / np.float32(max(target - 1, 1))
    else:
        place = (place + half) * (np.float32(source) / np.float32(target)) - half
    floor = np.floor(place)
    low = np.maximum(floor, 0).astype(np.int32)
    high = np.minimum(np.ceil(place), source - 1).astype(np.int32)
    return low, high, place - floor


def resize(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """See `network.Arithmetic`."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    (height, width), (batch, *_, channels) = size, x.shape
    result = np.empty((batch, height, width, channels), np.float32)
    # In strips, so that the temporary arrays stay small, and in the processor's cache.
    rows = max(1, STRIP_BYTES // (4 * batch * width * channels))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        result[:, top:bottom] = _resize(x, (height, width), top, bottom)
    return result


def enlarge(x: np.ndarray, size: tuple[int, ...], align_corners: bool = False) -> np.ndarray:
    """Resizes class scores `[batch, height, width, channels]` as the last layer of a network does.

    Args:
        x: float32 class scores at the stride of the network's head.
        size: The (height, width) of the network's input.
        align_corners: Whether the network's resizes align corners, as in official DeepLab models.
    """
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    return _resize(x, (size[0], size[1]), 0, size[0], align_corners=align_corners)


def resize_rows(x: Any, size: tuple[int, int], top: int, bottom: int) -> np.ndarray:
    """See `network.Arithmetic`.

    In memory, the result has the classes before the columns, which `arrays.decide` processes
    faster.
    """
    if tuple(x.shape[1:3]) == size:
        return _rows(x, top, bottom)
    return _resize(x, size, top, bottom, classes_first=x.shape[-1] <= MOST_CLASSES)


def _resize(
    x: Any,
    size: tuple[int, int],
    top: int,
    bottom: int,
    classes_first: bool = False,
    align_corners: bool = False,
) -> np.ndarray:
    source_height, (height, width) = x.shape[1], size
    place = positions(source_height, height, align_corners)
    low, high, share = (part[top:bottom] for part in place)
    first = int(low[0])
    x = _rows(x, first, int(high[-1]) + 1)
    used, places = np.unique(np.concatenate([low, high]) - first, return_inverse=True)
    above, below = places[: len(low)], places[len(low) :]
    # As in TensorFlow, first along the width, then along the height.
    x = x if len(used) == x.shape[1] else x.take(used, axis=1)
    lines = _resize_width(x, width, align_corners)
    if height == source_height:
        return lines
    lines, share = by_class(lines) if classes_first else lines, share[:, None, None]
    if height < 2 * source_height:
        result = _between(lines.take(above, axis=1), lines.take(below, axis=1), share)
        return result.swapaxes(2, 3) if classes_first else result
    # Many rows between the same two lines, whose difference is computed once.
    result = np.empty((len(x), bottom - top, *lines.shape[2:]), np.float32)
    starts = np.flatnonzero(np.diff(above, prepend=-1) | np.diff(below, prepend=-1))
    for start, end in itertools.pairwise([*starts.tolist(), len(above)]):
        line, rows = lines[:, above[start], None], result[:, start:end]
        np.multiply(lines[:, below[start], None] - line, share[start:end], out=rows)
        rows += line
    return result.swapaxes(2, 3) if classes_first else result


def by_class(x: np.ndarray) -> np.ndarray:
    """Returns scores as `[batch, height, classes, width]`, without a copy if they lie like that."""
    return np.ascontiguousarray(x.swapaxes(2, 3))


def _resize_width(x: np.ndarray, width: int, align_corners: bool) -> np.ndarray:
    if x.shape[2] == width:
        return x.astype(np.float32, copy=False)
    left, right, share = positions(x.shape[2], width, align_corners)
    first, second = (x.take(part, axis=2).astype(np.float32, copy=False) for part in (left, right))
    return _between(first, second, share[:, None])


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns `first + (second - first) * share`, written into `second`."""
    second -= first
    second *= share
    second += first
    return second


def _rows(x: Any, top: int, bottom: int) -> np.ndarray:
    return x[:, top:bottom] if isinstance(x, np.ndarray) else x.rows(top, bottom)


def enlarge_labels(
    labels: np.ndarray, size: tuple[int, ...], align_corners: bool = False
) -> np.ndarray:
    """Resizes labels `[batch, height, width]` by nearest neighbor, on the grid of `enlarge`."""
    rows, columns = (
        _nearest(before, after, align_corners)
        for before, after in zip(labels.shape[1:3], size, strict=True)
    )
    return labels[:, rows[:, None], columns]


def _nearest(before: int, after: int, align_corners: bool) -> np.ndarray:
    """Returns the nearest of `before` samples for each of `after` samples, in whole numbers."""
    place = np.arange(after, dtype=np.int64)
    if align_corners:
        steps = max(after - 1, 1)
        return (2 * place * (before - 1) + steps) // (2 * steps)
    return (2 * place + 1) * before // (2 * after)


def letterbox_size(size: tuple[int, ...], limit: tuple[int, ...]) -> tuple[int, int]:
    """Returns the largest (height, width) in `limit` with the aspect ratio of `size`."""
    factor = min(limit[0] / size[0], limit[1] / size[1])
    height, width = (
        min(most, max(1, math.floor(length * factor + 0.5)))
        for length, most in zip(size, limit, strict=True)
    )
    return height, width


def pad_to(x: np.ndarray, size: tuple[int, ...], color: Sequence[float]) -> np.ndarray:
    """Fills images `[batch, height, width, channels]` up to `size`, at the bottom and the right."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    result = np.empty((len(x), *size, x.shape[3]), np.float32)
    result[...] = color
    result[:, : x.shape[1], : x.shape[2]] = x
    return result
