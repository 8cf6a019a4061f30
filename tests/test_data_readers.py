"""The data readers on damaged and malicious files.

They raise a one-line error or rebuild the file, without a crash or excessive memory.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import pathlib
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, raises_line
from data_files import CLASSES, mask, write_dataset, write_mat
from PIL import Image

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.annotations.labelme import draw_labelme, labels_of
from deeplab_keras.data.annotations.masks import convert_masks
from deeplab_keras.data.files.archives import Archive, read_bytes
from deeplab_keras.data.files.reading import read_label
from deeplab_keras.data.files.record_file import scan
from deeplab_keras.data.pipeline import user_error
from deeplab_keras.data.records.build import build_records
from deeplab_keras.data.records.record_index import RecordIndex
from deeplab_keras.data.registry import open_dataset

BOMB = 160 << 20  # bytes of zeros, compressed to 160 kB


def one_line(error: pytest.ExceptionInfo) -> str:
    text = as_command_line(error.value)
    assert "\n" not in text
    return text


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    root = write_dataset(tmp_path / "photos")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


def folder(root: pathlib.Path, **changes: object) -> DataConfig:
    return DataConfig(**({"dataset": "folder", "dataset_dir": str(root)} | changes))


# --- Records ---


@pytest.fixture
def records(photos, tmp_path) -> pathlib.Path:
    build_records(
        open_dataset(folder(photos), "train"), "train", tmp_path / "records", num_shards=2
    )
    return tmp_path / "records"


def crc(data: bytes) -> bytes:
    """The masked CRC-32C of a TFRecord, computed bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@pytest.mark.parametrize("length", [1 << 60, (1 << 64) - 1, 1 << 33])
@pytest.mark.parametrize("first", [True, False])
def test_a_record_of_impossible_length_allocates_no_memory(length, first, tmp_path):
    """The checksum is correct, so TensorFlow itself would try to allocate it and crash."""
    good = struct.pack("<Q", 3)
    record = good + crc(good) + b"abc" + crc(b"abc")
    header = struct.pack("<Q", length)
    (tmp_path / "a.tfrecord").write_bytes(record * (not first) + header + crc(header) + bytes(40))
    with pytest.raises(UserError) as error:
        list(scan(str(tmp_path / "a.tfrecord")))
    at = 0 if first else len(record)
    assert (
        f"a.tfrecord: not a TFRecord file from byte {at} on; it is damaged or truncated there"
        in one_line(error)
    )
    (tmp_path / "b.tfrecord").write_bytes(record * 2)
    assert list(scan(str(tmp_path / "b.tfrecord"))) == [(0, b"abc"), (len(record), b"abc")]


def changed(path: pathlib.Path, **fields: object) -> None:
    with np.load(path) as stored:
        arrays = {name: np.array(stored[name]) for name in stored.files}
    for name, value in fields.items():
        arrays[name] = np.full_like(arrays[name], value) if np.isscalar(value) else value
    np.savez_compressed(path.open("wb"), **arrays)


SPOILED = {
    "sizes of 2^60": lambda path: changed(path, sizes=1 << 60),
    "negative sizes": lambda path: changed(path, sizes=-1),
    "negative offsets": lambda path: changed(path, offsets=-8),
    "every record the first one": lambda path: changed(path, offsets=0),
    "another file": lambda path: changed(path, file_of=7),
    "too few names": lambda path: changed(path, names=np.frombuffer(b"a\0b", np.uint8)),
    "objects": lambda path: changed(path, offsets=np.array([print], object)),
    "fractions": lambda path: changed(path, offsets=np.zeros(3, np.float32)),
    "a field less": lambda path: np.savez(path.open("wb"), files=np.zeros(3)),
    "an array of a terabyte": lambda path: claims(path, (1 << 37,)),
    "no zip file": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "empty": lambda path: path.write_bytes(b""),
}  # fmt: skip


