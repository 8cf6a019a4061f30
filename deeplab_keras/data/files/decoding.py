"""Files read and decoded inside a tf.data graph: by TensorFlow's own decoders where they do it rightly, else by Pillow."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from deeplab_keras.data.files.archives import any_member, read_bytes


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """The bytes of a plain JPEG or PNG as uint8 `[height, width, 3]`."""
    # This op reads PNG too. The accurate DCT gives the pixels that Pillow and OpenCV give.
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def decode_label(data: tf.Tensor) -> tf.Tensor:
    """The bytes of a plain PNG mask as uint8 `[height, width]`."""
    return tf.io.decode_png(data, channels=1)[..., 0]


def encoded(paths: Sequence[str]) -> list[bytes]:
    """Paths as tensors hold them."""
    return [os.fsencode(path) for path in paths]


def read_file(index: tf.Tensor, paths: Sequence[str]) -> tf.Tensor:
    """The bytes of one of the files, wherever it lies."""
    if any_member(paths):
        return tf.ensure_shape(
            tf.numpy_function(lambda i: read_bytes(paths[int(i)]), [index], tf.string), ()
        )
    return tf.io.read_file(tf.gather(encoded(paths), index))


def decode(
    index: tf.Tensor,
    plain: Sequence[bool],
    data: Callable[[], tf.Tensor],
    fast: Callable[[tf.Tensor], tf.Tensor],
    read: Callable[[int], np.ndarray],
) -> tf.Tensor:
    """The pixels of one of many files.

    Args:
        index: which.
        plain: for each file, whether `fast` decodes it rightly.
        data: gives the bytes of the file at `index`.
        fast: decodes them in the graph.
        read: reads and decodes the file of a number, in Python.
    """

    def by_tensorflow() -> tf.Tensor:
        return fast(data())

    def by_pillow() -> tf.Tensor:
        return tf.numpy_function(lambda i: read(int(i)), [index], tf.uint8)

    if all(plain):
        return by_tensorflow()
    return (
        tf.cond(tf.gather(list(plain), index), by_tensorflow, by_pillow)
        if any(plain)
        else by_pillow()
    )
