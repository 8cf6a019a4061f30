"""One temperature, fitted on the validation split and folded into the classifiers of a network.

As in Guo et al., "On Calibration of Modern Neural Networks" (2017), the class scores are divided by
the temperature that minimizes a negative log-likelihood, see `fit`. Convolutions and bilinear
resizes are linear, so it is enough to divide the kernels and biases of the last convolutions.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.detail import CONFIDENCE_BINS, count_confidence, expected_error
from deeplab_keras.evaluation.loop import batches
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.inference import predict_logits
from deeplab_keras.inference.keras_network import KerasNetwork, made_by
from deeplab_keras.inference.tensors import decide
from deeplab_keras.io.progress import Progress

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = 0.05, 20.0  # temperatures
PIXELS = 1 << 17  # for the fit, evenly distributed over the images
GRID = 31  # temperatures that are tried first
PRECISION = 1e-5  # of the logarithm of the temperature
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature and its effect on the whole validation split.

    Attributes:
        temperature: By this number, all class scores are divided.
        error: The expected calibration error afterwards, 0..1, as `evaluate` measures it.
        error_before: The expected calibration error before.
        images: The number of images.
        pixels: The number of their labeled pixels.
        changed: The number of their pixels, labeled or not, with another label than before, because
            two scores were equal up to rounding.
    """

    temperature: float
    error: float
    error_before: float
    images: int
    pixels: int
    changed: int

    def __str__(self) -> str:
        text = (
            f"temperature {self.temperature:.4g}: calibration error {100 * self.error:.2f} % "
            f"instead of {100 * self.error_before:.2f} % on {self.images} images, "
            f"{self.changed} labels changed"
        )
        if self.error < self.error_before:
            return text
        return f"{text}; warning: no lower calibration error, so omit `calibrate`"


def calibrate(exportable: Exportable, source: Source | None) -> tuple[Exportable, Calibration]:
    """Fits a temperature on a split, and folds it into a copy of the network.

    Args:
        exportable: The network. It is not modified.
        source: The validation split.

    Raises:
        UserError: The validation split is missing or has other classes than the network, the best
            temperature is outside the limits, or other layers follow the classifiers.
    """
    if source is None or source.info.class_names != exportable.info.class_names:
        raise UserError(
            "`calibrate`: needs the labels of a validation split with the classes of the model; "
            "give `dataset` and `dataset_dir`, or omit `calibrate`"
        )
    classifiers(exportable.model)  # raises an error before the time is spent
    logger.info("fitting a temperature on %d images", len(source))
    before, bar = KerasNetwork(exportable.model), Progress(2 * len(source), "calibration")
    bins, samples = _Bins(source.info.ignore_label), _Samples(len(source))

    def collect(index: int, image: np.ndarray, label: np.ndarray) -> None:
        logits = predict_logits(before, image[None])
        bins.add(logits, label)
        samples.add(index, logits, label, source.info.ignore_label)

    _each(source, collect, bar, 0)
    if not bins.pixels:
        raise UserError(
            f"`calibrate`: every pixel of the {len(source)} images has the ignore label; check the "
            "labels, or omit `calibrate`"
        )
    temperature = fit(*samples.joined())
    model = folded(exportable.model, temperature)
    after, bins_after, changed = KerasNetwork(model), _Bins(source.info.ignore_label), 0

    def compare(index: int, image: np.ndarray, label: np.ndarray) -> None:
        nonlocal changed
        labels = bins_after.add(predict_logits(after, image[None]), label)
        changed += int((labels != decide(predict_logits(before, image[None]))[0][0].numpy()).sum())

    _each(source, compare, bar, len(source))
    found = Calibration(
        temperature, bins_after.error, bins.error, len(source), bins.pixels, changed
    )
    return dataclasses.replace(exportable, model=model), found


def _each(
    source: Source, work: Callable[[int, np.ndarray, np.ndarray], None], bar: Progress, start: int
) -> None:
    """Calls `work` with the number, image and label of each pair."""
    done = 0
    for indices, images, labels in batches(source, len(source), 1, source.info):
        for index, image, label in zip(indices, images, labels, strict=True):
            work(index, image, label)
            done += 1
            bar.update(start + done)


