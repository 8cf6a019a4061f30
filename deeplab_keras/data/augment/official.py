"""The official DeepLab's preprocessing, reproduced pixel for pixel.

It resizes with aligned corners, truncates sizes, and pads right and bottom. See
docs/reference/official_deeplab.md#preprocessing and docs/reference/official_deeplab.md#resizing.
The default augmentation is `geometry.py`. This module is used for evaluation and prediction with
the official models' scores, and for training with `preprocessing="official"`. Every function works
eagerly and inside tf.data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.augment.geometry import Draws, flip, rare_class_crop, scale_factor

Pair = tuple[tf.Tensor, tf.Tensor]


def resize_image(image: tf.Tensor, size: Any) -> tf.Tensor:
    """Resizes an image `[height, width, channels]`, bilinear with aligned corners, to float32."""
    return resize_images(image[None], size)[0]


def resize_label(label: tf.Tensor, size: Any) -> tf.Tensor:
    """Resizes a label map `[height, width]` by nearest neighbor with aligned corners."""
    return resize_labels(label[None], size)[0]


def resize_images(images: tf.Tensor, size: Any) -> tf.Tensor:
    """Does the same as `resize_image` for a batch."""
    return tf.raw_ops.ResizeBilinear(
        images=tf.cast(images, tf.float32), size=size, align_corners=True
    )


def resize_labels(labels: tf.Tensor, size: Any) -> tf.Tensor:
    """Does the same as `resize_label` for a batch."""
    return tf.raw_ops.ResizeNearestNeighbor(
        images=labels[..., None], size=size, align_corners=True
    )[..., 0]


def size_in_range(
    size: Any, short: int | None, long: int | None = None, factor: int | None = None
) -> tf.Tensor:
    """Returns the size for `min_resize_value`, `max_resize_value` and `resize_factor`.

    The short side becomes `short`. If the long side would exceed `long`, it becomes `long` instead.
    Each side is truncated and, with a factor, rounded up to a multiple of the factor plus one. The
    cap itself is rounded down to such a number.

    Args:
        size: Height and width.
        short: The length of the short side; 0 or None: no resize.
        long: The cap of the long side; 0 or None: no cap.
        factor: The rounding factor, which should be the output stride; 0 or None: no rounding.

    Returns:
        Height and width, int32 `[2]`.

    Raises:
        UserError: `long` is given without `short`.
    """
    size = tf.cast(size, tf.int32)
    if not short:
        if long:
            raise UserError(f"`max_resize_value={long}`: requires `min_resize_value` too")
        return size
    sides = tf.cast(size, tf.float32)  # as in the reference; otherwise sides may be off by one
    new = tf.cast(tf.floor(sides * (short / tf.reduce_min(sides))), tf.int32)
    if long:
        cap = float(long - (long - 1) % factor) if factor else float(long)
        capped = tf.cast(tf.floor(sides * (cap / tf.reduce_max(sides))), tf.int32)
        new = tf.where(tf.cast(tf.reduce_max(new), tf.float32) > cap, capped, new)
    if factor:
        new += (factor - (new - 1) % factor) % factor
    return new


def scale(image: tf.Tensor, label: tf.Tensor, ratio: Any) -> Pair:
    """Resizes image and label by `ratio`; the new sides are truncated."""
    size = tf.cast(tf.cast(tf.shape(label), tf.float32) * tf.cast(ratio, tf.float32), tf.int32)
    return resize_image(image, size), resize_label(label, size)


def pad_to(
    image: tf.Tensor, label: tf.Tensor, size: Any, value: tuple[float, ...], ignore_label: int
) -> Pair:
    """Pads right and bottom with `value` and the ignore label, up to at least `size`."""
    missing = tf.maximum(tf.convert_to_tensor(size) - tf.shape(label), 0)
    margins = tf.stack([tf.zeros_like(missing), missing], axis=1)
    color = tf.constant(value, tf.float32)
    image = (
        tf.pad(tf.cast(image, tf.float32) - color, tf.concat([margins, [[0, 0]]], axis=0)) + color
    )
    return image, tf.pad(label, margins, constant_values=tf.cast(ignore_label, label.dtype))


def prepare(
    image: tf.Tensor,
    label: tf.Tensor,
    crop_size: tuple[int, ...],
    config: DataConfig,
    value: tuple[float, ...],
    ignore_label: int,
) -> Pair:
    """Preprocesses a pair for evaluation: resizes and pads it, without cropping.

    Args:
        image: `[height, width, 3]`.
        label: `[height, width]`.
        crop_size: The smallest height and width of the result.
        config: The config with `min_resize_value`, `max_resize_value` and `resize_factor`.
        value: The color of the padding.
        ignore_label: The label of the padding.

    Returns:
        float32 `[height, width, 3]` and the label's dtype `[height, width]`, each of at least
        `crop_size`.
    """
    size = size_in_range(
        tf.shape(label), config.min_resize_value, config.max_resize_value, config.resize_factor
    )
    if config.min_resize_value:
        image, label = resize_image(image, size), resize_label(label, size)
    return pad_to(image, label, crop_size, value, ignore_label)


def augment(
    image: tf.Tensor,
    label: tf.Tensor,
    draws: Draws,
    config: DataConfig,
    value: tuple[float, ...],
    ignore_label: int,
    more: Callable[[tf.Tensor, tf.Tensor], Pair] | None = None,
) -> Pair:
    """Preprocesses a pair for training: resize, random scale, padding, random crop, flip.

    Args:
        image: uint8 `[height, width, 3]`.
        label: uint8 `[height, width]`.
        draws: The random numbers of the sample. Only the first attempt of the crop is used.
        config: The sizes and scales. The official scripts neither redraw a crop nor distort colors.
        value: The color of the padding: the mean of the normalization.
        ignore_label: The label of the padding.
        more: Further transforms of image and label, applied at the end.

    Returns:
        float32 `[crop height, crop width, 3]` in 0..255 and int32 `[crop height, crop width]`.
    """
    crop = tf.stack(config.train_crop_size)
    size = size_in_range(
        tf.shape(label), config.min_resize_value, config.max_resize_value, config.resize_factor
    )
    if config.min_resize_value:
        image, label = resize_image(image, size), resize_label(label, size)
    ratio = scale_factor(
        draws.scale, config.min_scale_factor, config.max_scale_factor, config.scale_factor_step_size
    )
    image, label = scale(image, label, ratio)
    image, label = pad_to(image, label, crop, value, ignore_label)
    size = tf.shape(label)
    corner = tf.cast(draws.crop[0] * tf.cast(size - crop + 1, tf.float32), tf.int32)
    if config.rare_class_crops:
        use, centered = rare_class_crop(
            label, size, crop, draws.rare, config.rare_class_crops, ignore_label
        )
        corner = tf.where(use, centered, corner)
    top, left = tf.unstack(corner)
    image = image[top : top + crop[0], left : left + crop[1]]
    label = label[top : top + crop[0], left : left + crop[1]]
    if config.random_flip:
        image, label = flip(image, label, draws.flip)
    if more is not None:
        image, label = more(image, label)
    height, width = config.train_crop_size
    return tf.ensure_shape(image, (height, width, 3)), tf.ensure_shape(
        tf.cast(label, tf.int32), (height, width)
    )
