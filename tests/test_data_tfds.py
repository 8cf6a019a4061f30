"""tensorflow-datasets: reading its datasets by name, and our builders for it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from contracts import as_command_line, label_blocks, noise, raises_line, script
from dataset_trees import TREES, camvid
from test_data_pipeline import assert_equal, batches
from test_data_tfrecords import assert_same, config_of

from deeplab_keras.config import DataConfig
from deeplab_keras.data.records.build import build_records
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.data.tfds import source as tfds_source


class FakePets(tfds.core.GeneratorBasedBuilder):
    """Like oxford_iiit_pet: masks of 1, 2 and 3, and features that are not images."""

    VERSION = tfds.core.Version("1.0.0")
    MASK = tfds.features.Image(shape=(None, None, 1), use_colormap=True)

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "segmentation_mask": self.MASK,
            "file_name": tfds.features.Text(),
            "label": tfds.features.ClassLabel(num_classes=37),
            "head_bbox": tfds.features.BBoxFeature(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6, 0), "test": self._generate_examples(2, 6)}

    def _generate_examples(self, count, seed):
        for i in range(count):
            image, mask = pet(seed + i)
            yield (
                i,
                {
                    "image": image,
                    "segmentation_mask": mask[..., None],
                    "file_name": f"cats/cat_{i}.jpg",
                    "label": i,
                    "head_bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                },
            )


class NoMasks(FakePets):
    """A dataset without masks."""

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=9)}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _generate_examples(self, count, seed):
        for i in range(count):
            yield i, {"image": pet(seed + i)[0], "label": i}


class NamedMasks(FakePets):
    """A dataset whose mask feature has class names."""

    MASK = tfds.features.LabeledImage(
        shape=(None, None, 1), labels=["nothing", "cat", "dog", "edge"]
    )


class FailsToPrepare(FakePets):
    """A dataset whose download fails."""

    def _split_generators(self, dl_manager):
        raise ConnectionError("the server does not answer\nfor the third time")


def pet(seed: int) -> tuple[np.ndarray, np.ndarray]:
    mask = label_blocks(1, 20, 28, classes=3, seed=seed, ignore_label=None)[0] + 1
    return noise(20, 28, 3, seed=seed).astype(np.uint8), mask.astype(np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("fake_pets", "named_masks"):
        tfds.builder(name, data_dir=folder).download_and_prepare()
    return folder


def opened(name: str, folder, split: str = "train", **changes):
    return open_dataset(
        DataConfig(dataset=f"tfds:{name}", dataset_dir=str(folder), **changes), split
    )


# --- By name ---


def test_any_dataset_with_masks_by_name(prepared):
    source = opened("fake_pets", prepared)
    assert source.names == tuple(f"cats/cat_{i}" for i in range(6))
    assert source.info.class_names == ("class_0", "class_1", "class_2", "class_3")
    for i in range(6):
        for found, expected in zip(source.load(i), pet(i), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert_same(source, source)


def test_examples_equal_those_read_by_tfds(prepared):
    source = opened("fake_pets", prepared, "test")
    examples = list(tfds.load("fake_pets", split="test", data_dir=prepared, shuffle_files=False))
    assert len(examples) == len(source)
    for i, example in enumerate(examples):
        image, label = source.load(i)
        np.testing.assert_array_equal(image, example["image"])
        np.testing.assert_array_equal(label, example["segmentation_mask"][..., 0])


def test_known_datasets_have_their_classes(prepared, monkeypatch):
    monkeypatch.setitem(tfds_source.KNOWN, "fake_pets", tfds_source.KNOWN["oxford_iiit_pet"])
    source = opened("fake_pets", prepared)
    assert source.info.class_names == ("pet", "background", "border")
    np.testing.assert_array_equal(source.load(3)[1], pet(3)[1] - 1)
    assert_same(source, source)
    assert opened("named_masks", prepared).info.class_names == ("nothing", "cat", "dog", "edge")


@pytest.mark.parametrize(
    ("split", "seeds"),
    [
        ("train[:50%]", [0, 1, 2]),
        ("train[4:]+test", [4, 5, 6, 7]),
        ("test+train[:1]", [6, 7, 0]),
        ("val", [6, 7]),
    ],
)
def test_slices_of_splits(prepared, split, seeds):
    source = opened("fake_pets", prepared, split)
    assert len(source) == len(seeds) and len(set(source.names)) == len(seeds)
    for i, seed in enumerate(seeds):
        np.testing.assert_array_equal(source.load(i)[1], pet(seed)[1])


def test_the_index_is_saved_and_reused(prepared, monkeypatch):
    first = opened("named_masks", prepared)
    monkeypatch.setattr(tfds_source, "make_index", lambda *_: pytest.fail("the index was there"))
    monkeypatch.setattr(
        "deeplab_keras.data.files.pairs.check_headers",
        lambda *_: pytest.fail("the headers were known"),
    )
    assert_same(opened("named_masks", prepared), first)


def test_an_unprepared_dataset_is_prepared(tmp_path):
    assert len(opened("fake_pets", tmp_path, "test")) == 2
    assert (tmp_path / "fake_pets/1.0.0/dataset_info.json").is_file()


TROUBLE = {
    "no_such": (
        "train",
        r"^--dataset=tfds:no_such: tensorflow-datasets does not have this dataset \(Dataset "
        r"no_such not found\); see https://",
    ),
    "no_masks": (
        "train",
        r"^--dataset=tfds:no_masks: no feature for masks found; its features: image, label$",
    ),
    "fails_to_prepare": (
        "train",
        r"cannot prepare it in .+/fails_to_prepare/1.0.0 \(the server does not answer\)",
    ),
    "deeplab_camvid": (
        "train",
        r"; if you have its files: python scripts/build_tfds.py --dataset=camvid "
        r"--dataset_dir=FOLDER",
    ),
    "fake_pets": (
        "nights",
        r"the dataset tfds:fake_pets has the splits train, test; slices are written as "
        r"train\[:80%\] or train",
    ),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_errors_are_one_line(name, prepared):
    split, message = TROUBLE[name]
    with raises_line(message) as error:
        opened(name, prepared, split)
    assert "\n" not in as_command_line(error.value)


def test_another_file_format_is_refused(tmp_path):
    tfds.builder("fake_pets", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with raises_line(
        "prepared as array_record files; prepare it as TFRecord: tfds build fake_pets --file",
    ):
        opened("fake_pets", tmp_path)


# --- Our builders, and all three ways to the same batch ---

ALL = {
    "voc2012": ("train", "val", "trainaug"),
    "ade20k": ("train", "val"),
    "ade20k_151": ("train", "val"),
    "cityscapes": ("train", "val", "train_extra"),
    "camvid": ("train", "val", "test"),
}
TREE = {**TREES, "camvid": camvid}


@pytest.mark.parametrize("dataset", [name for name in ALL if name != "ade20k_151"])
def test_files_records_and_tfds_yield_the_same_batch(dataset, tmp_path):
    from deeplab_keras.data.tfds import builders as tfds_builders  # noqa: F401  registers them

    TREE[dataset](tmp_path / "files")
    builder = tfds.builder(f"deeplab_{dataset}", data_dir=tmp_path / "tfds")
    manual = tfds.download.DownloadConfig(manual_dir=tmp_path / "files")
    builder.download_and_prepare(download_config=manual)
    assert set(builder.info.splits) == set(ALL[dataset])
    for split in ALL[dataset]:
        files = open_dataset(config_of(dataset, tmp_path / "files"), split)
        by_tfds = opened(f"deeplab_{dataset}", tmp_path / "tfds", split)
        assert (by_tfds.info, by_tfds.names) == (files.info, files.names)
        for i in range(len(files)):
            for found, expected in zip(by_tfds.load(i), files.load(i), strict=True):
                np.testing.assert_array_equal(found, expected)
    build_records(
        open_dataset(config_of(dataset, tmp_path / "files"), "train"), "train", tmp_path / "records"
    )
    expected = batches(config_of(dataset, tmp_path / "files"), 3)
    assert_equal(batches(config_of("tfrecord", tmp_path / "records"), 3), expected)
    assert_equal(batches(config_of(f"tfds:deeplab_{dataset}", tmp_path / "tfds"), 3), expected)


def test_a_builder_prepares_the_splits_that_exist(tmp_path):
    from deeplab_keras.data.tfds import builders as tfds_builders  # noqa: F401  registers them

    TREE["camvid"](tmp_path / "files")
    for folder in ("test", "testannot"):
        for path in (tmp_path / "files" / folder).iterdir():
            path.unlink()
    builder = tfds.builder("deeplab_camvid", data_dir=tmp_path / "tfds")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "files")
    )
    assert set(builder.info.splits) == {"train", "val"}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ALL)
def test_builders_pass_the_test_of_tfds(dataset, tmp_path):
    """Runs tfds.testing.DatasetBuilderTestCase."""
    import unittest

    from deeplab_keras.data.tfds import builders as tfds_builders

    TREE[dataset.removesuffix("_151")](tmp_path / "files")
    counts = {
        split: len(open_dataset(config_of(dataset, tmp_path / "files"), split))
        for split in ALL[dataset]
    }
    members = {
        "DATASET_CLASS": tfds_builders.BUILDERS[dataset],
        "SPLITS": counts,
        "OVERLAPPING_SPLITS": ["trainaug"],
        "EXAMPLE_DIR": str(tmp_path / "files"),
        "MOCK_OUT_FORBIDDEN_OS_FUNCTIONS": False,
    }
    case = type("BuilderTest", (tfds.testing.DatasetBuilderTestCase,), members)
    result = unittest.TextTestRunner(verbosity=0).run(
        unittest.defaultTestLoader.loadTestsFromTestCase(case)
    )
    assert result.wasSuccessful(), result.errors + result.failures


def test_the_script_builds_ours(tmp_path, capsys):
    TREE["camvid"](tmp_path / "files")
    build = script("build_tfds.py")
    options = ("--dataset=camvid", f"--dataset_dir={tmp_path / 'files'}")
    quiet = (f"--data_dir={tmp_path / 'quiet'}", "--quiet", f"--summary={tmp_path}/summary.json")
    assert build(*options, *quiet) == 0 and capsys.readouterr().err == ""
    counts = json.loads((tmp_path / "summary.json").read_text())["counts"]
    assert counts == {"train": 1, "val": 1, "test": 1}
    assert (
        build(
            "--dataset=camvid",
            f"--dataset_dir={tmp_path / 'files'}",
            f"--data_dir={tmp_path / 'tfds'}",
        )
        == 0
    )
    line = f"{tmp_path / 'tfds/deeplab_camvid/1.0.0'}: deeplab_camvid with train 1, val 1, test 1"
    assert capsys.readouterr().out.splitlines()[-1] == line
    assert len(opened("deeplab_camvid", tmp_path / "tfds", "val")) == 1
    assert build("--dataset=folder", "--dataset_dir=x") == 1
    assert (
        "unknown --dataset 'folder'; known: ade20k, ade20k_151, camvid" in capsys.readouterr().err
    )
    assert (
        build(
            "--dataset=voc2012",
            f"--dataset_dir={tmp_path / 'files'}",
            f"--data_dir={tmp_path / 'other'}",
        )
        == 1
    )
    assert re.search("error: .+: the folder .+ is not in it.+ expected", capsys.readouterr().err)


def test_a_mask_feature_is_found_by_name_or_channel_count():
    class Feature:
        def __init__(self, channels):
            self.shape = (None, None, channels)

    image = type("Image", (Feature,), {})
    find = tfds_source._features
    config = DataConfig(dataset="tfds:x")
    cityscapes = {"image_id": object(), "image_left": image(3), "segmentation_label": image(1)}
    assert find(config, cityscapes) == ("image_left", "segmentation_label")
    assert find(config, {"photo": image(3), "trimap": image(1)}) == ("photo", "trimap")
    assert find(config, {"image": image(3), "annotation": image(3)}) == ("image", "annotation")
    with raises_line("no feature for images found; its features: mask"):
        find(config, {"mask": image(1)})
