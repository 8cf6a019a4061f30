"""Finds masks that are probably wrong: regions where they contradict a confident model.

There are two kinds of evidence.

* Regions: a pixel is doubtful if the model gives its label a much lower probability than the class
  that it predicts. Doubtful pixels of the same label and prediction form regions. Thin strips are
  left out, because masks and predictions always differ along outlines. The score of a region is the
  sum of -log p(label) over its pixels, with two weights that keep the model's own weaknesses from
  filling the first places. One is how seldom the model makes that confusion in the other images.
  The other one is how much of the object is missing in the mask: of the connected area of the
  predicted class that has the region, the share of pixels with another label. A forgotten car is
  missing as a whole; where a pavement reaches a little too far, most of it has its label. A mask
  counts with its strongest region.
* Shifts: a mask that was moved disagrees along all of its outlines. It agrees with more pixels of
  the prediction when it is moved back.

Both are compared with the masks of the same split: 1 corresponds to the 90th percentile.

For a picture without a mask, the score of a pixel has an expected value under the model's own
probabilities: the sum of p(class) * (1 - p(class)).

The idea is that of confident learning (Northcutt, Jiang and Chuang, "Confident Learning: Estimating
Uncertainty in Dataset Labels", 2021), for regions instead of images.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from deeplab_keras.config import EvalConfig, UserError, require_instance
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source, require_source
from deeplab_keras.evaluation.loop import batches
from deeplab_keras.evaluation.regions import connected, opened
from deeplab_keras.inference import Network, Predictor, as_network
from deeplab_keras.io.progress import Progress

MARGIN = 0.8  # smallest difference in probability between the predicted class and the label
STRIP = 0.004  # of the diagonal: doubtful strips of up to twice this width are left out
USUAL = 0.9  # the quantile of the masks' evidence that corresponds to a score of 1
SMALLEST_USUAL = 0.002  # of the image's pixels: the least evidence for a score of 1
LEAST = 1e-7  # smallest probability of a label, so that its logarithm is finite
# Masks are moved by up to REACH steps of STEP pixels in each direction, in maps that are reduced to
# a long side of SIDE pixels.
SIDE, STEP, REACH = 512, 2, 6
SHIFTED = 0.01  # of the pixels: a mask that gains this much when it is moved is doubtful


@dataclasses.dataclass(frozen=True)
class Region:
    """A connected region of a mask that the model contradicts.

    Attributes:
        label: The class in the mask.
        predicted: The class that the model predicts.
        box: Left, top, right and bottom in pixels; the last two are exclusive.
        pixels: The number of pixels.
        score: The score, higher for more doubtful regions.
    """

    label: int
    predicted: int
    box: tuple[int, int, int, int]
    pixels: int
    score: float


@dataclasses.dataclass(frozen=True)
class AuditedMask:
    """A mask that the model contradicts.

    Attributes:
        index: The index of the pair in its source.
        name: The name of the pair.
        regions: The doubtful regions, the most doubtful first.
        shift: The pixels to the right and down by which the mask should be moved; `None` if it is
            aligned.
        score: How doubtful the mask is. 1 corresponds to the 90th percentile of the split.
    """

    index: int
    name: str
    regions: tuple[Region, ...]
    shift: tuple[int, int] | None
    score: float


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of `audit_labels`.

    Attributes:
        info: The classes.
        split: The name of the split.
        images: The number of images that were compared.
        masks: The masks with doubtful regions or a shift, the most doubtful first.
    """

    info: DatasetInfo
    split: str
    images: int
    masks: tuple[AuditedMask, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as JSON values."""
        names = self.info.class_names
        return {
            "split": self.split,
            "images": self.images,
            "masks": [
                {
                    "name": mask.name,
                    "score": round(mask.score, 2),
                    "shift": None if mask.shift is None else list(mask.shift),
                    "regions": [
                        {
                            "label": names[region.label],
                            "predicted": names[region.predicted],
                            "box": list(region.box),
                            "pixels": region.pixels,
                            "score": round(region.score, 1),
                        }
                        for region in mask.regions
                    ],
                }
                for mask in self.masks
            ],
        }


def audit_labels(
    model: keras.Model | Network | str | os.PathLike[str],
    source: Source,
    config: EvalConfig = EvalConfig(),
    *,
    split: str = "",
    progress: bool = True,
) -> Audit:
    """Compares masks with a model's predictions and ranks those that are probably wrong.

    The model may have been trained on the same masks: a few wrong ones hardly change what it
    learns from all others.

    Args:
        model: A model, or what `dk.Predictor` opens: the name of a model of the zoo, or a path.
        source: The images and masks, for example from `dk.open_dataset`.
        config: How to run the model. Default: the whole image, at a single scale.
        split: The split's name in the result.
        progress: Whether to show a progress line.

    Returns:
        The `Audit`.

    Raises:
        UserError: There are no images, the model has another number of classes, or a file is
            damaged.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic", eval_samples=4), "val")
        >>> audit = dk.audit_labels("runs/demo", source, progress=False)
        >>> audit.images
        4
        >>> all(mask.score > 0 for mask in audit.masks)
        True
    """
    require_source(source)
    require_instance(config, EvalConfig, "config")
    network, info = as_network(model), source.info
    if not len(source):
        raise UserError("`source`: no images to compare")
    if network.num_classes != info.num_classes:
        raise UserError(
            f"the dataset {info.name!r} has {info.num_classes} classes and the model "
            f"{network.num_classes}; give a model that was trained on this dataset"
        )
    predictor = Predictor(network, config)
    bar = Progress(len(source), f"auditing {split}".strip()) if progress else None
    found: dict[int, list[Region]] = {}
    gains: dict[int, tuple[float, tuple[int, int]]] = {}
    sizes: dict[int, int] = {}
    pixels = np.zeros(info.num_classes, np.int64)
    for indices, images, labels in batches(source, len(source), config.eval_batch_size, info):
        predicted, probabilities = predictor.labels_and_probabilities(images)
        for place, index in enumerate(indices):
            maps = labels[place], predicted[place], probabilities[place]
            found[index] = list(doubtful_regions(*maps, info.ignore_label))
            gains[index] = best_shift(labels[place], predicted[place], info.ignore_label)
            sizes[index] = labels[place].size
        pixels += np.bincount(labels.ravel(), minlength=256)[: info.num_classes]
        if bar:
            bar.update(len(found))
    regions = weighted_regions(found, pixels)
    doubt = {i: max((region.score for region in regions[i]), default=0.0) / sizes[i] for i in found}
    usual, usual_gain = (
        max(float(np.quantile(list(values), USUAL)), SMALLEST_USUAL)
        for values in (doubt.values(), [gain for gain, _ in gains.values()])
    )
    masks = []
    for index, (gain, move) in gains.items():
        shift = move if gain >= SHIFTED else None
        if regions[index] or shift:
            score = max(doubt[index] / usual, gain / usual_gain if shift else 0.0)
            masks.append(AuditedMask(index, source.names[index], regions[index], shift, score))
    masks.sort(key=lambda mask: (-mask.score, mask.name))
    return Audit(info, split, len(source), tuple(masks))


def best_shift(
    label: np.ndarray, predicted: np.ndarray, ignore_label: int
) -> tuple[float, tuple[int, int]]:
    """Returns how a mask should be moved to agree with the prediction in the most pixels.

    Args:
        label: The mask, `[height, width]`.
        predicted: The predicted classes, `[height, width]`.
        ignore_label: The label of pixels that do not count.

    Returns:
        The share of pixels that agree in addition, in 0..1, and the move to the right and down in
        pixels.
    """
    factor = -(-max(label.shape) // SIDE)
    label, predicted = (part[::factor, ::factor] for part in (label, predicted))
    height, width = label.shape

    def agreement(down: int, right: int) -> float:
        moved = label[max(-down, 0) : height - down, max(-right, 0) : width - right]
        below = predicted[max(down, 0) : height + down, max(right, 0) : width + right]
        counts = moved != ignore_label
        return float((counts & (moved == below)).sum() / max(counts.sum(), 1))

    steps = range(-REACH * STEP, REACH * STEP + 1, STEP)
    moves = [(down, right) for down in steps for right in steps]
    moves = [move for move in moves if abs(move[0]) < height and abs(move[1]) < width]
    moves.sort(key=lambda move: abs(move[0]) + abs(move[1]))  # of equal ones, the smallest
    shares = [agreement(*move) for move in moves]
    down, right = moves[int(np.argmax(shares))]
    return max(shares) - agreement(0, 0), (factor * right, factor * down)


def rank_unlabeled(
    model: keras.Model | Network | str | os.PathLike[str],
    images: Iterable[tuple[str, np.ndarray]],
    config: EvalConfig = EvalConfig(),
) -> list[tuple[str, float]]:
    """Ranks pictures without masks by how much the model would learn from labeling them.

    The score is the disagreement that the model expects between itself and a mask: the mean over
    the pixels of the sum of p(class) * (1 - p(class)), which is 0 where the model is certain.

    Args:
        model: A model, or what `dk.Predictor` opens: the name of a model of the zoo, or a path.
        images: Name and image of each picture, uint8 `[height, width, 3]`.
        config: How to run the model. Default: the whole image, at a single scale.

    Returns:
        Name and score of each picture, the highest score first. Scores are in 0..1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> images = [("flat", np.zeros((48, 64, 3), "uint8")),
        ...           ("noise", rng.integers(0, 256, (48, 64, 3), "uint8"))]
        >>> ranking = dk.rank_unlabeled("runs/demo", images)
        >>> sorted(name for name, score in ranking)
        ['flat', 'noise']
    """
    predictor = Predictor(as_network(model), config)
    scores = []
    for name, image in _named(images):
        certain = np.square(predictor.probabilities(image)).sum(-1).mean()
        scores.append((name, float(1 - certain)))
    return sorted(scores, key=lambda score: (-score[1], score[0]))


def _named(images: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    pairs = images if isinstance(images, Iterable) else (images,)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(
                f"`images`: each item must be a name and an image, not {type(pair).__name__}; give "
                "a list such as [('a.jpg', image)]"
            )
        yield pair[0], pair[1]


def doubtful_regions(
    label: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, ignore_label: int
) -> Iterator[Region]:
    """Yields the regions where a mask contradicts a confident prediction.

    Args:
        label: The mask, uint8 `[height, width]`.
        predicted: The predicted classes, int `[height, width]`.
        probabilities: The probability of each class, float32 `[height, width, num_classes]`.
        ignore_label: The label of pixels that do not count.

    Yields:
        Regions whose score is the sum of -log p(label), times the share of the predicted object
        that has another label.
    """
    counts = label != ignore_label
    own = np.take_along_axis(
        probabilities, np.where(counts, label, 0)[..., None].astype(np.int64), -1
    )[..., 0]
    margin = np.where(counts, probabilities.max(-1) - own, 0)
    doubtful = opened(margin > MARGIN, round(STRIP * math.hypot(*label.shape))) & counts
    doubtful &= margin > 0  # the opening counts pixels beyond the edge of the image
    classes = probabilities.shape[-1]
    pairs = label.astype(np.int64) * classes + predicted
    present = np.unique(pairs[doubtful])
    missing = {
        c: _missing_share(label, predicted, c, counts) for c in {int(p) % classes for p in present}
    }
    surprise = -np.log(np.maximum(own, LEAST))
    for pair in present:
        numbers = connected(doubtful & (pairs == pair))
        evidence = surprise * missing[int(pair) % classes]
        sums = np.bincount(numbers.ravel(), evidence.ravel())
        sizes = np.bincount(numbers.ravel())
        rows, columns = np.nonzero(numbers)
        order = np.argsort(numbers[rows, columns], kind="stable")
        ends = np.cumsum(sizes[1:])
        for number, end in enumerate(ends, 1):
            inside = order[end - sizes[number] : end]
            y, x = rows[inside], columns[inside]
            box = int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
            yield Region(
                label=int(pair) // classes,
                predicted=int(pair) % classes,
                box=box,
                pixels=int(sizes[number]),
                score=float(sums[number]),
            )


def _missing_share(
    label: np.ndarray, predicted: np.ndarray, class_id: int, counts: np.ndarray
) -> np.ndarray:
    """Returns for each pixel the share of its predicted object that has another label.

    An object is a connected area of the predicted class. Pixels outside of all objects have no
    meaningful value.
    """
    objects = connected(predicted == class_id)
    found = np.bincount(objects.ravel(), ((label == class_id) & counts).ravel())
    share = 1 - found / np.maximum(np.bincount(objects.ravel(), counts.ravel()), 1)
    return share[objects]


def weighted_regions(
    found: dict[int, list[Region]], pixels: np.ndarray
) -> dict[int, tuple[Region, ...]]:
    """Weights the regions of each image by how rare their confusion is in the other images.

    Args:
        found: The regions of each image.
        pixels: The number of pixels of each class in all masks, `[num_classes]`.

    Returns:
        The regions with their weighted scores, the highest first. The weight is -log10 of the share
        of the label's pixels that the other images confuse in the same way.
    """
    everywhere: collections.Counter[tuple[int, int]] = collections.Counter()
    of_image: dict[int, collections.Counter[tuple[int, int]]] = {}
    for index, regions in found.items():
        of_image[index] = collections.Counter()
        for region in regions:
            of_image[index][region.label, region.predicted] += region.pixels
        everywhere += of_image[index]
    weighted = {}
    for index, regions in found.items():

        def weight(region: Region, index: int = index) -> float:
            pair = region.label, region.predicted
            others = everywhere[pair] - of_image[index][pair]
            return -math.log10((others + 1) / (pixels[region.label] + 2))

        scored = [
            dataclasses.replace(region, score=region.score * weight(region)) for region in regions
        ]
        weighted[index] = tuple(sorted(scored, key=lambda region: -region.score))
    return weighted
