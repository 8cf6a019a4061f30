"""From class scores to the most probable class of each pixel, and its probability.

TensorFlow's argmax goes through the classes one by one. Compiled by XLA it takes from a tenth to a
half of that time for up to some forty classes, but is compiled for one number of pixels: the first
few sizes of image get programs of their own, all others go in blocks.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from deeplab_keras.models.layers import HAS_XLA

BLOCK = 1 << 16  # pixels
MOST_CLASSES = 40  # of more, TensorFlow's own argmax is the faster one
MOST_SIZES = 8
_sizes: set[tuple[int, int]] = set()  # (pixels, classes) with a program of their own
Decision = tuple[tf.Tensor, ...]


def decide(logits: Any, with_confidence: bool = False) -> Decision:
    """The class with the largest score, of equal ones the first, and its probability if that is wanted.

    Args:
        logits: float32 `[batch, height, width, num_classes]`.
        with_confidence: whether the probability is wanted.

    Returns:
        int32 and, if wanted, float32 `[batch, height, width]`.
    """
    logits = tf.convert_to_tensor(logits)
    classes = logits.shape[-1]
    if not HAS_XLA or classes > MOST_CLASSES or "GPU" in logits.device:
        return (_confident if with_confidence else _labels)(logits)
    pixels, program = (
        tf.reshape(logits, (-1, classes)),
        _CONFIDENT_BLOCK if with_confidence else _LABELS_BLOCK,
    )
    count, found = int(pixels.shape[0]), []
    if len(_sizes) < MOST_SIZES:
        _sizes.add((count, classes))
    if (count, classes) in _sizes:
        return tuple(tf.reshape(part, logits.shape[:-1]) for part in program(pixels))
    for start in range(0, count, BLOCK):
        block = pixels[start : start + BLOCK]
        found.append(
            program(
                tf.pad(block, ((0, BLOCK - len(block)), (0, 0))) if len(block) < BLOCK else block
            )
        )
    return tuple(
        tf.reshape(tf.concat(blocks, 0)[:count], logits.shape[:-1])
        for blocks in zip(*found, strict=True)
    )


def _decide_labels(scores: tf.Tensor) -> Decision:
    return (tf.argmax(scores, -1, output_type=tf.int32),)


def _decide_with_confidence(scores: tf.Tensor) -> Decision:
    confidence = tf.exp(tf.reduce_max(scores, -1) - tf.reduce_logsumexp(scores, -1))
    return tf.argmax(scores, -1, output_type=tf.int32), confidence


# Traced once for all sizes, as TensorFlow warns of tracing anew; XLA compiles for each by itself.
ANY, ANY_PIXELS = [tf.TensorSpec([None] * 4, tf.float32)], [tf.TensorSpec([None] * 2, tf.float32)]
_labels = tf.function(_decide_labels, ANY, autograph=False)
_confident = tf.function(_decide_with_confidence, ANY, autograph=False)
_LABELS_BLOCK = tf.function(_decide_labels, ANY_PIXELS, jit_compile=True, autograph=False)
_CONFIDENT_BLOCK = tf.function(
    _decide_with_confidence, ANY_PIXELS, jit_compile=True, autograph=False
)
