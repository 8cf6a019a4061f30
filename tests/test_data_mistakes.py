"""Mistakes in datasets that would otherwise train without an error.

The full check and the check before training refuse each of them, with a fix.
"""

from __future__ import annotations

import io
import logging
import pathlib
import struct

import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, raises_line, script
from data_files import photograph, png16
from PIL import Image, ImageDraw

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.annotations.masks import convert_masks
from deeplab_keras.data.check import check_dataset
from deeplab_keras.data.datasets.classes_file import read_classes
from deeplab_keras.data.datasets.layout import find_home, find_images
from deeplab_keras.data.files.pairs import require_labeled
from deeplab_keras.data.files.reading import (
    BrokenFileError,
    NoMaskUserError,
    read_image,
    read_label,
)
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.registry import open_dataset

HEIGHT, WIDTH = 48, 64
TWO = "background\nobject\n"


def blob(seed: int, classes: int = 2, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A mask of rectangles, one per class above 0."""
    rng, ids = np.random.default_rng(seed), np.zeros(size, np.uint8)
    for label in range(1, classes):
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        ids[top : top + size[0] // 3, left : left + size[1] // 3] = label
    return ids


def folder(
    root: pathlib.Path, masks: list, classes: str = "", splits: tuple[str, ...] = ("train",)
) -> pathlib.Path:
    """Writes a dataset with noise as images and the given masks, which are arrays or images."""
    for number, split in enumerate(splits):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index, ids in enumerate(masks):
            picture = ids if isinstance(ids, Image.Image) else Image.fromarray(ids)
            picture.save(root / f"labels/{split}/p{index}.png")
            pixels = photograph(picture.height, picture.width, seed=100 * number + index)
            Image.fromarray(pixels).save(root / f"images/{split}/p{index}.jpg")
    if classes:
        (root / "classes.txt").write_text(classes)
    return root


def config(root: pathlib.Path, **changes: object) -> DataConfig:
    return DataConfig(dataset="folder", dataset_dir=str(root), **changes)


def refused(root: pathlib.Path, says: str, **changes: object) -> None:
    """Asserts that the check before training and check_dataset refuse a split in one line."""
    with pytest.raises(UserError) as error:
        open_dataset(config(root, **changes), "train")
    assert says in as_command_line(error.value) and "\n" not in as_command_line(error.value)
    try:
        result = check_dataset(config(root, **changes), ("train",))
    except UserError as found:  # no split can be opened
        assert says in str(found)
    else:
        messages = [result.looks_like, *(problem.message for problem in result.problems)]
        assert result.wrong and says in as_command_line(" ".join(messages))


def accepted(root: pathlib.Path, **changes: object) -> None:
    open_dataset(config(root, **changes), "train")
    assert not check_dataset(config(root, **changes), ("train",)).wrong


# --- Black and white with stray values ---


def with_strays(values: tuple[int, ...], pure: int = 10, dirty: int = 3) -> list[np.ndarray]:
    """Masks of 0 and 255, some of which have a few pixels with other values."""
    masks = [blob(seed) * 255 for seed in range(pure + dirty)]
    for ids in masks[pure:]:
        ids[0, : len(values)] = values
    return masks


@pytest.mark.parametrize(
    "classes", ["", TWO, "a\nb\nc\nd\ne\n"], ids=["no names", "two names", "five names"]
)
@pytest.mark.parametrize("strays", [(), (3,), (3, 4), (254,), (1,)])
def test_black_and_white_with_stray_values(strays, classes, tmp_path):
    masks = with_strays(strays)
    if classes not in ("", TWO) or strays == (1,):
        # If all values are classes, strays must be less than 0.1 % of the object.
        masks += with_strays((), pure=30)
    root = folder(tmp_path / "set", masks, classes)
    refused(root, "scripts/convert_masks.py --from=binary")
    result = convert_masks("binary", str(root / "labels"), str(tmp_path / "ids"))
    assert result.converted == len(masks) and not result.failed
    for index, ids in enumerate(masks):
        with Image.open(tmp_path / f"ids/train/p{index}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), ids >= 128)


def test_proportions_of_a_real_dataset(tmp_path):
    """A twelfth of a dataset with 96 masks of {0, 255}, 17 of {0, 3, 255}, 5 of {0, 3, 4, 255}."""
    masks = [*with_strays((3,), 8, 2), *with_strays((3, 4), 0, 1)]
    refused(folder(tmp_path / "set", masks), "0, 255 and a few stray pixels of 3, 4")


def test_stray_values_on_an_empty_mask_are_not_an_object(tmp_path, caplog):
    masks = [*with_strays((3,), 4, 0), np.zeros((HEIGHT, WIDTH), np.uint8)]
    masks[-1][0, 0] = 3
    root = folder(tmp_path / "set", masks)
    with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
        convert_masks("binary", str(root / "labels"), str(tmp_path / "ids"))
    assert np.asarray(Image.open(tmp_path / "ids/train/p4.png")).max() == 0
    assert np.asarray(Image.open(tmp_path / "ids/train/p0.png")).max() == 1
    assert "treated as stray values" in caplog.text


def test_black_and_gray_with_strays_is_thresholded_at_half_the_gray(tmp_path):
    masks = [np.where(blob(seed, size=(96, 128)) > 0, 100, 0).astype(np.uint8) for seed in range(4)]
    masks[0][0, 0] = 3
    root = folder(tmp_path / "set", masks, TWO)
    refused(root, "--from=binary")
    convert_masks("binary", str(root / "labels"), str(tmp_path / "ids"))
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "ids/train/p0.png")), masks[0] == 100
    )


def test_ignored_contours_and_rare_classes_are_accepted(tmp_path):
    """Masks like those of PASCAL VOC, and a class that only one of ten images contains."""
    masks = []
    for seed in range(10):
        ids = blob(seed, 3)
        edge = np.zeros_like(ids, bool)
        edge[1:] |= ids[1:] != ids[:-1]
        edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        masks.append(np.where(edge, 255, ids))
    masks[0][2:8, 2:8] = 3
    accepted(folder(tmp_path / "named", masks, "a\nb\nc\nd\n"))
    accepted(folder(tmp_path / "unnamed", masks))


# --- Blended values ---


def circles(seed: int, how: str) -> np.ndarray:
    """White circles with edges blended by a resize, anti-aliasing or JPEG, and the sharp masks."""
    rng, scale = np.random.default_rng(seed), 4
    big = Image.new("L", (160 * scale, 120 * scale))
    for _ in range(3):
        x, y, r = (
            rng.integers(0, 160 * scale),
            rng.integers(0, 120 * scale),
            rng.integers(10, 30) * scale,
        )
        ImageDraw.Draw(big).ellipse((x - r, y - r, x + r, y + r), fill=255)
    sharp = big.resize((160, 120), Image.Resampling.NEAREST)
    if how == "antialiased":
        return np.asarray(big.resize((160, 120), Image.Resampling.BOX))
    if how == "resized":
        return np.asarray(sharp.resize((240, 180), Image.Resampling.BICUBIC))
    data = io.BytesIO()
    sharp.save(data, "JPEG", quality=int(how))
    return np.asarray(Image.open(data))


@pytest.mark.parametrize("classes", ["", TWO])
@pytest.mark.parametrize("how", ["antialiased", "resized", "60", "95"])
def test_blended_black_and_white(how, classes, tmp_path):
    masks = [circles(seed, how) for seed in range(6)]
    root = folder(tmp_path / "set", masks, classes)
    refused(root, "scripts/convert_masks.py --from=binary")
    assert not convert_masks(
        "binary", str(root / "labels/train"), str(tmp_path / "new/labels/train")
    ).failed
    (root / "images").rename(tmp_path / "new/images")
    (tmp_path / "new/classes.txt").write_text(TWO)
    accepted(tmp_path / "new")
    np.testing.assert_array_equal(
        open_dataset(config(tmp_path / "new"), "train").load(2)[1], masks[2] >= 128
    )


def test_the_check_recognizes_jpeg(tmp_path):
    masks = [circles(seed, "90") for seed in range(6)]
    refused(folder(tmp_path / "set", masks), "values blended by JPEG")
    refused(folder(tmp_path / "named", masks, TWO), "values blended by JPEG")


def test_blended_ids_of_several_classes_must_be_exported_again(tmp_path):
    levels = [Image.fromarray(blob(seed, 5) * np.uint8(30)) for seed in range(6)]
    masks = [
        np.asarray(picture.resize((150, 110), Image.Resampling.BILINEAR)) for picture in levels
    ]
    says = (
        "values blended by JPEG, smooth resizing or anti-aliasing, which no area has: export "
        "the masks again"
    )
    refused(folder(tmp_path / "unnamed", masks), says)
    refused(folder(tmp_path / "named", masks, "\n".join(f"c{i}" for i in range(150))), says)


def test_many_tiny_objects_are_not_reported_as_blended(tmp_path):
    masks = []
    for seed in range(8):
        rng, ids = np.random.default_rng(seed), np.zeros((64, 64), np.uint8)
        for label in range(1, 20):
            top, left = rng.integers(0, 62, 2)
            ids[top : top + 2, left : left + rng.integers(1, 3)] = label
        masks.append(ids)
    accepted(folder(tmp_path / "set", masks))


def test_noise_is_not_reported_as_blended(tmp_path):
    masks = [
        np.random.default_rng(seed).integers(0, 30, (40, 50)).astype(np.uint8) for seed in range(3)
    ]
    accepted(folder(tmp_path / "set", masks, "\n".join(f"c{i}" for i in range(30))))


# --- Drawings in the alpha channel ---


def in_alpha(form: str, color: int = 0) -> Image.Image:
    alpha = blob(1) * 255
    flat = np.full_like(alpha, color)
    if form == "LA":
        return Image.fromarray(np.dstack([flat, alpha]), "LA")
    if form == "RGBA":
        return Image.fromarray(np.dstack([flat, flat, flat, alpha]))
    return Image.fromarray(
        np.dstack([flat, flat, flat, np.where(alpha > 0, 128, 40)]).astype(np.uint8)
    )


@pytest.mark.parametrize("color", [0, 1])
@pytest.mark.parametrize("form", ["LA", "RGBA", "half transparent"])
def test_a_mask_drawn_in_alpha_is_refused_by_every_reader(form, color, tmp_path):
    root = folder(
        tmp_path / "set", [in_alpha(form, color), blob(2)], "background #000000\nobject #010101\n"
    )
    refused(root, "is drawn in the alpha channel")
    refused(root, "is drawn in the alpha channel", mask_format="color")
    for kind in ("rgb", "gray", "binary"):
        failed = convert_masks(kind, str(root / "labels"), str(tmp_path / kind)).failed
        assert len(failed) == 1 and "is drawn in the alpha channel" in failed[0]


def test_alpha_of_a_drawn_mask_is_ignored(tmp_path):
    ids = blob(1)
    # A transparent background, as editors save it, and an opaque mask without an object.
    around = Image.fromarray(np.dstack([ids, ids, ids, ids * 255]))
    opaque = Image.fromarray(np.dstack([blob(2) * 0, np.full_like(ids, 255)]), "LA")
    root = folder(tmp_path / "set", [around, opaque], TWO)
    accepted(root)
    np.testing.assert_array_equal(open_dataset(config(root), "train").load(0)[1], ids)


# --- 16 bits ---


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("highest", "fine"), [(200, False), (4095, False), (0, True), (65535, True), (9000, True)]
)
def test_images_of_16_bits_that_would_be_black(highest, fine, channels, tmp_path):
    ramp = np.linspace(0, highest, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    values = ramp if channels == 1 else np.repeat(ramp[..., None], 3, -1)
    root = folder(tmp_path / "set", [blob(1)], TWO)
    (root / "images/train/p0.jpg").unlink()
    png16(root / "images/train/p0.png", values)
    if not fine:
        refused(
            root,
            f"it has 16 bits per channel but only values up to {highest}, which are black in 8 "
            f"bits",
        )
        return
    accepted(root)
    expected = np.broadcast_to((ramp >> 8)[..., None], (HEIGHT, WIDTH, 3))
    source = open_dataset(config(root), "train")
    np.testing.assert_array_equal(source.load(0)[0], expected)
    np.testing.assert_allclose(
        source.tf_load(tf.constant(0))[0].numpy().astype(int),
        expected,
        atol=0 if channels == 1 else 1,
    )


def test_masks_of_16_bits_in_three_channels(tmp_path):
    root = folder(tmp_path / "set", [blob(1)], TWO)
    png16(root / "labels/train/p0.png", np.repeat(blob(1)[..., None], 3, -1))
    refused(root, "the mask has 16 bits per channel; save it with one channel (gray) and 8 bits")
    png16(root / "labels/train/p0.png", blob(1))
    np.testing.assert_array_equal(open_dataset(config(root), "train").load(0)[1], blob(1))


# --- Masks among the images, images that are skipped ---


def test_masks_among_the_images(tmp_path):
    root = folder(tmp_path / "set", [blob(seed) for seed in range(3)], TWO)
    for path in (root / "labels/train").iterdir():
        path.rename(path.with_stem(f"{path.stem}_mask"))
        Image.open(root / f"labels/train/{path.stem}_mask.png").save(
            root / f"images/train/{path.stem}_mask.png"
        )
    says = f"{root}/images/train/p0_mask.png: it has the same mask as {root}/images/train/p0.jpg"
    refused(root, says)
    for path in list((root / "images/train").glob("*_mask.png")):
        path.unlink()
    accepted(root)


def test_a_list_that_names_masks_as_images(tmp_path):
    root = folder(tmp_path / "set", [blob(seed) for seed in range(3)], TWO)
    lines = ["images/train/p0.jpg,labels/train/p0.png", "labels/train/p1.png,labels/train/p1.png"]
    (root / "train.csv").write_text("\n".join(lines))
    (root / "images/train").rename(root / "images/all")
    (root / "train.csv").write_text("\n".join(lines).replace("images/train", "images/all"))
    refused(root, f"{root}/labels/train/p1.png: this image equals its own mask")
    dark = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))  # a dark image without an object
    dark.save(root / "images/all/dark.png")
    dark.save(root / "labels/train/dark.png")
    (root / "train.csv").write_text(
        "images/all/p0.jpg,labels/train/p0.png\nimages/all/dark.png,labels/train/dark.png\n"
    )
    accepted(root)


def test_lists_may_give_two_images_the_same_mask(tmp_path):
    """As for a camera that does not move: in a list, this is intended."""
    root = folder(tmp_path / "set", [blob(seed) for seed in range(2)], TWO)
    (root / "mine.csv").write_text(
        "images/train/p0.jpg,labels/train/p0.png\nimages/train/p1.jpg,labels/train/p0.png\n"
    )
    assert len(open_dataset(config(root), "mine.csv")) == 2


@pytest.mark.parametrize("suffix", [".heic", ".DNG", ".jp2"])
def test_images_with_another_suffix_are_reported(suffix, tmp_path, caplog):
    root = folder(tmp_path / "set", [blob(seed) for seed in range(3)], TWO)
    for index in range(2):
        (root / f"images/train/extra_{index}{suffix}").write_bytes(b"an image of a phone")
    with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
        assert len(open_dataset(config(root), "train")) == 3
    assert (
        f"images/train: 2 images are skipped, such as extra_0{suffix}; only .jpg, .jpeg, .png, "
        ".bmp, .gif, .tif, .tiff, .webp are read" in caplog.text
    )


def test_images_with_another_suffix_in_a_published_layout(tmp_path, caplog):
    for folder_name, pixels in (("train", photograph(HEIGHT, WIDTH)), ("trainannot", blob(1))):
        (tmp_path / folder_name).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder_name / "a.png")
    Image.fromarray(photograph(HEIGHT, WIDTH)).save(tmp_path / "train/b.jpg")
    with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
        assert (
            len(open_dataset(DataConfig(dataset="camvid", dataset_dir=str(tmp_path)), "train")) == 1
        )
    assert "1 image is skipped, such as b.jpg; only .png are read" in caplog.text


def test_masks_next_to_the_images_are_no_skipped_images(tmp_path, caplog):
    for name in ("1/photo.png", "1/truth.png", "2/photo.png", "2/truth.png", "2/other.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photograph(HEIGHT, WIDTH)).save(tmp_path / name)
    home = find_home(DataConfig(dataset="camvid", dataset_dir=str(tmp_path)), (".",), "", ("1",))
    with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
        found = find_images(home, ".", "photo.png", "", deep=True, masks="truth.png")
    assert found == ["1/photo.png", "2/photo.png"]
    assert "1 image is skipped, such as 2/other.jpg; only photo.png, truth.png" in caplog.text


# --- Files of classes ---

RGB = ((0, 0, 0), (200, 0, 0), (0, 0, 200))
NAMES = ("ground", "red", "blue")
ROWS = ("ground,0,0,0", "red,200,0,0", "blue,0,0,200")
CLASS_FILES = {
    "no header": "\n".join(ROWS),
    **{
        head: "\n".join((head, *ROWS))
        for head in ("name,r,g,b", "class,r,g,b", "label,R,G,B", "Klasse,Rot,Grün,Blau")
    },
    "ids first": "id,name,r,g,b\n0,ground,0,0,0\n1,red,200,0,0\n2,blue,0,0,200\n",
    "ids in another order": "id,name,r,g,b\n2,blue,0,0,200\n0,ground,0,0,0\n1,red,200,0,0\n",
    "ids last": "name,r,g,b,id\nground,0,0,0,0\nblue,0,0,200,2\nred,200,0,0,1\n",
    "ids without a header": "0,ground,0,0,0\n1,red,200,0,0\n2,blue,0,0,200\n",
    "alpha last": "name,r,g,b,a\nground,0,0,0,255\nred,200,0,0,255\nblue,0,0,200,255\n",
    "semicolons": "\n".join(("name;r;g;b", *ROWS)).replace(",", ";"),
    "tabs": "\n".join(("Name\tRed\tGreen\tBlue", *ROWS)).replace(",", "\t"),
    "spaces": "\n".join(("name r g b", *ROWS)).replace(",", " "),
    "colors first": "0 0 0\tground\n200 0 0\tred\n0 0 200\tblue\n",
    "a colon": "ground: 0 0 0\nred: 200 0 0\nblue: 0 0 200\n",
    "hexadecimal with a header": "name,color\nground,#000000\nred,#c80000\nblue,#0000c8\n",
    "CVAT": "# label:color_rgb:parts:actions\nground:0,0,0::\nred:200,0,0::\nblue:0,0,200:a,b:c\n",
    "CVAT without its comment": "ground:0,0,0::\nred:200,0,0::\nblue:0,0,200::\n",
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_files_of_classes(name, tmp_path):
    (tmp_path / "classes.txt").write_text(CLASS_FILES[name], encoding="utf-8")
    classes = read_classes(Tree(str(tmp_path)), "classes.txt")
    assert (classes.names, classes.palette) == (NAMES, RGB)


UNCOLORED = {
    "Roboflow": ("Pixel Value, Class\n0, ground\n1, red\n2, blue\n", NAMES),
    "numbered": ("0 ground\n1 red\n2 blue\n", NAMES),
    "numbered with colons": ("2: blue\n0: ground\n1: red\n", NAMES),
    "names that begin with numbers": (
        "10 cent\n20 cent\n50 cent\n",
        ("10 cent", "20 cent", "50 cent"),
    ),
    "synonyms": ("wall\nfloor, flooring\nsky\n", ("wall", "floor, flooring", "sky")),
    "synonyms everywhere": ("wall, brick\nfloor, wood\n", ("wall, brick", "floor, wood")),
}


@pytest.mark.parametrize("name", UNCOLORED)
def test_files_of_names(name, tmp_path):
    text, names = UNCOLORED[name]
    (tmp_path / "classes.txt").write_text(text)
    assert read_classes(Tree(str(tmp_path)), "classes.txt").names == names


NO_CLASS_FILES = {
    "a negative id": (
        "Pixel Value, Class\n0, ground\n1, red\n-2, blue\n",
        "its first line 'Pixel Value, Class' is a header, but the lines do not have its columns",
    ),
    "an escape sequence": ("ground\nr\x1b[2Jd\n", "the class name 'r\\x1b[2Jd' has unprintable"),
    "a long line": (
        "ground\n" + "1" * 100_000,
        "a line has 100000 characters, too many for a class",
    ),
    "a header of one word": (
        "class\nwall\nfloor\n",
        "its first line 'class' looks like a header",
    ),
    "ids from 1": ("id,name\n1,wall\n2,floor\n", "its ids are 1 to 2, but 0 is missing"),
    "ids with a gap": ("0: wall\n2: floor\n", "its ids are 0 to 2, but 1 is missing"),
    "an id twice": ("id,name\n0,wall\n0,floor\n", "the id 0 occurs twice"),
    "a color in another form": (
        "wall rgb(1,2,3)\n",
        "the color in line 'wall rgb(1,2,3)' is not understood",
    ),
    "a short color": ("wall #fff\n", "the color in line 'wall #fff' is not understood"),
    "a color that is none": ("wall #zz\n", "the color in line 'wall #zz' is not understood"),
    "a comment": ("wall  # white\n", "the color in line 'wall  # white' is not understood"),
    "four numbers": (
        "wall,1,2,3,255\nfloor,1,2,4,255\n",
        "the color in line 'wall,1,2,3,255' is not understood",
    ),
    "a CVAT color above 255": (
        "a:0,0,0::\nb:0,0,256::\n",
        "line 'b:0,0,256::': colors must be 0 to 255",
    ),
    "a number of 5000 digits": (
        f"name,r,g,b\nwall,1,2,{'9' * 5000}\n",
        "a line has 5009 characters, too many for a class",
    ),
    "256 classes": (
        "\n".join(f"c{i}" for i in range(256)),
        "'c255', would have the id 255, the ignore label",
    ),
}


@pytest.mark.parametrize("name", NO_CLASS_FILES)
def test_files_of_classes_that_would_shift_or_lose_classes(name, tmp_path):
    text, says = NO_CLASS_FILES[name]
    refused(folder(tmp_path / "set", [blob(1)], text), says)


def test_256_classes_require_another_ignore_label(tmp_path):
    root = folder(tmp_path / "set", [blob(1)], "\n".join(f"c{i}" for i in range(256)))
    assert open_dataset(config(root, ignore_label=0), "train").info.num_classes == 256
    with raises_line("would have the id 255, the ignore label"):
        convert_masks(
            "rgb", str(root / "labels"), str(tmp_path / "ids"), classes=str(root / "classes.txt")
        )


def test_cvat_ids_follow_the_order_of_the_file(tmp_path):
    """Ids follow the order of labelmap.txt, not that of the colors."""
    truth = blob(3, 3)
    (tmp_path / "drawn").mkdir()
    Image.fromarray(np.array([(0, 0, 0), (0, 128, 0), (128, 0, 0)], np.uint8)[truth]).save(
        tmp_path / "drawn/a.png"
    )
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:0,128,0::\nroad:128,0,0::\n"
    )
    convert_masks(
        "rgb",
        str(tmp_path / "drawn"),
        str(tmp_path / "ids"),
        classes=str(tmp_path / "labelmap.txt"),
    )
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "ids/a.png")), truth)


# --- No labeled pixels ---


@pytest.mark.parametrize("value", [255, 7])
def test_a_split_without_a_labeled_pixel(value, tmp_path):
    root = folder(
        tmp_path / "set",
        [np.full((HEIGHT, WIDTH), value, np.uint8)] * 3,
        "\n".join("abcdefgh"),
        ("train", "val"),
    )
    data = config(root, ignore_label=value)
    with raises_line(
        f"no mask of the split 'train' has a labeled pixel: all are {value}, the ignore label",
    ):
        require_labeled(open_dataset(data, "train"), data, "train")
    result = check_dataset(data, ("train", "val"))
    assert [
        problem.split for problem in result.problems if "has a labeled pixel" in problem.message
    ] == ["train", "val"]
    Image.fromarray(blob(1)).save(root / "labels/train/p2.png")
    require_labeled(open_dataset(data, "train"), data, "train")


def test_training_does_not_start_without_labels(tmp_path, capsys):
    root = folder(
        tmp_path / "set", [np.full((HEIGHT, WIDTH), 255, np.uint8)] * 2, TWO, ("train", "val")
    )
    arguments = (
        "--dataset=folder",
        f"--dataset_dir={root}",
        "--train_crop_size=33,33",
        f"--train_logdir={tmp_path}/run",
    )
    assert (
        script("train.py")(
            "--model=deeplabv3plus_mobilenetv2os8_voc", "--training_number_of_steps=1", *arguments
        )
        == 1
    )
    assert "no mask of the split 'train' has a labeled pixel" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- Checksums of PNG files ---


def test_flipped_bits_of_png_files_are_detected(tmp_path):
    """Each damaged byte of a mask or an image is detected or does not change the pixels."""
    ids, pixels = blob(1, 5), photograph(12, 16)
    for name, array, read in (("mask", ids, read_label), ("image", pixels, read_image)):
        path = tmp_path / f"{name}.png"
        Image.fromarray(array).save(path)
        data, refusals = path.read_bytes(), 0
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1 << place % 8
            path.write_bytes(changed)
            try:
                np.testing.assert_array_equal(read(str(path)), array)
            except UserError as error:
                assert "\n" not in str(error)
                refusals += 1
        assert refusals == len(data)


def test_bytes_after_the_end_of_a_png_are_ignored(tmp_path):
    Image.fromarray(blob(1)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes() + b"more")
    np.testing.assert_array_equal(read_label(str(tmp_path / "a.png")), blob(1))


# --- EXIF orientation ---


def turned(path: pathlib.Path, kind: str) -> np.ndarray:
    """Stores a photograph sideways with an EXIF orientation; returns the upright pixels."""
    stored = Image.fromarray(photograph(HEIGHT, WIDTH)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    more = {"save_all": True, "append_images": [stored]} if kind == "MPO" else {}
    stored.save(path, kind.split()[0], exif=exif, **more)
    if kind == "PNG with EXIF at the end":
        data = path.read_bytes()
        start = data.index(b"eXIf") - 4
        end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
        last = data.index(b"IEND") - 4
        path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").transpose(Image.Transpose.ROTATE_270))


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "PNG with EXIF at the end"])
def test_rotated_photographs_of_every_format(kind, tmp_path, caplog):
    root = folder(tmp_path / "set", [blob(1), blob(2)], TWO)
    (root / "images/train/p0.jpg").unlink()
    path = root / f"images/train/p0.{'png' if 'PNG' in kind else 'jpg'}"
    expected = turned(path, kind)
    with caplog.at_level(logging.WARNING, logger="deeplab_keras"):
        source = open_dataset(config(root), "train")
    assert "rotated by its EXIF orientation" in caplog.text
    np.testing.assert_array_equal(source.load(0)[0], expected)
    np.testing.assert_array_equal(source.tf_load(tf.constant(0))[0], expected)
    Image.fromarray(blob(1).T).save(root / "labels/train/p0.png")  # drawn on the stored image
    np.testing.assert_array_equal(
        open_dataset(config(root), "train").load(0)[0], np.rot90(expected)
    )


def test_errors_have_the_kind_of_the_problem(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    with pytest.raises(BrokenFileError, match="cannot be decoded"):
        read_image(str(tmp_path / "a.png"))
    Image.fromarray(photograph(9, 9)).save(tmp_path / "b.png")
    with pytest.raises(NoMaskUserError, match="the mask is a color image"):
        read_label(str(tmp_path / "b.png"))
