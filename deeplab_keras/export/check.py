"""The check of an exported file: its outputs compared with Keras' on the same images."""

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
from deeplab_keras.export.images import Fit
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.inference.exported import open_runtime
from deeplab_keras.inference.resizing import enlarge, enlarge_labels

# An exported file as a function from a uint8 image `[height, width, channels]` to labels `[height,
# width]` and logits.
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
TIMED = 5  # calls
LARGEST = 12_500_000  # pixels; larger images are not compared at their own size
STRETCHED = 1.02  # a larger change of the aspect ratio is not explained by rounding a side


@dataclasses.dataclass(frozen=True)
class OwnSize:
    """A file of a fixed input size compared with Keras at the images' own sizes.

    Attributes:
        label_agreement: The share of pixels with equal labels, 0..1.
        images: The number of images compared.
        stretched: The number of images with another aspect ratio than the file's input.
        example: The most frequent (height, width) of those images.
        miou: The file's mean IoU, 0..1, if the true labels are known.
        keras_miou: Keras' mean IoU.
    """

    label_agreement: float
    images: int
    stretched: int
    example: tuple[int, int]
    miou: float | None = None
    keras_miou: float | None = None


@dataclasses.dataclass(frozen=True)
class FileAgreement:
    """An exported file compared with Keras.

    Attributes:
        max_logit_difference: The largest absolute difference of a logit.
        label_agreement: The share of pixels with equal labels, 0..1.
        classes: The number of different classes that Keras predicted.
        images: The number of images compared.
        miou: The file's mean IoU, 0..1, if the true labels are known.
        keras_miou: Keras' mean IoU on the same images.
        own_size: The comparison at the images' own sizes, if some differ from the file's.
        output_size: The (height, width) of the outputs, if it is that of the head's class scores.
            The labels are then compared after the outputs are enlarged.
        at_head: For a file that only has labels of that size, the share of equal labels, 0..1,
            before they are enlarged by nearest neighbor.
    """

    max_logit_difference: float
    label_agreement: float
    classes: int
    images: int
    miou: float | None = None
    keras_miou: float | None = None
    own_size: OwnSize | None = None
    output_size: tuple[int, int] | None = None
    at_head: float | None = None

    @property
    def miou_loss(self) -> float | None:
        """How many points of mIoU the file is below Keras."""
        if self.miou is None or self.keras_miou is None:
            return None
        return 100 * (self.keras_miou - self.miou)


@dataclasses.dataclass(frozen=True)
class AtHead:
    """What the outputs of a file are if they have the size of the head's class scores.

    Attributes:
        network: The Keras model before its last resize.
        align_corners: Whether the last resize aligns corners.
        has_logits: Whether logits are an output of the file. They are then enlarged bilinearly.
            Otherwise its labels are enlarged by nearest neighbor.
    """

    network: Network
    align_corners: bool
    has_logits: bool


def runner(kind: str, path: pathlib.Path, threads: int) -> Runner:
    """Opens an exported file or folder as a function from an image to its labels and logits."""
    runtime = open_runtime(kind, path, threads)

    def labels_and_logits(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = image[None].astype(runtime.dtype)
        logits = runtime.logits(batch)[0]
        return runtime.labels(batch)[0] if runtime.labels else logits.argmax(-1), logits

    return labels_and_logits


def milliseconds(kind: str, path: pathlib.Path, threads: int, image: np.ndarray) -> float:
    """Returns the median time per image in the file's runtime."""
    runtime = open_runtime(kind, path, threads)
    run, batch = runtime.labels or runtime.logits, image[None].astype(runtime.dtype)
    times = []
    for _ in range(TIMED + 1):
        start = time.perf_counter()
        run(batch)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])  # the first call also initializes


