"""The synthetic scenes: reproducible, balanced, not solvable by color alone."""

from __future__ import annotations

import functools

import numpy as np
from contracts import raises_line

from deeplab_keras.config import DataConfig
from deeplab_keras.data.datasets.synthetic import SYNTHETIC, make_scene
from deeplab_keras.data.registry import open_dataset

CLASSES = SYNTHETIC.num_classes


@functools.cache
def scenes(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    source = open_dataset(DataConfig(), split)
    images, labels = zip(*(source.load(index) for index in range(count)), strict=True)
    return np.stack(images), np.stack(labels)


def test_a_scene_is_a_function_of_seed_split_and_index():
    image, label = make_scene(3, 0, 5, 96, 131)
    again = make_scene(3, 0, 5, 96, 131)
    assert image.dtype == label.dtype == np.uint8
    assert image.shape == (96, 131, 3) and label.shape == (96, 131)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(label, again[1])
    for other in ((4, 0, 5), (3, 1, 5), (3, 0, 6)):
        assert np.mean(make_scene(*other, 96, 131)[1] != label) > 0.2


def test_training_and_validation_scenes_differ():
    train, val = scenes("train", 40)[1], scenes("val", 24)[1]
    assert min(np.mean(a != b) for a in train for b in val) > 0.2


def test_every_class_occurs_and_none_dominates():
    labels = scenes("train", 40)[1]
    shares = np.array([np.mean(labels == label) for label in range(CLASSES)])
    assert set(np.unique(labels)) == {*range(CLASSES), SYNTHETIC.ignore_label}
    assert shares.min() > 0.03 and shares.max() < 0.3
    assert all(
        np.mean([(label == scene).any() for scene in labels]) > 0.4 for label in range(CLASSES)
    )


def test_contours_are_thin_and_ignored():
    labels = scenes("train", 40)[1]
    assert 0.03 < np.mean(labels == SYNTHETIC.ignore_label) < 0.12
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[:, :, 1:], labels[:, :, :-1])):
        touching = (a != b) & (a != SYNTHETIC.ignore_label) & (b != SYNTHETIC.ignore_label)
        assert touching.mean() < 2e-4


def test_color_alone_is_not_sufficient():
    """The best classifier of single colors is far below a network's 0.85."""
    (images, labels), (val_images, val_labels) = scenes("train", 40), scenes("val", 24)

    def bins(image: np.ndarray) -> np.ndarray:
        return (image // 16).astype(int) @ (256, 16, 1)

    counts = np.zeros((4096, 256))
    np.add.at(counts, (bins(images).ravel(), labels.ravel()), 1)
    predicted = counts[:, :CLASSES].argmax(axis=1)[bins(val_images)]
    ious = []
    for label in range(CLASSES):
        found, true = (
            (predicted == label) & (val_labels != SYNTHETIC.ignore_label),
            val_labels == label,
        )
        ious.append((found & true).sum() / (found | true).sum())
    assert np.mean(ious) < 0.6


def test_sizes_and_lengths_come_from_the_config():
    config = DataConfig(train_samples=3, eval_samples=2, synthetic_size=(48, 64))
    train, val = open_dataset(config, "train"), open_dataset(config, "val")
    assert (len(train), len(val)) == (3, 2)
    assert train.names == ("train_00000", "train_00001", "train_00002")
    assert train.load(0)[0].shape == (48, 64, 3)
    image, label = train.tf_load(np.int64(2))
    np.testing.assert_array_equal(image, train.load(2)[0])
    np.testing.assert_array_equal(label, train.load(2)[1])


def test_unknown_split():
    message = (
        r"^unknown --train_split or --eval_split of the synthetic dataset 'vall'; did you "
        r"mean 'val'\? known: "
    )
    with raises_line(message):
        open_dataset(DataConfig(), "vall")
