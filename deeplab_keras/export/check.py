"""The check of an exported file: its answers beside Keras' on the same images."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from deeplab_keras.export.images import resize, resize_labels
from deeplab_keras.inference import Network
from deeplab_keras.inference.exported import open_runtime
from deeplab_keras.metrics import Scores, count_pixels

# An exported file: from a uint8 image `[height, width, channels]` to labels `[height, width]` and logits.
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
TIMED = 5  # calls


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An exported file beside Keras.

    Attributes:
        max_logit_difference: largest absolute difference of a logit.
        label_agreement: share of the pixels with equal labels, 0..1.
        classes: number of different labels that Keras gave.
        images: how many were looked at.
        miou: the file's mean IoU, 0..1, where the true labels are known.
        keras_miou: Keras' on the same images.
    """

    max_logit_difference: float
    label_agreement: float
    classes: int
    images: int
    miou: float | None = None
    keras_miou: float | None = None

    @property
    def miou_loss(self) -> float | None:
        """Points of mIoU that the file is below Keras."""
        return None if self.miou is None or self.keras_miou is None else 100 * (self.keras_miou - self.miou)


def runner(kind: str, path: pathlib.Path, threads: int) -> Runner:
    """A file of a format, or a SavedModel's folder, as a function from an image to its labels and logits."""
    runtime = open_runtime(kind, path, threads)

    def labels_and_logits(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = image[None].astype(runtime.dtype)
        logits = runtime.logits(batch)[0]
        return runtime.labels(batch)[0] if runtime.labels else logits.argmax(-1), logits

    return labels_and_logits


def milliseconds(kind: str, path: pathlib.Path, threads: int, image: np.ndarray) -> float:
    """Median time of an image in the file's runtime."""
    runtime = open_runtime(kind, path, threads)
    run, batch, times = runtime.labels or runtime.logits, image[None].astype(runtime.dtype), []
    for _ in range(TIMED + 1):
        start = time.perf_counter()
        run(batch)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])  # the first prepares


def compare(
    run: Runner, network: Network, images: Sequence[np.ndarray], size: tuple[int, int] | None = None,
    labels: Sequence[np.ndarray] = (), ignore_label: int = 255,
) -> Comparison:
    """An exported file beside Keras.

    Args:
        run: the file.
        network: the Keras model.
        images: uint8 `[height, width, channels]`.
        size: to which the images are resized; None: as they are.
        labels: the true labels of the images, int32 `[height, width]`, if they are known.
        ignore_label: of pixels that do not count.
    """
    difference, equal, total = 0.0, 0, 0
    classes: set[int] = set()
    matrices = np.zeros((2, network.num_classes, network.num_classes), np.int64)
    for index, image in enumerate(images):
        image = resize(image, size) if size else image
        expected = network(tf.constant(image[None], tf.float32))[0].numpy()
        found, logits = run(image)
        difference = float(np.maximum(difference, np.abs(logits - expected).max()))  # unlike max(), it keeps a NaN
        own = expected.argmax(-1)
        equal += int((found == own).sum())
        total += found.size
        classes.update(np.unique(own).tolist())
        if labels:
            truth = resize_labels(labels[index], size) if size else labels[index]
            for matrix, answer in zip(matrices, (found, own), strict=True):
                matrix += count_pixels(truth, answer, network.num_classes, ignore_label)
    mious = [float(Scores.from_matrix(matrix).miou) for matrix in matrices] if labels else [None, None]
    return Comparison(difference, equal / total, len(classes), len(images), *mious)


def percent(share: float) -> str:
    """0.99996 -> 99.996 %: rounded down, so that only a whole is called 100 %."""
    return f"{np.floor(share * 1e5) / 1e3:.3f} %"