def compare(
    run: Runner,
    network: Network,
    images: Sequence[np.ndarray],
    size: tuple[int, int] | Fit | None = None,
    labels: Sequence[np.ndarray] = (),
    ignore_label: int = 255,
    *,
    head: AtHead | None = None,
    predict: Callable[[np.ndarray], np.ndarray] | None = None,
    smallest: tuple[int, int] = (1, 1),
) -> FileAgreement:
    """Compares an exported file with Keras.

    Args:
        run: The file.
        network: The Keras model.
        images: uint8 arrays `[height, width, channels]`.
        size: The (height, width) to which images are resized, or how; `None` for unmodified images.
        labels: The true labels of the images, int32 `[height, width]`, if they are known.
        ignore_label: The label of pixels to ignore.
        head: Given if the outputs have the size of the head's class scores.
        predict: Function from an image of any size to its labels, the `Predictor` of the file.
            Default: resizes the logits to the image's size.
        smallest: The smallest (height, width) that Keras takes. Smaller images are enlarged to it,
            and are not compared at their own size.
    """
    fit = size if isinstance(size, Fit) else Fit(size) if size else None
    size = fit.size if fit else None
    difference = 0.0
    classes: set[int] = set()
    shapes: list[tuple[int, int]] = []
    output_size = None
    at_head = _Counts(network.num_classes, ignore_label)
    same = _Counts(network.num_classes, ignore_label)
    own = _Counts(network.num_classes, ignore_label)
    of_network = Predictor(network)
    for index, picture in enumerate(images):
        used = fit or enlarging(picture, smallest)
        image = used.image(picture) if used else picture
        expected = network(tf.constant(image[None], tf.float32))[0].numpy()
        found, logits = run(image)
        if head:
            output_size = (int(logits.shape[0]), int(logits.shape[1]))
            logits = enlarge(logits[None], image.shape[:2], head.align_corners)[0]
            if head.has_logits:
                found = logits.argmax(-1)
            else:
                before = head.network(tf.constant(image[None], tf.float32))[0].numpy()
                at_head.add(found, before.argmax(-1), None)
                found = enlarge_labels(found[None], image.shape[:2], head.align_corners)[0]
        # Unlike max(), np.maximum propagates NaN.
        difference = float(np.maximum(difference, np.abs(logits - expected).max()))
        of_keras = expected.argmax(-1)
        classes.update(np.unique(of_keras).tolist())
        truth = labels[index] if labels else None
        fitted = truth if used is None or truth is None else used.labels(truth, ignore_label)
        same.add(found, of_keras, fitted)
        height, width = picture.shape[:2]
        if (
            size
            and enlarging(picture, smallest) is None
            and (height, width) != tuple(size)
            and not network.input_size
            and height * width <= LARGEST
        ):
            shapes.append((height, width))
            if predict is None:
                at_own_size = tf.image.resize(logits, (height, width)).numpy().argmax(-1)
            else:
                at_own_size = predict(picture)
            own.add(at_own_size, of_network(picture), truth)
    own_size = None
    if shapes and size:
        stretched = [] if fit and fit.color else shapes
        stretched = [shape for shape in stretched if stretch(shape, size) > STRETCHED]
        ((usual, _),) = Counter(stretched or shapes).most_common(1)
        own_size = OwnSize(own.agreement, len(shapes), len(stretched), usual, *own.mious)
    return FileAgreement(
        difference,
        same.agreement,
        len(classes),
        len(images),
        *same.mious,
        own_size,
        output_size,
        at_head.agreement if at_head.total else None,
    )


def enlarging(picture: np.ndarray, smallest: tuple[int, int]) -> Fit | None:
    """Returns how an image is enlarged to the smallest size, `None` if it is large enough."""
    (height, width), (least_height, least_width) = picture.shape[:2], smallest
    if height >= least_height and width >= least_width:
        return None
    return Fit((max(height, least_height), max(width, least_width)))


class _Counts:
    """Counts over several images: equal labels, and confusion matrices of the file and of Keras."""

    def __init__(self, num_classes: int, ignore_label: int) -> None:
        self.num_classes, self.ignore_label = num_classes, ignore_label
        self.equal = self.total = 0
        self.matrices = np.zeros((2, num_classes, num_classes), np.int64)
        self.labeled = False

    def add(self, found: np.ndarray, of_keras: np.ndarray, truth: np.ndarray | None) -> None:
        self.equal += int((found == of_keras).sum())
        self.total += found.size
        if truth is not None:
            self.labeled = True
            for matrix, answer in zip(self.matrices, (found, of_keras), strict=True):
                matrix += count_pixels(truth, answer, self.num_classes, self.ignore_label)

    @property
    def agreement(self) -> float:
        return self.equal / self.total

    @property
    def mious(self) -> tuple[float | None, float | None]:
        """The mean IoU of the file and of Keras."""
        if not self.labeled:
            return None, None
        file, of_keras = (float(Scores.from_matrix(matrix).miou) for matrix in self.matrices)
        return file, of_keras


def stretch(shape: tuple[int, int], size: tuple[int, int]) -> float:
    """Returns by which factor, at least 1, a resize to `size` changes the aspect ratio."""
    ratio = shape[0] * size[1] / (shape[1] * size[0])
    return max(ratio, 1 / ratio)


def percent(share: float) -> str:
    """Formats 0.99996 as "99.996 %", rounded down so that only 1.0 becomes 100 %."""
    return f"{np.floor(share * 1e5) / 1e3:.3f} %"
