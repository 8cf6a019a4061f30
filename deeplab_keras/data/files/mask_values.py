"""Statistics of the values in masks: how often they occur, and whether they form areas or edges.

`mistakes.py` recognizes common mistakes from these statistics.
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np

# Number of pixels of a mask whose neighbors are compared; in larger masks, every n-th row.
COMPARED = 1 << 18
NO_AREA = 0.1  # a value with a smaller share of inner pixels covers no area
STRAY = 0.01  # stray values have fewer pixels than this share of the object's
# Smallest share of ramps among the pixels without area, for blended values. Measured: 0.26 to 0.45
# for JPEG, 0.6 to 1 for smooth resizing, 0.02 for tiny objects.
ON_A_RAMP = 0.15
_lock = threading.Lock()


def _zeros() -> np.ndarray:
    return np.zeros(256, np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskValues:
    """Statistics of the 256 possible values of masks, summed over any number of masks.

    Each attribute is int64 `[256]`.

    Attributes:
        pixels: Number of pixels with the value.
        masks: Number of masks that contain the value.
        alone: Number of masks that contain the value and, apart from it, at most 0.
        compared: Number of pixels with the value that were compared with their four neighbors.
        inner: Number of compared pixels whose neighbors all have the same value.
        ramp: Number of compared pixels with both a lower and a higher neighbor, such as blended
            pixels.
    """

    pixels: np.ndarray = dataclasses.field(default_factory=_zeros)
    masks: np.ndarray = dataclasses.field(default_factory=_zeros)
    alone: np.ndarray = dataclasses.field(default_factory=_zeros)
    compared: np.ndarray = dataclasses.field(default_factory=_zeros)
    inner: np.ndarray = dataclasses.field(default_factory=_zeros)
    ramp: np.ndarray = dataclasses.field(default_factory=_zeros)

    @classmethod
    def of(cls, ids: np.ndarray) -> MaskValues:
        """Returns the statistics of one mask, uint8 `[height, width]`."""
        pixels = _count(ids)
        masks = (pixels > 0).astype(np.int64)
        alone = masks * (masks[1:].sum() == 1)
        alone[0] = 0
        if min(ids.shape) < 3:
            return cls(pixels, masks, alone)
        step = -(-ids.size // COMPARED)
        rows = slice(1, -1, step)
        center, left, right = ids[rows, 1:-1], ids[rows, :-2], ids[rows, 2:]
        above, below = ids[:-2:step, 1:-1], ids[2::step, 1:-1]
        lowest = np.minimum(np.minimum(left, right), np.minimum(above, below))
        highest = np.maximum(np.maximum(left, right), np.maximum(above, below))
        inner = _count(center[(lowest == center) & (highest == center)])
        return cls(
            pixels,
            masks,
            alone,
            _count(center),
            inner,
            _count(center[(lowest < center) & (center < highest)]),
        )

    def add(self, other: MaskValues) -> None:
        """Adds the statistics of other masks in place; thread-safe."""
        with _lock:
            for field in dataclasses.fields(self):
                getattr(self, field.name)[:] += getattr(other, field.name)

    @property
    def present(self) -> set[int]:
        """The values that occur."""
        return set(np.flatnonzero(self.pixels).tolist())

    def black_and_white(self, stray: float = STRAY, *, one_mask: bool = False) -> int:
        """Returns the value of the object if the masks show one object on 0; otherwise 0.

        Args:
            stray: The largest allowed number of pixels with other values, as a share of the
                object's pixels.
            one_mask: Whether a single mask may have stray values. Of several masks, at least half
                must have none.
        """
        white = int(self.pixels[1:].argmax()) + 1
        others = self.pixels[1:].sum() - self.pixels[white]
        mostly = 2 * self.alone[white] >= self.masks[white] or (one_mask and self.masks[white] == 1)
        return (
            white
            if self.pixels[0]
            and self.pixels[white]
            and mostly
            and others <= stray * self.pixels[white]
            else 0
        )

    def blended(self, fewest: int) -> bool:
        """Whether most values occur only on ramps between areas, as after JPEG or smooth resizing.

        Args:
            fewest: The smallest number of such values.
        """
        thin = (self.compared > 0) & (self.inner < NO_AREA * self.compared)
        count, pixels = int(thin.sum()), self.compared[thin].sum()
        few = 2 * pixels < self.compared.sum() and 2 * count > (self.compared > 0).sum()
        return count >= fewest and bool(few) and self.ramp[thin].sum() >= ON_A_RAMP * pixels

    def blended_black_and_white(self) -> bool:
        """Whether most pixels are nearly black or white, so that a threshold separates them."""
        pixels, total = self.pixels, max(int(self.pixels.sum()), 1)
        extremes = pixels[:9].sum() + pixels[247:].sum()
        most = (
            2 * pixels[0] > pixels[:128].sum() and 2 * pixels[247:].sum() > pixels[128:].sum() > 0
        )
        return bool(most and extremes > 0.8 * total and pixels[65:192].sum() <= 0.05 * total)


def _count(values: np.ndarray) -> np.ndarray:
    return np.bincount(values.ravel(), minlength=256).astype(np.int64, copy=False)
