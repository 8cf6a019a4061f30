"""A dataset of one's own: image and mask files in parallel folders.

The images are `images/<split>/**/NAME.jpg` (.jpeg, .png), the masks `labels/<split>/**/NAME.png` (or masks/,
annotations/) with one class id a pixel, and `classes.txt` may name the classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from absl import logging

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files import (
    BrokenFileError,
    FileSource,
    and_more,
    dataset_root,
    in_threads,
    open_pairs,
    read_label,
)
from deeplab_keras.data.info import MAX_CLASSES, Colour, DatasetInfo, info_for_classes, pascal_palette

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_FOLDERS = ("labels", "masks", "annotations")
CLASSES_FILE = "classes.txt"


def open_folder(config: DataConfig, split: str) -> FileSource:
    """A folder of one's own; its classes are those of classes.txt or, without it, the ids that its masks hold.

    Raises:
        UserError: something is missing or wrong; names the file or the flag.
    """
    root = dataset_root(config)
    pairs = find_pairs(root, split)
    if (root / CLASSES_FILE).exists():
        names, palette = read_classes(root / CLASSES_FILE)
        info = info_for_classes(root.resolve().name, names, palette, config.ignore_label)
    else:
        info = infer_classes(root, config)
    return open_pairs(config, info, *pairs)


def _label_folder(root: Path) -> Path:
    for name in LABEL_FOLDERS:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root}: there is no folder of masks; it has to be called one of {', '.join(LABEL_FOLDERS)}")


def _files(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Name -> file, where the name is the path below `folder` without its suffix; sorted, hidden files left out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise UserError(f"{path}: {found[name].name} has the same name; remove one of the two")
            found[name] = path
    return found


def find_pairs(root: Path, split: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names, image paths and mask paths of a split of parallel folders.

    Raises:
        UserError: a folder is missing, the split is empty, or an image has no mask.
    """
    image_folder = root / "images"
    if not image_folder.is_dir():
        raise UserError(
            f"{root}: there is no folder 'images'; --dataset_dir has to hold images/{split} and labels/{split}"
        )
    label_folder = _label_folder(root)
    for folder in (image_folder, label_folder):
        if not split or not (folder / split).is_dir():
            splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "none"
            raise UserError(
                f"{folder}: there is no split {split!r}; there are (for --train_split, --eval_split): {splits}"
            )
    images = _files(image_folder / split, IMAGE_SUFFIXES)
    if not images:
        raise UserError(f"{image_folder / split}: there is no image in it; wanted are {', '.join(IMAGE_SUFFIXES)}")
    labels = _files(label_folder / split, (".png",))
    missing = [name for name in images if name not in labels]
    if missing:
        mask = label_folder / split / f"{missing[0]}.png"
        raise UserError(
            f"{images[missing[0]]}: its mask {mask} is missing; add it or remove the image{and_more(len(missing))}"
        )
    if len(labels) > len(images):
        logging.warning("%s: %d masks have no image and are not used", label_folder / split, len(labels) - len(images))
    return tuple(images), tuple(map(str, images.values())), tuple(str(labels[name]) for name in images)


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Class names and colours of a classes.txt: a line is `name`, `name #rrggbb` or `name r g b`.

    Raises:
        UserError: there are no classes or too many, a name occurs twice, or the file is not text.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    if not 1 <= len(lines) <= MAX_CLASSES:
        raise UserError(f"{path}: it has {len(lines)} classes; give 1 to {MAX_CLASSES}, one name a line")
    names: list[str] = []
    palette = list(pascal_palette(len(lines)))
    for label, line in enumerate(lines):
        name = line
        if match := re.fullmatch(r"(.*\S)\s+#([0-9a-fA-F]{6})", line):
            red, green, blue = bytes.fromhex(match[2])
        elif match := re.fullmatch(r"(.*\S)\s+(\d+)[\s,]+(\d+)[\s,]+(\d+)", line):
            red, green, blue = int(match[2]), int(match[3]), int(match[4])
            if max(red, green, blue) > 255:
                raise UserError(f"{path}: line {line!r}: colours are 0 to 255")
        if match:
            name, palette[label] = match[1], (red, green, blue)
        if name in names:
            raise UserError(
                f"{path}: ids {names.index(name)} and {label} are both called {name!r}; give each its own name"
            )
        names.append(name)
    return tuple(names), tuple(palette)


def infer_classes(root: Path, config: DataConfig) -> DatasetInfo:
    """Classes `class_0` ... up to the largest id in the masks of all splits, so that every split has the same.

    Raises:
        UserError: a mask cannot be read, or there is one class only.
    """
    paths = [str(path) for path in _files(_label_folder(root), (".png",)).values()]
    logging.info("%s has no %s: reading %d masks to see which classes there are", root, CLASSES_FILE, len(paths))
    present = np.zeros(256, bool)
    for ids, error in in_threads(lambda path: np.unique(read_label(path)), paths):
        if error is None:
            present[ids] = True
        elif not (config.skip_broken_files and isinstance(error, BrokenFileError)):
            raise error
    present[config.ignore_label] = False
    count = int(np.flatnonzero(present).max(initial=-1)) + 1
    if count < 2:
        raise UserError(
            f"{root}: the masks hold at most the id 0 beside the ignore label {config.ignore_label}; "
            "number the classes 0, 1, 2, ... in them, or give --ignore_label"
        )
    logging.info(
        "%s: %d classes, class_0 to class_%d; %s can name them, a line each", root, count, count - 1, CLASSES_FILE
    )
    return info_for_classes(root.resolve().name, [f"class_{i}" for i in range(count)], ignore_label=config.ignore_label)
