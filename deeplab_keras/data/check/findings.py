"""The findings of a dataset check, and class weights computed from them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from deeplab_keras.config import DataConfig, UserError, render_options
from deeplab_keras.data.check.text import summary
from deeplab_keras.data.files.reading import Size
from deeplab_keras.data.info import RARE, DatasetInfo


@dataclasses.dataclass(frozen=True)
class Scan:
    """The contents of a pair.

    Attributes:
        index: The index of the pair.
        name: The name of the pair.
        size: Width and height.
        ids: The number of pixels with each of the 256 possible values in the mask file, int64
            `[256]`.
        digest: A hash of the image's pixels.
        turn: The EXIF orientation; 1 if the image has none.
        error: The error if the mask has ids outside the classes; otherwise `None`.
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
    """A problem: the split, the group of problems it is counted in, and the message."""

    split: str
    kind: str
    message: str


@dataclasses.dataclass(frozen=True)
class SplitCheck:
    """The statistics of a split.

    Attributes:
        name: The name of the split.
        pairs: The number of pairs.
        scans: The pairs that can be read.
        pixels: The number of pixels of each class, int64 `[num_classes]`.
        images: The number of images that contain each class, int64 `[num_classes]`.
        counted: The number of labeled pixels in the images that contain each class, int64
            `[num_classes]`.
        ignored: The number of pixels with the ignore label.
        strange: The number of pixels with ids outside the classes.
        unlabeled: The names of the pairs without a labeled pixel.
        class_of_id: The class id or the ignore label of each value in the masks, or -1, int32
            `[256]`.
        load: Returns the image and the ids in the mask file of the pair with the given index.
    """

    name: str
    pairs: int
    scans: tuple[Scan, ...]
    pixels: np.ndarray
    images: np.ndarray
    counted: np.ndarray
    ignored: int
    strange: int
    unlabeled: tuple[str, ...]
    class_of_id: np.ndarray
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]

    @property
    def total(self) -> int:
        """The number of all pixels."""
        return int(self.pixels.sum()) + self.ignored + self.strange

    def sizes(self) -> list[tuple[Size, int]]:
        """Returns the image sizes and how often each occurs, the most frequent first."""
        return collections.Counter(scan.size for scan in self.scans).most_common()

    def to_dict(self, info: DatasetInfo) -> dict[str, Any]:
        """Returns the statistics as JSON values."""
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
    """The findings of a dataset check.

    Attributes:
        config: The config of the dataset.
        info: The classes.
        splits: The splits that could be opened.
        problems: The problems found.
        looks_like: The likely mistake behind the problems; "" if none is recognized.
        notes: Observations that are not errors.
    """

    config: DataConfig
    info: DatasetInfo
    splits: tuple[SplitCheck, ...]
    problems: tuple[Problem, ...]
    looks_like: str
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the lines that `check_dataset.py` prints."""
        return render_options(summary(self))

    @property
    def wrong(self) -> bool:
        """Whether training on the dataset would fail or give useless results."""
        return bool(self.problems or self.looks_like)

    def kinds(self) -> dict[str, list[Problem]]:
        """Returns the problems by kind."""
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        return kinds

    def rare_classes(self) -> dict[str, float]:
        """Returns the classes with less than 5 % of the labeled pixels of the first split.

        Returns:
            The share by name, above 0 and below 0.05, the rarest class first.
        """
        pixels = self.splits[0].pixels
        shares = zip(self.info.class_names, pixels / max(pixels.sum(), 1), strict=True)
        rare = {name: float(share) for name, share in shares if 0 < share < RARE}
        return dict(sorted(rare.items(), key=lambda item: item[1]))

    def label_weights(self) -> dict[str, tuple[float, ...]]:
        """Returns class weights computed from the first split.

        Returns:
            The weights by method, `square_root`, `median_frequency` and `inverse_log` (see the
            functions of the same name), the recommended ones first. Empty if pixels have ids
            outside the classes or no pixel is labeled.
        """
        split = self.splits[0]
        if self.looks_like or split.strange or not split.pixels.any():
            return {}
        return {
            "square_root": square_root(split.pixels, split.counted),
            "median_frequency": median_frequency(split.pixels, split.counted),
            "inverse_log": inverse_log(split.pixels),
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the findings as JSON values: the report.json of `check_dataset.py`."""
        return {
            "dataset": self.config.dataset,
            "dataset_dir": self.config.dataset_dir,
            "wrong": self.wrong,
            "looks_like": render_options(self.looks_like),
            "problems": [
                {**dataclasses.asdict(problem), "message": render_options(problem.message)}
                for problem in self.problems
            ],
            "notes": list(self.notes),
            "info": self.info.to_dict(),
            "splits": [split.to_dict(self.info) for split in self.splits],
            "label_weights": {
                name: [round(w, 4) for w in weights]
                for name, weights in self.label_weights().items()
            },
        }


def median_frequency(pixels: np.ndarray, counted: np.ndarray) -> tuple[float, ...]:
    """Returns class weights by median frequency balancing (Eigen and Fergus 2015).

    The weight of a class is the median of all class frequencies divided by its own frequency. The
    frequency of a class is its share of the labeled pixels in the images that contain it. A class
    without pixels gets weight 1.

    Args:
        pixels: The number of pixels of each class, `[num_classes]`.
        counted: The number of labeled pixels in the images that contain each class,
            `[num_classes]`.
    """
    there = pixels > 0
    frequency = pixels[there] / counted[there]
    weights = np.ones(len(pixels))
    if there.any():
        weights[there] = np.median(frequency) / frequency
    return tuple(weights.tolist())


def square_root(pixels: np.ndarray, counted: np.ndarray) -> tuple[float, ...]:
    """Returns the square roots of the weights of `median_frequency`, whose arguments it takes.

    They cost the frequent classes less than those weights do (docs/results.md#rare-classes).
    """
    return tuple(np.sqrt(median_frequency(pixels, counted)).tolist())


def inverse_log(pixels: np.ndarray) -> tuple[float, ...]:
    """Returns ENet's class weights (Paszke et al. 2016).

    The weight is 1 / ln(1.02 + p) for a class with a share p of the labeled pixels. A class without
    pixels gets weight 1.

    Args:
        pixels: The number of pixels of each class, `[num_classes]`.
    """
    weights = np.where(pixels > 0, 1 / np.log(1.02 + pixels / max(pixels.sum(), 1)), 1.0)
    return tuple(weights.tolist())
