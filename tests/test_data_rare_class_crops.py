"""Crops centered on rare classes, compared with plain NumPy and counted over many draws."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data import open_dataset, train_dataset
from deeplab_keras.data.augment import geometry, official

IGNORE = 255
PAD = (127.5, 127.5, 127.5)
choose = tf.function(geometry.rare_class_crop, autograph=False)


def scene() -> np.ndarray:
    """Class 0 nearly everywhere, 40 ignored pixels, 12 pixels of class 3 and one of class 7."""
    label = np.zeros((40, 60), np.uint8)
    label[:2, :20] = IGNORE
    label[10:13, 50:54] = 3
    label[38, 1] = 7
    return label


def corner_of(label, size, crop, numbers, probability=1.0):
    use, corner = choose(
        label,
        tf.constant(size),
        tf.constant(crop),
        tf.constant(numbers, tf.float32),
        probability,
        IGNORE,
    )
    return bool(use), tuple(corner.numpy().tolist())


def test_the_crop_is_centered_on_the_drawn_pixel():
    """Pixels are numbered by rows, among those of the drawn class."""
    label, rng = scene(), np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(side * rng.uniform(0.5, 2)) for side in label.shape)
        crop = int(rng.integers(3, height)), int(rng.integers(3, width))
        numbers = rng.random(3).astype(np.float32)
        pixels = np.argwhere(label == (3, 7)[int(numbers[1] * 2)])
        row, column = pixels[int(numbers[2] * len(pixels))]
        middle = int((row + 0.5) * height / 40), int((column + 0.5) * width / 60)
        expected = tuple(
            min(max(m - c // 2, 0), s - c)
            for m, c, s in zip(middle, crop, (height, width), strict=True)
        )
        assert corner_of(label, (height, width), crop, numbers) == (True, expected)


def test_each_class_but_the_most_frequent_is_drawn_equally_often():
    label, rng = scene(), np.random.default_rng(1)
    centers = [corner_of(label, label.shape, (1, 1), rng.random(3)) for _ in range(400)]
    found = [int(label[corner]) for _, corner in centers]
    assert set(found) == {3, 7}, "neither the most frequent class nor ignored pixels"
    assert 160 < found.count(7) < 240, "one pixel is drawn as often as the twelve of class 3"


def test_the_probability_and_images_of_one_class():
    label, plain = scene(), np.full((8, 8), 4, np.uint8)
    plain[0] = IGNORE
    assert corner_of(label, label.shape, (4, 4), (0.3, 0, 0), 0.31)[0]
    assert not corner_of(label, label.shape, (4, 4), (0.3, 0, 0), 0.3)[0]
    assert not corner_of(plain, plain.shape, (4, 4), (0, 0, 0))[0]
    assert not corner_of(np.full_like(plain, IGNORE), plain.shape, (4, 4), (0, 0, 0))[0]


@pytest.mark.parametrize("preprocessing", ["default", "sssegmentation", "official"])
def test_augmented_crops_hold_the_rare_pixel(preprocessing):
    """The one pixel of class 7 is in every crop centered on it, and in few others."""
    label = np.zeros((60, 90), np.uint8)
    label[31, 17] = 7
    image = np.zeros((60, 90, 3), np.uint8)
    augment = official.augment if preprocessing == "official" else geometry.augment

    def share_with_the_pixel(rare_class_crops: float) -> float:
        config = DataConfig(
            preprocessing=preprocessing,
            train_crop_size=(16, 16),
            min_scale_factor=1.0,
            max_scale_factor=1.5,
            rare_class_crops=rare_class_crops,
        )

        @tf.function(autograph=False)
        def crop(position):
            draws = geometry.draw(0, position)
            return augment(image, label, draws, config, PAD, IGNORE)[1]

        return np.mean([np.any(crop(tf.constant(i)) == 7) for i in range(60)])

    assert share_with_the_pixel(1.0) > 0.9  # resized to a smaller size, the pixel may be skipped
    assert 0.3 < share_with_the_pixel(0.5) < 0.75
    assert share_with_the_pixel(0.0) < 0.2


def test_the_stream_is_numbered_with_rare_crops_too():
    """A stream that starts at step 2 yields the batches of the whole stream from there on."""
    config = DataConfig(
        train_samples=6,
        synthetic_size=(48, 48),
        train_crop_size=(24, 24),
        train_batch_size=2,
        rare_class_crops=0.5,
    )
    source = open_dataset(config, "train")

    def batches(config: DataConfig, start: int, count: int) -> list:
        stream = train_dataset(source, config, PAD, start_step=start)
        return [(image.numpy(), label.numpy()) for image, label in stream.take(count)]

    whole = batches(config, 0, 5)
    for (image, label), (other, other_label) in zip(whole[2:], batches(config, 2, 3), strict=True):
        np.testing.assert_array_equal(image, other)
        np.testing.assert_array_equal(label, other_label)


def test_the_other_random_numbers_stay_the_same():
    """The numbers of runs without rare crops, taken before these crops existed."""
    draws = geometry.draw(3, tf.constant(11))
    key = tf.constant([3, 11], tf.int64)
    old = tf.random.stateless_uniform([31], key)
    np.testing.assert_array_equal(draws.scale, old[0])
    np.testing.assert_array_equal(draws.crop, tf.reshape(old[11:], (-1, 2)))
    assert not np.isin(draws.rare, old).any()


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_the_fraction_is_between_0_and_1(value):
    with pytest.raises(UserError, match="rare_class_crops.*between 0 and 1"):
        DataConfig(rare_class_crops=value)
