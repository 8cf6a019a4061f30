"""Reads and decodes files inside a tf.data graph.

TensorFlow's own decoders read the files that they decode correctly; Pillow reads the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from deeplab_keras.data.files.archives import any_member, read_bytes

if TYPE_CHECKING:  # imported by functions, so that this module can be imported without TensorFlow
    import tensorflow as tf


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Decodes the bytes of a plain JPEG or PNG to uint8 `[height, width, 3]`."""
    import tensorflow as tf

    # This op also reads PNG. The accurate DCT decodes to the same pixels as Pillow and OpenCV.
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def decode_label(data: tf.Tensor) -> tf.Tensor:
    """Decodes the bytes of a plain PNG mask to uint8 `[height, width]`."""
    import tensorflow as tf

    return tf.io.decode_png(data, channels=1)[..., 0]


def encoded(paths: Sequence[str]) -> list[bytes]:
    """Returns the paths as bytes, which is how string tensors hold them."""
    return [os.fsencode(path) for path in paths]


def read_file(index: tf.Tensor, paths: Sequence[str]) -> tf.Tensor:
    """Reads one of the files, which may be inside an archive or a record file."""
    import tensorflow as tf

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
    """Decodes one of many files.

    Args:
        index: The index of the file.
        plain: For each file, whether `fast` decodes it correctly.
        data: Returns the bytes of the file at `index`.
        fast: Decodes these bytes in the graph.
        read: Reads and decodes the file with the given index, in Python.
    """
    import tensorflow as tf

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
