"""Training augmentation of an image and its label.

Every transform is a pure function of the image, the label and random numbers from `draw`. It works
eagerly and inside tf.data. Order and values are those of SSSegmentation: scale, crop, flip,
photometric distortion, padding (docs/reference/sssegmentation.md#training-input). Images are RGB
`[height, width, 3]` in 0..255. Labels are `[height, width]` with class ids and the ignore label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from deeplab_keras.config import DataConfig
from deeplab_keras.data.augment.photometric import distort_photometric
from deeplab_keras.data.augment.resizing import nearest, resize_image, scaled_size, taken

CROP_TRIES = 10
RARE = 3  # folded into the random key, unlike SINGLE and GROUP in strong.py


class Draws(NamedTuple):
    """The random numbers of one sample, each uniform in [0, 1).

    Attributes:
        scale: Scalar.
        crop: `[10, 2]`, top and left of each attempt.
        flip: Scalar.
        photometric: `[9]`, in the order of `distort_photometric`.
        rare: `[3]`, for `rare_class_crop`: whether, which class, which pixel.
    """

    scale: Any
    crop: Any
    flip: Any
    photometric: Any
    rare: Any


def draw(seed: int, position: tf.Tensor) -> Draws:
    """Returns the random numbers of a sample, a function of the seed and the sample's position.

    Args:
        seed: The seed of the run.
        position: The position of the sample in the training stream, an integer scalar.
    """
    key = tf.stack([tf.cast(seed, tf.int64), tf.cast(position, tf.int64)])
    numbers = tf.random.stateless_uniform([2 + 9 + 2 * CROP_TRIES], key)
    return Draws(
        scale=numbers[0],
        flip=numbers[1],
        photometric=numbers[2:11],
        crop=tf.reshape(numbers[11:], (-1, 2)),
        # A key of their own, so that the other numbers do not depend on how many these are.
        rare=tf.random.stateless_uniform([3], tf.random.fold_in(key, RARE)),
    )


def scale_factor(number: tf.Tensor, minimum: float, maximum: float, step: float) -> tf.Tensor:
    """Returns the random scale factor, a float64 scalar.

    Args:
        number: A random number in [0, 1).
        minimum: The smallest factor.
        maximum: The largest factor.
        step: The distance between the possible factors; 0: any factor between the two.
    """
    number = tf.cast(number, tf.float64)
    if step == 0 or minimum == maximum:
        return minimum + number * (maximum - minimum)
    count = int((maximum - minimum) / step + 1e-6) + 1
    factors = tf.linspace(tf.cast(minimum, tf.float64), tf.cast(maximum, tf.float64), count)
    return factors[tf.cast(number * count, tf.int32)]


def choose_crop(
    label: tf.Tensor,
    size: tf.Tensor,
    crop: tf.Tensor,
    numbers: tf.Tensor,
    max_share: float,
    ignore_label: int,
    half_pixel: bool = True,
    centered: tuple[tf.Tensor, tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses the crop: the first of ten draws that has several classes and none that dominates.

    No class may have a share of `max_share` or more. Pixels with the ignore label do not count. If
    no draw is accepted, the last one is used. If the last one has only ignored pixels, the center
    of the image is used (the reference then skips the crop, and its padding cuts out the center).

    Args:
        label: The label map before scaling.
        size: The size to scale it to, int32 `[2]`.
        crop: Height and width of the crop, int32 `[2]`, at most `size`.
        numbers: `[10, 2]`, uniform in [0, 1).
        max_share: The limit for the share of one class; 1: the first draw is always used.
        ignore_label: The id of pixels that do not count.
        half_pixel: How the label is resized, see `resizing.nearest`.
        centered: The result of `rare_class_crop`. If it chose a crop, that one is used.

    Returns:
        Top and left as int32 `[2]`, and the scaled and cropped label.
    """
    label, corners = (
        tf.convert_to_tensor(label),
        tf.cast(numbers * tf.cast(size - crop + 1, tf.float32), tf.int32),
    )
    corner = corners[0]
    # The source row and column of each row and column of the scaled map; each attempt takes a part.
    rows, columns = (
        nearest(tf.shape(label)[axis], size[axis], 0, None, half_pixel) for axis in (0, 1)
    )

    def part(corner: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        end = corner + crop
        return rows[corner[0] : end[0]], columns[corner[1] : end[1]]

    if max_share < 1:
        ids = tf.cast(label, tf.int32)

        def look(attempt: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            counts = _count_labels(ids, *part(corners[attempt]))
            counts *= tf.cast(tf.range(256) != ignore_label, tf.int32)
            largest, total = (
                tf.cast(tf.reduce_max(counts), tf.float64),
                tf.cast(tf.reduce_sum(counts), tf.float64),
            )
            varied = (tf.math.count_nonzero(counts) > 1) & (largest < max_share * total)
            return attempt, varied, total == 0

        def again(attempt: tf.Tensor, varied: tf.Tensor, empty: tf.Tensor) -> tf.Tensor:
            return ~varied & (attempt < numbers.shape[0] - 1)

        def accepted() -> tf.Tensor:
            attempt, _, empty = tf.while_loop(
                again, lambda attempt, *_: look(attempt + 1), look(tf.constant(0))
            )
            return tf.where(empty, (size - crop + 1) // 2, corners[attempt])

        corner = accepted() if centered is None else tf.cond(centered[0], lambda: corner, accepted)
    if centered is not None:
        corner = tf.where(centered[0], centered[1], corner)
    return corner, taken(label, *part(corner))


def rare_class_crop(
    label: tf.Tensor,
    size: tf.Tensor,
    crop: tf.Tensor,
    numbers: tf.Tensor,
    probability: float,
    ignore_label: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Centers the crop on a random pixel of a class that is not the most frequent of the image.

    Each such class of the image is chosen equally often, so that classes with few pixels are in
    more crops (compare nnU-Net's foreground oversampling, Isensee et al. 2021). A crop that would
    reach beyond the edge of the image is moved inside.

    Args:
        label: The label map before scaling, uint8 `[height, width]`.
        size: The size to scale it to, int32 `[2]`.
        crop: Height and width of the crop, int32 `[2]`, at most `size`.
        numbers: `[3]`, uniform in [0, 1).
        probability: The probability of such a crop.
        ignore_label: The id of pixels that do not count.

    Returns:
        Whether to use the crop, a bool scalar, and its top and left, int32 `[2]`. The crop is not
        used with probability `1 - probability`, or if the image has only one class.
    """

    def draw_one() -> tuple[tf.Tensor, tf.Tensor]:
        ids = tf.cast(label, tf.int32)
        counts = tf.raw_ops.Bincount(arr=ids, size=256, weights=tf.constant([], tf.int32))
        counts *= tf.cast(tf.range(256) != ignore_label, tf.int32)
        others = (counts > 0) & (tf.range(256) != tf.argmax(counts, output_type=tf.int32))
        classes = tf.where(others)[:, 0]

        def center() -> tf.Tensor:
            pixels = tf.where(ids == tf.cast(_pick(classes, numbers[1]), tf.int32))
            scale = tf.cast(size, tf.float64) / tf.cast(tf.shape(label), tf.float64)
            middle = (tf.cast(_pick(pixels, numbers[2]), tf.float64) + 0.5) * scale
            corner = tf.cast(tf.floor(middle), tf.int32) - crop // 2
            return tf.clip_by_value(corner, 0, size - crop)

        found = tf.shape(classes)[0] > 0
        return found, tf.cond(found, center, lambda: tf.zeros([2], tf.int32))

    return tf.cond(
        numbers[0] < probability, draw_one, lambda: (tf.constant(False), tf.zeros([2], tf.int32))
    )


def _pick(items: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Returns one of the rows of `items`, chosen by a number in [0, 1)."""
    count = tf.cast(tf.shape(items)[0], tf.float64)  # float32 cannot number all pixels
    return items[tf.cast(tf.cast(number, tf.float64) * count, tf.int32)]


def _count_labels(ids: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Counts the ids in the map that `taken` would return for the int32 map `ids`: int32 `[256]`.

    Counts in the original map, where each pixel has the weight of its number of copies.
    """
    begins, ends, times = [], [], []
    for sources in (rows, columns):
        begins.append(sources[0])
        ends.append(sources[-1] + 1)
        shown = tf.cast(sources - sources[0], tf.int32)
        times.append(
            tf.raw_ops.Bincount(arr=shown, size=shown[-1] + 1, weights=tf.constant([], tf.int32))
        )
    window = ids[begins[0] : ends[0], begins[1] : ends[1]]
    return tf.raw_ops.Bincount(arr=window, size=256, weights=times[0][:, None] * times[1])


def flip(image: tf.Tensor, label: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Flips left and right if `number` is below 1/2."""
    return tf.cond(
        number < 0.5,
        lambda: (tf.reverse(image, [1]), tf.reverse(label, [1])),
        lambda: (image, label),
    )


def pad(
    image: tf.Tensor,
    label: tf.Tensor,
    size: tuple[int, int],
    value: tuple[float, float, float],
    ignore_label: int,
    position: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pads an image to `size` with a color, and its label with the ignore label.

    Args:
        image: float32 `[height, width, 3]`, at most `size`.
        label: `[height, width]`.
        size: The height and width of the result.
        value: The color of the padding: the mean of the normalization, which the network sees as 0.
        ignore_label: The label of the padding.
        position: The position of the image in the result: "center" or "top_left".
    """
    missing = tf.stack(size) - tf.shape(label)
    before = missing // 2 if position == "center" else tf.zeros_like(missing)
    after, outside = missing - before, tf.cast(ignore_label, label.dtype)

    def plain(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        row = tf.tile(tf.constant(value, tf.float32), [width])
        return tf.reshape(tf.broadcast_to(row, [height, 3 * width]), [height, width, 3])

    def padded() -> tuple[tf.Tensor, tf.Tensor]:
        height = tf.shape(label)[0]
        middle = tf.concat([plain(height, before[1]), image, plain(height, after[1])], axis=1)
        whole = tf.concat([plain(before[0], size[1]), middle, plain(after[0], size[1])], axis=0)
        return whole, tf.pad(label, tf.stack([before, after], axis=1), constant_values=outside)

    image, label = tf.cond(tf.reduce_any(missing > 0), padded, lambda: (image, label))
    return tf.ensure_shape(image, (*size, 3)), tf.ensure_shape(label, size)


def augment(
    image: tf.Tensor,
    label: tf.Tensor,
    draws: Draws,
    config: DataConfig,
    pad_value: tuple[float, float, float],
    ignore_label: int,
    more: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies all training transforms in their order.

    Args:
        image: uint8 `[height, width, 3]`.
        label: uint8 `[height, width]`.
        draws: The random numbers of the sample.
        config: The transforms and their strengths.
        pad_value: The color of the padding of images smaller than the crop.
        ignore_label: The label of the padding, and of pixels that do not count when the crop is
            chosen.
        more: Further transforms of image and label, applied before the padding.

    Returns:
        float32 `[crop height, crop width, 3]` in 0..255 and int32 `[crop height, crop width]`.
    """
    crop_height, crop_width = config.train_crop_size
    factor = scale_factor(
        draws.scale, config.min_scale_factor, config.max_scale_factor, config.scale_factor_step_size
    )
    size = scaled_size(tf.shape(label), factor, config.min_resize_value, config.max_resize_value)
    crop = tf.minimum(tf.stack([crop_height, crop_width]), size)
    whole = config.preprocessing == "sssegmentation"
    share, centered = config.crop_max_category_share, None
    if config.rare_class_crops:
        centered = rare_class_crop(
            label, size, crop, draws.rare, config.rare_class_crops, ignore_label
        )
    corner, label = choose_crop(
        label, size, crop, draws.crop, share, ignore_label, not whole, centered
    )
    image = resize_image(image, size, tf.unstack(corner), crop)
    if whole:
        image = tf.round(image)
    if config.random_flip:
        image, label = flip(image, label, draws.flip)
    if config.photometric_distortion:
        image = distort_photometric(image, draws.photometric, whole, (crop_height, crop_width))
    if more is not None:
        image, label = more(image, label)
    image, label = pad(
        image, label, (crop_height, crop_width), pad_value, ignore_label, config.padding_position
    )
    return image, tf.cast(label, tf.int32)
