"""Every mistake that is recognized: both checks refuse it with the same command.

The quick check runs before training, and the full check is check_dataset. Each kind of mistake is
written in at least two variants, and the commands in the messages are parsed by their scripts.
"""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Callable

import numpy as np
import pytest
from contracts import SCRIPTS, as_command_line, script
from data_files import photograph, png16
from PIL import Image, ImageDraw

import deeplab_keras as dk
from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.info import pascal_palette
from deeplab_keras.data.registry import open_dataset

HEIGHT, WIDTH = 60, 80
Masks = list[np.ndarray | Image.Image]
BINARY, GRAY, INDEX = "--from=binary", "--from=gray", "--from=index --id_offset=-1"


def blob(seed: int, classes: int = 2) -> np.ndarray:
    """Rectangles of ids 1 and above on 0, which all occur."""
    rng, ids = np.random.default_rng(seed), np.zeros((HEIGHT, WIDTH), np.uint8)
    for label in range(1, classes):
        top, left = rng.integers(0, HEIGHT // 2), 4 + (label - 1) * WIDTH // classes
        ids[top : top + HEIGHT // 3, left : left + WIDTH // (classes + 1)] = label
    return ids


def blobs(classes: int = 2, count: int = 6) -> list[np.ndarray]:
    return [blob(seed, classes) for seed in range(count)]


def circles(seed: int, scale: int = 4) -> Image.Image:
    rng, big = np.random.default_rng(seed), Image.new("L", (160 * scale, 120 * scale))
    for _ in range(3):
        x, y = rng.integers(0, 160 * scale), rng.integers(0, 120 * scale)
        r = rng.integers(10, 30) * scale
        ImageDraw.Draw(big).ellipse((x - r, y - r, x + r, y + r), fill=255)
    return big


def as_jpeg(picture: Image.Image, quality: int) -> np.ndarray:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def with_pixels(masks: list[np.ndarray], *values: int) -> list[np.ndarray]:
    """Adds stray pixels to the last two masks."""
    for ids in masks[-2:]:
        ids[0, : len(values)] = values
    return masks


def in_alpha(color: tuple[int, int, int]) -> Masks:
    return [
        Image.fromarray(np.dstack([np.full((HEIGHT, WIDTH, 3), color, np.uint8), ids * 255]))
        for ids in blobs()
    ]


def levels(*values: int) -> Masks:
    return [np.array(values, np.uint8)[ids] for ids in blobs(len(values))]


LUMINANCES = np.round(np.array(pascal_palette(21)) @ [0.299, 0.587, 0.114]).astype(np.uint8)

# Name -> masks, names of the classes ("" to infer them), what both checks say, and the options of
# convert_masks that they give; "" if no command can repair the masks.
MASKS: dict[str, tuple[Callable[[], Masks], str, str, str]] = {
    "0/255": (lambda: levels(0, 255), "", "black-and-white masks of two classes", BINARY),
    "0/255, two names": (lambda: levels(0, 255), "a b", "black-and-white masks of two", BINARY),
    "0/255, 19 names": (lambda: levels(0, 255), " ".join("abcdefghijklmnopqrs"), "two cl", BINARY),
    "strays": (lambda: with_pixels(levels(0, 255), 3), "", "a few stray pixels of 3", BINARY),
    "strays, names": (lambda: with_pixels(levels(0, 255), 9, 4), "a b", "stray pixels of", BINARY),
    "0/100": (lambda: levels(0, 100), "a b", "only 0 and 100", BINARY),
    "0/128": (lambda: levels(0, 128), "", "only 0 and 128", BINARY),
    "0/38": (lambda: levels(0, 38), "a b", "only 0 and 38", BINARY),
    "antialiased": (
        lambda: [np.asarray(circles(i).resize((160, 120), Image.Resampling.BOX)) for i in range(6)],
        "",
        "black and white with values blended",
        BINARY,
    ),
    "resized smoothly": (
        lambda: [
            np.asarray(circles(i, 1).resize((240, 180), Image.Resampling.BICUBIC)) for i in range(6)
        ],
        "a b",
        "black and white with values blended",
        BINARY,
    ),
    "JPEG, without names": (
        lambda: [as_jpeg(circles(i, 1), 95) for i in range(6)],
        "",
        "black and white with values blended by JPEG",
        BINARY,
    ),
    "JPEG, two names": (
        lambda: [as_jpeg(circles(i, 1), 75) for i in range(6)],
        "a b",
        "black and white with values blended by JPEG",
        BINARY,
    ),
    "JPEG of blocks": (
        lambda: [as_jpeg(Image.fromarray(ids * np.uint8(255)), 60) for ids in blobs()],
        "",
        "black and white with values blended by JPEG",
        BINARY,
    ),
    "several blended classes": (
        lambda: [
            np.asarray(
                Image.fromarray(ids * np.uint8(30)).resize((150, 110), Image.Resampling.BILINEAR)
            )
            for ids in blobs(5)
        ],
        "",
        "values blended by JPEG, smooth resizing or anti-aliasing, which no area has",
        "",
    ),
    "several blended classes, names": (
        lambda: [
            np.asarray(
                Image.fromarray(ids * np.uint8(30)).resize((150, 110), Image.Resampling.BILINEAR)
            )
            for ids in blobs(5)
        ],
        "a b c d e",
        "values blended by JPEG, smooth resizing or anti-aliasing, which no area has",
        "",
    ),
    "ids from 1": (lambda: [ids + 1 for ids in blobs(3)], "a b c", "1 to 3 instead of 0", INDEX),
    "ids from 1, without names": (lambda: [ids + 1 for ids in blobs(3)], "", "never 0", INDEX),
    "ids from 1, two names": (lambda: [ids + 1 for ids in blobs()], "a b", "1 to 2 inst", INDEX),
    "unlabeled is 0": (lambda: blobs(4), "a b c", "if 0 is 'unlabeled', run", INDEX),
    "0/127/254": (lambda: levels(0, 127, 254), "a b c", "evenly spaced gray levels", GRAY),
    "0/127/254, without names": (lambda: levels(0, 127, 254), "", "evenly spaced gray", GRAY),
    # Only all masks together show what they are.
    "0/127/254, in different masks": (
        lambda: [
            np.where(ids == 1 + index % 2, np.uint8(127 * (1 + index % 2)), np.uint8(0))
            for index, ids in enumerate(blobs(3))
        ],
        "a b c",
        "evenly spaced gray",
        GRAY,
    ),
    "0/85/170/255": (lambda: levels(0, 85, 170, 255), "a b c d", "evenly spaced gray", GRAY),
    "luminances": (
        lambda: [LUMINANCES[ids * 3] for ids in blobs(4)],
        " ".join("abcdefghijklmnopqrstu"),
        "these values are the luminances of the colors of set",
        "--from=palette",
    ),
    "luminances, without names": (
        lambda: [LUMINANCES[ids * 3] for ids in blobs(4)],
        "",
        "the luminances of PASCAL VOC's colors",
        "--from=palette",
    ),
    "Cityscapes' labelIds": (
        lambda: [np.array([7, 8, 26, 33], np.uint8)[ids] for ids in blobs(4)],
        " ".join("abcdefghijklmnopqrs"),
        "these look like Cityscapes' labelIds",
        "--from=cityscapes",
    ),
    "alpha, black": (lambda: in_alpha((0, 0, 0)), "a b", "is drawn in the alpha channel", ""),
    "alpha, white": (lambda: in_alpha((255, 255, 255)), "a b", "is drawn in the alpha channel", ""),
    "alpha, gray": (
        lambda: [
            Image.fromarray(np.dstack([np.zeros_like(ids), ids * 200]), "LA") for ids in blobs()
        ],
        "",
        "is drawn in the alpha channel",
        "",
    ),
    "colors": (
        lambda: [Image.fromarray(np.array(pascal_palette(4), np.uint8)[m]) for m in blobs(4)],
        "a b c d",
        "the mask is a color image",
        "--from=rgb",
    ),
    "colors, without names": (
        lambda: [Image.fromarray(np.array(pascal_palette(4), np.uint8)[m]) for m in blobs(4)],
        "",
        "the mask is a color image",
        "--from=rgb",
    ),
    "nothing labeled": (
        lambda: [ids * 0 for ids in blobs()],
        "",
        "hold no id besides 0 and the ignore label",
        "",
    ),
}


def folder(root: pathlib.Path, masks: Masks, classes: str) -> pathlib.Path:
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for index, ids in enumerate(masks):
        picture = ids if isinstance(ids, Image.Image) else Image.fromarray(ids)
        picture.save(root / f"labels/train/p{index}.png")
        image = Image.fromarray(photograph(picture.height, picture.width, index))
        image.save(root / f"images/train/p{index}.png")
    if classes:
        (root / "classes.txt").write_text(classes.replace(" ", "\n"))
    return root


def said(root: pathlib.Path) -> tuple[str, str]:
    """What the quick check and the full check say; "" if a check accepts the dataset."""
    config = DataConfig(dataset="folder", dataset_dir=str(root))
    try:
        open_dataset(config, "train")
        quick = ""
    except UserError as error:
        quick = as_command_line(error)
    try:
        check = dk.check_dataset(config, ["train"])
        lines = [check.looks_like, *(problem.message for problem in check.problems)]
        full = as_command_line("\n".join(lines)) if check.wrong else ""
        assert check.wrong == bool(full)
    except UserError as error:
        full = as_command_line(error)
    assert "\n" not in quick
    return quick, full


def commands_in(text: str) -> set[str]:
    """The options of convert_masks in a message, after parsing each command by its script."""
    found = set()
    for name, options in re.findall(r"scripts/(\w+\.py)((?: --\w+=[^\s,;()]+)*)", text):
        assert name in SCRIPTS
        needed = ["--input=a", "--output=b"] if name == "convert_masks.py" else []
        command = script(name).parse(*options.split(), *needed)
        for section in script(name).sections:
            command.config(section)
        if name == "convert_masks.py":
            found.add(options.strip())
    return found


@pytest.mark.parametrize("name", MASKS)
def test_both_checks_refuse_masks_with_the_same_command(name, tmp_path):
    make, classes, says, options = MASKS[name]
    quick, full = said(folder(tmp_path / "set", make(), classes))
    for text in (quick, full):
        assert says in text, text
        assert (options in commands_in(text)) if options else (BINARY not in commands_in(text)), (
            text
        )
        assert "skip_broken_files" not in text
    assert commands_in(quick) == commands_in(full)


GOOD: dict[str, tuple[Callable[[], Masks], str]] = {
    "ids": (lambda: blobs(4), "a b c d"),
    "ids without names": (lambda: blobs(4), ""),
    "ids, and pixels to ignore": (lambda: [np.where(m == 3, 255, m) for m in blobs(4)], "a b c"),
    "a class that is missing": (lambda: blobs(3), "a b c d e"),
    "no background, with names": (lambda: [ids + 1 for ids in blobs(3)], "none a b c"),
    "one mask without an object": (lambda: [*blobs(), blob(0) * 0], "a b"),
    "alpha around a drawing": (
        lambda: [Image.fromarray(np.dstack([m, m, m, m * 255])) for m in blobs()],
        "a b",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_both_checks_accept_correct_masks(name, tmp_path):
    make, classes = GOOD[name]
    assert said(folder(tmp_path / "set", make(), classes)) == ("", "")


# --- Images, folders and files of classes ---


def sixteen(highest: int, channels: int = 1) -> Callable[[pathlib.Path], None]:
    def spoil(root: pathlib.Path) -> None:
        for path in (root / "images/train").iterdir():
            ramp = np.linspace(0, highest, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
            png16(path, ramp if channels == 1 else np.repeat(ramp[..., None], 3, -1))

    return spoil


def sixteen_tiff(root: pathlib.Path) -> None:
    for path in list((root / "images/train").iterdir()):
        path.unlink()
        values = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16) % 12
        Image.fromarray(values).save(path.with_suffix(".tif"))


def masks_as_images(factor: int) -> Callable[[pathlib.Path], None]:
    def spoil(root: pathlib.Path) -> None:
        for index, path in enumerate(sorted((root / "images/train").iterdir())):
            Image.fromarray(blob(index) * np.uint8(factor)).save(path)

    return spoil


def masks_among_images(root: pathlib.Path) -> None:
    for path in list((root / "labels/train").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
        with Image.open(path.with_stem(f"{path.stem}_mask")) as picture:
            picture.save(root / f"images/train/{path.stem}_mask.png")


def names_in_two_cases(root: pathlib.Path) -> None:
    Image.fromarray(photograph(HEIGHT, WIDTH, 9)).save(root / "images/train/P0.png")


def classes_of(text: str) -> Callable[[pathlib.Path], None]:
    return lambda root: (root / "classes.txt").write_text(text) and None


def as_list(root: pathlib.Path) -> None:
    """A list whose images are the masks."""
    lines = [f"labels/train/p{i}.png,labels/train/p{i}.png" for i in range(4)]
    (root / "images").rename(root / "pictures")
    (root / "train.csv").write_text("\n".join(lines))


OTHERS: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "16 bits, few levels": (sixteen(15), "16 bits per channel but only values up to 15"),
    "16 bits from a camera of 12": (sixteen(4095), "only values up to 4095, which are black in 8"),
    "16 bits in colors": (sixteen(900, 3), "only values up to 900, which are black in 8 bits"),
    "16 bits in a TIFF": (sixteen_tiff, "only values up to 11, which are black in 8 bits"),
    "masks taken for photographs": (masks_as_images(1), "this image equals its own mask"),
    "visible masks as images": (masks_as_images(255), "this image equals its own mask"),
    "a list of masks": (as_list, "this image equals its own mask"),
    "masks among the images": (masks_among_images, "it has the same mask as"),
    "two images and one mask": (names_in_two_cases, "it has the same mask as"),
    "a header of one word": (classes_of("class\na\nb\n"), "looks like a header"),
    "a header and ids from 1": (classes_of("id,name\n1,a\n2,b\n"), "its ids are 1 to 2, but 0 is"),
    "a color in another form": (classes_of("a rgb(1,2,3)\nb\n"), "is not understood"),
    "a comment": (classes_of("a # road\nb\n"), "is not understood"),
    "a name twice": (classes_of("a\na\n"), "are both called 'a'"),
    "no classes": (classes_of("\n"), "it has 0 classes"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_both_checks_refuse_other_mistakes(name, tmp_path):
    spoil, says = OTHERS[name]
    root = folder(tmp_path / "set", blobs(), "a b")
    spoil(root)
    for text in said(root):
        assert says in text, text
        assert "skip_broken_files" not in text
        commands_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "name,r,g,b\na,0,0,0\nb,9,9,9\n",
        "Pixel Value, Class\n0, a\n1, b\n",
        "# label:color_rgb:parts:actions\na:0,0,0::\nb:9,9,9::\n",
        "id;name\n1;b\n0;a\n",
        "0: a\n1: b\n",
    ],
)
def test_both_checks_read_the_class_lists_of_other_tools(text, tmp_path):
    root = folder(tmp_path / "set", blobs(), "")
    (root / "classes.txt").write_text(text)
    assert said(root) == ("", "")
    config = DataConfig(dataset="folder", dataset_dir=str(root))
    assert open_dataset(config, "train").info.class_names == ("a", "b")


def test_the_result_prints_what_the_script_prints(tmp_path, capsys):
    root = folder(tmp_path / "set", blobs(), "a b")
    config = DataConfig(dataset="folder", dataset_dir=str(root), eval_split="train")
    print(dk.check_dataset(config))
    text = capsys.readouterr().out
    arguments = ("--dataset=folder", f"--dataset_dir={root}", "--eval_split=train")
    assert script("check_dataset.py")(*arguments, f"--output={tmp_path}/report") == 0
    assert capsys.readouterr().out.startswith(text) and "6 of 6 pairs read" in text
