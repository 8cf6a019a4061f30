"""Connected regions of label maps as run lengths and polygons, for labeling tools."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deeplab_keras.evaluation.regions import joined

# Steps along the edges of pixels, in clockwise order: east, south, west, north.
_STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
# The inside is to the right of a step, so half a pixel inward is half the next step.
_INWARD = np.roll(_STEPS, -1, axis=0) / 2


@dataclasses.dataclass(frozen=True)
class ConnectedRegion:
    """A connected region of one class; pixels that touch only at a corner are not connected.

    Attributes:
        label: The class id.
        counts: Its run lengths by columns, starting with zeros, as in COCO.
        area: The number of its pixels.
        box: x, y, width, height.
        number: Its number among the regions of the label map.
    """

    label: int
    counts: np.ndarray
    area: int
    box: tuple[int, int, int, int]
    number: int


def find_regions(labels: np.ndarray) -> tuple[list[ConnectedRegion], np.ndarray]:
    """Returns the connected regions of a label map, and the number of each pixel's region.

    Args:
        labels: Class ids, `[height, width]`.
    """
    height, width = labels.shape
    columns = labels.T  # runs go down the columns
    starts = np.ones((width, height), bool)
    starts[:, 1:] = columns[:, 1:] != columns[:, :-1]
    runs = np.cumsum(starts).reshape(width, height) - 1
    first = np.flatnonzero(starts)
    beside = columns[1:] == columns[:-1]
    pairs = np.unique(np.stack([runs[:-1][beside], runs[1:][beside]], axis=1), axis=0)
    roots = joined(len(first), pairs)
    _, numbers = np.unique(roots, return_inverse=True)
    lengths = np.diff(np.append(first, labels.size))
    regions = _regions(labels, first, lengths, numbers)
    return regions, numbers[runs].T


def _regions(
    labels: np.ndarray, first: np.ndarray, lengths: np.ndarray, numbers: np.ndarray
) -> list[ConnectedRegion]:
    height = labels.shape[0]
    order = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(numbers.max(initial=-1) + 2))
    found = []
    for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        mine = order[start:end]
        begin, length = first[mine], lengths[mine]
        top, x = begin % height, begin // height
        box = (x.min(), top.min(), np.ptp(x) + 1, (top + length).max() - top.min())
        # A run at the bottom of a column continues at the top of the next one.
        gaps = begin - np.append(0, (begin + length)[:-1])
        joined = gaps[1:] == 0
        keep = np.append(True, ~joined)
        merged = np.add.reduceat(length, np.flatnonzero(keep))
        counts = np.stack([gaps[keep], merged], axis=1).ravel()
        rest = labels.size - counts.sum()
        found.append(
            ConnectedRegion(
                int(labels[top[0], x[0]]),
                np.append(counts, rest) if rest else counts,
                int(length.sum()),
                tuple(int(value) for value in box),  # type: ignore[arg-type]
                number,
            )
        )
    return found


def trace(numbers: np.ndarray) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Returns the outlines of all regions: of each region its outer one, then those of its holes.

    An outline is the corners `[points, 2]` between pixels, x and y, and the same corners moved
    inward by half a pixel: onto the centers of the outermost pixels. Outer outlines are clockwise.

    Args:
        numbers: The number of each pixel's region, see `find_regions`.
    """
    height, width = numbers.shape
    padded = np.pad(numbers, 1, constant_values=-1)
    inside = padded[1:-1, 1:-1]
    neighbors = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # x, y of a step's start relative to its pixel
    places = np.full((height + 1, width + 1, 4), -1, np.int32)  # the step from a corner
    parts = []
    for direction, (neighbor, (across, down)) in enumerate(zip(neighbors, corners, strict=True)):
        y, x = np.nonzero(inside != neighbor)
        parts.append(np.stack([x + across, y + down, np.full_like(x, direction), inside[y, x]], 1))
    steps = np.concatenate(parts)
    places[steps[:, 1], steps[:, 0], steps[:, 2]] = np.arange(len(steps))
    ends = steps[:, :2] + _STEPS[steps[:, 2]]
    following = np.full(len(steps), -1)
    for turn in (1, 0, 3):  # right along the same pixel, straight on, left
        candidate = places[ends[:, 1], ends[:, 0], (steps[:, 2] + turn) % 4]
        following = np.where(following < 0, candidate, following)
    return _outlines(steps, following, int(numbers.max(initial=-1)) + 1)


def _outlines(
    steps: np.ndarray, following: np.ndarray, count: int
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Follows the steps around each region, and keeps the corners where they turn."""
    turning = steps[:, 2] != steps[following, 2]
    after, turns = following.tolist(), turning.tolist()
    outer: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(count)]
    seen = bytearray(len(after))
    for start in range(len(after)):
        if seen[start]:
            continue
        loop, place = [], start
        while not seen[place]:
            seen[place] = 1
            if turns[place]:
                loop.append(place)
            place = after[place]
        last = np.array(loop)
        into, out = steps[last, 2], steps[following[last], 2]
        points = (steps[last, :2] + _STEPS[into]).astype(np.float64)
        inner = points + _INWARD[into] + _INWARD[out] - 0.5
        region = outer[int(steps[start, 3])]
        region.insert(0 if signed_area(points) > 0 else len(region), (points, inner))
    return outer


def signed_area(points: np.ndarray) -> float:
    """Returns the area of a polygon `[points, 2]`, positive if it is clockwise in an image."""
    x, y = points.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Returns some of a polygon's points, so that none is farther than `tolerance` from it.

    This is the algorithm of Douglas and Peucker. Polygons that would lose their area are kept.
    """
    if tolerance <= 0 or len(points) < 4:
        return points
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([points, points[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, -1]] = True
    waiting = [(0, far), (far, len(points))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        middle = int(np.argmax(distances))
        if distances[middle] > tolerance:
            middle += start + 1
            keep[middle] = True
            waiting += [(start, middle), (middle, end)]
    found = closed[:-1][keep[:-1]]
    return found if len(found) > 2 and signed_area(found) else points


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Returns the distance of each point from a line segment."""
    along = end - start
    square = along @ along
    share = ((points - start) @ along / square).clip(0, 1) if square else np.zeros(len(points))
    return np.hypot(*(points - start - share[:, None] * along).T)


def with_holes(outlines: Sequence[np.ndarray]) -> np.ndarray:
    """Joins an outer outline and those of its holes to one polygon.

    Each hole is connected by an edge that is passed twice, so that it has no area.
    """
    joined = outlines[0]
    for hole in outlines[1:]:
        squares = ((joined[:, None] - hole[None]) ** 2).sum(axis=-1)
        at, first = np.unravel_index(int(np.argmin(squares)), squares.shape)
        loop = np.concatenate([hole[first:], hole[: first + 1]])
        joined = np.concatenate([joined[: at + 1], loop, joined[at:]])
    return joined
