"""Each transform compared with plain NumPy, and inside tf.data with eager execution."""

from __future__ import annotations

import colorsys
import functools

import numpy as np
import pytest
import tensorflow as tf

from deeplab_keras.config import DataConfig
from deeplab_keras.data.augment import geometry as transforms
from deeplab_keras.data.augment import photometric, resizing

IGNORE = 255
PAD = (123.675, 116.28, 103.53)


def picture(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and a label of a few classes with some ignored pixels."""
    rng = np.random.default_rng(seed)
    label = rng.choice(np.array([0, 1, 2, 3, IGNORE], np.uint8), (height, width))
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), label


# --- Scale ---


def test_scaled_size_matches_the_reference():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(1, 3000, 2)
        factor = rng.uniform(0.5, 2)
        long, short = int(2048 * factor), int(512 * factor)
        ratio = min(long / max(height, width), short / min(height, width))
        expected = max(int(height * ratio + 0.5), 1), max(int(width * ratio + 0.5), 1)
        assert tuple(resizing.scaled_size([height, width], factor, 512, 2048).numpy()) == expected
    # docs/reference/sssegmentation.md#test-input
    assert tuple(resizing.scaled_size([375, 500], 1.0, 512, 2048).numpy()) == (512, 683)
    assert tuple(resizing.scaled_size([500, 333], 1.0, 512, 2048).numpy()) == (769, 512)
    assert tuple(resizing.scaled_size([100, 201], 0.5).numpy()) == (50, 101)


def test_scale_factor_is_uniform_or_stepped():
    numbers = np.linspace(0, 1, 140, endpoint=False, dtype=np.float32)
    free = [float(transforms.scale_factor(number, 0.5, 2.0, 0.0)) for number in numbers[::20]]
    np.testing.assert_allclose(free, 0.5 + 1.5 * numbers[::20], rtol=1e-6)
    stepped = [float(transforms.scale_factor(number, 0.5, 2.0, 0.25)) for number in numbers]
    values, counts = np.unique(np.round(stepped, 6), return_counts=True)
    np.testing.assert_allclose(values, [0.5, 0.75, 1, 1.25, 1.5, 1.75, 2])
    assert counts.max() - counts.min() <= 2
    assert float(transforms.scale_factor(0.7, 1.0, 1.0, 0.0)) == 1


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes with half-pixel centers, repeated edges and no antialiasing."""
    image = image.astype(np.float64)
    for axis in (0, 1):
        length = image.shape[axis]
        places = np.clip((np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5, 0, length - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        a, b = image.take(low, axis), image.take(np.minimum(low + 1, length - 1), axis)
        image = a + (b - a) * share
    return image


def resize_label(label, size, start=(0, 0), count=(None, None), half_pixel=True):
    """Resizes a label map with the library's `nearest`, or `count` rows and columns of it."""
    label = tf.convert_to_tensor(label)
    rows, columns = (
        resizing.nearest(tf.shape(label)[axis], size[axis], start[axis], count[axis], half_pixel)
        for axis in (0, 1)
    )
    return resizing.taken(label, rows, columns)


SIZES = [(17, 23), (9, 12), (31, 47), (40, 11), (1, 1), (3, 60)]


@pytest.mark.parametrize("size", SIZES)
def test_resizing_whole_images(size):
    image, label = picture(17, 23)
    np.testing.assert_allclose(resizing.resize_image(image, size), bilinear(image, size), atol=0.01)
    centers = [
        np.floor((np.arange(m) + 0.5) * (n / m) + 1e-9).astype(int)
        for n, m in zip(label.shape, size, strict=True)
    ]
    np.testing.assert_array_equal(resize_label(label, size), label[np.ix_(*centers)])
    opencv = [
        [min(int(i * (1 / (m / n))), n - 1) for i in range(m)]
        for n, m in zip(label.shape, size, strict=True)
    ]
    np.testing.assert_array_equal(
        resize_label(label, size, half_pixel=False), label[np.ix_(*opencv)]
    )


@pytest.mark.parametrize("half_pixel", [True, False])
def test_labels_are_aligned_with_the_image(half_pixel):
    """Enlarges and flips an edge: the half-pixel rule keeps its position, OpenCV's does not."""
    edge = np.repeat(np.arange(20) >= 10, 3)[None].reshape(1, 20, 3) * np.uint8([255])
    edge = np.tile(edge, (20, 1, 1))
    size = np.array([70, 70])

    def label(mask):
        return resize_label(mask, size, half_pixel=half_pixel).numpy()

    image = resizing.resize_image(edge, size).numpy()[..., 0] > 127.5
    mask = (edge[..., 0] > 0).astype(np.uint8)
    np.testing.assert_array_equal(label(mask), image)
    mirrored = np.array_equal(label(mask[:, ::-1])[:, ::-1], label(mask))
    assert mirrored or not half_pixel


@pytest.mark.parametrize("size", [size for size in SIZES if min(size) > 4])
def test_resizing_a_window_equals_resizing_and_cropping(size):
    image, label = picture(17, 23)
    rng = np.random.default_rng(1)
    whole, whole_label = bilinear(image, size), resize_label(label, size).numpy()
    for _ in range(20):
        count = np.array([rng.integers(1, n + 1) for n in size])
        top, left = (int(rng.integers(0, n - c + 1)) for n, c in zip(size, count, strict=True))
        window = np.s_[top : top + count[0], left : left + count[1]]
        np.testing.assert_allclose(
            resizing.resize_image(image, size, (top, left), count), whole[window], atol=0.01
        )
        np.testing.assert_array_equal(
            resize_label(label, size, (top, left), count), whole_label[window]
        )


# --- Crop ---


def crop_oracle(
    label: np.ndarray, crop: tuple[int, int], numbers: np.ndarray, share: float
) -> tuple[int, int]:
    for top, left in numbers:
        top, left = (
            int(top * (label.shape[0] - crop[0] + 1)),
            int(left * (label.shape[1] - crop[1] + 1)),
        )
        window = label[top : top + crop[0], left : left + crop[1]]
        counts = np.unique(window[window != IGNORE], return_counts=True)[1]
        if len(counts) > 1 and counts.max() / counts.sum() < share:
            break
    return top, left


def test_crop_is_the_first_draw_without_a_dominant_class():
    rng = np.random.default_rng(0)
    tries = []
    choose = tf.function(transforms.choose_crop, autograph=False)
    for case in range(60):
        label = np.repeat(np.repeat(rng.choice([0, 0, 0, 1, IGNORE], (5, 6)), 6, 0), 6, 1).astype(
            np.uint8
        )
        numbers = rng.random((10, 2)).astype(np.float32)
        share = 0.75 if case % 2 else 0.6
        top, left = crop_oracle(label, (10, 12), numbers, share)
        corner, window = choose(
            label, tf.constant(label.shape), tf.constant((10, 12)), numbers, share, IGNORE
        )
        assert tuple(corner.numpy()) == (top, left)
        np.testing.assert_array_equal(window, label[top : top + 10, left : left + 12])
        tries.append([(int(a * 21), int(b * 25)) for a, b in numbers].index((top, left)))
    assert 0 in tries and len(set(tries)) > 3, "the cases are to need one draw and several"


def test_crop_at_exactly_the_share_is_drawn_again():
    label = np.array([[0, 0, 0, 1, 1, 1, 1]], np.uint8)  # windows of four: 3 to 1, then 2 to 2
    numbers = np.zeros((10, 2), np.float32)
    numbers[1:, 1] = 0.3
    size, crop = tf.constant(label.shape), tf.constant((1, 4))
    assert transforms.choose_crop(label, size, crop, numbers, 0.75, IGNORE)[0].numpy()[1] == 1
    assert transforms.choose_crop(label, size, crop, numbers, 0.76, IGNORE)[0].numpy()[1] == 0
    assert transforms.choose_crop(label * 0, size, crop, numbers, 1.0, IGNORE)[0].numpy()[1] == 0


def test_a_last_draw_of_ignored_pixels_is_replaced_by_the_center():
    """The reference skips such a crop, and its padding cuts out the center from -((4 - 9) // 2)."""
    label = np.full((6, 9), IGNORE, np.uint8)
    label[1:4, 3:5] = 1  # a single class, so no draw is accepted
    numbers = np.zeros((10, 2), np.float32)
    size, crop = tf.constant(label.shape), tf.constant((2, 4))
    corner, window = transforms.choose_crop(
        label, size, crop, np.full((10, 2), 0.99, np.float32), 0.75, IGNORE
    )
    assert tuple(corner.numpy()) == (2, 3)
    np.testing.assert_array_equal(window, label[2:4, 3:7])
    numbers[-1] = 0.3, 0.2  # the last draw has a labeled pixel
    assert tuple(transforms.choose_crop(label, size, crop, numbers, 0.75, IGNORE)[0].numpy()) == (
        1,
        1,
    )


def test_crops_reach_every_corner():
    label = np.zeros((7, 9), np.uint8)
    for number, corner in ((0.0, (0, 0)), (np.nextafter(np.float32(1), np.float32(0)), (3, 4))):
        numbers = np.full((10, 2), number, np.float32)
        found, _ = transforms.choose_crop(
            label, tf.constant((7, 9)), tf.constant((4, 5)), numbers, 0.75, IGNORE
        )
        assert tuple(found.numpy()) == corner


# --- Flip, colors, padding ---


def test_flip():
    image, label = picture(4, 5)
    flipped, flipped_label = transforms.flip(image, label, tf.constant(0.49))
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_array_equal(flipped_label, label[:, ::-1])
    same, same_label = transforms.flip(image, label, tf.constant(0.5))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(same_label, label)


def photometric_oracle(image: np.ndarray, numbers: np.ndarray, eight_bit: bool) -> np.ndarray:
    """Follows the steps of the reference: BGR images whose hue is computed as if they were RGB.

    With `eight_bit`, each step returns whole gray levels, and hue and saturation have 8 bits, as in
    OpenCV.
    """
    n = [float(number) for number in numbers]

    def whole(values: np.ndarray) -> np.ndarray:
        values = np.clip(values, 0, 255)
        return np.floor(values) if eight_bit else values

    def in_hsv(bgr: np.ndarray, change) -> np.ndarray:
        out = np.empty_like(bgr)
        for place in np.ndindex(bgr.shape[:2]):
            hue, saturation, value = colorsys.rgb_to_hsv(*(bgr[place] / 255))
            hue, saturation = hue * 180, saturation * 255
            if eight_bit:
                hue, saturation = round(hue) % 180, round(saturation)
            hue, saturation = change(hue, saturation)
            rgb = (
                np.array(
                    colorsys.hsv_to_rgb(hue % 180 / 180, whole(np.array(saturation)) / 255, value)
                )
                * 255
            )
            out[place] = np.round(rgb) if eight_bit else rgb
        return out

    bgr = image[..., ::-1].astype(np.float64)
    contrast = (lambda x: whole(x * (0.5 + n[4]))) if n[3] < 0.5 else (lambda x: x)
    if n[0] < 0.5:
        bgr = whole(bgr + 64 * n[1] - 32)
    if n[2] >= 0.5:
        bgr = contrast(bgr)
    if n[5] < 0.5:
        bgr = in_hsv(bgr, lambda h, s: (h, s * (0.5 + n[6])))
    if n[7] < 0.5:
        bgr = in_hsv(bgr, lambda h, s: (h + int(np.floor(n[8] * 36)) - 18, s))
    if n[2] < 0.5:
        bgr = contrast(bgr)
    return bgr[..., ::-1]


def test_photometric_distortion_matches_the_reference():
    rng = np.random.default_rng(0)
    distort, in_eight_bits = (
        tf.function(
            functools.partial(photometric.distort_photometric, whole=whole, canvas=(5, 4)),
            autograph=False,
        )
        for whole in (False, True)
    )
    errors = []
    for case in range(400):
        image = picture(4, 3, seed=case)[0].astype(np.float32)
        numbers = rng.random(9).astype(np.float32)
        found = distort(image, numbers).numpy()
        np.testing.assert_allclose(
            found, photometric_oracle(image, numbers, eight_bit=False), atol=0.02
        )
        in_whole = in_eight_bits(image, numbers).numpy()
        np.testing.assert_array_equal(in_whole, np.round(in_whole))
        rounded = photometric_oracle(image, numbers, eight_bit=True)
        if numbers[5] >= 0.5 and numbers[7] >= 0.5:  # only brightness and contrast: exact
            assert np.abs(in_whole - rounded).max() <= (np.abs(in_whole - rounded) > 0).mean() * 20
        errors.append((found - rounded, in_whole - rounded))
    unrounded, whole = (np.concatenate([np.ravel(pair[i]) for pair in errors]) for i in (0, 1))
    # Without rounding, images are half a gray level brighter. With it, only the coarse 8-bit hues
    # differ.
    assert 0.3 < unrounded.mean() < 0.9 and abs(whole.mean()) < 0.3
    assert np.abs(whole).mean() < 0.6 * np.abs(unrounded).mean() and np.abs(whole).max() < 16


@pytest.mark.parametrize("whole", [False, True])
def test_the_compiled_program_equals_the_plain_one(whole):
    rng, apart = np.random.default_rng(1), []
    for shape in ((40, 30), (24, 30), (40, 7), (1, 1)):
        image, numbers = (
            rng.integers(0, 256, (*shape, 3)).astype(np.float32),
            rng.random(9).astype(np.float32),
        )
        numbers[[0, 3, 5, 7]] *= 0.5  # all operations are applied
        plain = photometric.distort_photometric(image, numbers, whole)
        on_canvas = photometric.distort_photometric(image, numbers, whole, canvas=(40, 30))
        assert (
            on_canvas.shape == image.shape and 0 <= np.min(on_canvas) and np.max(on_canvas) <= 255
        )
        apart.append(np.ravel(plain - on_canvas))
    apart = np.abs(np.concatenate(apart))
    # With whole gray levels, float rounding errors can round a half in the other direction.
    assert (apart > 1e-3).mean() <= (0.001 if whole else 0) and apart.max() <= (
        3 if whole else 1e-3
    )


def test_saturation_and_hue_match_tensorflow():
    rng = np.random.default_rng(2)
    gray, primaries = (
        np.repeat(rng.random((8, 1)), 3, axis=1),
        np.array(np.meshgrid(*[[0, 1]] * 3)).reshape(3, -1).T,
    )
    image = 255 * np.concatenate([rng.random((2000, 3)), gray, primaries]).astype(np.float32)[None]
    for factor in (0.0, 0.5, 1.0, 1.5, 4.0):
        expected = tf.raw_ops.AdjustSaturation(images=image, scale=factor)
        np.testing.assert_allclose(
            photometric.adjust_saturation(image, factor), expected, atol=1e-3
        )
    for turn in (-1.0, -0.5, -0.1, 0.0, 0.03, 0.7, 1.0):
        np.testing.assert_allclose(
            photometric.adjust_hue(image, turn),
            tf.raw_ops.AdjustHue(images=image, delta=turn),
            atol=1e-3,
        )


def test_each_photometric_operation_has_probability_one_half():
    numbers = np.stack(
        [transforms.draw(0, tf.constant(position)).photometric for position in range(200)]
    )
    np.testing.assert_allclose((numbers[:, [0, 2, 3, 5, 7]] < 0.5).mean(axis=0), 0.5, atol=0.13)
    image = picture(4, 3)[0].astype(np.float32)
    np.testing.assert_array_equal(photometric.distort_photometric(image, tf.fill([9], 0.6)), image)


@pytest.mark.parametrize("position", ["center", "top_left"])
def test_padding(position):
    image, label = picture(5, 8)
    padded, padded_label = transforms.pad(
        image.astype(np.float32), label, (8, 13), PAD, IGNORE, position
    )
    top, left = (1, 2) if position == "center" else (0, 0)
    expected, expected_label = np.tile(np.float32(PAD), (8, 13, 1)), np.full((8, 13), IGNORE)
    expected[top : top + 5, left : left + 8], expected_label[top : top + 5, left : left + 8] = (
        image,
        label,
    )
    np.testing.assert_allclose(padded, expected, atol=1e-4)
    np.testing.assert_array_equal(padded_label, expected_label)


# --- All of them ---

CONFIG = DataConfig(train_crop_size=(24, 20))


def test_augment_is_scale_crop_flip_colors_and_padding_in_this_order():
    image, label = picture(30, 40)
    for position in range(12):
        draws = transforms.draw(7, tf.constant(position))
        found, found_label = transforms.augment(image, label, draws, CONFIG, PAD, IGNORE)
        factor = 0.5 + 1.5 * float(draws.scale)
        size = int(30 * factor + 0.5), int(40 * factor + 0.5)
        crop = min(size[0], 24), min(size[1], 20)
        scaled_label = resize_label(label, size).numpy()
        top, left = crop_oracle(scaled_label, crop, draws.crop.numpy(), 0.75)
        window = np.s_[top : top + crop[0], left : left + crop[1]]
        part, part_label = bilinear(image, size)[window], scaled_label[window]
        if draws.flip < 0.5:
            part, part_label = part[:, ::-1], part_label[:, ::-1]
        part = photometric_oracle(part, draws.photometric.numpy(), eight_bit=False)
        before = (24 - crop[0]) // 2, (20 - crop[1]) // 2
        place = np.s_[before[0] : before[0] + crop[0], before[1] : before[1] + crop[1]]
        expected, expected_label = np.tile(np.float32(PAD), (24, 20, 1)), np.full((24, 20), IGNORE)
        expected[place], expected_label[place] = part, part_label
        assert (found.dtype, found_label.dtype) == (tf.float32, tf.int32)
        np.testing.assert_allclose(found, expected, atol=0.05)
        np.testing.assert_array_equal(found_label, expected_label)


def test_the_same_eagerly_and_in_tf_data():
    image, label = picture(30, 40)
    dataset = tf.data.Dataset.range(2).map(
        lambda position: transforms.augment(
            image, label, transforms.draw(7, position), CONFIG, PAD, IGNORE
        )
    )
    for position, (found, found_label) in enumerate(dataset):
        expected, expected_label = transforms.augment(
            image, label, transforms.draw(7, tf.constant(position)), CONFIG, PAD, IGNORE
        )
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_array_equal(found_label, expected_label)


def test_disabled_transforms_do_nothing():
    image, label = picture(24, 20)
    config = CONFIG.replace(
        min_scale_factor=1.0, max_scale_factor=1.0, random_flip=False, photometric_distortion=False
    )
    found, found_label = transforms.augment(
        image, label, transforms.draw(0, tf.constant(1)), config, PAD, IGNORE
    )
    np.testing.assert_allclose(found, image, atol=1e-3)
    np.testing.assert_array_equal(found_label, label)


def test_draws_depend_on_seed_and_position():
    def numbers(seed: int, position: int) -> np.ndarray:
        return np.concatenate(
            [np.ravel(part) for part in transforms.draw(seed, tf.constant(position, tf.int64))]
        )

    np.testing.assert_array_equal(numbers(1, 2**40), numbers(1, 2**40))
    rows = [numbers(*key) for key in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2**40))]
    assert len({row.tobytes() for row in rows}) == 5
    assert all(len(set(row)) == len(row) == 34 for row in rows)
