"""Random brightness, contrast, saturation and hue.

See docs/reference/sssegmentation.md#training-input.

As separate operations, each of them writes the whole image to memory, and TensorFlow's saturation
and hue take 6 ms each for 512x512 pixels on one core. Compiled by XLA, all of them together take
2 ms. XLA needs a static shape, which training crops have after padding to the crop size.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from deeplab_keras.models.layers import HAS_XLA

BRIGHTNESS = 32.0  # gray levels
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of 180, the 8-bit hue circle


def distort_photometric(
    image: tf.Tensor, numbers: tf.Tensor, whole: bool = False, canvas: tuple[int, int] | None = None
) -> tf.Tensor:
    """Applies random brightness, contrast, saturation and hue, each with probability 1/2.

    Args:
        image: float32 `[height, width, 3]` RGB in 0..255.
        numbers: `[9]`, uniform in [0, 1): whether to change the brightness and by how much, whether
            contrast comes first or last, then two numbers each for contrast, saturation and hue.
        whole: Whether each step returns whole gray levels, as on the 8-bit images of the reference:
            truncated after brightness and contrast, rounded after the other steps. The reference's
            8-bit rounding within saturation and hue is not reproduced.
        canvas: The largest height and width of the image, with which a compiled program is used.

    Returns:
        float32 of the same shape, in 0..255.
    """
    if canvas is None or not HAS_XLA:
        return _distort(image, numbers, whole)
    size = tf.shape(image)
    missing = tf.stack([*canvas, 3]) - size
    placed = tf.cond(
        tf.reduce_any(missing > 0),
        lambda: tf.pad(image, tf.stack([tf.zeros_like(missing), missing], axis=1)),
        lambda: image,
    )
    distorted = _compiled(canvas, whole)(
        tf.ensure_shape(placed, (*canvas, 3)), tf.cast(numbers, tf.float32)
    )
    return tf.ensure_shape(distorted[: size[0], : size[1]], image.shape)


@functools.cache
def _compiled(canvas: tuple[int, int], whole: bool) -> Any:
    """Returns the program for one image size, compiled once per process."""
    shapes = [tf.TensorSpec((*canvas, 3), tf.float32), tf.TensorSpec([9], tf.float32)]
    return tf.function(
        functools.partial(_distort, whole=whole), shapes, jit_compile=True, autograph=False
    )


def _distort(image: tf.Tensor, numbers: tf.Tensor, whole: bool) -> tf.Tensor:
    def between(number: tf.Tensor, bounds: tuple[float, float]) -> tf.Tensor:
        return bounds[0] + number * (bounds[1] - bounds[0])

    truncate, rounded = (tf.floor, tf.round) if whole else (tf.identity, tf.identity)
    brightness, contrast, saturation, hue = (numbers[i] < 0.5 for i in (0, 3, 5, 7))
    contrast_first = numbers[2] >= 0.5
    factor = between(numbers[4], CONTRAST)

    def contrasted(image: tf.Tensor, now: tf.Tensor) -> tf.Tensor:
        return tf.where(contrast & now, truncate(tf.minimum(image * factor, 255.0)), image)

    # With whole pixels, truncating the shift is the same as truncating each sum.
    shift = truncate(between(numbers[1], (-BRIGHTNESS, BRIGHTNESS)))
    image = rounded(image)
    image = tf.where(brightness, tf.clip_by_value(image + shift, 0.0, 255.0), image)
    image = contrasted(image, contrast_first)
    depth = between(numbers[6], SATURATION)
    image = tf.cond(saturation, lambda: rounded(adjust_saturation(image, depth)), lambda: image)
    # The reference treats its BGR images as RGB here, which reverses the direction of the shift.
    turn = -(tf.floor(numbers[8] * 2 * HUE) - HUE) / 180
    image = tf.cond(hue, lambda: rounded(adjust_hue(image, turn)), lambda: image)
    return contrasted(image, ~contrast_first)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies the HSV saturation, up to 1; the same as `tf.image.adjust_saturation`.

    Value and hue do not change, so each color moves along the line to the gray of its largest
    channel.

    Args:
        image: float32 `[..., 3]` RGB, at least 0.
        factor: Scalar, at least 0.
    """
    channels, value, chroma = _channels(image)
    factor = tf.minimum(factor, tf.math.divide_no_nan(value, chroma))
    # Clipped at 0, because rounding errors could make a fully saturated color negative.
    return tf.stack(
        [tf.maximum(value - (value - channel) * factor, 0.0) for channel in channels], axis=-1
    )


def adjust_hue(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Shifts the HSV hue; the same as `tf.image.adjust_hue`.

    Args:
        image: float32 `[..., 3]` RGB, at least 0.
        turn: Scalar, -1 to 1, as a fraction of the hue circle.
    """
    (red, green, blue), value, chroma = _channels(image)
    scale = tf.math.divide_no_nan(tf.ones_like(chroma), chroma)
    from_green = tf.where(
        tf.equal(value, green), 2 + (blue - red) * scale, 4 + (red - green) * scale
    )
    sixths = tf.where(tf.equal(value, red), (green - blue) * scale, from_green) + 6 * turn

    def channel(place: float) -> tf.Tensor:
        distance = sixths + place  # from the hue at which the channel begins to fall
        distance -= 6 * tf.floor(distance / 6)  # XLA does not vectorize tf.math.floormod
        return value - chroma * tf.clip_by_value(tf.minimum(distance, 4 - distance), 0.0, 1.0)

    return tf.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def _channels(image: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """Returns the channels, the HSV value (largest channel) and the chroma (largest - smallest)."""
    red, green, blue = channels = tf.unstack(image, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    return channels, value, value - tf.minimum(tf.minimum(red, green), blue)
