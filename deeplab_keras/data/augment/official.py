"""The official DeepLab's preprocessing, pixel for pixel: aligned corners, truncated sizes, padding right and bottom.

See docs/reference/official_deeplab.md#preprocessing and docs/reference/official_deeplab.md#resizing. Our own
augmentation is `geometry.py`; this module serves evaluation and prediction with the official
numbers, and training with `--preprocessing=official`. Every function works eagerly and inside
tf.data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.augment.geometry import Draws, flip, scale_factor

Pair = tuple[tf.Tensor, tf.Tensor]


def resize_image(image: tf.Tensor, size: Any) -> tf.Tensor:
    """An image `[height, width, channels]` resized to `size`, bilinear with aligned corners; float32."""
    return resize_images(image[None], size)[0]


def resize_label(label: tf.Tensor, size: Any) -> tf.Tensor:
    """A label map `[height, width]` resized to `size`, nearest neighbour with aligned corners."""
    return resize_labels(label[None], size)[0]


def resize_images(images: tf.Tensor, size: Any) -> tf.Tensor:
    """As `resize_image`, of a batch."""
    return tf.raw_ops.ResizeBilinear(
        images=tf.cast(images, tf.float32), size=size, align_corners=True
    )


def resize_labels(labels: tf.Tensor, size: Any) -> tf.Tensor:
    """As `resize_label`, of a batch."""
    return tf.raw_ops.ResizeNearestNeighbor(
        images=labels[..., None], size=size, align_corners=True
    )[..., 0]


def size_in_range(
    size: Any, short: int | None, long: int | None = None, factor: int | None = None
) -> tf.Tensor:
    """The size to which `--min_resize_value`, `--max_resize_value` and `--resize_factor` bring an image.

    The short side becomes `short`, unless the long side would pass `long`, which then decides; each
    side is truncated and, with a factor, rounded up to a multiple of it plus one. The cap itself is
    rounded down to one.

    Args:
        size: height and width.
        short: 0 or None: no resize at all.
        long: 0 or None: no cap.
        factor: 0 or None: no rounding. It should be the output stride.

    Raises:
        UserError: a cap without a short side.
    """
    size = tf.cast(size, tf.int32)
    if not short:
        if long:
            raise UserError(f"`max_resize_value={long}`: needs `min_resize_value` beside it")
        return size
    sides = tf.cast(
        size, tf.float32
    )  # in this precision, as the reference does it, or a side may differ by one
    new = tf.cast(tf.floor(sides * (short / tf.reduce_min(sides))), tf.int32)
    if long:
        cap = float(long - (long - 1) % factor) if factor else float(long)
        capped = tf.cast(tf.floor(sides * (cap / tf.reduce_max(sides))), tf.int32)
        new = tf.where(tf.cast(tf.reduce_max(new), tf.float32) > cap, capped, new)
    if factor:
        new += (factor - (new - 1) % factor) % factor
    return new


def scale(image: tf.Tensor, label: tf.Tensor, ratio: Any) -> Pair:
    """Image and label resized by `ratio`, each side truncated."""
    size = tf.cast(tf.cast(tf.shape(label), tf.float32) * tf.cast(ratio, tf.float32), tf.int32)
    return resize_image(image, size), resize_label(label, size)


def pad_to(
    image: tf.Tensor, label: tf.Tensor, size: Any, value: tuple[float, ...], ignore_label: int
) -> Pair:
    """Adds `value` and the ignore label to the right and below, up to at least `size`."""
    missing = tf.maximum(tf.convert_to_tensor(size) - tf.shape(label), 0)
    margins = tf.stack([tf.zeros_like(missing), missing], axis=1)
    colour = tf.constant(value, tf.float32)
    image = (
        tf.pad(tf.cast(image, tf.float32) - colour, tf.concat([margins, [[0, 0]]], axis=0)) + colour
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
    """Evaluation's preprocessing: resized into the range, then padded; nothing is cut off.

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
    """Training's preprocessing, in the official order: range, random scale, padding, random crop, flip.

    Args:
        image: uint8 `[height, width, 3]`.
        label: uint8 `[height, width]`.
        draws: the sample's random numbers; of the crop's tries the first alone counts.
        config: crop, scales and range; the official scripts neither redraw a crop nor distort
            colours.
        value: colour around the image; the normalization's mean.
        ignore_label: label around it.
        more: what else is done to image and label, at the end.

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
    spare = tf.cast(tf.shape(label) - crop + 1, tf.float32)
    top, left = tf.unstack(tf.cast(draws.crop[0] * spare, tf.int32))
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
