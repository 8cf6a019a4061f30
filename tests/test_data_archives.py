"""Datasets read from their archives: the same pairs as from extracted folders, without writing."""

from __future__ import annotations

import io
import os
import pathlib
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib

import numpy as np
import pytest
import tensorflow as tf
from contracts import SHARED
from data_files import mask, photograph, write_dataset, write_mat
from dataset_trees import TREES, camvid
from PIL import Image

from deeplab_keras.config import DataConfig
from deeplab_keras.data.files import pairs as files
from deeplab_keras.data.files.archives import (
    Archive,
    any_member,
    open_archive,
    read_bytes,
    split_member,
)
from deeplab_keras.data.files.mat import read_mat_segmentation
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.registry import open_dataset

MAKERS = {
    **TREES,
    "camvid": camvid,
    "folder": lambda root: write_dataset(root) and write_dataset(root, "val"),
}


def pack(archive: pathlib.Path, root: pathlib.Path, *folders: str) -> pathlib.Path:
    """Writes folders of root into an archive."""
    paths = sorted(
        path for folder in folders for path in (root / folder).rglob("*") if path.is_file()
    )
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".tar":
        with tarfile.open(archive, "w") as tar:
            for path in paths:
                tar.add(path, f"./{path.relative_to(root)}")
    else:
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in paths:
                stored = zipfile.ZIP_STORED if path.suffix == ".jpg" else zipfile.ZIP_DEFLATED
                zipped.write(path, path.relative_to(root), stored)
    return archive


# Dataset, split -> its archives and the folders in each; "" is --dataset_dir itself.
ARCHIVES = {
    ("voc2012", "train"): {"VOCtrainval_11-May-2012.tar": ("VOCdevkit",)},
    ("pascal_voc_seg", "trainaug"): {
        "VOCtrainval_11-May-2012.tar": (
            "VOCdevkit/VOC2012/JPEGImages",
            "VOCdevkit/VOC2012/SegmentationClass",
            "VOCdevkit/VOC2012/ImageSets",
        ),
        "SegmentationClassAug.zip": ("SegmentationClassAug",),
    },
    ("ade20k", "trainval"): {"ADEChallengeData2016.zip": ("ADEChallengeData2016",)},
    ("ade20k_151", "val"): {"ADEChallengeData2016.zip": ("ADEChallengeData2016",)},
    ("cityscapes", "train"): {
        "leftImg8bit_trainvaltest.zip": ("leftImg8bit",),
        "gtFine_trainvaltest.zip": ("gtFine",),
    },
    ("cityscapes", "train_extra"): {
        "leftImg8bit_trainextra.zip": ("leftImg8bit",),
        "gtCoarse.zip": ("gtCoarse",),
    },
    ("camvid", "val"): {"CamVid.zip": ("val", "valannot")},
    ("folder", "train"): {"": ("images", "labels")},
}


