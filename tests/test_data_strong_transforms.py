"""Rotation, blur, cutout, RandAugment, CutMix and Mosaic compared with NumPy, and their flags."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from data_files import photograph
from test_data_transforms import IGNORE, PAD, picture

from deeplab_keras.config import DataConfig
from deeplab_keras.data.augment import strong

GRAY = (100.0, 110.0, 120.0)


def graph(function):
    return tf.function(function, autograph=False)


# --- Rotation ---


def rotated_oracle(
    image: np.ndarray, degrees: float, outside: np.ndarray, nearest: bool
) -> np.ndarray:
    """Looks up each pixel of the result in the source; pixels outside have one value."""
    height, width = image.shape[:2]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rows, columns = np.mgrid[:height, :width].astype(float)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    y, x = sin * x + cos * y + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    padded = np.full((height + 4, width + 4, *image.shape[2:]), outside, float)
    padded[2:-2, 2:-2] = image
    y, x = np.clip(y, -2, height + 0.999) + 2, np.clip(x, -2, width + 0.999) + 2
    if nearest:
        return padded[np.round(y).astype(int), np.round(x).astype(int)]
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    dy, dx = ((part - np.floor(part))[..., None] for part in (y, x))
    bottom, right = np.minimum(top + 1, height + 3), np.minimum(left + 1, width + 3)
    return (
        padded[top, left] * (1 - dy) * (1 - dx)
        + padded[top, right] * (1 - dy) * dx
        + padded[bottom, left] * dy * (1 - dx)
        + padded[bottom, right] * dy * dx
    )


def test_rotation_matches_numpy():
    rotate = graph(lambda image, label, degrees: strong.rotate(image, label, degrees, GRAY, IGNORE))
    rng = np.random.default_rng(0)
    image, label = picture(17, 24)
    for _ in range(60):
        degrees = rng.uniform(-180, 180)
        found, found_label = rotate(
            image.astype(np.float32), label, tf.constant(degrees, tf.float32)
        )
        np.testing.assert_allclose(
            found, rotated_oracle(image, degrees, np.array(GRAY), False), atol=0.05
        )
        expected = rotated_oracle(label, degrees, np.array(IGNORE), True)
        # At exact halves, either neighbor is the nearest.
        assert (found_label.numpy() == expected).mean() > 0.99


def test_rotation_is_counterclockwise_and_0_is_the_identity():
    image, label = picture(9, 9)
    found, found_label = strong.rotate(
        image.astype(np.float32), label, tf.constant(90.0), GRAY, IGNORE
    )
    np.testing.assert_allclose(found, np.rot90(image), atol=0.01)
    np.testing.assert_array_equal(found_label, np.rot90(label))
    found, found_label = strong.rotate(
        image.astype(np.float32), label, tf.constant(0.0), GRAY, IGNORE
    )
    np.testing.assert_allclose(found, image, atol=1e-4)
    np.testing.assert_array_equal(found_label, label)


# --- Blur ---


@pytest.mark.parametrize("largest", [0.5, 2.0])
def test_blur_matches_numpy(largest):
    image = picture(13, 19)[0].astype(np.float32)
    soften = graph(lambda image, sigma: strong.blur(image, sigma, largest))
    for sigma in np.linspace(0.1, largest, 10, dtype=np.float32):
        radius = round(3 * largest)
        places = np.arange(-radius, radius + 1)
        weights = np.exp(-(places**2) / (2 * float(sigma) ** 2))
        weights /= weights.sum()
        expected = np.pad(
            image.astype(float), ((radius, radius), (radius, radius), (0, 0)), mode="edge"
        )
        for axis in (0, 1):
            expected = np.apply_along_axis(np.convolve, axis, expected, weights, mode="valid")
        np.testing.assert_allclose(soften(image, tf.constant(sigma)), expected, atol=0.02)
    np.testing.assert_allclose(soften(image, tf.constant(0.0)), image, atol=1e-3)


# --- Cutout ---


def rectangle_oracle(
    height: int, width: int, numbers: np.ndarray, largest: float = 1.0
) -> np.ndarray:
    inside = np.zeros((height, width), bool)
    bounds = []
    for length, side, middle in ((height, numbers[0], numbers[2]), (width, numbers[1], numbers[3])):
        side = np.float32(side) * np.float32(largest)
        start = int(np.round(np.float32(length) * (np.float32(middle) - side / 2)))
        bounds.append(
            slice(max(start, 0), max(start + int(np.round(np.float32(length) * side)), 0))
        )
    inside[tuple(bounds)] = True
    return inside


def test_cutout_is_one_rectangle_with_the_ignore_label():
    cut = graph(
        lambda image, label, numbers: strong.cut_out(image, label, numbers, 0.6, GRAY, IGNORE)
    )
    rng = np.random.default_rng(1)
    image, label = picture(20, 31)
    shares = []
    for _ in range(200):
        numbers = rng.random(4).astype(np.float32)
        found, found_label = cut(image.astype(np.float32), label, numbers)
        hole = rectangle_oracle(20, 31, numbers, 0.6)
        np.testing.assert_array_equal(found, np.where(hole[..., None], np.float32(GRAY), image))
        np.testing.assert_array_equal(found_label, np.where(hole, IGNORE, label))
        shares.append(hole.mean())
    assert max(shares) < 0.37 and 0.04 < np.mean(shares) < 0.12


# --- RandAugment ---


def test_equalize_matches_pillow():
    from PIL import Image, ImageOps

    for seed in range(20):
        image = (photograph(15, 20, seed) // (1 + seed % 4)).astype(np.uint8)
        found = strong.equalize(tf.constant(image, tf.float32)).numpy()
        np.testing.assert_array_equal(found, np.asarray(ImageOps.equalize(Image.fromarray(image))))
    flat = np.full((5, 6, 3), 77, np.float32)
    np.testing.assert_array_equal(strong.equalize(flat), flat)


def test_color_operations_match_plain_numbers():
    image = photograph(8, 9).astype(np.float32) * 0.5 + 20
    operate = graph(lambda numbers: strong.rand_augment(tf.constant(image), numbers, 0.5))

    def done(which: int, second: float = 0.5, third: float = 0.5) -> np.ndarray:
        return operate(tf.constant([[(which + 0.5) / 7, second, third]], tf.float32)).numpy()

    low, high = image.min((0, 1)), image.max((0, 1))
    np.testing.assert_allclose(done(0), (image - low) * 255 / (high - low), atol=0.01)
    np.testing.assert_allclose(done(1), strong.equalize(tf.constant(image)), atol=0)
    # With the mean magnitudes, the addition is 0.5 * 110, and the threshold is 127.5.
    raised = np.clip(image + 55, 0, 255)
    np.testing.assert_allclose(done(2), np.where(raised < 127.5, raised, 255 - raised), atol=0.01)
    gray = image @ np.array([0.2989, 0.5870, 0.1140], np.float32)
    np.testing.assert_allclose(done(3), (image + gray[..., None]) / 2, atol=0.05)
    means = image.mean((0, 1))
    np.testing.assert_allclose(
        done(4, 0.9), np.clip((image - means) * 1.4 + means, 0, 255), atol=0.01
    )
    np.testing.assert_allclose(done(5, 0.2), np.clip(image - 0.3 * 255, 0, 255), atol=0.01)
    np.testing.assert_array_equal(done(6), image)


def test_operations_are_chained_and_stay_in_range():
    image = photograph(8, 9).astype(np.float32)
    operate = graph(lambda numbers: strong.rand_augment(tf.constant(image), numbers, 1.0))
    rng = np.random.default_rng(2)
    for _ in range(100):
        numbers = rng.random((2, 3)).astype(np.float32)
        numbers[rng.random((2, 3)) < 0.2] = 0
        found = operate(numbers).numpy()
        assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 255.001
    twice = operate(tf.constant([[5.5 / 7, 0.6, 0], [5.5 / 7, 0.55, 0]])).numpy()
    np.testing.assert_allclose(
        twice, np.clip(np.clip(image + 51, 0, 255) + 25.5, 0, 255), atol=0.01
    )


# --- Four at a time ---


def group(height: int = 12, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(picture(height, width, seed) for seed in range(4)), strict=True)
    return np.stack(images).astype(np.float32), np.stack(labels).astype(np.int32)


def test_cut_mix_takes_a_rectangle_from_the_neighbor():
    images, labels = group()
    mix = graph(
        lambda numbers: strong.cut_mix(tf.constant(images), tf.constant(labels), numbers, 0.7)
    )
    rng = np.random.default_rng(3)
    areas = []
    for _ in range(100):
        numbers = rng.random((4, 4)).astype(np.float32)
        found, found_labels = mix(numbers)
        for i in range(4):
            side = np.sqrt(numbers[i, 1]) if numbers[i, 0] < 0.7 else 0
            inside = rectangle_oracle(12, 16, np.array([side, side, *numbers[i, 2:]]))
            np.testing.assert_array_equal(
                found[i], np.where(inside[..., None], images[i - 1], images[i])
            )
            np.testing.assert_array_equal(
                found_labels[i], np.where(inside, labels[i - 1], labels[i])
            )
            areas.append(inside.mean())
    assert 0.25 < np.mean(np.array(areas) == 0) < 0.4 and max(areas) > 0.6


def test_mosaic_shows_all_four_images_around_a_point():
    images, labels = group()
    mix = graph(
        lambda numbers: strong.mosaic(tf.constant(images), tf.constant(labels), numbers, 0.8)
    )
    rng = np.random.default_rng(4)
    for _ in range(50):
        numbers = rng.random((4, 3)).astype(np.float32)
        found, found_labels = (result.numpy() for result in mix(numbers))
        for i in range(4):
            for batch, result in ((images, found[i]), (labels, found_labels[i])):
                a, b, c, d = (batch[(i + k) % 4] for k in range(4))
                down, across = (
                    int((0.25 + numbers[i, 1] / 2) * 12),
                    int((0.25 + numbers[i, 2] / 2) * 16),
                )
                four = np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)], 0)
                window = four[12 - down : 24 - down, 16 - across : 32 - across]
                np.testing.assert_array_equal(result, window if numbers[i, 0] < 0.8 else a)


# --- By the config ---


def test_probabilities_and_sizes_match_the_flags():
    image, label = picture(16, 16)
    config = DataConfig(cutout=0.5, blur=1.0)
    run = graph(
        lambda position: strong.augment_single(
            tf.constant(image, tf.float32), label, position, config, PAD, IGNORE
        )
    )
    results = [run(tf.constant(position, tf.int64)) for position in range(300)]
    holes = np.array([(found_label.numpy() != label).any() for _, found_label in results])
    untouched = np.array([np.array_equal(found, image) for found, _ in results])
    assert 0.38 < holes.mean() < 0.55 and 0.17 < untouched.mean() < 0.36
    again = run(tf.constant(7, tf.int64))
    np.testing.assert_array_equal(again[0], results[7][0])


def test_off_by_default():
    assert not strong.uses_single(DataConfig()) and not strong.uses_mixing(DataConfig())
    assert strong.uses_single(DataConfig(rotation=1)) and strong.uses_mixing(DataConfig(mosaic=0.1))
