"""The check of an exported file: its answers beside Keras' on the same images."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from deeplab_keras.export.images import resize
from deeplab_keras.inference import Network
from deeplab_keras.inference.exported import open_runtime

# An exported file: from a uint8 image `[height, width, channels]` to labels `[height, width]` and logits.
Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def runner(kind: str, path: pathlib.Path, threads: int) -> Runner:
    """A file of a format, or a SavedModel's folder, as a function from an image to its labels and logits."""
    runtime = open_runtime(kind, path, threads)

    def labels_and_logits(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = image[None].astype(runtime.dtype)
        logits = runtime.logits(batch)[0]
        return runtime.labels(batch)[0] if runtime.labels else logits.argmax(-1), logits

    return labels_and_logits


def compare(
    run: Runner, network: Network, images: Sequence[np.ndarray], size: tuple[int, int] | None = None
) -> tuple[float, float, int]:
    """An exported file beside Keras.

    Args:
        run: the file.
        network: the Keras model.
        images: uint8 `[height, width, channels]`.
        size: to which the images are resized; None: as they are.

    Returns:
        The largest absolute difference of a logit, the share of pixels with equal labels, and the number of different
        labels that Keras gave.
    """
    difference, equal, total = 0.0, 0, 0
    classes: set[int] = set()
    for image in images:
        image = resize(image, size) if size else image
        expected = network(tf.constant(image[None], tf.float32))[0].numpy()
        labels, logits = run(image)
        difference = float(np.maximum(difference, np.abs(logits - expected).max()))  # unlike max(), it keeps a NaN
        equal += int((labels == expected.argmax(-1)).sum())
        total += labels.size
        classes.update(np.unique(expected.argmax(-1)).tolist())
    return difference, equal / total, len(classes)


def percent(share: float) -> str:
    """0.99996 -> 99.996 %: rounded down, so that only a whole is called 100 %."""
    return f"{np.floor(share * 1e5) / 1e3:.3f} %"
