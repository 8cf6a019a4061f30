"""Folders of images and masks: read rightly in every form, and every mistake told in one line."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tensorflow as tf
from contracts import SHARED
from data_files import CLASSES, mask, photograph, truncate, write_dataset, write_png
from PIL import Image

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data import files, open_dataset
from deeplab_keras.data.camvid import CAMVID
from deeplab_keras.data.info import pascal_palette


def folder(root, **changes) -> DataConfig:
    return DataConfig(dataset="folder", dataset_dir=str(root), **changes)


@pytest.fixture
def dataset(tmp_path):
    """A folder `photos` of three pairs with their classes.txt."""
    root = write_dataset(tmp_path / "photos")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


# --- What is read ---


def test_both_ways_of_loading_give_the_files_pixels(dataset):
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


def test_subfolders_capitals_spaces_and_other_letters(tmp_path):
    root = write_dataset(tmp_path / "photos", count=1, labels="annotations")
    for path in ("images/train/Zürich west/b 1.JPEG", "images/train/a/été.PNG", "annotations/train/a/été.png"):
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


PALETTE = bytes(value for colour in pascal_palette(256) for value in colour)


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("palette", [None, PALETTE], ids=["grey", "palette"])
def test_masks_are_ids_whatever_they_look_like(dataset, bit_depth, palette):
    if palette and bit_depth == 16:
        return  # there is no such PNG; the check of its absence is PNG's own
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
    grey = np.asarray(picture.convert("L"))
    if mode == "I;16":
        picture, expected = Image.fromarray(grey.astype(np.uint16) * 256 + 77), np.stack([grey] * 3, -1)
    else:
        picture = picture.convert(mode)
        expected = np.asarray(picture.convert("RGB"))
    if mode != "CMYK":
        path.unlink()
        path = path.with_suffix(".png")
    picture.save(path, quality=100)
    source = open_dataset(folder(dataset), "train")
    for image in (source.load(1)[0], source.tf_load(tf.constant(1))[0]):
        # A CMYK file is a JPEG, so it holds nearly the same.
        np.testing.assert_allclose(np.asarray(image, int), expected, atol=12 if mode == "CMYK" else 0)


# --- Classes ---


def test_classes_file_with_and_without_colours(dataset):
    (dataset / "classes.txt").write_text("\ufeffwall #Ff8000\nwooden floor 1 2 3\n\n lamp \n", encoding="utf-8")
    info = open_dataset(folder(dataset, ignore_label=255), "train").info
    assert info.name == "photos" and info.class_names == ("wall", "wooden floor", "lamp")
    assert info.palette == ((255, 128, 0), (1, 2, 3), pascal_palette(3)[2])


def test_without_a_classes_file_the_masks_of_all_splits_say(dataset, caplog):
    (dataset / "classes.txt").unlink()
    write_dataset(dataset, "val", 1)
    Image.fromarray(mask(20, 30, ids=(0, 6))).save(dataset / "labels/val/pic_0.png")
    with caplog.at_level(logging.INFO, logger="absl"):
        info = open_dataset(folder(dataset), "train").info
    assert info.class_names == tuple(f"class_{i}" for i in range(7))
    assert "7 classes, class_0 to class_6" in caplog.text


# --- What is wrong ---


def make_wrong(dataset, case: str) -> None:
    images, labels = dataset / "images/train", dataset / "labels/train"
    if case == "no images folder":
        (dataset / "images").rename(dataset / "pictures")
    elif case == "no labels folder":
        (dataset / "labels").rename(dataset / "truth")
    elif case == "no such split":
        images.rename(dataset / "images/training")
    elif case == "empty split":
        for path in images.iterdir():
            path.rename(path.with_suffix(".gif"))
    elif case == "image without mask":
        (labels / "pic_1.png").unlink()
    elif case == "two without mask":
        (labels / "pic_1.png").unlink()
        (labels / "pic_2.png").unlink()
    elif case == "same name":
        Image.fromarray(photograph(20, 30)).save(images / "pic_0.png")
    elif case == "other size":
        Image.fromarray(mask(20, 31)).save(labels / "pic_0.png")
    elif case == "ids outside":
        Image.fromarray(mask(22, 34, ids=(0, 3, 17, 255))).save(labels / "pic_2.png")
    elif case == "palette ids outside":
        write_png(labels / "pic_0.png", mask(20, 30, ids=(0, 200)), 8, PALETTE)
    elif case == "colour mask":
        Image.fromarray(photograph(20, 30)).save(labels / "pic_0.png")
    elif case == "mask is a JPEG":
        Image.fromarray(mask(20, 30)).save(labels / "pic_0.png", format="JPEG")
    elif case == "16-bit id":
        write_png(labels / "pic_0.png", np.full((20, 30), 300), 16)
    elif case == "not an image":
        (images / "pic_1.jpg").write_text("<html>404</html>")
    elif case == "empty image":
        (images / "pic_1.jpg").write_bytes(b"")
    elif case == "truncated image":
        truncate(images / "pic_1.jpg")
    elif case == "truncated mask":
        truncate(labels / "pic_1.png")
    elif case == "empty classes":
        (dataset / "classes.txt").write_text("\n")
    elif case == "class twice":
        (dataset / "classes.txt").write_text("wall\nlamp\nwall\n")
    elif case == "colour too large":
        (dataset / "classes.txt").write_text("wall\nlamp 1 2 256\nfloor\n")
    elif case == "binary classes":
        (dataset / "classes.txt").write_bytes(b"\xff\xfe\x00")
    elif case == "one class":
        (dataset / "classes.txt").unlink()
        for path in labels.iterdir():
            Image.fromarray(np.asarray(Image.open(path)) // 128 * 255).save(path)
    else:
        raise AssertionError(case)


SKIP = "replace it, or leave such files out with --skip_broken_files"
MISTAKES = {
    "no images folder": "{root}: there is no folder 'images'; --dataset_dir has to hold images/train and labels/train",
    "no labels folder": "{root}: there is no folder of masks; it has to be called one of labels, masks, annotations",
    "no such split": "{root}/images: there is no split 'train'; there are (for --train_split, --eval_split): training",
    "empty split": "{root}/images/train: there is no image in it; wanted are .jpg, .jpeg, .png",
    "image without mask": "{root}/images/train/pic_1.jpg: its mask {root}/labels/train/pic_1.png is missing; "
    "add it or remove the image",
    "two without mask": "{root}/images/train/pic_1.jpg: its mask {root}/labels/train/pic_1.png is missing; "
    "add it or remove the image (and 1 more like it)",
    "same name": "{root}/images/train/pic_0.png: pic_0.jpg has the same name; remove one of the two",
    "other size": "{root}/labels/train/pic_0.png: the mask is 31x20 (width x height) but its image "
    "{root}/images/train/pic_0.jpg is 30x20; both must have one size",
    "ids outside": "{root}/labels/train/pic_2.png: the mask holds ids outside the classes: 3, 17; "
    "allowed are 0 to 2 and 255 for pixels that do not count",
    "palette ids outside": "{root}/labels/train/pic_0.png: the mask holds ids outside the classes: 200; "
    "allowed are 0 to 2 and 255 for pixels that do not count",
    "colour mask": "{root}/labels/train/pic_0.png: the mask is a colour picture; a mask has one channel "
    "(grey or palette) with each pixel's class id",
    "mask is a JPEG": "{root}/labels/train/pic_0.png: cannot be decoded (not a PNG file); " + SKIP,
    "16-bit id": "{root}/labels/train/pic_0.png: the mask holds the id 300; ids are 0 to 255",
    "not an image": "{root}/images/train/pic_1.jpg: cannot be decoded (not a picture); " + SKIP,
    "empty image": "{root}/images/train/pic_1.jpg: cannot be decoded (not a picture); " + SKIP,
    "truncated image": "{root}/images/train/pic_1.jpg: cannot be decoded (image file is truncated",
    "truncated mask": "{root}/labels/train/pic_1.png: cannot be decoded (",
    "empty classes": "{root}/classes.txt: it has 0 classes; give 1 to 256, one name a line",
    "class twice": "{root}/classes.txt: ids 0 and 2 are both called 'wall'; give each its own name",
    "colour too large": "{root}/classes.txt: line 'lamp 1 2 256': colours are 0 to 255",
    "binary classes": "{root}/classes.txt: cannot be read as text (",
    "one class": "{root}: the masks hold at most the id 0 beside the ignore label 255; "
    "number the classes 0, 1, 2, ... in them, or give --ignore_label",
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_in_one_line(dataset, case):
    make_wrong(dataset, case)
    with pytest.raises(UserError) as error:
        open_dataset(folder(dataset), "train")
    message, expected = str(error.value), MISTAKES[case].format(root=dataset)
    assert "\n" not in message
    assert message.startswith(expected) if expected.endswith(("(", "truncated")) else message == expected


@pytest.mark.parametrize("directory", [None, "", "nowhere"])
@pytest.mark.parametrize("name", ["folder", "camvid"])
def test_no_folder(name, directory):
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(dataset=name, dataset_dir=directory), "train")
    if directory:
        assert str(error.value) == "--dataset_dir=nowhere: there is no such folder"
    else:
        assert str(error.value) == f"--dataset={name} needs --dataset_dir=FOLDER, the folder that holds the dataset"


def test_unknown_dataset():
    with pytest.raises(UserError) as error:
        open_dataset(DataConfig(dataset="camvit"), "train")
    assert str(error.value).startswith("unknown --dataset 'camvit'; did you mean 'camvid'? known: ")
    assert "folder, " in str(error.value)


@pytest.mark.parametrize("case", ["not an image", "truncated image", "truncated mask", "mask is a JPEG"])
def test_broken_files_are_left_out_where_the_flag_says_so(dataset, case, caplog):
    make_wrong(dataset, case)
    with caplog.at_level(logging.WARNING, logger="absl"):
        source = open_dataset(folder(dataset, skip_broken_files=True), "train")
    assert len(source) == 2
    assert len(source.plain) == len(source.images) == len(source.labels) == 2
    name, other = ("pic_0", "pic_1") if case == "mask is a JPEG" else ("pic_1", "pic_0")
    assert name not in source.names and other in source.names
    assert f"train/{name}." in caplog.text and "1 of 3 pairs" in caplog.text
    for index in range(2):
        np.testing.assert_array_equal(source.tf_load(tf.constant(index))[1], source.load(index)[1])


def test_other_mistakes_are_not_skipped(dataset):
    make_wrong(dataset, "ids outside")
    with pytest.raises(UserError, match="ids outside the classes"):
        open_dataset(folder(dataset, skip_broken_files=True), "train")


def test_nothing_left(tmp_path):
    root = write_dataset(tmp_path / "photos", count=1)
    (root / "classes.txt").write_text("a\nb\nc")
    truncate(root / "images/train/pic_0.jpg")
    with pytest.raises(UserError, match=r"^--dataset_dir=.*: not one pair of image and mask can be read$"):
        open_dataset(folder(root, skip_broken_files=True), "train")


def test_of_many_files_a_sample_is_decoded(dataset, monkeypatch):
    monkeypatch.setattr(files, "FULL_CHECK_LIMIT", 2)
    monkeypatch.setattr(files, "CHECK_SAMPLE", 2)
    make_wrong(dataset, "truncated image")  # the middle one; the sample is the first and the last
    assert len(open_dataset(folder(dataset), "train")) == 3
    with pytest.raises(UserError, match=r"pic_1\.jpg: cannot be decoded"):
        open_dataset(folder(dataset), "train").load(1)
    assert len(open_dataset(folder(dataset, skip_broken_files=True), "train")) == 2


# --- CamVid ---


def test_camvid_is_its_folder_with_its_classes(tmp_path):
    root = write_dataset(tmp_path / "CamVid", "val")
    source = open_dataset(DataConfig(dataset="camvid", dataset_dir=str(root)), "val")
    assert source.info is CAMVID and source.info.num_classes == 11
    assert len(source) == 3


@pytest.mark.shared
def test_real_camvid():
    source = open_dataset(DataConfig(dataset="camvid", dataset_dir=str(SHARED / "data/camvid")), "val")
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
