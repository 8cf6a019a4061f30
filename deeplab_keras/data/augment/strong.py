"""Augmentation that the references do not have, off by default.

These are rotation, blur, cutout, RandAugment, CutMix and Mosaic. As in `geometry.py`, every
function is pure: its random numbers are arguments, drawn from the seed and the position in the
stream.

RandAugment's color operations come from keras-cv, through the methods of its layers that take
random numbers as arguments. Its complete layers are not used, because they draw random numbers from
internal state, so runs would not be reproducible. Its geometric layers pad masks with class 0
instead of the ignore label (docs/reference/libraries.md#keras-cv), and its Equalization does not
work in a branch of a tf.data graph. These operations, CutMix and Mosaic are implemented here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from deeplab_keras.config import DataConfig
from deeplab_keras.config.data import MIXED

Pair = tuple[tf.Tensor, tf.Tensor]
COLOR_OPERATIONS = 6
DEVIATION = 0.15  # standard deviation of RandAugment's magnitudes, as in keras-cv
SOLARIZE_ADDITION = 110.0
# Folded into the random key, so that the numbers differ from those of `geometry.draw`.
SINGLE, GROUP = 1, 2


def uses_single(config: DataConfig) -> bool:
    """Whether the config enables a transform of single samples."""
    return bool(config.rotation or config.blur or config.cutout or config.rand_augment)


def uses_mixing(config: DataConfig) -> bool:
    """Whether the config enables a transform that mixes several samples."""
    return bool(config.cut_mix or config.mosaic)


def _draw(seed: int, position: tf.Tensor, place: int, count: int) -> tf.Tensor:
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(position, tf.int64)])
    return tf.random.stateless_uniform([count], tf.random.fold_in(key, place))


# === One sample ===


def rotate(
    image: tf.Tensor,
    label: tf.Tensor,
    degrees: tf.Tensor,
    value: tuple[float, ...],
    ignore_label: int,
) -> Pair:
    """Rotates an image (bilinear) and its label (nearest) counterclockwise about their center.

    Args:
        image: float32 `[height, width, 3]`.
        label: uint8 `[height, width]`.
        degrees: The angle, a scalar.
        value: The color of the empty corners.
        ignore_label: The label of the empty corners.
    """
    angle = degrees * (3.141592653589793 / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    y, x = tf.unstack(tf.cast(tf.shape(label), tf.float32))
    x, y = (x - 1) / 2, (y - 1) / 2
    # Maps a position in the result to its source: (x, y) -> (a x + b y + c, d x + e y + f).
    transform = tf.stack(
        [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, 0.0, 0.0]
    )[None]

    def turned(pixels: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=pixels[None],
            transforms=transform,
            output_shape=tf.shape(label),
            fill_value=fill,
            interpolation=interpolation,
            fill_mode="CONSTANT",
        )[0]

    color = tf.constant(value, tf.float32)
    return turned(image - color, "BILINEAR", 0.0) + color, turned(
        label[..., None], "NEAREST", float(ignore_label)
    )[..., 0]


def blur(image: tf.Tensor, sigma: tf.Tensor, largest: float) -> tf.Tensor:
    """Applies a Gaussian blur; the edges of the image are repeated outwards.

    Args:
        image: float32 `[height, width, 3]`.
        sigma: The standard deviation in pixels, a scalar.
        largest: The largest possible sigma, which determines the size of the kernel.
    """
    radius = max(round(3 * largest), 1)
    places = tf.range(-radius, radius + 1, dtype=tf.float32)
    weights = tf.exp(-0.5 * (places / tf.maximum(sigma, 1e-3)) ** 2)
    weights /= tf.reduce_sum(weights)
    pixels = image[None]
    for axis in (1, 2):
        length = tf.shape(pixels)[axis]
        around = tf.clip_by_value(tf.range(-radius, length + radius), 0, length - 1)
        shape = [-1, 1, 1, 1] if axis == 1 else [1, -1, 1, 1]
        kernel = tf.tile(tf.reshape(weights, shape), [1, 1, 3, 1])
        pixels = tf.nn.depthwise_conv2d(
            tf.gather(pixels, around, axis=axis), kernel, [1, 1, 1, 1], "VALID"
        )
    return pixels[0]


def cut_out(
    image: tf.Tensor,
    label: tf.Tensor,
    numbers: tf.Tensor,
    largest: float,
    value: tuple[float, ...],
    ignore_label: int,
) -> Pair:
    """Cuts a hole of one color into the image, labeled with the ignore label.

    Args:
        image: float32 `[height, width, 3]`.
        label: uint8 `[height, width]`.
        numbers: `[4]`, uniform in [0, 1): the height and width of the hole, and the vertical and
            horizontal position of its center.
        largest: The largest side of the hole as a share of the image's side.
        value: The color of the hole.
        ignore_label: The label of the hole.
    """
    hole = _rectangle(tf.shape(label), numbers[:2] * largest, numbers[2:])
    fill = tf.cast(ignore_label, label.dtype)
    return tf.where(hole[..., None], tf.constant(value, tf.float32), image), tf.where(
        hole, fill, label
    )


def _rectangle(size: tf.Tensor, sides: tf.Tensor, middle: tf.Tensor) -> tf.Tensor:
    """Returns the mask of a rectangle, bool `[height, width]`, clipped at the borders.

    Args:
        size: The height and width of the mask.
        sides: The height and width of the rectangle, as shares of `size`.
        middle: The center of the rectangle, as shares of `size`.
    """
    extent = tf.cast(size, tf.float32)
    starts = tf.cast(tf.round(extent * (middle - sides / 2)), tf.int32)
    lengths = tf.cast(tf.round(extent * sides), tf.int32)
    rows, columns = (tf.range(size[axis]) for axis in (0, 1))
    inside = [
        (r >= starts[axis]) & (r < starts[axis] + lengths[axis])
        for axis, r in ((0, rows), (1, columns))
    ]
    return inside[0][:, None] & inside[1]


def rand_augment(image: tf.Tensor, numbers: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Applies RandAugment's color operations one after another.

    Each step applies one of six random operations, or none: automatic contrast, histogram
    equalization, solarization, paler colors, contrast or brightness. The operations and the ranges
    of their magnitudes are those of keras-cv.

    Args:
        image: float32 `[height, width, 3]` in 0..255.
        numbers: `[operations, 3]`, uniform in [0, 1): one number for the choice of the operation,
            and two for its magnitude.
        magnitude: The strength, in 0..1.
    """
    auto_contrast, solarization, paler, contrast, brightness = _color_layers()

    def about(mean: float, number: tf.Tensor, largest: float = 1.0) -> tf.Tensor:
        return tf.clip_by_value((mean + DEVIATION * tf.math.ndtri(number)) * largest, 0.0, largest)

    def operate(
        layer: Any, image: tf.Tensor, transformations: Any = None
    ) -> Callable[[], tf.Tensor]:
        return lambda: layer.augment_images(image[None], transformations=transformations)[0]

    for first, second, third in (tf.unstack(row) for row in tf.unstack(numbers)):
        kept = tf.maximum(second, 1e-6)  # the inverse normal distribution is infinite at 0
        other = tf.maximum(third, 1e-6)
        solarize = {
            "additions": about(magnitude, kept, SOLARIZE_ADDITION),
            "thresholds": about(1 - magnitude, other, 255.0),
        }
        between = (2 * second - 1) * magnitude
        branches = [
            operate(auto_contrast, image),
            functools.partial(equalize, image),
            operate(solarization, image, solarize),
            operate(paler, image, about(magnitude, kept)),
            operate(contrast, image, 1 + between),
            operate(brightness, image, 255 * between),
        ]
        chosen = tf.cast(first * (COLOR_OPERATIONS + 1), tf.int32)
        image = tf.switch_case(chosen, [*branches, functools.partial(tf.identity, image)])
    return image


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Equalizes the histogram of each channel of a float32 image `[height, width, 3]` in 0..255."""
    levels = tf.cast(image, tf.int32)

    def spread(channel: tf.Tensor) -> tf.Tensor:
        counts = tf.math.bincount(tf.reshape(channel, [-1]), minlength=256, maxlength=256)
        last = tf.gather(counts, tf.reduce_max(channel))
        step = (tf.reduce_sum(counts) - last) // 255
        table = tf.clip_by_value(
            (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1), 0, 255
        )
        return tf.where(step == 0, channel, tf.gather(table, channel))

    return tf.cast(
        tf.stack([spread(channel) for channel in tf.unstack(levels, 3, axis=-1)], axis=-1),
        tf.float32,
    )


@functools.cache
def _color_layers() -> tuple[Any, ...]:
    from keras_cv import layers  # takes seconds to import

    span = {"value_range": (0, 255), "dtype": "float32"}
    return (
        layers.AutoContrast(**span),
        layers.Solarization(**span),
        layers.RandomColorDegeneration(0.5, dtype="float32"),
        layers.RandomContrast(factor=0.5, **span),
        layers.RandomBrightness(factor=0.5, **span),
    )


def augment_single(
    image: tf.Tensor,
    label: tf.Tensor,
    position: tf.Tensor,
    config: DataConfig,
    value: tuple[float, ...],
    ignore_label: int,
) -> Pair:
    """Applies the enabled ones of rotation, RandAugment, blur and cutout to one sample.

    Args:
        image: float32 `[height, width, 3]` in 0..255.
        label: uint8 `[height, width]`.
        position: The position of the sample in the training stream.
        config: The transforms and their strengths.
        value: The color of empty pixels.
        ignore_label: The label of empty pixels.
    """
    numbers = _draw(config.seed, position, SINGLE, 8 + 3 * config.rand_augment)
    if config.rotation:
        image, label = rotate(
            image, label, (2 * numbers[0] - 1) * config.rotation, value, ignore_label
        )
    if config.rand_augment:
        image = rand_augment(
            image, tf.reshape(numbers[8:], (config.rand_augment, 3)), config.rand_augment_magnitude
        )
    if config.blur:
        image = tf.cond(
            numbers[1] < 0.5,
            lambda: blur(image, numbers[2] * config.blur, config.blur),
            lambda: image,
        )
    if config.cutout:
        image, label = tf.cond(
            numbers[3] < 0.5,
            lambda: cut_out(image, label, numbers[4:8], config.cutout, value, ignore_label),
            lambda: (image, label),
        )
    return image, label


# === Several samples ===


def cut_mix(images: tf.Tensor, labels: tf.Tensor, numbers: tf.Tensor, probability: float) -> Pair:
    """Replaces a rectangle of each image with that of its neighbor: CutMix (arXiv:1905.04899).

    The share of the area is uniformly distributed.

    Args:
        images: float32 `[4, height, width, 3]`.
        labels: int32 `[4, height, width]`.
        numbers: `[4, 4]`, uniform in [0, 1): whether to mix, the share of the area, and the
            vertical and horizontal position of the rectangle's center.
        probability: The probability that an image is mixed.
    """
    size = tf.shape(labels)[1:]

    def rectangle(row: tf.Tensor) -> tf.Tensor:
        share = tf.where(row[0] < probability, tf.sqrt(row[1]), 0.0)
        return _rectangle(size, tf.stack([share, share]), row[2:])

    masks = tf.stack([rectangle(row) for row in tf.unstack(numbers, MIXED)])
    others = [tf.roll(batch, 1, axis=0) for batch in (images, labels)]
    return tf.where(masks[..., None], others[0], images), tf.where(masks, others[1], labels)


def mosaic(images: tf.Tensor, labels: tf.Tensor, numbers: tf.Tensor, probability: float) -> Pair:
    """Replaces each image with a mosaic of all four, which meet at a point in its middle half.

    Args:
        images: float32 `[4, height, width, 3]`.
        labels: int32 `[4, height, width]`.
        numbers: `[4, 3]`, uniform in [0, 1): whether to mix, and the vertical and horizontal
            position of the meeting point.
        probability: The probability that an image is replaced.
    """
    height, width = tf.shape(labels)[1], tf.shape(labels)[2]

    def window(batch: tf.Tensor, first: int, row: tf.Tensor) -> tf.Tensor:
        a, b, c, d = (batch[(first + other) % MIXED] for other in range(MIXED))
        meeting = 0.25 + 0.5 * row[1:]
        down, across = (
            tf.cast(meeting[i] * tf.cast(n, tf.float32), tf.int32)
            for i, n in enumerate((height, width))
        )
        upper = tf.concat(
            [a[height - down :, width - across :], b[height - down :, : width - across]], axis=1
        )
        lower = tf.concat(
            [c[: height - down, width - across :], d[: height - down, : width - across]], axis=1
        )
        return tf.cond(row[0] < probability, lambda: tf.concat([upper, lower], axis=0), lambda: a)

    rows = tf.unstack(numbers, MIXED)
    mixed = [
        tf.stack([window(batch, first, row) for first, row in enumerate(rows)])
        for batch in (images, labels)
    ]
    return tf.ensure_shape(mixed[0], images.shape), tf.ensure_shape(mixed[1], labels.shape)


def augment_group(
    images: tf.Tensor, labels: tf.Tensor, group: tf.Tensor, config: DataConfig
) -> Pair:
    """Applies Mosaic and CutMix, if enabled, to the four samples from position 4 * `group` on.

    Args:
        images: float32 `[4, height, width, 3]`.
        labels: int32 `[4, height, width]`.
        group: The number of the group, an integer scalar.
        config: The probabilities and the seed.
    """
    numbers = tf.reshape(_draw(config.seed, group, GROUP, 7 * MIXED), (MIXED, 7))
    if config.mosaic:
        images, labels = mosaic(images, labels, numbers[:, :3], config.mosaic)
    if config.cut_mix:
        images, labels = cut_mix(images, labels, numbers[:, 3:], config.cut_mix)
    return images, labels
