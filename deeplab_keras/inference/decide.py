"""The most probable class of each pixel and its probability, from class scores.

For up to about 40 classes, an argmax compiled by XLA takes a tenth to a half of the time of
TensorFlow's argmax, which loops over the classes. XLA compiles it for a fixed number of pixels: the
first few image sizes get their own program, and all other sizes are processed in blocks.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from deeplab_keras.models.layers import HAS_XLA

BLOCK = 1 << 16  # pixels
MOST_CLASSES = 40  # with more, TensorFlow's argmax is faster
MOST_SIZES = 8
_sizes: set[tuple[int, int]] = set()  # (pixels, classes) that have their own program
Decision = tuple[tf.Tensor, ...]


def decide(logits: Any, with_confidence: bool = False) -> Decision:
    """Returns the class with the largest score per pixel, and on request its probability.

    Args:
        logits: float32 `[batch, height, width, num_classes]`.
        with_confidence: Whether to return the probabilities too.

    Returns:
        A tuple of one or two arrays `[batch, height, width]`: the labels, int32, of equal scores
        the first class, and the probabilities, float32.
    """
    logits = tf.convert_to_tensor(logits)
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
