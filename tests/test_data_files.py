"""Folders of images and masks: all formats are read correctly, and mistakes are one-line errors."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf
from contracts import SHARED, as_command_line, raises_line
from data_files import CLASSES, mask, photograph, truncate, write_dataset, write_png
from PIL import Image

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.camvid import CAMVID
from deeplab_keras.data.files import pairs as files
from deeplab_keras.data.info import pascal_palette
from deeplab_keras.data.registry import open_dataset


def folder(root, **changes) -> DataConfig:
    return DataConfig(dataset="folder", dataset_dir=str(root), **changes)


@pytest.fixture
def dataset(tmp_path):
    """A folder `photos` of three pairs with a classes.txt."""
    root = write_dataset(tmp_path / "photos")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


# --- Reading ---


def test_load_and_tf_load_return_the_pixels_of_the_files(dataset):
    source = open_dataset(folder(dataset), "train")
    assert source.names == ("pic_0", "pic_1", "pic_2") and len(source) == 3
    for index in range(3):
        image, label = source.load(index)
        with Image.open(dataset / f"images/train/pic_{index}.jpg") as picture:
            np.testing.assert_array_equal(image, np.asarray(picture))
        np.testing.assert_array_equal(label, mask(20 + index, 30 + 2 * index, index))
        for found, expected in zip(source.tf_load(tf.constant(index)), (image, label), strict=True):
            assert found.dtype == tf.uint8
            np.testing.assert_array_equal(found, expected)


def test_subfolders_upper_case_spaces_and_accents(tmp_path):
    root = write_dataset(tmp_path / "photos", count=1, labels="annotations")
    for path in (
        "images/train/Zürich west/b 1.JPEG",
        "images/train/a/été.PNG",
        "annotations/train/a/été.png",
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / "annotations/train/Zürich west").mkdir()
    Image.fromarray(photograph(8, 9)).save(root / "images/train/Zürich west/b 1.JPEG")
    Image.fromarray(photograph(8, 9)).save(root / "images/train/a/été.PNG")
    for name in ("Zürich west/b 1", "a/été"):
        Image.fromarray(mask(8, 9)).save(root / f"annotations/train/{name}.png")
    (root / "images/train/._pic_0.jpg").write_bytes(b"left by a file manager")
    source = open_dataset(folder(root), "train")
    assert source.names == ("Zürich west/b 1", "a/été", "pic_0")
    np.testing.assert_array_equal(source.tf_load(tf.constant(1))[0], photograph(8, 9))
    assert source.tf_load(tf.constant(0))[0].shape == (8, 9, 3)


PALETTE = bytes(value for color in pascal_palette(256) for value in color)


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("palette", [None, PALETTE], ids=["gray", "palette"])
def test_masks_are_read_as_ids_in_every_png_format(dataset, bit_depth, palette):
    if palette and bit_depth == 16:
        return  # PNG does not have this combination
    ids = (0, 1) if bit_depth == 1 else (0, 1, 2) if bit_depth < 8 else (0, 1, 2, 255)
    expected = mask(20, 30, ids=ids)
    palette = palette and palette[: 3 * 2**bit_depth]
    write_png(dataset / "labels/train/pic_0.png", expected, bit_depth, palette)
    source = open_dataset(folder(dataset), "train")
    np.testing.assert_array_equal(source.load(0)[1], expected)
    np.testing.assert_array_equal(source.tf_load(tf.constant(0))[1], expected)
    np.testing.assert_array_equal(source.tf_load(tf.constant(1))[1], mask(21, 32, 1))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "LA"])
def test_images_of_other_modes_become_rgb(dataset, mode):
    path = dataset / "images/train/pic_1.jpg"
    picture = Image.fromarray(photograph(21, 32))
    gray = np.asarray(picture.convert("L"))
    if mode == "I;16":
        picture, expected = (
            Image.fromarray(gray.astype(np.uint16) * 256 + 77),
            np.stack([gray] * 3, -1),
        )
    else:
        picture = picture.convert(mode)
        expected = np.asarray(picture.convert("RGB"))
    if mode != "CMYK":
        path.unlink()
        path = path.with_suffix(".png")
    picture.save(path, quality=100)
    source = open_dataset(folder(dataset), "train")
    for image in (source.load(1)[0], source.tf_load(tf.constant(1))[0]):
        # The CMYK file is a JPEG, so its pixels differ slightly.
        np.testing.assert_allclose(
            np.asarray(image, int), expected, atol=12 if mode == "CMYK" else 0
        )


# --- Classes ---


def test_classes_file_with_and_without_colors(dataset):
    (dataset / "classes.txt").write_text(
        "\ufeffwall #Ff8000\nwooden floor 1 2 3\n\n lamp \n", encoding="utf-8"
    )
    info = open_dataset(folder(dataset, ignore_label=255), "train").info
    assert info.name == "photos" and info.class_names == ("wall", "wooden floor", "lamp")
    assert info.palette == ((255, 128, 0), (1, 2, 3), pascal_palette(3)[2])


def test_classes_are_inferred_from_the_masks_of_all_splits(dataset, caplog):
    (dataset / "classes.txt").unlink()
    write_dataset(dataset, "val", 1)
    Image.fromarray(mask(20, 30, ids=(0, 6))).save(dataset / "labels/val/pic_0.png")
    with caplog.at_level(logging.INFO, logger="deeplab_keras"):
        info = open_dataset(folder(dataset), "train").info
    assert info.class_names == tuple(f"class_{i}" for i in range(7))
    assert "7 classes, class_0 to class_6" in caplog.text
    assert "no mask holds the id 3, 4, 5; if 6 is a stray value" in caplog.text


# --- Mistakes; the messages are in test_bad_input.py ---


BROKEN = {
    "not an image": lambda root: (root / "images/train/pic_1.jpg").write_text("<html>404</html>"),
    "truncated image": lambda root: truncate(root / "images/train/pic_1.jpg"),
    "missing mask": lambda root: (root / "labels/train/pic_1.png").unlink(),
    "truncated mask": lambda root: truncate(root / "labels/train/pic_1.png"),
    "mask of another size": lambda root: Image.fromarray(mask(22, 32)).save(
        root / "labels/train/pic_1.png"
    ),
    "mask is a JPEG": lambda root: Image.fromarray(mask(21, 32)).save(
        root / "labels/train/pic_1.png", format="JPEG"
    ),
}


@pytest.mark.parametrize("directory", [None, "", "nowhere"])
@pytest.mark.parametrize("name", ["folder", "camvid"])
def test_no_folder(name, directory):
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(dataset=name, dataset_dir=directory), "train")
    if directory:
        assert as_command_line(error.value) == "--dataset_dir=nowhere: this folder does not exist"
    else:
        assert (
            as_command_line(error.value)
            == f"--dataset={name} requires --dataset_dir=FOLDER, the folder of the dataset"
        )


def test_unknown_dataset():
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(dataset="camvit"), "train")
    assert as_command_line(error.value).startswith(
        "unknown --dataset 'camvit'; did you mean 'camvid'? known: "
    )
    assert "folder, " in as_command_line(error.value)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_skipped_by_flag(dataset, case, caplog):
    BROKEN[case](dataset)
    with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
        source = open_dataset(folder(dataset, skip_broken_files=True), "train")
    assert len(source) == 2
    assert len(source.plain) == len(source.images) == len(source.labels) == 2
    assert source.names == ("pic_0", "pic_2")
    assert "train/pic_1." in caplog.text and "1 of 3 pairs" in caplog.text
    for index in range(2):
        np.testing.assert_array_equal(source.tf_load(tf.constant(index))[1], source.load(index)[1])


def test_other_mistakes_are_not_skipped(dataset):
    Image.fromarray(mask(22, 34, ids=(0, 3, 17, 255))).save(dataset / "labels/train/pic_2.png")
    with raises_line("ids outside the classes"):
        open_dataset(folder(dataset, skip_broken_files=True), "train")


def test_all_files_skipped(tmp_path):
    root = write_dataset(tmp_path / "photos", count=1)
    (root / "classes.txt").write_text("a\nb\nc")
    truncate(root / "images/train/pic_0.jpg")
    with raises_line(r"^--dataset_dir=.*: no pair of image and mask can be read$"):
        open_dataset(folder(root, skip_broken_files=True), "train")


def test_of_many_files_a_sample_is_decoded(dataset, monkeypatch):
    monkeypatch.setattr(files, "FULL_CHECK_LIMIT", 2)
    monkeypatch.setattr(files, "CHECK_SAMPLE", 2)
    BROKEN["truncated image"](dataset)  # the middle one; the sample has the first and the last
    assert len(open_dataset(folder(dataset), "train")) == 3
    with raises_line(r"pic_1\.jpg: cannot be decoded"):
        open_dataset(folder(dataset), "train").load(1)
    assert len(open_dataset(folder(dataset, skip_broken_files=True), "train")) == 2


# --- CamVid ---


def test_camvid_in_the_layout_of_your_own_dataset(tmp_path):
    root = write_dataset(tmp_path / "CamVid", "val")
    source = open_dataset(DataConfig(dataset="camvid", dataset_dir=str(root)), "val")
    assert source.info is CAMVID and source.info.num_classes == 11
    assert len(source) == 3


@pytest.mark.shared
def test_real_camvid():
    source = open_dataset(
        DataConfig(dataset="camvid", dataset_dir=str(SHARED / "data/camvid")), "val"
    )
    assert len(source) == 101
    image, label = source.load(0)
    assert image.shape == (360, 480, 3) and set(np.unique(label)) <= {*range(11), 255}
    found, found_label = source.tf_load(tf.constant(0))
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(found_label, label)


@pytest.mark.shared
def test_real_palette_masks_are_ids():
    folder = SHARED / "data/voc2012_sample/VOCdevkit/VOC2012/SegmentationClass"
    ids = {int(i) for path in folder.glob("*.png") for i in np.unique(files.read_label(str(path)))}
    assert {0, 255} <= ids <= {*range(21), 255}