def claims(path: pathlib.Path, shape: tuple[int, ...]) -> None:
    """Changes the shape in the header of the first array."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(iter(members))
    header = (
        repr({"descr": "<i8", "fortran_order": False, "shape": shape}) + " " * 20 + "\n"
    ).encode()
    members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_damaged_index_is_built_again(records, caplog):
    config, path = folder(records, dataset="tfrecord"), records / "train.index.npz"
    source, good = open_dataset(config, "train"), path.read_bytes()
    expected = [source.load(index) for index in range(3)]
    for name, spoil in SPOILED.items():
        spoil(path)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
            again = open_dataset(config, "train")
        assert "index of records" in caplog.text and "it is built again" in caplog.text, name
        for index in range(3):
            for found, wanted in zip(again.load(index), expected[index], strict=True):
                np.testing.assert_array_equal(found, wanted, name)
        assert RecordIndex.load(path, sorted(records.glob("*.tfrecord"))) is not None, name
        path.write_bytes(good)


def test_flipped_bits_of_an_index_change_nothing(records):
    path, files = records / "train.index.npz", sorted(records.glob("*.tfrecord"))
    good, data = RecordIndex.load(path, files), path.read_bytes()
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        found = RecordIndex.load(path, files)
        assert found is None or (found.names, found.offsets.tolist()) == (
            good.names,
            good.offsets.tolist(),
        )


MANIFESTS = {
    "nested too deeply": "[" * 200_000,
    "a list": "[]",
    "classes that are a number": '{"format": 1, "shards": [], "dataset": {"name": "x", '
    '"class_names": 3, "palette": []}}',
    "shards that are text": '{"format": 1, "shards": "all", "dataset": {}}',
    "no text": "\ufffd",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_damaged_manifests(name, records):
    (records / "train.manifest.json").write_text(MANIFESTS[name], encoding="utf-8")
    with pytest.raises(UserError) as error:
        open_dataset(folder(records, dataset="tfrecord"), "train")
    assert "train.manifest.json" in one_line(
        error
    ) and "build the records again" in as_command_line(error.value)


def test_flipped_bits_of_a_cached_pair_are_detected_by_load_and_tf_load(photos, tmp_path):
    source = open_dataset(folder(photos, cache_dir=str(tmp_path / "cache")), "train")
    path = next((tmp_path / "cache").rglob("00000001.raw"))
    data, expected = path.read_bytes(), source.load(1)
    for place in (0, 5, 9, 13, 17, 200, len(data) - 3):
        flipped = bytearray(data)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(UserError) as error:
            source.load(1)
        assert "00000001.raw: cannot be read" in one_line(error)
        with pytest.raises(tf.errors.OpError):
            source.tf_load(tf.constant(1))
    path.write_bytes(data)
    for found, again, wanted in zip(
        source.load(1), source.tf_load(tf.constant(1)), expected, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(again, wanted)


# --- Archives ---


def test_names_in_a_zip_are_compared_with_those_in_its_directory(photos, tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(photos.rglob("*.*")):
            archive.write(file, file.relative_to(photos))
    data = path.read_bytes()
    # The last occurrence is in the directory. Without this file, the classes would be inferred.
    place = data.rindex(b"classes.txt")
    path.write_bytes(data[:place] + b"c1asses.txt" + data[place + 11 :])
    with pytest.raises(UserError) as error:
        open_dataset(folder(path), "train")
    assert "the name 'c1asses.txt' in the directory differs from the one in the file" in one_line(
        error
    )


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images/train/a.png", "w") as member,
    ):
        for _ in range(20):
            member.write(bytes(8 << 20))
    with raises_line("its member 'images/train/a.png' has 167772160 bytes, too many for an image"):
        Archive(str(path))


def test_a_member_in_ten_thousand_folders(tmp_path):
    path = tmp_path / "deep.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("/".join(["d"] * 10_000) + "/a.png", b"x")
    with pytest.raises(UserError) as error:
        Archive(str(path))
    assert "is nested 10001 levels deep" in one_line(error)


def test_an_unknown_compression_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"abc")
    data = bytearray(path.read_bytes())
    data[8], data[data.rindex(b"PK\x01\x02") + 10] = 77, 77
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged in the archive"):
        read_bytes(f"{path}/a.png")


# --- MATLAB and labelme ---


def test_a_matlab_bomb_is_refused(tmp_path):
    packed = zlib.compress(struct.pack("<II", 14, BOMB) + bytes(BOMB))
    (tmp_path / "a.mat").write_bytes(
        b"MATLAB 5.0 MAT-file".ljust(126) + b"IM" + struct.pack("<II", 15, len(packed)) + packed
    )
    tracemalloc.start()
    with raises_line(r"a\.mat: cannot be decoded \(its data is too large when unpacked\)"):
        read_label(str(tmp_path / "a.mat"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BOMB / 2


def test_matlab_masks_hold_ids(tmp_path):
    write_mat(tmp_path / "a.mat", mask(20, 30, ids=(0, 1, 20)))
    np.testing.assert_array_equal(read_label(str(tmp_path / "a.mat")), mask(20, 30, ids=(0, 1, 20)))
    data = (tmp_path / "a.mat").read_bytes()
    for place in range(0, len(data), 5):
        (tmp_path / "b.mat").write_bytes(
            data[:place] + bytes([data[place] ^ 0x81]) + data[place + 1 :]
        )
        try:
            read_label(str(tmp_path / "b.mat"))
        except UserError as error:
            assert "\n" not in str(error)


def shapes(path: pathlib.Path, text: str = "", **fields: object) -> str:
    box = {"label": "car", "shape_type": "polygon", "points": [[1, 1], [20, 1], [20, 20]]} | fields
    path.write_text(text or json.dumps({"shapes": [box], "imageHeight": 40, "imageWidth": 60}))
    return str(path)


def big_mask() -> str:
    file = io.BytesIO()
    Image.new("1", (6000, 6000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"text": '{"shapes": ' + "[" * 200_000}, "cannot be read as JSON"),
        ({"points": [[10**400, 1], [2, 2], [3, 3]]}, "cannot be drawn"),
        ({"points": [None, [2, 2], [3, 3]]}, "cannot be drawn"),
        ({"shape_type": ["a\nb"]}, "cannot be drawn"),
        ({"shape_type": "spi\nral"}, "cannot be drawn"),
        ({"shape_type": "mask", "mask": 3}, "cannot be drawn"),
        ({"shape_type": "mask", "mask": "bomb"}, "its mask has 6000x6000 pixels"),
        ({"label": "a\nb"}, "is not a class"),
    ],
)
def test_damaged_labelme_files(fields, says, tmp_path):
    if fields.get("mask") == "bomb":
        fields = fields | {"mask": big_mask()}
    path = shapes(tmp_path / "a.json", **fields)
    with pytest.raises(UserError) as error:
        draw_labelme(path, {"car": 1})
    assert says in one_line(error)


def test_labels_that_are_not_valid_class_names(tmp_path):
    (tmp_path / "json").mkdir()
    path = shapes(tmp_path / "json/a.json", label="car\nroad")
    assert labels_of(path) == {"car\nroad"}
    with pytest.raises(UserError) as error:
        convert_masks("labelme", str(tmp_path / "json"), str(tmp_path / "ids"))
    assert "'car\\nroad', which is not a valid class name" in one_line(error)


# --- Lists ---


@pytest.mark.parametrize(
    "text",
    [
        "image,mask\n" + "a" * 200_000 + ",b.png\n",
        "a.jpg\0,b.png\n",
        "x" * 5000 + ".jpg\t" + "y" * 5000 + ".png\n",
    ],
)
@pytest.mark.parametrize("name", ["mine.csv", "mine.txt"])
def test_lists_with_invalid_names(name, text, photos):
    (photos / name).write_text(text)
    with pytest.raises(UserError) as error:
        open_dataset(folder(photos), name)
    one_line(error)


def test_a_jpeg_that_only_pillow_can_read_is_named(photos):
    """The check before training misses this damage, as Pillow decodes the zeros at the end."""
    path = photos / "images/train/pic_1.jpg"
    path.write_bytes(path.read_bytes()[:-17] + bytes(16) + b"\xd9")
    source = open_dataset(folder(photos), "train")
    with pytest.raises(tf.errors.OpError) as error:
        source.tf_load(tf.constant(1))
    assert f"{path}: TensorFlow cannot decode it (" in one_line_of(user_error(error.value, source))


def one_line_of(error: UserError | None) -> str:
    assert error is not None and "\n" not in str(error)
    return str(error)