class _Bins:
    """Counts confidence and correct pixels, as `evaluate` does."""

    def __init__(self, ignore_label: int) -> None:
        self.ignore_label, self.counts = ignore_label, np.zeros((3, CONFIDENCE_BINS))

    def add(self, logits: tf.Tensor, label: np.ndarray) -> np.ndarray:
        """Counts an image, and returns its predicted labels `[height, width]`."""
        predicted, confidence = (part[0].numpy() for part in decide(logits, with_confidence=True))
        counted = label != self.ignore_label
        self.counts += count_confidence(confidence[counted], (label == predicted)[counted])
        return predicted

    @property
    def pixels(self) -> int:
        """The number of labeled pixels."""
        return int(self.counts[0].sum())

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1."""
        return expected_error(self.counts)


class _Samples:
    """Scores and labels of random pixels, the same number of each image."""

    def __init__(self, images: int) -> None:
        self.per_image = max(1, PIXELS // images)
        self.found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, index: int, logits: tf.Tensor, label: np.ndarray, ignore_label: int) -> None:
        """Takes pixels of one image; `index` is the seed of the selection."""
        (valid,) = np.nonzero(label.ravel() != ignore_label)
        count = min(self.per_image, len(valid))
        if not count:
            return
        chosen = np.random.default_rng(index).choice(valid, count, replace=False)
        scores = tf.gather(tf.reshape(logits, (-1, logits.shape[-1])), chosen).numpy()
        # So that each labeled pixel of the split has the same influence.
        weights = np.full(count, len(valid) / count)
        self.found.append((scores, label.ravel()[chosen], weights))

    def joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns all scores `[pixels, classes]`, labels and weights `[pixels]`."""
        scores, labels, weights = zip(*self.found, strict=True)
        return np.concatenate(scores), np.concatenate(labels), np.concatenate(weights)


def fit(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Returns the temperature with the smallest negative log-likelihood.

    It is the likelihood of whether the predicted class is correct, given its probability, because
    the calibration error is about this probability. The likelihood of the true class can have its
    optimum where the calibration error is larger than before, for example after training with
    weights of classes.

    Args:
        scores: float `[pixels, classes]`.
        labels: The true classes, `[pixels]`.
        weights: The weight of each pixel, `[pixels]`.

    Raises:
        UserError: The best temperature is not between `LOWEST` and `HIGHEST`.
    """
    predicted = scores.argmax(1)[:, None]
    below = scores.astype(np.float64) - np.take_along_axis(scores, predicted, 1)
    np.put_along_axis(below, predicted, -np.inf, 1)  # leaves the other classes
    second = below.max(1, keepdims=True)
    below, wrong = below - second, predicted[:, 0] != labels

    def loss(logarithm: float) -> float:
        scale = math.exp(-logarithm)
        # The logarithm of the odds that another class is correct.
        odds = np.log(np.exp(below * scale).sum(1)) + second[:, 0] * scale
        return float(np.average(np.logaddexp(0, odds) - wrong * odds, weights=weights))

    grid = np.linspace(math.log(LOWEST), math.log(HIGHEST), GRID)
    best = int(np.argmin([loss(place) for place in grid]))
    if best in (0, GRID - 1):
        raise UserError(
            f"`calibrate`: no temperature from {LOWEST:g} to {HIGHEST:g} is the best for the "
            f"{len(labels)} pixels of the validation split, whose predictions are all correct or "
            "random; give a larger split, or omit `calibrate`"
        )
    return math.exp(_golden_section(loss, grid[best - 1], grid[best + 1]))


def _golden_section(loss: Callable[[float], float], low: float, high: float) -> float:
    """Returns where a function with a single minimum between two places has it."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > PRECISION:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = loss(right)
    return (low + high) / 2


def folded(model: keras.Model, temperature: float) -> keras.Model:
    """Returns a copy of a model whose class scores are divided by a temperature."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for layer in classifiers(copy):
        layer.set_weights([weight / np.float32(temperature) for weight in layer.get_weights()])
    return copy


def classifiers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the convolutions that compute class scores: one, or several whose results are added.

    Raises:
        UserError: Other layers than resizes follow them, so the scores of the model are not theirs.
    """
    head, inputs = made_by(KerasNetwork(model).before_resize.model.outputs[0])
    layers = [made_by(part)[0] for part in inputs] if isinstance(head, keras.layers.Add) else [head]
    if head.name != "logits" or not all(hasattr(layer, "kernel") for layer in layers):
        raise UserError(
            f"`calibrate`: the class scores of {model.name!r} are not those of its layer 'logits'; "
            "export a network of `build_segmentor`, or omit `calibrate`"
        )
    return layers
