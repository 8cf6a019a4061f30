"""The order of the images in the endless training stream: a new permutation in each epoch.

Permutations are not stored. A small block cipher (a Feistel network) maps a position to an image,
so the image at any position of any epoch is computed directly, whatever the number of images, and
several machines compute the same order without communication.
"""

from __future__ import annotations

import tensorflow as tf

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio: multiples of it are spread evenly


def shuffled(positions: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Returns the indices of the images at the given positions.

    Args:
        positions: int64 `[n]`, at least 0. An epoch has `count` positions.
        count: The number of images.
        seed: The seed of the order.

    Returns:
        int64 `[n]` in 0..count-1. Each index occurs once per epoch.
    """
    positions = tf.cast(positions, tf.int64)
    # The bits of each half of the smallest block that can number all images, at least 16.
    bits = max(((count - 1).bit_length() + 1) // 2, 2)
    passes, places = tf.cast(positions // count, tf.uint64), tf.cast(positions % count, tf.uint64)
    keys = _mix(_mix(tf.cast(tf.constant(seed, tf.int64), tf.uint64)[None]) + passes)
    shift, mask, limit = (tf.constant(value, tf.uint64) for value in (bits, (1 << bits) - 1, count))

    def encrypt(block: tf.Tensor) -> tf.Tensor:
        left, right = tf.bitwise.right_shift(block, shift), tf.bitwise.bitwise_and(block, mask)
        for number in range(ROUNDS):
            noise = _mix(keys + right + tf.constant((number + 1) * GOLDEN % 2**64, tf.uint64))
            left, right = right, tf.bitwise.bitwise_xor(left, tf.bitwise.bitwise_and(noise, mask))
        return tf.bitwise.bitwise_or(tf.bitwise.left_shift(left, shift), right)

    # Numbers beyond the last image are encrypted again. The result is still a permutation.
    images = tf.while_loop(
        lambda block: tf.reduce_any(block >= limit),
        lambda block: (tf.where(block >= limit, encrypt(block), block),),
        (encrypt(places),),
    )[0]
    return tf.cast(images, tf.int64)


def _mix(number: tf.Tensor) -> tf.Tensor:
    """Mixes the bits of a number, so that each depends on all others (the end of SplitMix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = tf.bitwise.bitwise_xor(
            number, tf.bitwise.right_shift(number, tf.constant(shift, tf.uint64))
        )
        number *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(
        number, tf.bitwise.right_shift(number, tf.constant(31, tf.uint64))
    )
