"""What the check of a dataset found, and the weights of the classes that follow from it."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.reading import Size
from deeplab_keras.data.info import DatasetInfo


@dataclasses.dataclass(frozen=True)
class Scan:
    """What one pair holds.

    Attributes:
        index: of the pair.
        name: of the pair.
        size: width and height.
        ids: pixels of each of the 256 values that can stand in a mask's file, int64 `[256]`.
        digest: of the image's pixels.
        turn: its EXIF orientation; 1 for none.
        error: where the mask has ids outside the classes.
    """

    index: int
    name: str
    size: Size
    ids: np.ndarray
    digest: bytes
    turn: int = 1
    error: UserError | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong: with which split, of what kind, and the line about it."""

    split: str
    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class SplitCheck:
    """What the pairs of a split hold.

    Attributes:
        name: of the split.
        pairs: how many there are.
        scans: of those that can be read.
        pixels: of each class, int64 `[num_classes]`.
        images: that hold each class, int64 `[num_classes]`.
        counted: labelled pixels of the images that hold each class, int64 `[num_classes]`.
        ignored: pixels that count nowhere.
        strange: pixels with ids outside the classes.
        unlabelled: names of the pairs without a labelled pixel.
        class_of_id: for each value in the masks its class id or the ignore label, or -1, int32
            `[256]`.
        load: image and what stands in the mask's file, by the pair's index.
    """

    name: str
    pairs: int
    scans: tuple[Scan, ...]
    pixels: np.ndarray
    images: np.ndarray
    counted: np.ndarray
    ignored: int
    strange: int
    unlabelled: tuple[str, ...]
    class_of_id: np.ndarray
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]

    @property
    def total(self) -> int:
        """All pixels."""
        return int(self.pixels.sum()) + self.ignored + self.strange

    def sizes(self) -> list[tuple[Size, int]]:
        """Each size of an image and how often it occurs, the most frequent first."""
        return collections.Counter(scan.size for scan in self.scans).most_common()

    def to_dict(self, info: DatasetInfo) -> dict[str, Any]:
        """Plain JSON values."""
        sides = np.array([scan.size for scan in self.scans] or [(0, 0)])
        total = max(self.total, 1)
        return {
            "split": self.name,
            "pairs": self.pairs,
            "read": len(self.scans),
            "pixels": self.total,
            "ignored_share": self.ignored / total,
            "outside_share": self.strange / total,
            "classes": {
                name: {"pixels": int(pixels), "share": float(pixels / total), "images": int(images)}
                for name, pixels, images in zip(
                    info.class_names, self.pixels, self.images, strict=True
                )
            },
            "width": _spread(sides[:, 0]),
            "height": _spread(sides[:, 1]),
            "sizes": [
                {"width": w, "height": h, "images": count} for (w, h), count in self.sizes()[:20]
            ],
        }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "smallest": int(values.min()),
        "median": float(np.median(values)),
        "largest": int(values.max()),
    }


@dataclasses.dataclass(frozen=True)
class DatasetCheck:
    """What the check of a dataset found.

    Attributes:
        config: which dataset.
        info: its classes.
        splits: those that could be opened.
        problems: what is wrong.
        looks_like: the mistake that explains them, where one does.
        notes: what is not wrong but worth knowing.
    """

    config: DataConfig
    info: DatasetInfo
    splits: tuple[SplitCheck, ...]
    problems: tuple[Problem, ...]
    looks_like: str
    notes: tuple[str, ...]

    @property
    def wrong(self) -> bool:
        """Whether a training on it would fail or learn nonsense."""
        return bool(self.problems or self.looks_like)

    def kinds(self) -> dict[str, list[Problem]]:
        """The problems of each kind."""
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        return kinds

    def label_weights(self) -> dict[str, tuple[float, ...]]:
        """Weights of the classes by the first split: `median_frequency` and `inverse_log`, see the functions of that name.

        There are none while pixels lie outside the classes, or none is labelled.
        """
        split = self.splits[0]
        if self.looks_like or split.strange or not split.pixels.any():
            return {}
        return {
            "median_frequency": median_frequency(split.pixels, split.counted),
            "inverse_log": inverse_log(split.pixels),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the report.json of scripts/check_dataset.py."""
        return {
            "dataset": self.config.dataset,
            "dataset_dir": self.config.dataset_dir,
            "wrong": self.wrong,
            "looks_like": self.looks_like,
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
            "info": self.info.to_dict(),
            "splits": [split.to_dict(self.info) for split in self.splits],
            "label_weights": {
                name: [round(w, 4) for w in weights]
                for name, weights in self.label_weights().items()
            },
        }


def median_frequency(pixels: np.ndarray, counted: np.ndarray) -> tuple[float, ...]:
    """Median frequency balancing (Eigen and Fergus 2015): the median of the classes' frequencies, divided by each.

    A class's frequency is its share of the labelled pixels of the images that hold it. A class
    without pixels gets 1.

    Args:
        pixels: of each class, `[num_classes]`.
        counted: labelled pixels of the images that hold the class, `[num_classes]`.
    """
    there = pixels > 0
    frequency = pixels[there] / counted[there]
    weights = np.ones(len(pixels))
    if there.any():
        weights[there] = np.median(frequency) / frequency
    return tuple(weights.tolist())


def inverse_log(pixels: np.ndarray) -> tuple[float, ...]:
    """ENet's weights (Paszke and others 2016): 1 / ln(1.02 + p) for a class with the share p of the labelled pixels.

    A class without pixels gets 1.
    """
    weights = np.where(pixels > 0, 1 / np.log(1.02 + pixels / max(pixels.sum(), 1)), 1.0)
    return tuple(weights.tolist())
