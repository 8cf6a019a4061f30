"""Splits given by lists of files: a CSV of pairs, two parallel lists, or one list of names."""

from __future__ import annotations

import csv
import io
import logging
import os
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deeplab_keras.config import UserError
from deeplab_keras.data.files.tree import Tree, decode_text, same_name
from deeplab_keras.io.foreign import reading

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Image formats that are not supported; a folder that also holds such files is reported.
OTHER_PICTURES = tuple(
    ".tif .tiff .bmp .webp .gif .heic .heif .avif .jfif .jpe .jp2 .ppm .pgm .npy .dng".split()
)
LABEL_FOLDERS = ("labels", "masks", "annotations")
# What a mask's name may add to the name of its image.
LABEL_ENDINGS = ("", "_mask", "_label", "_labels", "_gt", "_seg", "_L")
IMAGE_COLUMNS = ("image", "images", "img", "image_path", "image_file", "filename", "file", "input")
LABEL_COLUMNS = (
    "mask",
    "masks",
    "label",
    "labels",
    "annotation",
    "mask_path",
    "label_path",
    "mask_file",
    "target",
)


class Found(NamedTuple):
    """The files of a split.

    Attributes:
        names: The name of each pair.
        images: The paths of the images.
        labels: The paths of the masks.
        expected: The expected layout, for messages.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    expected: str


def lists_of(root: Tree, split: str) -> list[str]:
    """Returns the list files of a split; an empty list if it has none.

    These are SPLIT.csv, or SPLIT_images.txt and SPLIT_labels.txt, or SPLIT.txt.
    """
    if root.is_file(f"{split}.csv"):
        return [f"{split}.csv"]
    images = f"{split}_images.txt"
    for folder in LABEL_FOLDERS if root.is_file(images) else ():
        if root.is_file(f"{split}_{folder}.txt"):
            return [images, f"{split}_{folder}.txt"]
    return [f"{split}.txt"] if root.is_file(f"{split}.txt") else []


def is_list(split: str) -> bool:
    """Whether a split is given as the name of a list file, or as two names separated by a comma."""
    return split.lower().endswith((".csv", ".txt"))


def find_listed(root: Tree, paths: list[str], by_name: Callable[[str], tuple[str, str]]) -> Found:
    """Returns the pairs that the list files name, in the order of the lists.

    Args:
        root: The dataset. Paths in a list are relative to the folder of the list or to the dataset.
        paths: One .csv or .txt file, or two .txt files, the one of the images first.
        by_name: Returns image and mask for a line that holds only a name.

    Raises:
        UserError: A list is missing, empty or not a list, or names an image twice.
    """
    rows: list[tuple[int, str, str]]
    if len(paths) > 2:
        raise UserError(
            f"`train_split` or `eval_split={','.join(paths)}`: give one list of pairs, or two "
            "lists: images,masks"
        )
    if len(paths) == 2:
        first, second = (_lines(root, path) for path in paths)
        if len(first) != len(second):
            raise UserError(
                f"{_where(root, paths[0])} has {len(first)} lines and {_where(root, paths[1])} "
                f"{len(second)}; both need one line per pair, in the same order"
            )
        rows = [
            (number, image, mask) for (number, image), (_, mask) in zip(first, second, strict=True)
        ]
    elif paths[0].lower().endswith(".csv"):
        rows = _table(root, paths[0])
    else:
        rows = [(number, *_pair_of_line(line)) for number, line in _lines(root, paths[0])]
    images, labels = [], []
    for _, image, mask in rows:
        found = (
            (_place(root, paths[0], image), _place(root, paths[-1], mask))
            if mask
            else by_name(image)  # a line with only a name
        )
        images.append(found[0])
        labels.append(found[1])
    lines: dict[str, int] = {}
    for (number, *_), image in zip(rows, images, strict=True):
        if lines.setdefault(image, number) != number:
            where = _where(root, paths[0])
            raise UserError(
                f"{where}: lines {lines[image]} and {number} name the same image, {image}; remove "
                "one"
            )
    expected = (
        f"{' and '.join(str(_where(root, path)) for path in paths)} "
        f"{'names' if len(paths) == 1 else 'name'} it"
    )
    return Found(_names(images), tuple(images), tuple(labels), expected)


def _names(images: list[str]) -> tuple[str, ...]:
    """Returns the paths without suffix, relative to the folder that all images have in common."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(image)) for image in images])
    return tuple(
        Path(os.path.relpath(os.path.abspath(image), common)).with_suffix("").as_posix()
        for image in images
    )


def _where(root: Tree, path: str) -> Path:
    """Returns the path of a list, which is in the dataset or elsewhere."""
    return root.on_disk(path) if root.is_file(path) or not os.path.isfile(path) else Path(path)


