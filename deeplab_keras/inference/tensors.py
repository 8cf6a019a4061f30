"""TensorFlow's arithmetic of class scores, for Keras models on TensorFlow.

See `network.Arithmetic`.

Labels: for up to about 40 classes, an argmax compiled by XLA takes a tenth to a half of the time of
TensorFlow's argmax, which loops over the classes. XLA compiles it for a fixed number of pixels: the
first few image sizes get their own program, and all other sizes are processed in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.inference.resizing import positions
from deeplab_keras.models.layers import HAS_XLA

BLOCK = 1 << 16  # pixels
MOST_CLASSES = 40  # with more, TensorFlow's argmax is faster
MOST_SIZES = 8
_sizes: set[tuple[int, int]] = set()  # (pixels, classes) that have their own program
Decision = tuple[tf.Tensor, ...]


def strip_bytes(needed: int) -> int:
    """See `network.Arithmetic`."""
    return needed


def resize(x: Any, size: tuple[int, ...]) -> Any:
    """See `network.Arithmetic`; `resizing.resize` returns the same numbers."""
    return x if tuple(x.shape[1:3]) == tuple(size) else tf.image.resize(x, size)


def resize_rows(x: Any, size: tuple[int, int], top: int, bottom: int) -> Any:
    """See `network.Arithmetic`."""
    height, (full_height, width) = x.shape[1], size
    if (top, bottom) == (0, full_height):
        return resize(_rows(x, 0, height), size)
    if height == full_height:
        return resize(_rows(x, top, bottom), (bottom - top, width))
    low, high, share = (part[top:bottom] for part in positions(height, full_height))
    first = low[0]
    x = _rows(x, first, high[-1] + 1)
    above, below = tf.gather(x, low - first, axis=1), tf.gather(x, high - first, axis=1)
    return resize(above + (below - above) * share[:, None, None], (bottom - top, width))


def _rows(x: Any, top: int, bottom: int) -> Any:
    return x[:, top:bottom] if isinstance(x, tf.Tensor | np.ndarray) else x.rows(top, bottom)


def as_array(x: Any) -> tf.Tensor:
    """See `network.Arithmetic`."""
    return tf.convert_to_tensor(x)


def flip(x: Any) -> tf.Tensor:
    """See `network.Arithmetic`."""
    return tf.reverse(x, axis=[2])


def softmax(scores: Any) -> tf.Tensor:
    """See `network.Arithmetic`."""
    return tf.nn.softmax(scores)


def log_of_mean(parts: list[Any]) -> tf.Tensor:
    """See `network.Arithmetic`."""
    total = sum(tf.nn.softmax(part) for part in parts)
    return tf.math.log(tf.maximum(total / len(parts), np.finfo(np.float32).tiny))


def in_parallel(function: Callable[[int], Any], items: Iterable[int]) -> list[Any]:
    """See `network.Arithmetic`. TensorFlow's kernels use all processors themselves."""
    return [function(item) for item in items]


def is_finite(scores: Any) -> bool:
    """See `network.Arithmetic`."""
    # The sum is faster to compute, but that of finite scores can overflow.
    return bool(np.isfinite(tf.reduce_sum(scores)) or tf.reduce_all(tf.math.is_finite(scores)))


def decide(scores: Any, with_confidence: bool = False) -> Decision:
    """See `network.Arithmetic`."""
    logits = tf.convert_to_tensor(scores)
    classes = logits.shape[-1]
    if not HAS_XLA or classes > MOST_CLASSES or "GPU" in logits.device:
        return (_confident if with_confidence else _labels)(logits)
    pixels = tf.reshape(logits, (-1, classes))
    program = _CONFIDENT_BLOCK if with_confidence else _LABELS_BLOCK
    count = int(pixels.shape[0])
    if len(_sizes) < MOST_SIZES:
        _sizes.add((count, classes))
    if (count, classes) in _sizes:
        return tuple(tf.reshape(part, logits.shape[:-1]) for part in program(pixels))
    found = []
    for start in range(0, count, BLOCK):
        block = pixels[start : start + BLOCK]
        if len(block) < BLOCK:
            block = tf.pad(block, ((0, BLOCK - len(block)), (0, 0)))
        found.append(program(block))
    return tuple(
        tf.reshape(tf.concat(blocks, 0)[:count], logits.shape[:-1])
        for blocks in zip(*found, strict=True)
    )


def _decide_labels(scores: tf.Tensor) -> Decision:
    return (tf.argmax(scores, -1, output_type=tf.int32),)


def _decide_with_confidence(scores: tf.Tensor) -> Decision:
    confidence = tf.exp(tf.reduce_max(scores, -1) - tf.reduce_logsumexp(scores, -1))
    return tf.argmax(scores, -1, output_type=tf.int32), confidence


# Traced once for all sizes, because TensorFlow warns about retracing; XLA still compiles per size.
ANY, ANY_PIXELS = [tf.TensorSpec([None] * 4, tf.float32)], [tf.TensorSpec([None] * 2, tf.float32)]
_labels = tf.function(_decide_labels, ANY, autograph=False)
_confident = tf.function(_decide_with_confidence, ANY, autograph=False)
_LABELS_BLOCK = tf.function(_decide_labels, ANY_PIXELS, jit_compile=True, autograph=False)
_CONFIDENT_BLOCK = tf.function(
    _decide_with_confidence, ANY_PIXELS, jit_compile=True, autograph=False
)
