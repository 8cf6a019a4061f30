"""Random brightness, contrast, saturation and hue (docs/reference/sssegmentation.md#training-input).

As separate operations, each of them writes the whole image to memory, and TensorFlow's saturation
and hue take 6 ms each for 512x512 pixels on one core. Compiled by XLA, everything together takes
2 ms. XLA needs a static shape, which training crops have once they are padded to the crop size.
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from deeplab_keras.models.layers import HAS_XLA

BRIGHTNESS = 32.0  # grey levels
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of 180, the 8-bit hue circle


def distort_photometric(
    image: tf.Tensor, numbers: tf.Tensor, whole: bool = False, canvas: tuple[int, int] | None = None
) -> tf.Tensor:
    """Random brightness, contrast, saturation and hue, each with probability 1/2.

    Args:
        image: float32 `[height, width, 3]` RGB in 0..255.
        numbers: `[9]` uniform in [0, 1): brightness or not and how much, the place of contrast,
            then contrast, saturation and hue like brightness.
        whole: the image and every step of it end in whole grey levels, as the reference's do on its
            8-bit images: truncated after brightness and contrast, rounded else (saturation's and
            hue's own 8-bit steps in between are not taken over).
        canvas: height and width that the image does not exceed; with them it is computed by a
            compiled program.

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
    """The program for images of one size, compiled once in a process."""
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

    shift = truncate(
        between(numbers[1], (-BRIGHTNESS, BRIGHTNESS))
    )  # as good as truncating every pixel, all of which are whole
    image = rounded(image)
    image = tf.where(brightness, tf.clip_by_value(image + shift, 0.0, 255.0), image)
    image = contrasted(image, contrast_first)
    depth = between(numbers[6], SATURATION)
    image = tf.cond(saturation, lambda: rounded(adjust_saturation(image, depth)), lambda: image)
    # The reference takes its BGR images for RGB here, which mirrors the hue circle: it turns the
    # other way round.
    turn = -(tf.floor(numbers[8] * 2 * HUE) - HUE) / 180
    image = tf.cond(hue, lambda: rounded(adjust_hue(image, turn)), lambda: image)
    return contrasted(image, ~contrast_first)


def adjust_saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies HSV's saturation, at most to 1; the same as `tf.image.adjust_saturation`.

    Value and hue stay, so every colour moves along its line to the grey of its largest channel.

    Args:
        image: float32 `[..., 3]` RGB, at least 0.
        factor: scalar, at least 0.
    """
    channels, value, chroma = _channels(image)
    factor = tf.minimum(factor, tf.math.divide_no_nan(value, chroma))
    # Not below 0, as a rounding would bring a colour that becomes pure.
    return tf.stack(
        [tf.maximum(value - (value - channel) * factor, 0.0) for channel in channels], axis=-1
    )


def adjust_hue(image: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Turns HSV's hue; the same as `tf.image.adjust_hue`.

    Args:
        image: float32 `[..., 3]` RGB, at least 0.
        turn: scalar, -1 to 1, of the whole circle.
    """
    (red, green, blue), value, chroma = _channels(image)
    scale = tf.math.divide_no_nan(tf.ones_like(chroma), chroma)
    from_green = tf.where(
        tf.equal(value, green), 2 + (blue - red) * scale, 4 + (red - green) * scale
    )
    sixths = tf.where(tf.equal(value, red), (green - blue) * scale, from_green) + 6 * turn

    def channel(place: float) -> tf.Tensor:
        distance = sixths + place  # from where the channel begins to fall
        distance -= 6 * tf.floor(
            distance / 6
        )  # floormod, whose own operation XLA does not vectorise
        return value - chroma * tf.clip_by_value(tf.minimum(distance, 4 - distance), 0.0, 1.0)

    return tf.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)


def _channels(image: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
    """The channels, the largest of them (HSV's value), and the largest less the smallest (chroma)."""
    red, green, blue = channels = tf.unstack(image, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    return channels, value, value - tf.minimum(tf.minimum(red, green), blue)
