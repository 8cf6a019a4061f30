"""What an export of a labeling tool contains, and how its images are found."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.annotations.rendering import Shape, Size, UndrawableError
from deeplab_keras.data.datasets.classes_file import Classes
from deeplab_keras.data.files.archives import read_bytes, split_member
from deeplab_keras.data.files.lists import IMAGE_SUFFIXES, OTHER_PICTURES
from deeplab_keras.data.files.tree import Tree, decode_text
from deeplab_keras.data.info import Color

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
ONLY_SPLIT = "train"  # of an export that is not split
BACKGROUND = "background"
BACKGROUND_NAMES = ("background", "_background_", "__background__")
IGNORE_NAMES = ("ignore", "__ignore__")  # labels of regions to ignore, as in classes.txt, labelme
PICTURES = (*IMAGE_SUFFIXES, *OTHER_PICTURES)
FLAT = "skipped, polygons with fewer than three points, which have no area: %d"


@dataclasses.dataclass
class Picture:
    """An annotated image of an export.

    Attributes:
        name: The path of the image as the export gives it, with its suffix if there is one.
        where: The annotation file, for messages.
        split: "train", "val", "test" or "" if unknown.
        size: Height and width according to the export; None for those of the image file.
        shapes: The annotated objects.
        mask: Function that returns the label map, instead of `shapes`.
        image: The path of the image in the export, if the form defines it.
        alias: Another name that the image file may have.
        problem: Why it cannot be converted; "" if it can.
    """

    name: str
    where: str
    split: str = ""
    size: Size | None = None
    shapes: list[Shape] = dataclasses.field(default_factory=list)
    mask: Callable[[], np.ndarray] | None = None
    image: str = ""
    alias: str = ""
    problem: str = ""


@dataclasses.dataclass
class Export:
    """The contents of an export.

    Attributes:
        form: What it is, such as "COCO instances".
        sources: The paths of the annotation files.
        pictures: Its images.
        labels: The class names of shapes in the order of their ids, without the background.
        colors: The colors of some of them.
        classes: The classes of the label maps of `Picture.mask`.
        notes: What was skipped or changed.
    """

    form: str
    sources: list[str]
    pictures: list[Picture] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    colors: dict[str, Color] = dataclasses.field(default_factory=dict)
    classes: Classes | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def split_of(path: str) -> str:
    """Returns the split that a path names: in its last folder that does, or in its file name."""
    folders, _, name = path.lower().rpartition("/")
    for part in reversed(folders.split("/")):
        if part in SPLITS:
            return SPLITS[part]
    words = re.findall(r"[a-z]+", name.rpartition(".")[0] or name)
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "")


def safe_name(name: object) -> str:
    """Returns the path of an image relative to the export, with slashes.

    Raises:
        UndrawableError: It is not the path of a file below a folder, so a file outside would be
            read or written.
    """
    if not isinstance(name, str) or not name.strip():
        raise UndrawableError("it has no file name")
    path = name.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        raise UndrawableError(
            "its file name is an absolute path; export it with names relative to the images' folder"
        )
    if ".." in parts:
        raise UndrawableError("its file name leads out of the export")
    fits = all(
        part.isprintable() and part[0] != "." and len(part.encode("utf-8", "replace")) <= 200
        for part in parts
    )
    if not parts or not fits:
        raise UndrawableError("its file name cannot be the name of an image")
    return "/".join(parts)


def without_suffix(name: str) -> str:
    """Returns the path of an image without its suffix; other dots are kept."""
    return name.rpartition(".")[0] if name.lower().endswith(PICTURES) else name


class ImageFiles:
    """The image files of an export, and of a folder with its images.

    Args:
        trees: The folders.
        masks: The folder of the masks to write, which may be in one of them.
    """

    def __init__(self, trees: Iterable[Tree], masks: str | os.PathLike[str]) -> None:
        self._by_name: dict[str, list[tuple[Tree, str]]] = collections.defaultdict(list)
        self._splits: set[str] = set()  # that have a folder
        made = os.path.join(os.path.abspath(masks), "")
        for tree in trees:
            for path in tree.files(".", PICTURES, deep=True):
                if os.path.abspath(tree.on_disk(path)).startswith(made):
                    continue
                name = path.rpartition("/")[2]
                self._splits.add(_folder_split(path))
                self._by_name[name].append((tree, path))
                self._by_name[without_suffix(name)].append((tree, path))

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str, split: str, near: str = "", *, only_name: bool = False) -> str:
        """Returns the path of an image on disk; "" if there is none, or if several could be meant.

        Args:
            name: Its path; the files' paths must end with it, with or without their suffix.
            split: Its split. If it has a folder, files of other splits are left out.
            near: A folder; files in it are preferred.
            only_name: Whether the last part of the name is enough if a single file has it.
        """
        named = self._by_name.get(name.rpartition("/")[2], [])
        if split in self._splits:
            named = [item for item in named if _folder_split(item[1]) in (split, "")]
        fitting = [
            item
            for item in named
            if f"/{item[1]}".endswith(f"/{name}")
            or f"/{without_suffix(item[1])}".endswith(f"/{name}")
        ]
        if only_name and not fitting:
            fitting = named
        fitting = [item for item in fitting if _folder_split(item[1]) == split] or fitting
        fitting = [item for item in fitting if near and _starts(item, near)] or fitting
        if not fitting or (len(fitting) > 1 and not _are_one_file(fitting)):
            return ""
        tree, path = fitting[0]
        file = str(tree.on_disk(path))
        return file if is_inside(file, tree.path) else ""


def _starts(item: tuple[Tree, str], folder: str) -> bool:
    return str(item[0].on_disk(item[1])).startswith(folder + os.sep)


def _folder_split(path: str) -> str:
    return split_of(f"{path.rpartition('/')[0]}/")


def _are_one_file(items: Sequence[tuple[Tree, str]]) -> bool:
    """Whether all are links to one file, as after a conversion into the folder of the images."""
    paths = [tree.on_disk(path) for tree, path in items]
    return all(map(os.path.isfile, paths)) and all(
        os.path.samefile(paths[0], path) for path in paths[1:]
    )


def is_inside(path: str, folder: str) -> bool:
    """Whether a file is below a folder, also if it is a link. Members of archives always are."""
    if split_member(path):
        return True
    real, top = os.path.realpath(path), os.path.realpath(folder)
    return real.startswith(top.rstrip(os.sep) + os.sep)


def read_text(path: str, largest: int) -> str:
    """Reads a text file, which may be in an archive.

    Args:
        path: The path of the file.
        largest: The largest number of bytes that is read.

    Raises:
        UserError: The file is larger.
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is not text.
    """
    # `read(largest)` of a file would allocate that many bytes.
    in_archive = split_member(path) is not None
    if in_archive or os.path.getsize(path) <= largest:
        data = read_bytes(path, largest + 1) if in_archive else read_bytes(path)
        if len(data) <= largest:
            return decode_text(data)
    raise UserError(
        f"{path}: it has more than {largest >> 20} MiB; export the images in several parts, and "
        "convert each into a folder of its own"
    )


def listed(names: Sequence[str], most: int = 4) -> str:
    """Returns names for a message, at most `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
