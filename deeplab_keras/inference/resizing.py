"""Bilinear resize of class scores, complete or only some rows of the result; labels by nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.models.layers import resize_bilinear


def resize(x: Any, size: tuple[int, ...]) -> Any:
    """Resizes `[batch, height, width, channels]` with half-pixel centers to float32.

    If `x` has that size already, it is returned unchanged.
    """
    return x if tuple(x.shape[1:3]) == tuple(size) else tf.image.resize(x, size)


def enlarge(x: Any, size: tuple[int, ...], align_corners: bool = False) -> Any:
    """Resizes class scores `[batch, height, width, channels]` as the last layer of a network does.

    Args:
        x: float32 class scores at the stride of the network's head.
        size: The (height, width) of the network's input.
        align_corners: Whether the network's resizes align corners, as in official DeepLab models.
    """
    return resize_bilinear(tf.convert_to_tensor(x), (int(size[0]), int(size[1])), align_corners)


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


def pad_to(x: Any, size: tuple[int, ...], color: Sequence[float]) -> Any:
    """Fills images `[batch, height, width, channels]` up to `size`, at the bottom and the right."""
    for axis in (1, 2):
        shape = list(x.shape)
        shape[axis] = size[axis - 1] - shape[axis]
        if shape[axis]:
            x = tf.cast(x, tf.float32)
            x = tf.concat([x, tf.broadcast_to(tf.constant(color, tf.float32), shape)], axis)
    return x


def resize_rows(x: Any, size: tuple[int, int], top: int, bottom: int) -> Any:
    """Returns the rows from `top` to `bottom` of `resize(x, size)`.

    Args:
        x: A tensor or array, or an object with a `shape` and a method `rows(top, bottom)`.
        size: The (height, width) of the complete result.
        top: The first row.
        bottom: The row after the last one.
    """
    height, (full_height, width) = x.shape[1], size
    if (top, bottom) == (0, full_height):
        return resize(_rows(x, 0, height), size)
    if height == full_height:
        return resize(_rows(x, top, bottom), (bottom - top, width))
    # All in float32, like TensorFlow's kernel.
    scale, half = np.float32(height) / np.float32(full_height), np.float32(0.5)
    position = (np.arange(top, bottom, dtype=np.float32) + half) * scale - half
    low = np.floor(position).clip(0, height - 1).astype(np.int32)
    high = np.minimum(low + 1, height - 1)
    share = np.clip(position - low, 0, 1)[:, None, None]
    first = low[0]
    x = _rows(x, first, high[-1] + 1)
    above, below = tf.gather(x, low - first, axis=1), tf.gather(x, high - first, axis=1)
    return resize(above + (below - above) * share, (bottom - top, width))


def _rows(x: Any, top: int, bottom: int) -> Any:
    return x[:, top:bottom] if isinstance(x, tf.Tensor | np.ndarray) else x.rows(top, bottom)
