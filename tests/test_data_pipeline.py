"""The training stream: reproducible from any step; broken files are named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line
from data_files import mask, truncate, write_dataset
from PIL import Image

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files import pairs as files
from deeplab_keras.data.pipeline import sample_stream, train_dataset, user_error
from deeplab_keras.data.registry import open_dataset

PAD = (123.675, 116.28, 103.53)
SCENES = DataConfig(
    train_samples=5,
    eval_samples=3,
    synthetic_size=(40, 48),
    train_crop_size=(32, 32),
    train_batch_size=2,
)


def batches(config: DataConfig, count: int, **options) -> list[tuple[np.ndarray, np.ndarray]]:
    dataset = train_dataset(open_dataset(config, "train"), config, PAD, **options)
    return list(dataset.take(count).as_numpy_iterator())


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize("start", [0, 3, 5, 7, 10, 23])
def test_the_stream_continues_from_any_step(start):
    whole = [(int(p), int(i)) for p, i in sample_stream(5, seed=1, batch_size=1).take(30)]
    assert [position for position, _ in whole] == list(range(30))
    assert all(
        sorted(index for _, index in whole[k : k + 5]) == list(range(5)) for k in range(0, 30, 5)
    )
    assert [(int(p), int(i)) for p, i in sample_stream(5, 1, 1, start).take(7)] == whole[
        start : start + 7
    ]
    in_steps = [
        (int(p), int(i)) for p, i in sample_stream(5, 1, batch_size=3, start_step=2).take(7)
    ]
    assert in_steps == whole[6:13]


def test_batches_are_repeatable_and_resume_exactly():
    undisturbed = batches(SCENES, 8)  # three epochs of five scenes
    for start_step in (0, 5):
        assert_equal(
            batches(SCENES, 8 - start_step, start_step=start_step), undisturbed[start_step:]
        )
    assert not np.array_equal(batches(SCENES.replace(seed=1), 1)[0][1], undisturbed[0][1])
    pictures = [image for images, _ in undisturbed for image in images]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(pictures, 2)), (
        "augmentation repeats itself"
    )


def test_batches_have_the_format_that_training_expects():
    config = SCENES.replace(train_batch_size=3)
    dataset = train_dataset(open_dataset(config, "train"), config, PAD)
    image_spec, label_spec = dataset.element_spec
    assert (image_spec.shape, image_spec.dtype) == ((3, 32, 32, 3), tf.float32)
    assert (label_spec.shape, label_spec.dtype) == ((3, 32, 32), tf.int32)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert (
        dataset.options().experimental_distribute.auto_shard_policy
        == tf.data.experimental.AutoShardPolicy.DATA
    )
    images, labels = next(iter(dataset))
    assert 0 <= images.numpy().min() and images.numpy().max() <= 255
    assert set(np.unique(labels)) <= {*range(10), 255}


@pytest.mark.parametrize("mixed", [{}, {"cut_mix": 1.0, "mosaic": 0.5, "rotation": 9.0}])
def test_the_parts_of_two_workers_equal_the_batches_of_one(mixed):
    config = SCENES.replace(train_batch_size=8, train_samples=7, **mixed)
    whole = batches(config, 3, start_step=1)
    parts = [batches(config, 3, start_step=1, part=(worker, 2)) for worker in range(2)]
    together = [
        tuple(np.concatenate(arrays) for arrays in zip(*step, strict=True))
        for step in zip(*parts, strict=True)
    ]
    assert_equal(together, whole)
    assert parts[0][0][0].shape[0] == 4


def test_a_batch_that_cannot_be_divided_is_refused():
    source = open_dataset(SCENES, "train")
    with raises_line("^--train_batch_size=16: cannot be divided among 3 workers; give 15$"):
        train_dataset(source, SCENES.replace(train_batch_size=16), PAD, part=(0, 3))
    mixing = SCENES.replace(train_batch_size=12, mosaic=0.5)
    with raises_line("among 2 workers in groups of 4, which --cut_mix and --mosaic mix; give 8$"):
        train_dataset(source, mixing, PAD, part=(0, 2))
    with raises_line("^--train_batch_size must be a multiple of 4 with --cut_mix or --mosaic"):
        SCENES.replace(train_batch_size=6, cut_mix=0.1)


STRONG = {
    "rotation": 20.0,
    "blur": 1.5,
    "cutout": 0.5,
    "rand_augment": 1,
    "cut_mix": 0.5,
    "mosaic": 0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("preprocessing", ["sssegmentation", "official"])
def test_all_optional_transforms_work_together(preprocessing):
    config = SCENES.replace(preprocessing=preprocessing, train_batch_size=4, **STRONG)
    found = batches(config, 2)
    assert_equal(batches(config, 1, start_step=1), found[1:])
    for images, labels in found:
        assert images.shape == (4, 32, 32, 3) and np.isfinite(images).all()
        assert -0.01 <= images.min() and images.max() <= 255.01
        assert set(np.unique(labels)) <= {*range(10), 255}


def test_a_mirrored_strategy_gets_the_same_batches():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    dataset = strategy.experimental_distribute_dataset(
        train_dataset(open_dataset(SCENES, "train"), SCENES, PAD)
    )
    found = [tuple(part.numpy() for part in batch) for batch in itertools.islice(dataset, 3)]
    assert_equal(found, batches(SCENES, 3))


def test_images_smaller_than_the_crop_are_padded_with_mean_and_ignore_label():
    config = SCENES.replace(train_crop_size=(64, 80), min_scale_factor=1.0, max_scale_factor=1.0)
    images, labels = batches(config, 1)[0]
    outside = np.ones((64, 80), bool)
    outside[12:52, 16:64] = False
    np.testing.assert_allclose(
        images[:, outside], np.broadcast_to(PAD, images[:, outside].shape), atol=1e-4
    )
    assert (labels[:, outside] == 255).all()
    assert (labels[:, 12:52, 16:64] != 255).mean() > 0.5


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_caching_changes_nothing(tmp_path, suffix):
    root = write_dataset(tmp_path / "photos", suffix=suffix)
    config = DataConfig(
        dataset="folder", dataset_dir=str(root), train_crop_size=(16, 16), train_batch_size=2
    )
    plain = batches(config, 4)
    cached = config.replace(cache=True)
    assert_equal(batches(cached, 4), plain)
    source = open_dataset(cached, "train")
    source.load(0)
    (root / "images" / "train" / f"{source.names[0]}{suffix}").unlink()
    assert source.load(0)[0].shape == (20, 30, 3), "the second time the file is not read"


# --- A file that breaks during training ---


@pytest.fixture
def unchecked(tmp_path, monkeypatch):
    """A dataset of which only the headers and the first pair are checked before training."""
    monkeypatch.setattr(files, "FULL_CHECK_LIMIT", 0)
    monkeypatch.setattr(files, "CHECK_SAMPLE", 1)
    root = write_dataset(tmp_path / "photos")
    (root / "classes.txt").write_text("a\nb\nc")
    return root


BREAKS = {
    "truncated image": ("images/train/pic_2.jpg", "cannot be decoded (image file is truncated"),
    "truncated mask": ("labels/train/pic_2.png", "cannot be decoded ("),
    "truncated palette mask": ("labels/train/pic_2.png", "cannot be decoded ("),
    "ids outside": (
        "labels/train/pic_2.png",
        "the mask holds ids outside the classes: 77; allowed: 0 to 2, and 255",
    ),
    "removed": ("images/train/pic_2.jpg", "cannot be decoded (No such file"),
}


@pytest.mark.parametrize(
    ("case", "cache"), [*((case, False) for case in BREAKS), ("truncated image", True)]
)
def test_a_file_that_breaks_during_training_is_named(unchecked, case, cache):
    name, reason = BREAKS[case]
    path = unchecked / name
    if case == "ids outside":
        Image.fromarray(mask(22, 34, ids=(0, 77))).save(path)
    elif case == "truncated palette mask":
        Image.fromarray(mask(22, 34)).convert("P").save(path)
    if case.startswith("truncated"):
        truncate(path)
    config = DataConfig(
        dataset="folder",
        dataset_dir=str(unchecked),
        train_crop_size=(16, 16),
        train_batch_size=1,
        cache=cache,
    )
    source = open_dataset(config, "train")
    if case == "removed":
        path.unlink()
    with pytest.raises(tf.errors.OpError) as error:
        list(train_dataset(source, config, PAD).take(3))
    mistake = user_error(error.value, source)
    assert isinstance(mistake, UserError)
    assert str(mistake).startswith(f"{path}: {reason}") and "\n" not in str(mistake)


def test_other_errors_are_not_user_errors():
    source = open_dataset(SCENES, "train")
    assert user_error(ValueError("a bug"), source) is None
    assert user_error(tf.errors.ResourceExhaustedError(None, None, "out of memory"), source) is None
    assert user_error(tf.errors.InvalidArgumentError(None, None, "shapes"), source) is None
    known = UserError("known already")
    assert user_error(known, source) is known
