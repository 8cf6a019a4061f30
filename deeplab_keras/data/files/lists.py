"""Splits given by lists of files: a CSV of pairs, two parallel lists, or one list of names."""

from __future__ import annotations

import csv
import io
import logging
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deeplab_keras.config import UserError
from deeplab_keras.data.files.tree import Tree, decode_text, same_name
from deeplab_keras.io.foreign import reading

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
LOSSY_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (*LOSSY_SUFFIXES, *LABEL_SUFFIXES)
# Image formats that are not supported; a folder that also holds such files is reported.
OTHER_PICTURES = tuple(
    ".heic .heif .avif .jfif .jpe .jp2 .ppm .pgm .npy .dng .cr2 .nef .arw .svg .psd .eps".split()
)
_PICTURES = (*IMAGE_SUFFIXES, *OTHER_PICTURES)
# Names of folders, in any letter case.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "photos")
LABEL_FOLDERS = (
    "labels",
    "masks",
    "annotations",
    "label",
    "mask",
    "annotation",
    "segmentationclass",
    "segmentation",
    "ground_truth",
    "groundtruth",
    "gt",
)
# What a mask's name may add to the name of its image.
LABEL_ENDINGS = (
    "",
    "_mask",
    "_masks",
    "_label",
    "_labels",
    "_gt",
    "_seg",
    "_segmentation",
    "_L",
    "-mask",
    "-label",
)
# Words at the beginning of the names, as in image_1 and mask_1.
IMAGE_WORDS, LABEL_WORDS = ("image", "img", ""), ("mask", "label", "gt", "seg")
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
        available: The masks that there are, for messages.
        folders: The folders of the images, which may have a file of classes.
    """

    names: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    expected: str
    available: str = ""
    folders: tuple[str, ...] = ()

    def take(self, chosen: Sequence[int]) -> Found:
        """Returns the chosen pairs."""
        names, images, labels = (
            tuple(files[i] for i in chosen) for files in (self.names, self.images, self.labels)
        )
        return self._replace(names=names, images=images, labels=labels)


def lists_of(root: Tree, split: str) -> list[str]:
    """Returns the list files of a split; an empty list if it has none.

    These are SPLIT.csv, or SPLIT_images.txt and SPLIT_labels.txt, or SPLIT.txt, or PASCAL VOC's
    ImageSets/Segmentation/SPLIT.txt.
    """
    if not split:
        return []
    if root.is_file(f"{split}.csv"):
        return [f"{split}.csv"]
    images = f"{split}_images.txt"
    for folder in LABEL_FOLDERS if root.is_file(images) else ():
        if root.is_file(f"{split}_{folder}.txt"):
            return [images, f"{split}_{folder}.txt"]
    places = (f"{split}.txt", f"ImageSets/Segmentation/{split}.txt")
    return [place for place in places if root.is_file(place)][:1]


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
        UserError: A list is missing, empty or not a list, names an image twice, or a name leads out
            of the folder.
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
    for number, image, mask in rows:
        for path in (image, mask):
            _require_inside(root, paths[0], number, path, alone=not mask)
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


def _require_inside(root: Tree, listed_in: str, number: int, path: str, *, alone: bool) -> None:
    """Refuses a relative path that leads out of the dataset and out of the list's folder.

    Args:
        root: The dataset.
        listed_in: The path of the list.
        number: The number of the line.
        path: The path in the list.
        alone: Whether the line has only a name, which is looked up in the folder of the images.
    """
    path = path.replace("\\", "/")
    if ".." not in path.split("/") or (os.path.isabs(path) and not alone):
        return
    home = os.path.abspath(root.on_disk())
    above = os.path.dirname(os.path.abspath(_where(root, listed_in)))
    for start in () if alone else dict.fromkeys((above, home)):
        place = os.path.abspath(os.path.join(start, path))
        if any(place.startswith(os.path.join(folder, "")) for folder in (home, above)):
            return
    raise UserError(
        f"{_where(root, listed_in)}: line {number} leads out of the dataset: {path[:200]!r}; move "
        "the file into the dataset, or give its absolute path"
    )


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
    if len(parts) == 2 and all(part.lower().endswith(_PICTURES) for part in parts):
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
    named: list[int] = []  # columns of masks
    if not any(cell.endswith(_PICTURES) for cell in head):
        columns, named = (
            [i for i, cell in enumerate(head) if cell in known]
            for known in (IMAGE_COLUMNS, LABEL_COLUMNS)
        )
        if not columns:
            raise UserError(
                f"{where}: its columns are {', '.join(head)}; name the columns of the paths image "
                "and mask"
            )
        del rows[0]
        if not named:  # only names: the masks are found by them
            return _names_in(where, rows, columns[0])
        image, mask = columns[0], named[0]
    for number, row in rows:
        if len(row) <= max(image, mask) or not row[image].strip() or not row[mask].strip():
            raise UserError(f"{where}: line {number} does not name an image and a mask")
    if not rows:
        raise UserError(f"{where}: the list is empty; each line must name an image and its mask")
    return [(number, row[image].strip(), row[mask].strip()) for number, row in rows]


def _names_in(
    where: Path, rows: Sequence[tuple[int, list[str]]], column: int
) -> list[tuple[int, str, str]]:
    """Returns the line number and the name in each row of a table without a column of masks."""
    for number, row in rows:
        if len(row) <= column or not row[column].strip():
            raise UserError(f"{where}: line {number} does not name an image")
    if not rows:
        raise UserError(f"{where}: the list is empty; each line must name an image")
    return [(number, row[column].strip(), "") for number, row in rows]


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


class Masks:
    """The masks in a folder, by the names of their images.

    Args:
        root: The dataset.
        folder: The folder.

    Raises:
        UserError: Two masks differ only in their suffixes.
    """

    def __init__(self, root: Tree, folder: str) -> None:
        self.folder = folder
        self.files = files_by_name(root, folder, LABEL_SUFFIXES)
        # JPEG masks are found, so that reading them says why they cannot be used.
        self.lossy = {} if not self.files else files_by_name(root, folder, LOSSY_SUFFIXES)
        self._folded: dict[str, list[str]] = {}
        for name, path in self.files.items():
            self._folded.setdefault(name.casefold(), []).append(path)

    def of(self, name: str) -> str:
        """Returns the path of an image's mask; the expected path if there is no mask.

        If no mask has exactly the name, it may be in another letter case, or begin with a word such
        as `mask_` instead of `image_`.
        """
        for ending in LABEL_ENDINGS:
            if (mask := self.files.get(f"{name}{ending}")) is not None:
                return mask
        for other in (*(f"{name}{ending}" for ending in LABEL_ENDINGS), *_with_beginnings(name)):
            if len(found := self._folded.get(other.casefold(), [])) == 1:
                return found[0]
        for ending in LABEL_ENDINGS:
            if (mask := self.lossy.get(f"{name}{ending}")) is not None:
                return mask
        return f"{self.folder}/{name}.png"


def _with_beginnings(name: str) -> Iterator[str]:
    """Yields the names of masks that begin with a word: `image_1` -> `mask_1`, `gt_1`, ..."""
    folder, stem = posixpath.split(name)
    for word in IMAGE_WORDS:
        if stem.lower().startswith(word):
            rest = stem[len(word) :].lstrip("_-")
            for mark in ("_", "-", ""):
                yield from (posixpath.join(folder, f"{w}{mark}{rest}") for w in LABEL_WORDS)


def warn_left_out(root: Tree, folder: str, endings: tuple[str, ...], *, deep: bool) -> None:
    """Warns about images in a folder that are not read because of their suffixes."""
    there = root.files(folder, (*IMAGE_SUFFIXES, *OTHER_PICTURES), deep=deep)
    if others := [name for name in there if not name.lower().endswith(endings)]:
        logger.warning(
            "%s: %s, such as %s; only %s are read: convert the others, or move them away",
            root.on_disk(folder),
            "1 image is skipped" if len(others) == 1 else f"{len(others)} images are skipped",
            others[0],
            ", ".join(endings),
        )
