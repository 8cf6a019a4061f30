"""The disk cache: same pixels, written once, rewritten for changed files."""

from __future__ import annotations

import collections
import shutil

import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line
from data_files import mask, truncate, write_dataset
from PIL import Image
from test_data_pipeline import assert_equal, batches
from test_data_tfrecords import assert_same

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.records import cache
from deeplab_keras.data.registry import open_dataset


@pytest.fixture
def photos(tmp_path) -> DataConfig:
    root = write_dataset(tmp_path / "photos", count=4)
    (root / "classes.txt").write_text("a\nb\nc")
    return DataConfig(
        dataset="folder", dataset_dir=str(root), train_crop_size=(16, 24), train_batch_size=2
    )


def kept(config: DataConfig, tmp_path) -> DataConfig:
    return config.replace(cache_dir=str(tmp_path / "cache"))


def test_the_cache_equals_the_files(photos, tmp_path, capsys):
    plain, config = open_dataset(photos, "train"), kept(photos, tmp_path)
    assert_same(open_dataset(config, "train"), plain)
    assert "caching folder/train 4/4" in capsys.readouterr().err
    assert_equal(batches(config, 3), batches(photos, 3))
    assert "caching" not in capsys.readouterr().err, "the second time it is there"
    twice = open_dataset(config.replace(cache=True), "train")
    assert_same(twice, plain)


def test_cached_files_are_not_read_again(photos, tmp_path, monkeypatch):
    source = open_dataset(kept(photos, tmp_path), "train")
    expected = source.load(2)
    monkeypatch.setattr(
        "deeplab_keras.data.files.pairs.read_image", lambda *_: pytest.fail("read again")
    )
    shutil.rmtree(tmp_path / "photos")
    for found, wanted in zip(source.tf_load(tf.constant(2)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_changed_files_and_other_scenes_get_another_cache(photos, tmp_path):
    config = kept(photos, tmp_path)
    open_dataset(config, "train")
    new = mask(20, 30, seed=9)
    Image.fromarray(new).save(tmp_path / "photos/labels/train/pic_0.png")
    np.testing.assert_array_equal(open_dataset(config, "train").load(0)[1], new)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    for size in ((24, 32), (32, 24)):
        scenes = DataConfig(train_samples=2, synthetic_size=size, cache_dir=str(tmp_path / "cache"))
        assert open_dataset(scenes, "train").load(0)[1].shape == size


def test_an_interrupted_cache_is_resumed(photos, tmp_path, capsys, monkeypatch):
    config = kept(photos, tmp_path)
    write = cache._write
    with monkeypatch.context() as patch:

        def fails(source, folder, index):
            if index == 2:
                raise UserError("pic_2: broken")
            write(source, folder, index)

        patch.setattr(cache, "_write", fails)
        with raises_line("^pic_2: broken$"):
            open_dataset(config, "train")
    calls = []
    monkeypatch.setattr(
        cache, "_write", lambda *arguments: calls.append(arguments[2]) or write(*arguments)
    )
    assert_same(open_dataset(config, "train"), open_dataset(photos, "train"))
    assert 2 in calls and 0 not in calls


def test_a_disk_that_is_too_small_is_reported_first(photos, tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")(10**6, 10**6, 4000)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with raises_line(
        (
            r"--cache_dir=.+/cache: 4 decoded pairs need about \S+ GB, but only \S+ GB are free; "
            r"give"
        ),
    ):
        open_dataset(kept(photos, tmp_path), "train")
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_reported(photos, tmp_path):
    source = open_dataset(kept(photos, tmp_path), "train")
    path = next((tmp_path / "cache").rglob("00000001.raw"))
    truncate(path)
    with raises_line(
        "00000001.raw: cannot be read .+; remove its folder to build the cache again",
    ):
        source.load(1)
