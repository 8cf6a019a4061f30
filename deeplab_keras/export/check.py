"""The check of an exported file: its answers beside Keras' on the same images."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from deeplab_keras.evaluation.metrics import Scores, count_pixels
from deeplab_keras.export.images import resize, resize_labels
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.inference.exported import open_runtime

# An exported file: from a uint8 image `[height, width, channels]` to labels `[height, width]` and
# logits.
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
TIMED = 5  # calls
# pixels of an image that Keras predicts in one piece for the comparison at its own size
LARGEST = 12_500_000
STRETCHED = 1.02  # change of the aspect ratio that is more than the rounding of a side


@dataclasses.dataclass(frozen=True)
class OwnSize:
    """A file of one size beside Keras, which sees the images at their own sizes; labels are compared there.

    Attributes:
        label_agreement: share of the pixels with equal labels, 0..1.
        images: how many were looked at.
        stretched: how many of them have another aspect ratio than the file.
        example: the most frequent (height, width) among those.
        miou: the file's mean IoU, 0..1, where the true labels are known.
        keras_miou: Keras'.
    """

    label_agreement: float
    images: int
    stretched: int
    example: tuple[int, int]
    miou: float | None = None
    keras_miou: float | None = None


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
        own_size: the same at the images' own sizes, where some have another size than the file.
    """

    max_logit_difference: float
    label_agreement: float
    classes: int
    images: int
    miou: float | None = None
    keras_miou: float | None = None
    own_size: OwnSize | None = None

    @property
    def miou_loss(self) -> float | None:
        """Points of mIoU that the file is below Keras."""
        return (
            None
            if self.miou is None or self.keras_miou is None
            else 100 * (self.keras_miou - self.miou)
        )


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
    run: Runner,
    network: Network,
    images: Sequence[np.ndarray],
    size: tuple[int, int] | None = None,
    labels: Sequence[np.ndarray] = (),
    ignore_label: int = 255,
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
    difference, classes = 0.0, set()
    same, own = (
        _Counts(network.num_classes, ignore_label),
        _Counts(network.num_classes, ignore_label),
    )
    shapes = []
    for index, picture in enumerate(images):
        image = resize(picture, size) if size else picture
        expected = network(tf.constant(image[None], tf.float32))[0].numpy()
        found, logits = run(image)
        difference = float(
            np.maximum(difference, np.abs(logits - expected).max())
        )  # unlike max(), it keeps a NaN
        of_keras = expected.argmax(-1)
        classes.update(np.unique(of_keras).tolist())
        truth = labels[index] if labels else None
        same.add(
            found, of_keras, resize_labels(truth, size) if size and truth is not None else truth
        )
        height, width = picture.shape[:2]
        if (
            size
            and (height, width) != tuple(size)
            and not network.input_size
            and height * width <= LARGEST
        ):
            shapes.append((height, width))
            enlarged = (
                tf.image.resize(logits, (height, width)).numpy().argmax(-1)
            )  # as `Predictor` answers with such a file
            own.add(enlarged, Predictor(network)(picture), truth)
    at_own_size = None
    if shapes and size:
        stretched = [shape for shape in shapes if stretch(shape, size) > STRETCHED]
        ((usual, _),) = Counter(stretched or shapes).most_common(1)
        at_own_size = OwnSize(own.agreement, len(shapes), len(stretched), usual, *own.mious)
    return Comparison(
        difference, same.agreement, len(classes), len(images), *same.mious, at_own_size
    )


class _Counts:
    """Equal labels, and the confusion matrices of file and Keras, over several images."""

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.equal = self.total = 0
        self.matrices = np.zeros((2, num_classes, num_classes), np.int64)
        self.labelled = False

    def add(self, found: np.ndarray, of_keras: np.ndarray, truth: np.ndarray | None) -> None:
        self.equal += int((found == of_keras).sum())
        self.total += found.size
        if truth is not None:
            self.labelled = True
            for matrix, answer in zip(self.matrices, (found, of_keras), strict=True):
                matrix += count_pixels(truth, answer, self.num_classes, self.ignore_label)

    @property
    def agreement(self) -> float:
        return self.equal / self.total

    @property
    def mious(self) -> tuple[float | None, float | None]:
        """The file's mean IoU and Keras'."""
        if not self.labelled:
            return None, None
        file, of_keras = (float(Scores.from_matrix(matrix).miou) for matrix in self.matrices)
        return file, of_keras


def stretch(shape: tuple[int, int], size: tuple[int, int]) -> float:
    """By which factor a resize from `shape` to `size` changes the aspect ratio, at least 1."""
    ratio = shape[0] * size[1] / (shape[1] * size[0])
    return max(ratio, 1 / ratio)


def percent(share: float) -> str:
    """0.99996 -> 99.996 %: rounded down, so that only a whole is called 100 %."""
    return f"{np.floor(share * 1e5) / 1e3:.3f} %"
