"""Records: the same images as the files, records of other tools, interrupted and damaged builds."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, holding, label_blocks, noise, raises_line, script
from data_files import mask, write_dataset
from dataset_trees import TREES, camvid
from PIL import Image
from test_data_pipeline import PAD

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.record_file import scan
from deeplab_keras.data.pipeline import train_dataset, user_error
from deeplab_keras.data.records import build as building
from deeplab_keras.data.records import record_index, tfrecords
from deeplab_keras.data.records.build import build_records, verify_records
from deeplab_keras.data.registry import open_dataset


def config_of(dataset: str, root, **changes) -> DataConfig:
    return DataConfig(
        dataset=dataset,
        dataset_dir=str(root),
        train_crop_size=(16, 24),
        train_batch_size=2,
        **changes,
    )


def assert_same(found, expected) -> None:
    assert found.names == expected.names and len(found) == len(expected)
    load = tf.function(
        found.tf_load, input_signature=[tf.TensorSpec([], tf.int64)], autograph=False
    )
    for i in range(len(expected)):
        for wanted, *results in zip(expected.load(i), found.load(i), load(i), strict=True):
            for result in results:
                np.testing.assert_array_equal(result, wanted)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Your own dataset with three classes, and its records."""
    root = write_dataset(tmp_path_factory.mktemp("photos"), count=7)
    (root / "classes.txt").write_text("wall\nfloor #0a0b0c\nlamp")
    build_records(
        open_dataset(config_of("folder", root), "train"), "train", root / "records", num_shards=3
    )
    return root


@pytest.fixture
def records(photos, tmp_path):
    """A copy of the records to damage."""
    return shutil.copytree(photos / "records", tmp_path / "records")


# --- Building and reading ---


@pytest.mark.parametrize("dataset", ["voc2012", "ade20k", "cityscapes", "camvid"])
def test_records_equal_the_files(dataset, tmp_path):
    {**TREES, "camvid": camvid}[dataset](tmp_path / "files")
    files = open_dataset(config_of(dataset, tmp_path / "files"), "train")
    built = build_records(files, "train", tmp_path / "records")
    assert built.pairs == len(files) and built.shards == len(files)  # fewer than four pairs
    for name in ("tfrecord", dataset):
        source = open_dataset(config_of(name, tmp_path / "records"), "train")
        assert source.info == files.info and source.checked and all(map(all, source.plain))
        assert_same(source, files)


def test_files_that_decoders_read_differently_are_stored_as_png(tmp_path):
    root = write_dataset(tmp_path / "photos", count=4)
    images, labels = root / "images/train", root / "labels/train"
    Image.open(images / "pic_0.jpg").convert("CMYK").save(images / "pic_0.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (21, 32)).astype(np.uint16)).save(
        images / "pic_1.png"
    )
    (images / "pic_1.jpg").unlink()
    Image.fromarray(mask(22, 34, ids=(0, 1, 2))).convert("P").save(labels / "pic_2.png")
    (root / "classes.txt").write_text("a\nb\nc")
    source = open_dataset(config_of("folder", root), "train")
    build_records(source, "train", tmp_path / "records", num_shards=2)
    found = open_dataset(config_of("tfrecord", tmp_path / "records"), "train")
    assert_same(found, source)
    features = [
        tf.train.Example.FromString(record).features.feature
        for path in found.files
        for _, record in scan(path)
    ]
    assert [f["image/format"].bytes_list.value[0] for f in features] == [
        b"png",
        b"png",
        b"jpeg",
        b"jpeg",
    ]
    assert features[3]["image/encoded"].bytes_list.value[0] == (images / "pic_3.jpg").read_bytes()