def _lines(root: Tree, path: str) -> list[tuple[int, str]]:
    """Returns the number and the text of each line that is not empty."""
    where = _where(root, path)
    try:
        text = root.read_text(path) if root.is_file(path) else decode_text(where.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{where}: this list does not exist; give a path relative to `dataset_dir` or to the "
            "current directory"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot be read as a list of files ({error}); save it as text in UTF-8"
        ) from error
    lines = [
        (number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()
    ]
    if not lines:
        raise UserError(f"{where}: the list is empty; each line must name an image and its mask")
    return lines


def _pair_of_line(line: str) -> tuple[str, str]:
    """Splits a line `image<tab>mask` or `image mask`; the mask is "" if the line is only a name."""
    parts = line.split("\t") if "\t" in line else line.split()
    if len(parts) == 2 and all(part.lower().endswith(IMAGE_SUFFIXES) for part in parts):
        return parts[0].strip(), parts[1].strip()
    return line, ""


def _table(root: Tree, path: str) -> list[tuple[int, str, str]]:
    """Returns the line number, the image and the mask of each row."""
    where, lines = _where(root, path), _lines(root, path)
    delimiter = max(",;\t", key=lines[0][1].count)
    with reading(where, "a list of files", "save it as a CSV with one row per image and mask"):
        cells = [
            next(csv.reader(io.StringIO(line), delimiter=delimiter, skipinitialspace=True))
            for _, line in lines
        ]
    rows = [(number, row) for (number, _), row in zip(lines, cells, strict=True)]
    head = [cell.strip().lower() for cell in rows[0][1]]
    image, mask = 0, 1
    if not any(cell.endswith(IMAGE_SUFFIXES) for cell in head):
        columns = [
            [i for i, cell in enumerate(head) if cell in known]
            for known in (IMAGE_COLUMNS, LABEL_COLUMNS)
        ]
        if not all(columns):
            raise UserError(
                f"{where}: its columns are {', '.join(head)}; name the columns of the paths image "
                "and mask"
            )
        (image, *_), (mask, *_) = columns
        del rows[0]
    for number, row in rows:
        if len(row) <= max(image, mask) or not row[image].strip() or not row[mask].strip():
            raise UserError(f"{where}: line {number} does not name an image and a mask")
    if not rows:
        raise UserError(f"{where}: the list is empty; each line must name an image and its mask")
    return [(number, row[image].strip(), row[mask].strip()) for number, row in rows]


def _place(root: Tree, listed_in: str, path: str) -> str:
    """Returns the path of a listed file, which is relative to the list or else to the dataset."""
    path = path.replace("\\", "/")
    if os.path.isabs(path):
        return path
    next_to_list = root.spelled(posixpath.join(posixpath.dirname(listed_in), path))
    path = root.spelled(path)
    if root.is_file(next_to_list):
        return str(root.on_disk(next_to_list))
    elsewhere = Path(listed_in).parent / path
    if not root.is_file(path) and not root.is_file(listed_in) and os.path.isfile(elsewhere):
        return str(elsewhere)
    return str(root.on_disk(path))


def files_by_name(root: Tree, folder: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Maps the names of the files in a folder to their paths.

    A name is the path relative to the folder, without the suffix.

    Raises:
        UserError: Two files differ only in their suffixes.
    """
    found: dict[str, str] = {}
    for path in root.files(folder, suffixes, deep=True):
        name = same_name(posixpath.splitext(path)[0])
        if name in found:
            other = posixpath.basename(found[name])
            raise UserError(
                f"{root.on_disk(f'{folder}/{path}')}: {other} has the same name; remove one of "
                "the two"
            )
        found[name] = f"{folder}/{path}"
    return found


def mask_of(labels: dict[str, str], name: str, folder: str) -> str:
    """Returns the path of an image's mask; the expected path if there is no mask.

    Args:
        labels: The masks, name -> path.
        name: The name of the image.
        folder: The folder of the masks.
    """
    for ending in LABEL_ENDINGS:
        if (mask := labels.get(f"{name}{ending}")) is not None:
            return mask
    return f"{folder}/{name}.png"


def warn_left_out(root: Tree, folder: str, endings: tuple[str, ...], *, deep: bool) -> None:
    """Warns about images in a folder that are not read because of their suffixes."""
    there = root.files(folder, (*IMAGE_SUFFIXES, *OTHER_PICTURES), deep=deep)
    if others := [name for name in there if not name.lower().endswith(endings)]:
        logger.warning(
            "%s: %d images are skipped, such as %s; only %s are read: convert the others, or "
            "move them away",
            root.on_disk(folder),
            len(others),
            others[0],
            ", ".join(endings),
        )
