"""Comparison of two models on the same images: the difference in mIoU and its interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.evaluation.detail import ImageScore

SAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of `compare`, with IoUs in 0..1.

    Attributes:
        miou: The mIoU of both models.
        per_class_iou: The IoU of each class for both models, `None` for a class in neither labels
            nor predictions.
        low: The lower bound of the 95 % bootstrap interval of the difference in mIoU, second minus
            first.
        high: The upper bound of the interval.
        images: The number of images.
    """

    miou: tuple[float, float]
    per_class_iou: tuple[tuple[float | None, float | None], ...]
    low: float
    high: float
    images: int

    @property
    def verdict(self) -> str:
        """The conclusion from the interval, in words."""
        if self.low > 0:
            return "the second is better"
        if self.high < 0:
            return "the first is better"
        return "the difference is not significant on these images"

    def table(self, first: str, second: str, class_names: Sequence[str]) -> str:
        """Returns a text table of both models, in percent.

        Args:
            first: The name of the first model.
            second: The name of the second model.
            class_names: The names of the classes in `per_class_iou`.
        """
        width = max(len("pixel classes"), *(len(name) for name in class_names))
        lines = [
            f"A: {first}",
            f"B: {second}",
            f"{'class':<{width}} {'A':>6} {'B':>6} {'B - A':>6}",
        ]
        for name, ious in zip(class_names, self.per_class_iou, strict=True):
            cells = ["-" if iou is None else f"{100 * iou:.2f}" for iou in ious]
            before, after = ious
            cells.append(
                "-" if before is None or after is None else f"{100 * (after - before):+.2f}"
            )
            lines.append(f"{name:<{width}} " + " ".join(f"{cell:>6}" for cell in cells))
        a, b = self.miou
        lines.append(f"{'mIoU':<{width}} {100 * a:6.2f} {100 * b:6.2f} {100 * (b - a):+6.2f}")
        interval = f"{100 * self.low:+.2f} to {100 * self.high:+.2f}"
        lines.append(
            f"95 % interval of the difference over {self.images} images: {interval}; {self.verdict}"
        )
        return "\n".join(lines) + "\n"


def compare(
    first: Sequence[ImageScore], second: Sequence[ImageScore], samples: int = SAMPLES, seed: int = 0
) -> Comparison:
    """Compares the scores of two models on the same images.

    The interval is a paired bootstrap: it resamples the images with replacement, and scores both
    models on the same sample.

    Args:
        first: The scores of the first model, one per image.
        second: The scores of the second model.
        samples: The number of bootstrap samples.
        seed: The seed of the bootstrap.

    Raises:
        UserError: The models were not evaluated on the same images.
    """
    names = [sorted(score.name for score in scores) for scores in (first, second)]
    if names[0] != names[1]:
        odd = sorted(set(names[0]) ^ set(names[1]))
        raise UserError(
            f"the models were not evaluated on the same images ({', '.join(odd[:3])}); evaluate "
            "both on the same split"
        )
    counts = np.stack(
        [
            [
                (score.hits, score.labeled, score.predicted)
                for score in sorted(scores, key=lambda score: score.name)
            ]
            for scores in (first, second)
        ]
    ).astype(np.float64)  # [2, images, 3, classes]
    images = counts.shape[1]
    draws = (
        np.random.default_rng(seed)
        .multinomial(images, np.full(images, 1 / images), samples)
        .astype(np.float64)
    )
    resampled = [_miou(np.tensordot(draws, model, 1)) for model in counts]
    low, high = np.percentile(resampled[1] - resampled[0], (2.5, 97.5))
    totals = counts.sum(1)
    ious = [_ious(total) for total in totals]
    return Comparison(
        miou=(float(_miou(totals[0])), float(_miou(totals[1]))),
        per_class_iou=tuple(
            (None if np.isnan(a) else float(a), None if np.isnan(b) else float(b))
            for a, b in zip(*ious, strict=True)
        ),
        low=float(low),
        high=float(high),
        images=images,
    )


def _ious(counts: np.ndarray) -> np.ndarray:
    """Returns the IoU `[..., classes]` of counts `[..., 3, classes]`; NaN if a class is absent."""
    hits, labeled, predicted = np.moveaxis(counts, -2, 0)
    union = labeled + predicted - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)


def _miou(counts: np.ndarray) -> np.ndarray:
    return np.nanmean(_ious(counts), axis=-1)
