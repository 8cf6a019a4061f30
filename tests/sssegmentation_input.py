"""SSSegmentation's own dataset and transforms on OpenCV, for the torch lane.

Requires the packages of sssegmentation_reference.py and opencv-python-headless.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from sssegmentation_reference import _StandIns

from deeplab_keras.data.augment.geometry import Draws

# configs/_base_/datasets/vocaug_512x512.py of the reference.
PIPELINE: list[tuple[str, dict[str, Any]]] = [
    ("Resize", {"output_size": (2048, 512), "keep_ratio": True, "scale_range": (0.5, 2.0)}),
    ("RandomCrop", {"crop_size": (512, 512), "one_category_max_ratio": 0.75}),
    ("RandomFlip", {"prob": 0.5}),
    ("PhotoMetricDistortion", {}),
    ("Normalize", {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}),
    ("ToTensor", {}),
    ("Padding", {"output_size": (512, 512), "data_type": "tensor"}),
]


def make_dataset(
    root: str | pathlib.Path, num_classes: int, passes: int = 1, pipeline: list[Any] | None = None
) -> Any:
    """Returns the reference's dataset of images/train/* and labels/train/*.png (ids and 255)."""
    images = sorted((pathlib.Path(root) / "images/train").iterdir())
    folders = (pathlib.Path(root) / folder / "train" for folder in ("images", "labels"))
    names = [path.stem for path in images]
    return named_dataset(names, *folders, num_classes, passes, pipeline, images[0].suffix)


def named_dataset(
    names: list[str],
    image_dir: pathlib.Path,
    label_dir: pathlib.Path,
    num_classes: int,
    passes: int = 1,
    pipeline: list[Any] | None = None,
    suffix: str = ".jpg",
) -> Any:
    """Returns the reference's dataset of these images, with masks of ids and 255."""
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.append(_StandIns())
    from ssseg.modules.datasets.base import BaseDataset

    config = {"type": "VOCDataset", "repeat_times": passes, "data_pipelines": pipeline or PIPELINE}
    dataset = BaseDataset("TRAIN", None, config)
    dataset.num_classes = num_classes
    dataset.clsid2label = {**{label: label for label in range(num_classes)}, 255: -100}
    dataset.imageids, dataset.image_ext = names, suffix
    dataset.image_dir, dataset.ann_dir = str(image_dir), str(label_dir)
    return dataset


@contextmanager
def numbers_of(draws: Draws) -> Iterator[None]:
    """Makes the reference use these random numbers, in order, instead of its own."""
    scale, flip = float(draws.scale), float(draws.flip)
    crop, colors = (
        iter(np.ravel(draws.crop).tolist()),
        [float(number) for number in draws.photometric],
    )
    # Brightness (applied or not, delta), position of contrast, then contrast, saturation and hue.
    first = colors[2] >= 0.5
    order = [0, 1, 2, *((3, 4) if first else ()), 5, 6, 7, 8, *(() if first else (3, 4))]
    does = {0, 3, 5, 7}
    left = iter(order)

    def randint(low: int, high: int | None = None) -> int:
        if high is None:  # randint(2): whether at all, or which mode
            place = next(left)
            if place == 2:
                return int(first)
            assert place in does
            chosen = int(colors[place] < 0.5)
            if not chosen:
                next(left)
            return chosen
        if low < 0:  # the hue
            return low + int(np.floor(np.float32(colors[next(left)]) * np.float32(high - low)))
        return int(np.float32(next(crop)) * np.float32(high - low))

    def uniform(low: float, high: float) -> float:
        return low + colors[next(left)] * (high - low)

    replaced = {
        "random_sample": lambda: scale,
        "rand": lambda: flip,
        "randint": randint,
        "uniform": uniform,
    }
    with mock.patch.multiple(np.random, **replaced):
        yield
