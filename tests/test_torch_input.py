"""Our training pipeline equals SSSegmentation's own on OpenCV, with the same random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from contracts import label_blocks
from data_files import photograph
from PIL import Image
from test_data_transforms import resize_label

from deeplab_keras.config import DataConfig
from deeplab_keras.data.augment import geometry as transforms

pytestmark = pytest.mark.torch

SIZES = [(375, 500), (500, 333), (120, 700), (512, 512), (200, 260)]
PAD = (123.675, 116.28, 103.53)
CONFIG = DataConfig(
    train_crop_size=(512, 512),
    min_resize_value=512,
    max_resize_value=2048,
    preprocessing="sssegmentation",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for seed, size in enumerate(SIZES):
        Image.fromarray(photograph(*size, seed)).save(root / f"images/train/{seed}.png")
        label = label_blocks(1, *size, classes=5, seed=seed, block=90)[0].astype(np.uint8)
        Image.fromarray(label).save(root / f"labels/train/{seed}.png")
    return root


def both(folder, draws_of, config: DataConfig, left_out: tuple[str, ...] = ()):
    """Returns our and the reference's (image in 0..255, label) for given random numbers."""
    from sssegmentation_input import PIPELINE, make_dataset, numbers_of

    reference = make_dataset(
        folder, 5, pipeline=[step for step in PIPELINE if step[0] not in left_out]
    )

    def augmented(image, label, draws):
        return transforms.augment(image, label, draws, config, PAD, 255)

    augment = tf.function(augmented, autograph=False, reduce_retracing=True)
    for position in range(40):
        index = position % len(SIZES)
        draws = draws_of(position)
        image, label = (
            np.asarray(Image.open(folder / f"{kind}/train/{index}.png"))
            for kind in ("images", "labels")
        )
        found, found_label = augment(image, label, draws)
        with numbers_of(draws):
            expected = reference[index]
        pixels = expected["image"].numpy().transpose(1, 2, 0) * [58.395, 57.12, 57.375] + PAD
        wanted = expected["seg_target"].numpy().astype(int)
        yield found.numpy(), found_label.numpy(), pixels, np.where(wanted == -100, 255, wanted)


def test_labels_are_resized_as_opencv_does():
    import cv2

    rng = np.random.default_rng(0)
    resize = tf.function(
        lambda label, size: resize_label(label, size, half_pixel=False),
        autograph=False,
        reduce_retracing=True,
    )
    exact = 0
    fixed = np.arange(375, dtype=np.int32)[:, None]
    known = tf.function(
        lambda rows: resize_label(fixed, (rows, 1), half_pixel=False), autograph=False
    )
    expected = cv2.resize(fixed.astype(np.uint16), (1, 775), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(
        known(tf.constant(775)), expected, "an image whose size the graph knows"
    )
    for _ in range(300):
        label = rng.integers(0, 256, rng.integers(1, 600, 2), dtype=np.uint8)
        size = rng.integers(1, 900, 2)
        expected = cv2.resize(label, tuple(map(int, size[::-1])), interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(resize(label, size), expected)
        whole = [np.arange(new) * old // new for old, new in zip(label.shape, size, strict=True)]
        exact += np.array_equal(label[np.ix_(*whole)], expected)
    assert exact < 300, "OpenCV's arithmetic is not always that of whole numbers"


def test_geometry_is_the_references_to_the_pixel(folder):
    """Labels are equal. Images differ by one gray level at most: OpenCV uses integers."""
    config = CONFIG.replace(photometric_distortion=False)
    distances = []
    draws = lambda position: transforms.draw(0, tf.constant(position))  # noqa: E731
    for found, label, expected, expected_label in both(
        folder, draws, config, left_out=("PhotoMetricDistortion",)
    ):
        np.testing.assert_array_equal(label, expected_label)
        distances.append(np.abs(found - expected))
        assert distances[-1].max() < 1.01
    different = np.mean([(distance > 0.01).mean() for distance in distances])
    print(f"pixels that differ, all by one gray level: {different:.2%}")
    assert different < 0.15


def test_colors_are_the_references_to_a_gray_level(folder):
    errors = []
    draws = lambda position: transforms.draw(1, tf.constant(position))  # noqa: E731
    for found, label, expected, expected_label in both(folder, draws, CONFIG):
        np.testing.assert_array_equal(label, expected_label)
        errors.append((found - expected)[::3, ::3])
    error = np.stack(errors)
    print(
        f"mean {error.mean():.3f}, mean distance {np.abs(error).mean():.3f}, largest "
        f"{np.abs(error).max():.1f} gray levels"
    )
    assert abs(error.mean()) < 0.4 and np.abs(error).mean() < 0.6 and np.abs(error).max() < 12
