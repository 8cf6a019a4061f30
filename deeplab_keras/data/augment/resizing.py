"""Resizes images and label maps for training, completely or only the cropped part.

Images are resized bilinearly with half-pixel centers. Labels are resized by nearest neighbor, at
pixel centers or by OpenCV's rule (docs/reference/sssegmentation.md#training-input). Images are
`[height, width, 3]` in 0..255, labels `[height, width]` with class ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Up to this ratio of the areas of the image and the crop, resizing the whole image is faster.
WHOLE_AREA = 4


def scaled_size(
    size: tf.Tensor, factor: tf.Tensor | float, short: int | None = None, long: int | None = None
) -> tf.Tensor:
    """Returns the size to resize an image to; keeps the aspect ratio.

    Args:
        size: Height and width.
        factor: The random scale.
        short: The length of the short side at factor 1; None or 0: that of the image.
        long: The cap of the long side at factor 1; None or 0: no cap.

    Returns:
        Height and width, int32 `[2]`, at least 1.
    """
    sides = tf.cast(size, tf.float64)
    ratio = factor = tf.cast(factor, tf.float64)
    if short:
        ratio = tf.floor(short * factor) / tf.reduce_min(sides)
    if long:
        cap = tf.floor(long * factor) / tf.reduce_max(sides)
        ratio = tf.minimum(ratio, cap)
    return tf.maximum(tf.cast(sides * ratio + 0.5, tf.int32), 1)


def taken(label: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Returns the pixels of a label map in the given rows and columns, which must be ascending."""

    def rows_first() -> tf.Tensor:
        return tf.gather(tf.gather(label, rows), columns, axis=1)

    def columns_first() -> tf.Tensor:
        needed = label[rows[0] : rows[-1] + 1]
        return tf.gather(tf.gather(needed, columns, axis=1), rows - rows[0])

    # Rows are copied as a whole and columns pixel by pixel, so gather columns from as few rows as
    # possible.
    fewer = rows[-1] - rows[0] + 1 < tf.size(rows, out_type=rows.dtype)
    return tf.cond(fewer, columns_first, rows_first)


def nearest(
    length: tf.Tensor, new: tf.Tensor, start: Any, count: Any, half_pixel: bool
) -> tf.Tensor:
    """Returns the source pixel of each pixel of a resized side, by nearest neighbor.

    Args:
        length: The length of the side.
        new: The length of the side after resizing.
        start: The first pixel of the resized side to return.
        count: The number of pixels to return; None: all.
        half_pixel: True: The source of pixel i is floor((i + 0.5) * length / new), which keeps
            labels aligned with the image of `resize_image`. False: It is OpenCV's
            floor(i * length / new) in OpenCV's arithmetic, which may be one less where the quotient
            is a whole number.
    """
    length, new = tf.cast(length, tf.int64), tf.cast(new, tf.int64)
    wanted = new if count is None else tf.cast(count, tf.int64)
    positions = tf.range(wanted, dtype=tf.int64) + tf.cast(start, tf.int64)
    if half_pixel:
        return (2 * positions + 1) * length // (2 * new)
    # TensorFlow's graph optimizer replaces a division by a constant by a product, which rounds
    # differently.
    step = 1 / tf.math.divide_no_nan(tf.cast(new, tf.float64), tf.cast(length, tf.float64))
    return tf.minimum(
        tf.cast(tf.floor(tf.cast(positions, tf.float64) * step), tf.int64), length - 1
    )


def resize_image(
    image: tf.Tensor, size: tf.Tensor, start: Sequence[Any] = (0, 0), count: tf.Tensor | None = None
) -> tf.Tensor:
    """Resizes an image bilinearly with half-pixel centers and crops it.

    The result is the same as resizing and then cropping. If the image is much larger than the crop,
    only the pixels that the crop needs are read and computed.

    Args:
        image: `[height, width, 3]`.
        size: The height and width after resizing.
        start: The top and left of the crop.
        count: The height and width of the crop; None: `size`.

    Returns:
        float32 `[count[0], count[1], 3]`.
    """
    image, count = tf.convert_to_tensor(image), tf.cast(size if count is None else count, tf.int32)
    size, start = tf.cast(tf.stack(size), tf.int32), tf.cast(tf.stack(start), tf.int32)

    def whole() -> tf.Tensor:
        images = tf.cast(image, tf.float32)[None]
        resized = tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True)[0]
        return resized[start[0] : start[0] + count[0], start[1] : start[1] + count[1]]

    few = tf.reduce_prod(tf.cast(size, tf.int64)) <= WHOLE_AREA * tf.reduce_prod(
        tf.cast(count, tf.int64)
    )
    return tf.cond(few, whole, lambda: _resize_part(image, size, start, count))


def _resize_part(
    image: tf.Tensor, size: tf.Tensor, start: tf.Tensor, count: tf.Tensor
) -> tf.Tensor:
    """Does the same as `resize_image` for the crop only, at five times the cost per pixel."""
    begins, ends, scales, shifts = [], [], [], []
    for axis in (0, 1):
        length = tf.shape(image)[axis]
        scale = tf.cast(size[axis], tf.float64) / tf.cast(length, tf.float64)
        first = tf.cast(start[axis], tf.float64)
        last = first + tf.cast(count[axis] - 1, tf.float64)
        begin = tf.maximum(tf.cast(tf.floor((first + 0.5) / scale - 0.5), tf.int32), 0)
        end = tf.minimum(tf.cast(tf.floor((last + 0.5) / scale - 0.5), tf.int32) + 2, length)
        begins.append(begin)
        ends.append(end)
        scales.append(tf.cast(scale, tf.float32))
        shifts.append(tf.cast(tf.cast(begin, tf.float64) * scale - first, tf.float32))
    window = image[begins[0] : ends[0], begins[1] : ends[1]]
    return tf.raw_ops.ScaleAndTranslate(
        images=window[None],
        size=count,
        scale=tf.stack(scales),
        translation=tf.stack(shifts),
        kernel_type="triangle",
        antialias=False,
    )[0]