def test_records_of_synthetic_images_and_archives(tmp_path):
    scenes = open_dataset(DataConfig(train_samples=3, synthetic_size=(24, 32)), "train")
    build_records(scenes, "train", tmp_path / "scenes")
    assert_same(open_dataset(config_of("tfrecord", tmp_path / "scenes"), "train"), scenes)
    TREES["voc2012"](tmp_path / "voc")
    shutil.make_archive(str(tmp_path / "VOC"), "zip", tmp_path / "voc")
    zipped = open_dataset(config_of("voc2012", tmp_path / "VOC.zip"), "train")
    build_records(zipped, "train", tmp_path / "records")
    assert_same(open_dataset(config_of("voc2012", tmp_path / "records"), "train"), zipped)


# --- Compatibility with the official tools ---


def official_record(
    name: str, image: bytes, label: bytes, size: tuple[int, int], image_format: bytes = b"jpeg"
) -> bytes:
    """Returns a record as build_data.image_seg_to_tfexample writes it."""

    def texts(value: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def number(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {
        "image/encoded": texts(image),
        "image/filename": texts(name.encode()),
        "image/format": texts(image_format),
        "image/height": number(size[0]),
        "image/width": number(size[1]),
        "image/channels": number(3),
        "image/segmentation/class/encoded": texts(label),
        "image/segmentation/class/format": texts(b"png"),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


Arrays = list[tuple[np.ndarray, np.ndarray]]


def write_official(
    folder, split: str, names: list[str], classes: int, shards: int = 2, **options
) -> Arrays:
    folder.mkdir(exist_ok=True)
    pairs, encoded = [], []
    for seed, name in enumerate(names):
        image = noise(20, 28, 3, seed=seed).astype(np.uint8)
        label = label_blocks(1, 20, 28, classes=classes, seed=seed, **options)[0].astype(np.uint8)
        pair = (
            tf.io.encode_jpeg(image, quality=95).numpy(),
            tf.io.encode_png(label[..., None]).numpy(),
        )
        pairs.append((tf.io.decode_jpeg(pair[0], dct_method="INTEGER_ACCURATE").numpy(), label))
        encoded.append(official_record(name, *pair, (20, 28)))
    for shard in range(shards):
        with tf.io.TFRecordWriter(
            str(folder / f"{split}-{shard:05d}-of-{shards:05d}.tfrecord")
        ) as writer:
            for record in encoded[
                shard * len(encoded) // shards : (shard + 1) * len(encoded) // shards
            ]:
                writer.write(record)
    return pairs


def test_official_records_are_read_by_dataset_name(tmp_path):
    names = [
        "./ADE20K/images/training/ADE_train_00000002.jpg",
        "x/ADE_train_00000001.jpg",
        "a/b.jpg",
        "c/b.jpg",
    ]
    pairs = write_official(tmp_path / "ade", "train", names, 151, ignore_label=0)
    source = open_dataset(config_of("ade20k_151", tmp_path / "ade"), "train")
    assert (
        source.names == ("ADE_train_00000002", "ADE_train_00000001", "b", "b_2")
        and source.info.num_classes == 151
    )
    for found, expected in zip(map(source.load, range(4)), pairs, strict=True):
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    fewer = open_dataset(config_of("ade20k", tmp_path / "ade"), "train")
    for i, (_, label) in enumerate(pairs):
        np.testing.assert_array_equal(fewer.load(i)[1], np.where(label == 0, 255, label - 1))
    assert_same(fewer, fewer)


SPLITS = [("pascal_voc_seg", 21, "train_aug", "trainaug"), ("cityscapes", 19, "val_fine", "val")]


@pytest.mark.parametrize(("dataset", "classes", "split", "asked"), SPLITS)
def test_official_splits_have_two_names(dataset, classes, split, asked, tmp_path):
    pairs = write_official(tmp_path / "records", split, ["p", "q", "r"], classes)
    for name in (split, asked):
        source = open_dataset(config_of(dataset, tmp_path / "records"), name)
        np.testing.assert_array_equal(source.load(2)[1], pairs[2][1])


def test_ade20k_records_support_both_conventions(tmp_path):
    masks = TREES["ade20k"](tmp_path / "files")
    for built, asked in (("ade20k", "ade20k_151"), ("ade20k_151", "ade20k")):
        source = open_dataset(config_of(built, tmp_path / "files"), "val")
        build_records(source, "val", tmp_path / built)
        expected = open_dataset(config_of(asked, tmp_path / "files"), "val")
        found = open_dataset(config_of(asked, tmp_path / built), "val")
        assert found.info == expected.info and masks["ADE_val_00000001"].max() > 100
        assert_same(found, expected)


def test_the_official_reader_reads_ours(photos):
    """Parses as the official data_generator.py: features with defaults, decoder by content."""
    source = open_dataset(config_of("folder", photos), "train")
    text, number = tf.io.FixedLenFeature((), tf.string, ""), tf.io.FixedLenFeature((), tf.int64, 0)
    features = {
        "image/encoded": text,
        "image/filename": text,
        "image/format": tf.io.FixedLenFeature((), tf.string, "jpeg"),
        "image/height": number,
        "image/width": number,
        "image/segmentation/class/encoded": text,
        "image/segmentation/class/format": tf.io.FixedLenFeature((), tf.string, "png"),
    }
    # The official reader lists the files SPLIT-*.
    paths = tf.data.Dataset.list_files(str(photos / "records/train-*"), shuffle=False)
    parsed = [
        tf.io.parse_single_example(record, features) for record in tf.data.TFRecordDataset(paths)
    ]
    assert len(parsed) == 7
    for i, values in enumerate(parsed):
        image, label = source.load(i)
        assert values["image/filename"].numpy().decode() == source.names[i]
        assert (values["image/height"], values["image/width"]) == label.shape
        decoded = tf.io.decode_jpeg(
            values["image/encoded"], channels=3, dct_method="INTEGER_ACCURATE"
        )
        np.testing.assert_array_equal(decoded, image)
        np.testing.assert_array_equal(
            tf.io.decode_png(values["image/segmentation/class/encoded"], channels=1)[..., 0], label
        )


def test_palette_masks_in_records_of_other_tools_keep_their_ids(tmp_path):
    write_official(tmp_path / "records", "train", ["p", "q"], 21)
    label = label_blocks(1, 20, 28, classes=21)[0].astype(np.uint8)
    picture = Image.fromarray(label).convert("P")
    picture.putpalette([255 - i // 3 for i in range(768)])
    picture.save(tmp_path / "mask.png")
    image = tf.io.encode_jpeg(noise(20, 28, 3).astype(np.uint8)).numpy()
    with tf.io.TFRecordWriter(str(tmp_path / "records/val-00000-of-00001.tfrecord")) as writer:
        writer.write(official_record("p", image, (tmp_path / "mask.png").read_bytes(), (20, 28)))
    source = open_dataset(config_of("voc2012", tmp_path / "records"), "val")
    np.testing.assert_array_equal(source.load(0)[1], label)
    assert_same(source, source)


# --- The index ---


def test_the_index_is_built_once_and_again_for_other_files(tmp_path, monkeypatch):
    write_official(tmp_path / "records", "train", ["p", "q", "r"], 21)
    config = config_of("voc2012", tmp_path / "records")
    first = open_dataset(config, "train")
    with monkeypatch.context() as patch:
        patch.setattr(tfrecords, "make_index", lambda *_: pytest.fail("the index was there"))
        patch.setattr(
            "deeplab_keras.data.files.pairs.check_headers",
            lambda *_: pytest.fail("the headers were known"),
        )
        assert_same(open_dataset(config, "train"), first)
    write_official(tmp_path / "records", "train", ["p", "q", "r", "s"], 21)
    assert len(open_dataset(config, "train")) == 4
    (tmp_path / "records" / "train.index.npz").write_bytes(b"not an index")
    assert open_dataset(config, "train").names == ("p", "q", "r", "s")


def test_without_its_index_a_built_split_is_indexed_again(records, photos):
    (records / "train.index.npz").unlink()
    assert_same(
        open_dataset(config_of("tfrecord", records), "train"),
        open_dataset(config_of("folder", photos), "train"),
    )
    assert (records / "train.index.npz").is_file()


def test_names_and_offsets_survive_saving(tmp_path):
    sizes = np.array([5, 2**33], np.int64)
    made = record_index.RecordIndex(
        ("a", "b"),
        (21, 2**33 + 16),
        ("straße/ä b", "plain"),
        np.array([0, 1], np.int32),
        sizes * 0,
        sizes,
        np.ones((2, 2), bool),
    )
    for name, length in zip(made.files, made.file_bytes, strict=True):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, length)  # a sparse file
    made.save(tmp_path / "index.npz")
    found = record_index.RecordIndex.load(tmp_path / "index.npz", [tmp_path / "a", tmp_path / "b"])
    assert found.names == made.names and found.looks()[1].plain == (True, True)
    np.testing.assert_array_equal(found.sizes, sizes)


# --- Building ---


class Stops:
    """A source that fails to load one pair."""

    def __init__(self, source, at: int, error: BaseException) -> None:
        self.source, self.at, self.error = source, at, error

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def load(self, index):
        if index == self.at:
            raise self.error
        return self.source.load(index)


def test_an_interrupted_build_is_resumed(photos, tmp_path, capsys):
    source = open_dataset(config_of("folder", photos), "train")
    folder = tmp_path / "records"
    stopped = Stops(source, 5, UserError("pic_5.jpg: cannot be decoded"))
    with raises_line("^pic_5.jpg: cannot be decoded$"):
        build_records(stopped, "train", folder, num_shards=7, threads=1)
    done = sorted(folder.glob("train-*"))
    assert [path.name for path in done] == [f"train-0000{i}-of-00007.tfrecord" for i in range(5)]
    assert not list(folder.glob("*.json")) and not list(folder.glob(".*.tmp"))
    with raises_line("there is no manifest|is missing"):
        open_dataset(config_of("tfrecord", folder), "train")
    times = [path.stat().st_mtime_ns for path in done]
    (folder / ".train-00005-of-00007.tfrecord.123.tmp").write_bytes(b"half")  # as after SIGKILL
    stopped.at = -1  # the same source, as another kind of source would be another build
    build_records(stopped, "train", folder, num_shards=7)
    assert [path.stat().st_mtime_ns for path in done] == times, (
        "the finished files are not written again"
    )
    assert_same(open_dataset(config_of("tfrecord", folder), "train"), source)
    assert not list(folder.glob(".train*"))
    assert "writing train 7/7" in capsys.readouterr().err


def test_an_interrupted_build_leaves_nothing_half_written(photos, tmp_path):
    source = Stops(open_dataset(config_of("folder", photos), "train"), 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build_records(source, "train", tmp_path, num_shards=2, threads=2)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] in (
        [],
        ["train-00001-of-00002.tfrecord"],
    )


def test_building_twice_writes_once(photos, records, monkeypatch):
    source = open_dataset(config_of("folder", photos), "train")
    monkeypatch.setattr(building, "record_of", lambda *_: pytest.fail("written again"))
    assert build_records(source, "train", records, num_shards=3).pairs == 7
    with raises_line(
        (
            "records of the split 'train' built from other files or with another number of shards; "
            "--ov"
        ),
    ):
        build_records(source, "train", records, num_shards=2)
    monkeypatch.undo()
    assert build_records(source, "train", records, num_shards=2, overwrite=True).shards == 2
    assert sorted(path.name for path in records.glob("train-*")) == [
        f"train-0000{i}-of-00002.tfrecord" for i in (0, 1)
    ]


def test_a_missing_or_truncated_shard_is_written_again(photos, records):
    source = open_dataset(config_of("folder", photos), "train")
    files = sorted(records.glob("train-*"))
    contents = [path.read_bytes() for path in files]
    time = files[1].stat().st_mtime_ns
    files[0].unlink()
    files[2].write_bytes(contents[2][:100])
    build_records(source, "train", records, num_shards=3)
    assert [path.read_bytes() for path in files] == contents and files[1].stat().st_mtime_ns == time
    assert (
        verify_records(records, "train", files) == 7 and not (records / ".train.building").exists()
    )
    assert_same(open_dataset(config_of("tfrecord", records), "train"), source)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_concurrent_builds_do_not_interfere(overwrite, photos, tmp_path):
    """A second build is refused until the first one ends, even if the first one is killed."""
    source = open_dataset(config_of("folder", photos), "train")
    lock = tmp_path / ".train.lock"
    with holding(lock) as other:
        with raises_line(
            "another process is building the split 'train' there; wait for it, or stop it and run",
        ):
            build_records(source, "train", tmp_path, num_shards=2, overwrite=overwrite)
        assert [*tmp_path.rglob("*")] == [lock]
        assert build_records(source, "val", tmp_path, num_shards=2).pairs == 7
        other.kill()
    build_records(source, "train", tmp_path, num_shards=2, overwrite=overwrite)
    assert not lock.exists() and not (tmp_path / ".train.building").exists()
    assert len(open_dataset(config_of("tfrecord", tmp_path), "train")) == 7


def test_a_build_that_waited_for_the_lock_finds_the_records(photos, tmp_path, monkeypatch):
    source = open_dataset(config_of("folder", photos), "train")
    locked = building._Build.locked

    @contextlib.contextmanager
    def after_the_other(build):
        monkeypatch.setattr(building._Build, "locked", locked)
        build_records(source, "train", tmp_path, num_shards=2)
        monkeypatch.setattr(building, "record_of", lambda *_: pytest.fail("written again"))
        with locked(build):
            yield

    monkeypatch.setattr(building._Build, "locked", after_the_other)
    assert build_records(source, "train", tmp_path, num_shards=2).pairs == 7
    assert not (tmp_path / ".train.building").exists()


def test_the_next_build_removes_files_of_a_killed_one(photos, tmp_path):
    source = open_dataset(config_of("folder", photos), "train")
    for shard in ("train-00001-of-00002", "train-00003-of-00024", "val-00000-of-00002"):
        (tmp_path / f".{shard}.tfrecord.17.tmp").write_bytes(b"half")
    build_records(source, "train", tmp_path, num_shards=2)
    assert [path.name for path in tmp_path.glob(".*")] == [".val-00000-of-00002.tfrecord.17.tmp"]


def test_records_of_other_splits_only(records, tmp_path):
    """The error lists the splits under any dataset name. Files next to records are read."""
    for name in ("tfrecord", "folder", "voc2012", "camvid"):
        with raises_line(
            "it has no files val-00000-of-NNNNN.tfrecord; available splits: train; scripts/b",
        ):
            open_dataset(config_of(name, records), "val")
    write_dataset(records, "val")
    (records / "classes.txt").write_text("wall\nfloor\nlamp\n")
    assert len(open_dataset(config_of("folder", records), "val")) == 3


def test_other_records_are_not_overwritten(photos, tmp_path):
    write_official(tmp_path / "records", "train", ["p", "q"], 21)
    before = (tmp_path / "records/train-00000-of-00002.tfrecord").read_bytes()
    source = open_dataset(config_of("folder", photos), "train")
    with raises_line(
        r"it holds other records \(train-0000\d-of-00002.tfrecord\) of the split 'train'",
    ):
        build_records(source, "train", tmp_path / "records")
    assert (tmp_path / "records/train-00000-of-00002.tfrecord").read_bytes() == before


def test_a_full_disk_while_building(photos, tmp_path, monkeypatch):
    class Full:
        def __init__(self, path):
            open(path, "wb").write(b"half")

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, record):
            raise tf.errors.ResourceExhaustedError(None, None, "/tmp/x; No space left on device")

    monkeypatch.setattr(tf.io, "TFRecordWriter", Full)
    source = open_dataset(config_of("folder", photos), "train")
    with raises_line(
        r"train-0000\d-of-00004.tfrecord: cannot be written \(No space left on device\)",
    ):
        build_records(source, "train", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_data_read_back_must_equal_the_data_written(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        building,
        "scan",
        lambda path: ((offset, record[:-1] + b"x") for offset, record in scan(path)),
    )
    with raises_line("the data read back differs from the data written"):
        build_records(open_dataset(config_of("folder", photos), "train"), "train", tmp_path)


def test_the_manifest_describes_the_records(photos):
    manifest = json.loads((photos / "records/train.manifest.json").read_text())
    assert manifest["pairs"] == 7 and [shard["pairs"] for shard in manifest["shards"]] == [2, 2, 3]
    assert manifest["dataset"]["class_names"] == ["wall", "floor", "lamp"] and manifest["dataset"][
        "palette"
    ][1] == [10, 11, 12]
    files = sorted((photos / "records").glob("train-*"))
    assert verify_records(photos / "records", "train", files) == 7


# --- Errors ---


def flip_a_byte(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_verify_detects_a_changed_byte(records):
    files = sorted(records.glob("train-*"))
    flip_a_byte(files[1], 300)
    with raises_line(
        re.escape(
            f"{files[1]}: not a TFRecord file from byte 0 on; it is damaged or truncated there"
        ),
    ):
        verify_records(records, "train", files)


def test_a_record_damaged_during_training_is_named(records):
    flip_a_byte(records / "train-00001-of-00003.tfrecord", 300)
    config = config_of("tfrecord", records)
    source = open_dataset(config, "train")
    with pytest.raises(tf.errors.OpError) as error:
        list(train_dataset(source, config, PAD).take(4))
    message = as_command_line(user_error(error.value, source))
    assert re.fullmatch(
        rf".+/{SHARD}: the record 'pic_2' at byte 0 is damaged; build .+--skip_broken_files",
        message,
    )


TROUBLE = {
    "no dir": (
        {"dataset_dir": None},
        ("--dataset=tfrecord requires --dataset_dir=FOLDER, the folder of the record files"),
    ),
    "no split": (
        {"split": "val"},
        (
            "it has no files val-00000-of-NNNNN.tfrecord; available splits: train; "
            "scripts/build_tfrec"
        ),
    ),
    "other dataset": (
        {"dataset": "voc2012"},
        "--dataset=voc2012: the records in .+ hold the 3 classes of 'photos.*'; --da",
    ),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_wrong_flags_are_one_error(case, records):
    changes, message = TROUBLE[case]
    values = {"dataset": "tfrecord", "dataset_dir": str(records), **changes}
    split = values.pop("split", "train")
    with raises_line(message) as error:
        open_dataset(DataConfig(**values), split)
    assert "\n" not in as_command_line(error.value)


def harm_missing(folder):
    (folder / "train-00001-of-00003.tfrecord").unlink()


def harm_mixed(folder):
    shutil.copy(folder / "train-00001-of-00003.tfrecord", folder / "train-00001-of-00004.tfrecord")


def harm_cut(folder):
    path = folder / "train-00001-of-00003.tfrecord"
    path.write_bytes(path.read_bytes()[:-100])


def harm_manifest(folder):
    (folder / "train.manifest.json").write_text('{"shards": 5}')


def harm_format(folder):
    path = folder / "train.manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))


def foreign(folder):
    (folder / "train.manifest.json").unlink()
    (folder / "train.index.npz").unlink()
    (folder / "classes.txt").write_text("a\nb\nc")


def harm_no_manifest(folder):
    foreign(folder)
    (folder / "classes.txt").unlink()


def harm_foreign_cut(folder):
    foreign(folder)
    harm_cut(folder)


def harm_compressed(folder):
    foreign(folder)
    path = folder / "train-00001-of-00003.tfrecord"
    path.write_bytes(gzip.compress(path.read_bytes()))


def harm_other_records(folder):
    foreign(folder)
    with tf.io.TFRecordWriter(str(folder / "train-00001-of-00003.tfrecord")) as writer:
        writer.write(b"\xff\xff not an example")


def harm_features(folder):
    foreign(folder)
    with tf.io.TFRecordWriter(str(folder / "train-00001-of-00003.tfrecord")) as writer:
        example = tf.train.Example()
        example.features.feature["image/encoded"].bytes_list.value.append(b"x")
        writer.write(example.SerializeToString())


def harm_empty(folder):
    foreign(folder)
    for path in folder.glob("train-*"):
        path.write_bytes(b"")


def harm_classes(folder):
    foreign(folder)
    (folder / "classes.txt").write_text("a\nb")


SHARD = "train-00001-of-00003.tfrecord"
HARM = {
    harm_missing: (
        r"train-\*\.tfrecord: number 1 of 3 is missing; build or download the "
        r"records again"
    ),
    harm_mixed: r"train-\*\.tfrecord: there are files of 3 and of 4; build",
    harm_cut: (
        rf"{SHARD}: it has \d+ bytes, but the manifest says \d+ bytes; build or copy it "
        rf"again"
    ),
    harm_manifest: r"train\.manifest\.json: cannot be read as a manifest \(.+\); build the "
    r"records again",
    harm_format: r"train\.manifest\.json: its format is 9, but this version reads format 1",
    harm_no_manifest: r"the classes of records without a manifest are unknown; give the "
    r"dataset's name \(.+\) or",
    harm_foreign_cut: (
        rf"{SHARD}: not a TFRecord file from byte \d\d+ on; it is damaged or "
        rf"truncated there"
    ),
    harm_compressed: rf"{SHARD}: not a TFRecord file from byte 0 on; it is compressed; unpack it "
    r"with gunzip",
    harm_other_records: rf"{SHARD}: its records are not tf.train.Example protos; give the "
    rf"records of a dataset",
    harm_features: rf"{SHARD}: its record 0 has no feature 'image/segmentation/class/encoded'; "
    r"its features: image/encoded",
    harm_empty: r"it has no records \(and 2 more like it\)",
    harm_classes: r"/pic_0#image/segmentation/class/encoded: the mask holds ids outside the "
    r"classes: 2; allowed",
}


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_damaged_records_are_one_error(harm, records):
    harm(records)
    with raises_line(HARM[harm]) as error:
        open_dataset(config_of("tfrecord", records), "train")
    assert "\n" not in as_command_line(error.value)


def test_broken_images_in_records_are_skipped_by_flag(tmp_path):
    write_official(tmp_path / "records", "train", ["p", "q"], 21, shards=1)
    path = tmp_path / "records/train-00000-of-00001.tfrecord"
    good = [record for _, record in scan(str(path))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in (
            good[0],
            official_record("bad", b"\xff\xd8\xff no", b"no png", (20, 28)),
            good[1],
        ):
            writer.write(record)
    config = config_of("voc2012", tmp_path / "records")
    with raises_line(r"/bad#image/encoded: cannot be decoded"):
        open_dataset(config, "train")
    source = open_dataset(config.replace(skip_broken_files=True), "train")
    assert source.names == ("p", "q")
    assert_same(source, source)
    assert_same(source.take([1]), source.take([1]))


# --- The script ---


def test_the_script_builds_and_verifies(photos, tmp_path, capsys):
    build = script("build_tfrecords.py")
    output = f"--output_dir={tmp_path}"
    arguments = [
        "--dataset=folder",
        f"--dataset_dir={photos}",
        output,
        "--splits=train",
        "--num_shards=2",
    ]
    assert build(*arguments) == 0
    assert re.search(rf"{tmp_path}/train: 7 pairs in 2 files, 0\.\d MB", capsys.readouterr().out)
    assert build(output, "--splits=train", "--verify") == 0
    assert f"{tmp_path}/train: 7 pairs in 2 files match the manifest" in capsys.readouterr().out
    assert build(output, "--verify", "--splits=val") == 1
    assert "no records of the split 'val' here" in capsys.readouterr().err
    assert build("--splits=train") == 1
    assert "--output_dir is required: a folder" in capsys.readouterr().err
