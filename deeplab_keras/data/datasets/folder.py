"""Your own dataset: image and mask files in parallel folders, or named by lists.

folder_layout.py finds the files. A mask holds one class id per pixel, or the colors listed in
`classes.txt`.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.classes_file import CLASSES_FILES, Classes, read_classes
from deeplab_keras.data.datasets.folder_layout import (
    SPLIT_NAMES,
    find_split,
    label_folder,
    where_is,
)
from deeplab_keras.data.datasets.folder_parts import find_part
from deeplab_keras.data.files.lists import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_FOLDERS,
    LABEL_SUFFIXES,
    Found,
    lists_of,
)
from deeplab_keras.data.files.mask_values import MaskValues
from deeplab_keras.data.files.mistakes import CONVERT, blended, likely_mistake, two_classes
from deeplab_keras.data.files.pairs import Pairs, exists, in_threads
from deeplab_keras.data.files.reading import (
    BrokenFileError,
    color_codes,
    opaque_colors,
    open_picture,
    read_label,
)
from deeplab_keras.data.files.tree import Tree, dataset_tree
from deeplab_keras.data.info import (
    MAX_CLASSES,
    Color,
    DatasetInfo,
    info_for_classes,
    pascal_palette,
    require_ignored_apart,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NAMES = tuple(map(str, range(256)))  # placeholders for class names
IGNORE_LABEL = DatasetInfo.ignore_label


def find_folder(config: DataConfig, split: str) -> Pairs:
    """Returns the pairs of your own dataset.

    The classes are read from classes.txt; without it, they are inferred from the masks.

    Raises:
        UserError: Something is missing or wrong; the message names the file or the option.
    """
    root = _home(config)
    aside = config.val_fraction or config.fold
    found, pool = find_part(root, config, split) if aside else (find_split(root, split),) * 2
    name = root.on_disk().resolve().name
    by_color = config.mask_format == "color"
    if file := _classes_file(root, found):
        classes = read_classes(root, file, with_ignored=by_color)
        require_ignored_apart(root.on_disk(file), classes.names, config.ignore_label)
        colors = classes.colors(root.on_disk(file), config.ignore_label) if by_color else None
    else:
        labels = _labels_of_all_splits(root, config, pool)
        classes = (infer_colors if by_color else infer_classes)(root, config, labels)
        colors = classes.colors(root.on_disk(), config.ignore_label) if by_color else None
    info = info_for_classes(name, classes.names, classes.palette, config.ignore_label)
    return Pairs(
        info, *found[:3], colors=colors, expected=found.expected, available=found.available
    )


def _home(config: DataConfig) -> Tree:
    """Returns the folder with the dataset, which may be the only folder in `dataset_dir`."""
    root = dataset_tree(config)
    known = (*IMAGE_FOLDERS, *LABEL_FOLDERS, *SPLIT_NAMES, config.train_split, config.eval_split)
    for _ in range(3):
        folders = [folder for folder in root.folders() if folder != "__MACOSX"]
        lists = lists_of(root, config.train_split) or lists_of(root, config.eval_split)
        files = root.files(".", (*IMAGE_SUFFIXES, *CLASSES_FILES, ".csv"))
        if len(folders) != 1 or folders[0].lower() in known or lists or files:
            break
        root = root.at(folders[0])
        logger.info("%s: this folder has the dataset", root.on_disk())
    return root


def _classes_file(root: Tree, found: Found) -> str:
    """Returns the path of the file of classes in the dataset, in any letter case; "" without one.

    Roboflow writes _classes.csv next to the images of each split, and `convert_masks` classes.txt
    next to the masks of all splits.
    """
    for folder in dict.fromkeys((".", *found.folders, label_folder(root) or ".")):
        there = {name.lower(): name for name in sorted(root.files(folder), reverse=True)}
        for file in CLASSES_FILES:
            if root.at(folder).is_file(file) or file in there:
                name = file if root.at(folder).is_file(file) else there[file]
                return posixpath.normpath(f"{folder}/{name}")
    return ""


# --- Classes of a dataset without classes.txt ---


def _labels_of_all_splits(root: Tree, config: DataConfig, found: Found) -> list[str]:
    """Returns the masks of all splits, so that every split gets the same classes."""
    if folder := label_folder(root):
        paths = root.files(folder, LABEL_SUFFIXES, deep=True)
        return [str(root.on_disk(f"{folder}/{path}")) for path in paths]
    labels = dict.fromkeys(found.labels)
    aside = bool(config.val_fraction or config.fold)
    for split in (config.train_split, config.eval_split):
        if aside and where_is(root, split) is None:
            continue
        try:
            labels |= dict.fromkeys(find_split(root, split).labels)
        except UserError as error:
            logger.info(
                "the classes are inferred without the masks of the split %s: %s", split, error
            )
    # Missing masks are reported later, with the layout that is expected.
    return [label for label in labels if exists(label)] or list(labels)


def _read_all(config: DataConfig, labels: Sequence[str], read: Callable[[str], T]) -> Iterator[T]:
    for result, error in in_threads(read, labels):
        if error is None:
            yield result  # type: ignore[misc]
        elif not (config.skip_broken_files and isinstance(error, BrokenFileError)):
            raise error


def infer_classes(root: Tree, config: DataConfig, labels: Sequence[str]) -> Classes:
    """Returns classes `class_0`, `class_1`, ... up to the largest id in the masks.

    Raises:
        UserError: A mask cannot be read, or there is only one class.
    """
    where = root.on_disk()
    logger.info(
        "%s has no %s: reading %d masks to infer the classes",
        where,
        CLASSES_FILES[0],
        len(labels),
    )
    values = MaskValues()
    for one in _read_all(config, labels, lambda path: MaskValues.of(read_label(path))):
        values.add(one)
    present = values.present
    count = max(present - {config.ignore_label}, default=0) + 1
    two = info_for_classes("", ("0", "1"), ignore_label=config.ignore_label)
    if count < 2:
        hint = likely_mistake(values, two)
        raise UserError(
            f"{where}: the masks hold no id besides 0 and the ignore label {config.ignore_label}; "
            + (hint or "number the classes 0, 1, 2, ..., or give another `ignore_label`")
        )
    unused = sorted(set(range(count)) - present)
    gaps = len(unused) > count / 2
    hint = two_classes(values, two) if gaps or values.black_and_white() == IGNORE_LABEL else ""
    hint = hint or blended(values, fewest=3 if gaps else 8)
    if gaps and not hint:
        hint = likely_mistake(values, info_for_classes("PASCAL VOC", _NAMES[: len(present)]))
    if hint:
        listed = ", ".join(map(str, sorted(present)[:5])) + (", ..." if len(present) > 5 else "")
        if_ids = (
            ""
            if values.blended(3)
            else f"; if they are ids, list the classes in {CLASSES_FILES[0]}"
        )
        raise UserError(f"{where}: the masks hold {listed}; {hint}{if_ids}")
    if unused == [0]:
        raise UserError(
            f"{where}: the masks hold 1 to {count - 1} but never 0, so the ids seem to start at 1; "
            f"run {CONVERT} --from=index --id_offset=-1, or list the classes in "
            f"{CLASSES_FILES[0]} if id 0 is one of them"
        )
    logger.info(
        "%s: %d classes, class_0 to class_%d; list their names in %s, one per line",
        where,
        count,
        count - 1,
        CLASSES_FILES[0],
    )
    if unused:
        logger.warning(
            "%s: no mask holds the id %s; if %d is a stray value, find it with `check_dataset.py`, "
            "otherwise list the classes in %s",
            where,
            ", ".join(map(str, unused[:5]))
            + (f" and {len(unused) - 5} more" if len(unused) > 5 else ""),
            max(present - {config.ignore_label}),
            CLASSES_FILES[0],
        )
    return Classes(tuple(f"class_{i}" for i in range(count)), pascal_palette(count))


def infer_colors(root: Tree, config: DataConfig, labels: Sequence[str]) -> Classes:
    """Returns a class for each color in the masks, sorted by color, so that black comes first.

    Raises:
        UserError: A mask cannot be read, or there are too many colors or only one.
    """
    where = root.on_disk()
    logger.info(
        "%s has no %s: reading %d masks to infer the classes from their colors",
        where,
        CLASSES_FILES[0],
        len(labels),
    )
    colors: set[Color] = set()
    found = sorted(colors.union(*_read_all(config, labels, colors_in)))
    if not 2 <= len(found) < MAX_CLASSES:
        count = f"{MAX_CLASSES} colors or more" if len(found) > 1 else f"{len(found)} color"
        raise UserError(
            f"{where}: the masks have {count}, and without {CLASSES_FILES[0]} each is a class; "
            f"create {CLASSES_FILES[0]} with one line 'name #rrggbb' per class"
        )
    logger.info(
        "%s: %d colors, one class each; list their names in %s",
        where,
        len(found),
        CLASSES_FILES[0],
    )
    return Classes(tuple(f"color_{bytes(color).hex()}" for color in found), tuple(found))


def colors_in(path: str) -> set[Color]:
    """Returns the colors of a mask, at most `MAX_CLASSES` + 1.

    Raises:
        BrokenFileError: The mask cannot be decoded.
    """
    with open_picture(path) as picture:
        codes = np.unique(color_codes(opaque_colors(path, picture)))[: MAX_CLASSES + 1].tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}