@pytest.mark.parametrize(("dataset", "split"), ARCHIVES)
def test_archives_equal_their_extracted_folders(dataset, split, tmp_path, monkeypatch):
    MAKERS[dataset](tmp_path / "all")
    home = tmp_path / "all/VOCdevkit/VOC2012"
    for name, folders in ARCHIVES[dataset, split].items():
        if "SegmentationClassAug" in folders:  # is distributed as a separate folder
            (home / "SegmentationClassAug").rename(tmp_path / "all/SegmentationClassAug")
        pack(tmp_path / "packed" / (name or "mine.zip"), tmp_path / "all", *folders)
        if "SegmentationClassAug" in folders:
            (tmp_path / "all/SegmentationClassAug").rename(home / "SegmentationClassAug")
    packed = tmp_path / "packed" / ("mine.zip" if dataset == "folder" else "")
    before = sorted(tmp_path.rglob("*"))
    extracted, archived = (
        open_dataset(DataConfig(dataset=dataset, dataset_dir=str(path)), split)
        for path in (tmp_path / "all", packed)
    )
    assert archived.names == extracted.names and len(archived) >= 1
    assert (
        any_member(archived.images)
        and any_member(archived.labels)
        and not any_member(extracted.images)
    )
    graph = tf.function(archived.tf_load, input_signature=[tf.TensorSpec([], tf.int64)])
    for index in range(len(archived)):
        for found, in_graph, expected in zip(
            archived.load(index), graph(index), extracted.load(index), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(in_graph, expected)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is extracted"


def test_an_archive_as_the_folder_or_partly_extracted(tmp_path):
    TREES["cityscapes"](tmp_path)
    TREES["voc2012"](tmp_path)
    pack(tmp_path / "gtFine_trainvaltest.zip", tmp_path, "gtFine")
    (tmp_path / "gtFine").rename(tmp_path / "elsewhere")
    mixed = open_dataset(DataConfig(dataset="cityscapes", dataset_dir=str(tmp_path)), "val")
    assert any_member(mixed.labels) and not any_member(mixed.images)
    mixed.tf_load(tf.constant(0))
    tar = pack(tmp_path / "anything.tar", tmp_path, "VOCdevkit")
    assert len(open_dataset(DataConfig(dataset="voc2012", dataset_dir=str(tar)), "val")) == 2


def test_your_own_dataset_in_an_archive(tmp_path):
    write_dataset(tmp_path / "all" / "photos of Zürich")
    packed = pack(tmp_path / "mine.zip", tmp_path / "all", "photos of Zürich")
    source = open_dataset(DataConfig(dataset="folder", dataset_dir=str(packed)), "train")
    assert source.names == ("pic_0", "pic_1", "pic_2") and source.info.name == "photos of Zürich"
    assert split_member(source.images[0]) == (
        str(packed),
        "photos of Zürich/images/train/pic_0.jpg",
    )


def test_files_of_file_managers_and_links_are_skipped(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/images/._a.jpg", "x")
        archive.writestr("images/a.jpg", "abcdef")
        link = zipfile.ZipInfo("images/passwd.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    archive = Archive(str(path))
    assert archive.children == {"": {"images"}, "images": {"a.jpg"}}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("images/passwd.jpg", tarfile.SYMTYPE),
            ("images/disk", tarfile.BLKTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("images/a.jpg")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"abcdef"))
    assert Archive(str(tmp_path / "a.tar")).children == {"": {"images"}, "images": {"a.jpg"}}
    for name in ("a.zip", "a.tar"):
        assert read_bytes(str(tmp_path / name / "images/a.jpg"), 3) == b"abc"
        with pytest.raises(FileNotFoundError):
            read_bytes(str(tmp_path / name / "images/b.jpg"))


def test_hard_links_are_followed_and_symbolic_links_reported(tmp_path, caplog):
    """Hard links are second names of existing data. Symbolic links may lead anywhere."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("./images/a.jpg")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"abcdef"))
        for name, kind, to in (
            ("b.jpg", tarfile.LNKTYPE, "./images/a.jpg"),
            ("c.jpg", tarfile.LNKTYPE, "images/gone.jpg"),
            ("d.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("e.jpg", tarfile.SYMTYPE, "a.jpg"),
        ):
            member = tarfile.TarInfo(f"./images/{name}")
            member.type, member.linkname = kind, to
            tar.addfile(member)
    assert Archive(str(tmp_path / "a.tar")).children["images"] == {"a.jpg", "b.jpg"}
    assert read_bytes(str(tmp_path / "a.tar/images/b.jpg")) == b"abcdef"
    said = [record.getMessage() for record in caplog.records]
    warning = (
        "2 symbolic links in it are not followed, such as ./images/d.jpg; extract the archive "
        "if they lead to images or masks"
    )
    assert said[:1] == [f"{tmp_path}/a.tar: {warning}"]


@pytest.mark.parametrize("flagged", [True, False])
def test_names_in_zips_of_macos(flagged, tmp_path):
    """Names are decomposed UTF-8 without the UTF-8 flag, but lists have composed accents."""
    write_dataset(tmp_path / "flat", count=1)
    files = {
        path.relative_to(tmp_path / "flat").as_posix(): path.read_bytes()
        for path in (tmp_path / "flat").rglob("*.*g")
    }
    files = {
        unicodedata.normalize("NFD", name.replace("pic_0", "Küche")): data
        for name, data in files.items()
    }
    files["train.csv"] = "images/train/Küche.jpg,labels/train/Küche.png\n".encode()
    files["classes.txt"] = b"wall\nfloor\nlamp\n"
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    data = bytearray((tmp_path / "mac.zip").read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for match in [] if flagged else re.finditer(signature, bytes(data)):
            data[match.start() + flags + 1] &= ~8
    (tmp_path / "mac.zip").write_bytes(data)
    members = [
        info
        for info in zipfile.ZipFile(tmp_path / "mac.zip").infolist()
        if not info.filename.isascii()
    ]
    assert len(members) == 2 and all(bool(info.flag_bits & 0x800) == flagged for info in members)
    for split in ("train", "train.csv"):
        source = open_dataset(
            DataConfig(dataset="folder", dataset_dir=str(tmp_path / "mac.zip"), train_split=split),
            split,
        )
        assert [unicodedata.normalize("NFC", name) for name in source.names] == ["Küche"]
        np.testing.assert_array_equal(source.load(0)[1], mask(20, 30))


def test_names_of_other_zips_are_unchanged(tmp_path):
    with zipfile.ZipFile(tmp_path / "dos.zip", "w") as archive:
        archive.writestr("aXb.txt", "x")
    data = (tmp_path / "dos.zip").read_bytes()
    (tmp_path / "dos.zip").write_bytes(data.replace(b"aXb", b"a\x81b"))  # ü in code page 437
    assert Archive(str(tmp_path / "dos.zip")).children[""] == {"aüb.txt"}


def test_a_changed_archive_is_indexed_again(tmp_path):
    path = tmp_path / "a.zip"
    for content in ("first", "second, longer"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", content)
        assert Tree(str(path), (open_archive(path),)).read_text("a.txt") == content


def test_forks_do_not_share_a_file_position(tmp_path):
    """A forked process and its parent read members of the same archive at the same time."""
    contents = {f"{i}.bin": bytes([i]) * 20000 for i in range(20)}
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    opened = Archive(str(path))

    def all_right() -> bool:
        return all(opened.read(name) == data for _ in range(20) for name, data in contents.items())

    child = os.fork()
    if child == 0:
        os._exit(0 if all_right() else 1)
    assert all_right()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- SBD ---


def test_trainaug_from_the_semantic_boundaries_dataset(tmp_path):
    """The images of SBD and VOC's training images, without VOC's validation images."""
    masks = TREES["voc2012"](tmp_path)
    home, sbd = tmp_path / "VOCdevkit/VOC2012", tmp_path / "benchmark_RELEASE/dataset"
    (home / "SegmentationClassAug/2008_000002.png").unlink()
    (home / "SegmentationClassAug").rmdir()
    (home / "ImageSets/Segmentation/trainaug.txt").unlink()
    other = np.full((24, 32), 3)
    for name, ids in (
        ("2008_000002", masks["2008_000002"]),
        ("2007_000039", other),
        ("2007_000042", other),
    ):
        write_mat(sbd / f"cls/{name}.mat", ids)
    (sbd / "train.txt").write_text("2008_000002\n2007_000042\n")  # the second is in VOC's val
    (sbd / "val.txt").write_text("2007_000039\n")
    source = open_dataset(DataConfig(dataset="voc2012", dataset_dir=str(tmp_path)), "trainaug")
    assert source.names == ("2007_000032", "2007_000039", "2008_000002")
    for index, name in enumerate(source.names):  # VOC's own mask takes precedence
        np.testing.assert_array_equal(source.load(index)[1], masks[name])
        np.testing.assert_array_equal(source.tf_load(tf.constant(index))[1], masks[name])


def test_trainaug_from_segmentation_class_aug_without_a_list(tmp_path):
    """The distributed SegmentationClassAug includes VOC's validation images, and often no list."""
    masks = TREES["voc2012"](tmp_path / "all")
    home = tmp_path / "all/VOCdevkit/VOC2012"
    (home / "ImageSets/Segmentation/trainaug.txt").unlink()
    of_val = Image.fromarray(np.uint8(masks["2007_000042"]))
    of_val.save(home / "SegmentationClassAug/2007_000042.png")
    wanted = ("2007_000032", "2007_000039", "2008_000002")
    assert (
        open_dataset(
            DataConfig(dataset="voc2012", dataset_dir=str(tmp_path / "all")), "trainaug"
        ).names
        == wanted
    )
    pack(tmp_path / "packed/SegmentationClassAug.zip", home, "SegmentationClassAug")
    (tmp_path / "other").mkdir()
    (home / "SegmentationClassAug").rename(tmp_path / "other/x")
    pack(tmp_path / "packed/VOCtrainval_11-May-2012.tar", tmp_path / "all", "VOCdevkit")
    source = open_dataset(
        DataConfig(dataset="voc2012", dataset_dir=str(tmp_path / "packed")), "trainaug"
    )
    assert source.names == wanted
    np.testing.assert_array_equal(source.load(2)[1], masks["2008_000002"])


def test_mat_files_of_every_byte_order_and_length(tmp_path):
    """Files truncated anywhere, or with any byte changed, are read or refused as damaged."""
    ids = np.arange(35 * 21).reshape(35, 21) % 21
    write_mat(tmp_path / "a.mat", ids)
    data = (tmp_path / "a.mat").read_bytes()
    np.testing.assert_array_equal(read_mat_segmentation(data), ids)
    random = np.random.default_rng(0)
    for end in range(0, len(data), 13):
        with pytest.raises(ValueError):
            read_mat_segmentation(data[:end])
    for position in random.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[position] ^= 1 << random.integers(8)
        try:
            read_mat_segmentation(bytes(damaged))
        except ValueError as error:
            assert str(error)


@pytest.mark.shared
def test_real_samples_in_archives(tmp_path):
    samples = {
        "voc2012": ("voc2012_sample", "VOCtrainval_11-May-2012.tar", "trainval"),
        "ade20k": ("ade20k_sample", "ADEChallengeData2016.zip", "val"),
        "cityscapes": ("cityscapes_sample", "leftImg8bit_and_gtFine.zip", "val"),
    }
    for dataset, (folder, name, split) in samples.items():
        root = SHARED / "data" / folder
        packed = pack(tmp_path / dataset / name, root, ".")
        one, other = (
            open_dataset(DataConfig(dataset=dataset, dataset_dir=str(path)), split)
            for path in (root, packed.parent)
        )
        assert one.names == other.names
        for index in range(len(one)):
            for found, expected in zip(other.load(index), one.load(index), strict=True):
                np.testing.assert_array_equal(found, expected)


# --- Image formats and the EXIF orientation ---


def turned(path: pathlib.Path, pixels: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an orientation, by the EXIF standard's table of the 0th row and column."""
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mask_is_turned", [False, True])
def test_exif_orientation_is_applied_only_if_the_mask_then_fits(
    orientation, mask_is_turned, tmp_path, caplog
):
    root = write_dataset(tmp_path / "photos")
    image = root / "images/train/pic_1.jpg"
    turned(image, photograph(24, 40), orientation)
    with Image.open(image) as picture:
        stored = np.asarray(picture)
    sides = upright(stored, orientation).shape[:2] if mask_is_turned else stored.shape[:2]
    ids = mask(*sides)
    Image.fromarray(ids).save(root / "labels/train/pic_1.png")
    source = open_dataset(DataConfig(dataset="folder", dataset_dir=str(root)), "train")
    expected = upright(stored, orientation) if mask_is_turned and orientation >= 5 else stored
    for found in (source.load(1), source.tf_load(tf.constant(1))):
        np.testing.assert_array_equal(found[0], expected)
        np.testing.assert_array_equal(found[1], ids)
    said = [record.message for record in caplog.records if str(image) in record.message]
    turn = files.TURNED if mask_is_turned and orientation >= 5 else files.NOT_TURNED
    assert said == ([f"{image}: {turn}"] if orientation > 1 else [])


def test_images_of_one_pixel(tmp_path):
    root = write_dataset(tmp_path / "photos")
    Image.fromarray(np.array([[[9, 8, 7]]], np.uint8)).save(root / "images/train/dot.png")
    Image.fromarray(np.array([[2]], np.uint8)).save(root / "labels/train/dot.png")
    source = open_dataset(DataConfig(dataset="folder", dataset_dir=str(root)), "train")
    assert source.names[0] == "dot"
    for image, label in (source.load(0), source.tf_load(tf.constant(0))):
        assert np.asarray(image).tolist() == [[[9, 8, 7]]] and np.asarray(label).tolist() == [[2]]


def test_16_bit_color_uses_the_upper_byte(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (20, 30, 3)).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    )
    data = b"".join(
        struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b))
        for kind, b in chunks
    )
    root = write_dataset(tmp_path / "photos")
    (root / "images/train/pic_0.jpg").unlink()
    (root / "images/train/pic_0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    source = open_dataset(DataConfig(dataset="folder", dataset_dir=str(root)), "train")
    for image, _ in (source.load(0), source.tf_load(tf.constant(0))):
        np.testing.assert_array_equal(image, pixels >> 8)
