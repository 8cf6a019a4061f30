"""Your own dataset in all layouts: lists, split folders, endings of names, color masks."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line
from data_files import mask, photograph, write_dataset, write_png
from PIL import Image

from deeplab_keras.config import DataConfig
from deeplab_keras.data.info import pascal_palette
from deeplab_keras.data.registry import open_dataset


def opened(root, split="train", **changes):
    return open_dataset(DataConfig(dataset="folder", dataset_dir=str(root), **changes), split)


@pytest.fixture
def flat(tmp_path):
    """Three pairs without split folders; one name has a space and an accent."""
    root = write_dataset(tmp_path / "photos", ".")
    for folder, suffix in (("images", ".jpg"), ("labels", ".png")):
        (root / folder / f"pic_2{suffix}").rename(root / folder / f"Zürich west{suffix}")
    return root


FORMS = {
    "train.csv": "image,split,mask\nimages/pic_1.jpg,x,labels/pic_1.png\nimages/Zürich "
    "west.jpg,x,labels/Zürich west.png\n",
    "train.csv without a head": "images/pic_1.jpg;labels/pic_1.png\nimages/Zürich "
    "west.jpg;labels/Zürich west.png\n",
    "train.csv with quotes": '"mask", "image"\n"labels/pic_1.png", "images/pic_1.jpg"\n'
    '"labels/Zürich west.png","images/Zürich west.jpg"\n',
    "train.txt of names": "pic_1\nZürich west\n",
    "train.txt of files": "pic_1.jpg\r\nZürich west.jpg\r\n",
    "train.txt of pairs": "images/pic_1.jpg\tlabels/pic_1.png\nimages/Zürich "
    "west.jpg\tlabels/Zürich west.png\n",
    "train.txt from Windows": "images\\pic_1.jpg\tlabels\\pic_1.png\nimages\\Zürich "
    "west.jpg\tlabels\\Zürich west.png\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_lists(form, flat):
    (flat / form.split()[0]).write_text(FORMS[form], encoding="utf-8-sig")
    source = opened(flat)
    assert source.names == ("pic_1", "Zürich west")
    for index, seed in ((0, 1), (1, 2)):
        ids = mask(20 + seed, 30 + 2 * seed, seed)
        np.testing.assert_array_equal(source.load(index)[1], ids)
        np.testing.assert_array_equal(source.tf_load(tf.constant(index))[1], ids)
    np.testing.assert_array_equal(opened(flat, form.split()[0]).load(1)[1], mask(22, 34, 2))


def test_two_parallel_lists_and_a_list_in_another_folder(flat, tmp_path, monkeypatch):
    (flat / "train_images.txt").write_text("images/pic_0.jpg\nimages/pic_1.jpg\n")
    (flat / "train_masks.txt").write_text("labels/pic_0.png\nlabels/pic_1.png\n")
    assert opened(flat).names == ("pic_0", "pic_1")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/mine.csv").write_text(
        f"{flat}/images/pic_1.jpg,../photos/labels/pic_1.png\n"
    )
    source = opened(flat, str(tmp_path / "lists/mine.csv"))
    np.testing.assert_array_equal(source.load(0)[1], mask(21, 32, 1))
    assert source.names == ("pic_1",)
    (tmp_path / "lists/a.txt").write_text("images/pic_0.jpg\n")
    (tmp_path / "lists/b.txt").write_text("labels/pic_0.png\n")
    assert len(opened(flat, f"{tmp_path}/lists/a.txt, {tmp_path}/lists/b.txt")) == 1


def test_split_folders_take_precedence_over_lists_of_the_same_name(tmp_path):
    root = write_dataset(tmp_path / "photos")
    (root / "train.csv").write_text("id,score\n1,2\n")
    assert len(opened(root)) == 3


@pytest.mark.parametrize("ending", ["_mask", "_label", "_labels", "_gt", "_seg", "_L"])
def test_mask_names_may_have_an_ending(ending, tmp_path):
    root = write_dataset(tmp_path / "photos")
    for path in (root / "labels/train").iterdir():
        path.rename(path.with_stem(path.stem + ending))
    np.testing.assert_array_equal(opened(root).load(0)[1], mask(20, 30))


def test_the_split_may_be_the_outer_folder(tmp_path):
    root = write_dataset(tmp_path / "photos")
    (root / "train").mkdir()
    (root / "images/train").rename(root / "train/images")
    (root / "labels/train").rename(root / "train/masks")
    (root / "images").rmdir()
    (root / "labels").rmdir()
    source = opened(root)
    assert source.names == ("pic_0", "pic_1", "pic_2") and source.info.num_classes == 3


def test_composed_and_decomposed_accents(tmp_path):
    root = write_dataset(tmp_path / "photos", count=1)
    (root / "images/train/pic_0.jpg").rename(
        root / "images/train" / unicodedata.normalize("NFD", "été.jpg")
    )
    (root / "labels/train/pic_0.png").rename(
        root / "labels/train" / unicodedata.normalize("NFC", "été.png")
    )
    source = opened(root)
    assert source.names == (unicodedata.normalize("NFC", "été"),)
    assert source.tf_load(tf.constant(0))[0].shape == (20, 30, 3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_lists_of_other_systems(encoding, form, flat):
    """Files from macOS with decomposed accents, and a list from another system, such as UTF-16."""
    name, other = (
        unicodedata.normalize(kind, "Zürich west")
        for kind in (("NFC", "NFD") if form == "NFC" else ("NFD", "NFC"))
    )
    for path in [*flat.rglob("Z*.*g")]:
        path.rename(
            path.with_name(unicodedata.normalize("NFC", path.name).replace("Zürich west", name))
        )
    (flat / "classes.txt").write_text("wall\r\nfloor\r\nlamp\r\n", encoding=encoding)
    for text in (f"{other}\r\n", f"{other}.jpg\n", f"images/{other}.jpg\tlabels/{other}.png\r\n"):
        (flat / "train.txt").write_text(text, encoding=encoding)
        source = opened(flat)
        assert source.names == (name,) and source.info.class_names == ("wall", "floor", "lamp")
        np.testing.assert_array_equal(source.load(0)[1], mask(22, 34, 2))


def test_links_to_folders_are_followed_once(tmp_path):
    root = write_dataset(tmp_path / "photos", count=1)
    elsewhere = write_dataset(tmp_path / "elsewhere", count=1)
    for folder in ("images", "labels"):
        (root / folder / "train/more").symlink_to(elsewhere / folder / "train")
        (root / folder / "train/round").symlink_to(root / folder / "train")
    assert opened(root).names == ("more/pic_0", "pic_0")


# --- Forms of masks ---

COLORS = np.array([[0, 0, 0], [200, 10, 10], [0, 128, 0], [224, 224, 192]], np.uint8)
CLASSES = "wall #000000\nfloor 200 10 10\nlamp,0,128,0\nIgnore #e0e0c0\n"


def in_colors(root, form):
    """Redraws all masks in COLORS; returns their ids."""
    expected = {}
    palette = bytes(np.concatenate([COLORS[[2, 0, 3, 1]], np.zeros((252, 3), np.uint8)]).ravel())
    for path in sorted((root / "labels/train").iterdir()):
        rows = mask(*np.asarray(Image.open(path)).shape, ids=(0, 1, 2, 3))
        if form == "palette in another order":
            write_png(path, np.array([1, 3, 0, 2], np.uint8)[rows], 8, palette)
        else:
            Image.fromarray(COLORS[rows]).convert(form).save(path)
        expected[path.stem] = np.where(rows == 3, 255, rows)
    return expected


@pytest.mark.parametrize("form", ["RGB", "RGBA", "palette in another order"])
def test_masks_in_colors(form, tmp_path):
    root = write_dataset(tmp_path / "photos")
    expected = in_colors(root, form)
    (root / "classes.txt").write_text(CLASSES)
    source = opened(root, mask_format="color")
    assert source.info.class_names == ("wall", "floor", "lamp") and source.info.palette[1] == (
        200,
        10,
        10,
    )
    for index, name in enumerate(source.names):
        for label in (source.load(index)[1], source.tf_load(tf.constant(index))[1]):
            np.testing.assert_array_equal(label, expected[name])


def test_classes_of_colors_are_inferred(tmp_path):
    root = write_dataset(tmp_path / "photos")
    expected = in_colors(root, "RGB")
    info = opened(root, mask_format="color").info
    assert info.class_names == ("color_000000", "color_008000", "color_c80a0a", "color_e0e0c0")
    label = opened(root, mask_format="color").load(0)[1]
    np.testing.assert_array_equal(label == 3, expected["pic_0"] == 255)


def test_the_british_spelling_of_the_mask_format_is_an_alias(tmp_path):
    root = write_dataset(tmp_path / "photos")
    expected = in_colors(root, "RGB")
    config = DataConfig(dataset="folder", dataset_dir=str(root), mask_format="colour")
    assert config.mask_format == "color"
    (root / "classes.txt").write_text(CLASSES)
    label = opened(root, mask_format="colour").load(0)[1]
    np.testing.assert_array_equal(label, expected["pic_0"])


def test_gray_levels_are_colors(tmp_path):
    root = write_dataset(tmp_path / "photos")
    for path in (root / "labels/train").iterdir():
        height, width = np.asarray(Image.open(path)).shape
        Image.fromarray(mask(height, width, ids=(0, 128, 255))).save(path)
    (root / "classes.txt").write_text("ground #000000\nroad #808080\nsky #ffffff\n")
    label = opened(root, mask_format="color").load(0)[1]
    np.testing.assert_array_equal(
        label, np.searchsorted([0, 128, 255], mask(20, 30, ids=(0, 128, 255)))
    )
    (root / "classes.txt").unlink()
    assert opened(root, mask_format="color").info.num_classes == 3


def test_a_class_may_be_named_ignore_if_masks_hold_ids(tmp_path):
    root = write_dataset(tmp_path / "photos")
    (root / "classes.txt").write_text("ignore #000000\nfloor\nlamp\n")
    assert opened(root).info.class_names == ("ignore", "floor", "lamp")


def test_class_dict_csv(tmp_path):
    root = write_dataset(tmp_path / "photos")
    (root / "class_dict.csv").write_text("name, r, g, b\nthe wall,1,2,3\nfloor,4,5,6\nlamp,7,8,9\n")
    info = opened(root).info
    assert info.class_names == ("the wall", "floor", "lamp") and info.palette == (
        (1, 2, 3),
        (4, 5, 6),
        (7, 8, 9),
    )


@pytest.mark.parametrize("mode", ["RGB", "LA", "RGBA"])
def test_ids_saved_in_several_channels(mode, tmp_path):
    root = write_dataset(tmp_path / "photos")
    path = root / "labels/train/pic_0.png"
    Image.fromarray(mask(20, 30)).convert(mode).save(path)
    source = opened(root)
    for label in (source.load(0)[1], source.tf_load(tf.constant(0))[1]):
        np.testing.assert_array_equal(label, mask(20, 30))


def test_classes_are_inferred_without_a_split_that_has_no_list(flat):
    (flat / "train.txt").write_text("pic_0\n")
    assert opened(flat).info.num_classes == 3
    with raises_line("it has no split 'val'"):
        opened(flat, "val")


def test_the_pascal_palette_is_the_default_for_color_masks(tmp_path):
    root = write_dataset(tmp_path / "photos")
    colors = np.array([*pascal_palette(3), *np.zeros((252, 3)), (9, 9, 9)], np.uint8)
    for path in (root / "labels/train").iterdir():
        height, width = np.asarray(Image.open(path)).shape
        Image.fromarray(colors[mask(height, width, ids=(0, 1, 2))]).save(path)
    (root / "classes.txt").write_text("a\nb\nc\n")
    np.testing.assert_array_equal(
        opened(root, mask_format="color").load(0)[1], mask(20, 30, ids=(0, 1, 2))
    )
    Image.fromarray(photograph(20, 30)).save(root / "labels/train/pic_0.png")
    with raises_line("a color without a class"):
        opened(root, mask_format="color")
