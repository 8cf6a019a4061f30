"""Connected regions of a mask, and the opening that removes thin strips."""

from __future__ import annotations

import numpy as np


def connected(mask: np.ndarray) -> np.ndarray:
    """Numbers the connected regions of a mask; pixels that share a side are connected.

    Rows are split into runs. Runs that touch those of the next row are joined until nothing
    changes.

    Args:
        mask: bool `[height, width]`.

    Returns:
        int32 `[height, width]`: 0 outside the mask, and 1, 2, ... in the order of the first pixels.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 1), np.int8)  # a run ends at the end of its row
    padded[:, :-1] = mask
    steps = np.diff(padded.ravel(), prepend=np.int8(0))
    starts, ends = np.flatnonzero(steps > 0), np.flatnonzero(steps < 0)
    # The runs of the next row that touch run i are first[i] to last[i] - 1.
    first = np.searchsorted(ends, starts + width + 1, side="right")
    last = np.searchsorted(starts, ends + width + 1, side="left")
    counts = np.maximum(last - first, 0)
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
    smallest = joined(len(starts), np.stack([upper, lower], axis=1))
    numbers = np.unique(smallest, return_inverse=True)[1].astype(np.int32) + 1
    filled = np.zeros(height * (width + 1), np.int32)
    filled[starts] += numbers
    filled[ends] -= numbers  # no run starts where another one ends
    return np.cumsum(filled, dtype=np.int32).reshape(height, width + 1)[:, :-1]


def joined(count: int, pairs: np.ndarray) -> np.ndarray:
    """Returns the smallest member of each member's group, for groups that pairs connect."""
    root = np.arange(count)
    while True:
        ends = root[pairs]
        low = ends.min(axis=1)
        lower = root.copy()
        np.minimum.at(lower, ends[:, 0], low)
        np.minimum.at(lower, ends[:, 1], low)
        while (lower[lower] != lower).any():
            lower = lower[lower]
        if (lower == root).all():
            return root
        root = lower


def any_within(mask: np.ndarray, distance: int, axis: int, pairs: bool = False) -> np.ndarray:
    """Returns for each pixel whether a mask is true within `distance` along an axis.

    With `pairs`, each entry of the mask is about a pixel and the next one, and the result has one
    more entry.
    """
    before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
    before[axis], after[axis] = (distance + 1, 0), (0, distance)
    sums = np.cumsum(np.pad(np.pad(mask, after), before), axis=axis, dtype=np.int32)
    window, count = 2 * distance + (not pairs), mask.shape[axis] + pairs
    return (sums.take(range(window, window + count), axis) - sums.take(range(count), axis)) > 0


def dilated(mask: np.ndarray, distance: int) -> np.ndarray:
    """Returns the pixels with a pixel of the mask in the square around them."""
    return any_within(any_within(mask, distance, 0), distance, 1)


def opened(mask: np.ndarray, distance: int) -> np.ndarray:
    """Removes the parts of a mask into which no square of `2 * distance + 1` pixels fits.

    Pixels beyond the edge of the image count as part of the mask.
    """
    return dilated(~dilated(~mask, distance), distance)
