"""Which image stands at a position of the endless training stream: another permutation of all images in each pass.

A permutation is never written down: a small block cipher (a Feistel network) maps place to image,
so that any position of any pass is found by itself, at once, for ten images or ten millions, and by
several machines that do not speak to each other.
"""

from __future__ import annotations

import tensorflow as tf

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: keys that lie far from each other


def shuffled(positions: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """The images at these positions.

    Args:
        positions: int64 `[n]`, 0 or above; a pass is `count` of them.
        count: number of images.
        seed: of the order.

    Returns:
        int64 `[n]` in 0..count-1; over the positions of a pass each number once.
    """
    positions = tf.cast(positions, tf.int64)
    # Two halves of so many bits are the smallest block that holds every image, and no smaller than
    # 16.
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

    # What falls on a number that is no image is encrypted again; that too is a permutation.
    images = tf.while_loop(
        lambda block: tf.reduce_any(block >= limit),
        lambda block: (tf.where(block >= limit, encrypt(block), block),),
        (encrypt(places),),
    )[0]
    return tf.cast(images, tf.int64)


def _mix(number: tf.Tensor) -> tf.Tensor:
    """Every bit of the result depends on every bit of the number (the last part of SplitMix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = tf.bitwise.bitwise_xor(
            number, tf.bitwise.right_shift(number, tf.constant(shift, tf.uint64))
        )
        number *= tf.constant(factor, tf.uint64)
    return tf.bitwise.bitwise_xor(
        number, tf.bitwise.right_shift(number, tf.constant(31, tf.uint64))
    )
