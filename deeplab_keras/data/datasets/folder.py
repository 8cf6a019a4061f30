"""Your own dataset: image and mask files in parallel folders, or named by lists.

The layouts are:

* images `images/<split>/**/NAME.jpg` (.jpeg, .png) and masks `labels/<split>/**/NAME.png` (also
  masks/ or annotations/);
* `<split>/images` and `<split>/labels`;
* a list `<split>.csv`, two lists `<split>_images.txt` and `<split>_labels.txt`, or `<split>.txt`.

A mask holds one class id per pixel, or the colors listed in `classes.txt`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.classes_file import CLASSES_FILES, Classes, read_classes
from deeplab_keras.data.files.lists import (
    IMAGE_SUFFIXES,
    LABEL_ENDINGS,
    LABEL_FOLDERS,
    OTHER_PICTURES,
    Found,
    files_by_name,
    find_listed,
    is_list,
    lists_of,
    mask_of,
    warn_left_out,
)
from deeplab_keras.data.files.mask_values import MaskValues
from deeplab_keras.data.files.mistakes import blended, likely_mistake, two_classes
from deeplab_keras.data.files.pairs import Pairs, in_threads
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
    root = dataset_tree(config)
    # Most archives contain a single folder.
    if root.archives and not root.files() and len(root.folders()) == 1:
        root = root.at(root.folders()[0])
    found = find_split(root, split)
    name = root.on_disk().resolve().name
    by_color = config.mask_format == "color"
    if file := next((file for file in CLASSES_FILES if root.is_file(file)), None):
        classes = read_classes(root, file, with_ignored=by_color)
        require_ignored_apart(root.on_disk(file), classes.names, config.ignore_label)
        colors = classes.colors(root.on_disk(file), config.ignore_label) if by_color else None
    else:
        labels = _labels_of_all_splits(root, config, found)
        classes = (infer_colors if by_color else infer_classes)(root, config, labels)
        colors = classes.colors(root.on_disk(), config.ignore_label) if by_color else None
    info = info_for_classes(name, classes.names, classes.palette, config.ignore_label)
    return Pairs(info, *found[:3], colors=colors, expected=found.expected)


def find_split(root: Tree, split: str) -> Found:
    """Returns the files of a split of your own dataset, from lists or parallel folders.

    Raises:
        UserError: A list or a folder is missing or empty.
    """
    if is_list(split):
        return find_listed(
            root, [path.strip() for path in split.split(",")], lambda name: _by_name(root, name)
        )
    if not (split and (root.is_dir(f"images/{split}") or root.is_dir(f"{split}/images"))) and (
        lists := lists_of(root, split)
    ):
        return find_listed(root, lists, lambda name: _by_name(root, name))
    return find_parallel(root, split)


def _by_name(root: Tree, name: str) -> tuple[str, str]:
    """Returns the image and the mask of a name in images/ and labels/.

    Args:
        root: The dataset.
        name: The name, with or without the suffix of the image.
    """
    stem = name.rpartition(".")[0] if name.lower().endswith(IMAGE_SUFFIXES) else name
    suffixes = (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
    images = [f"images/{stem}{suffix}" for suffix in suffixes]
    labels = [f"{_label_folder(root)}/{stem}{ending}.png" for ending in LABEL_ENDINGS]
    image, label = (
        next(filter(root.is_file, map(root.spelled, paths)), paths[0]) for paths in (images, labels)
    )
    return str(root.on_disk(image)), str(root.on_disk(label))


def _label_folder(root: Tree, inside: str = ".") -> str:
    for name in LABEL_FOLDERS:
        if root.at(inside).is_dir(name):
            return name
    raise UserError(
        f"{root.on_disk(inside)}: it has no folder of masks; create one named "
        f"{' or '.join(LABEL_FOLDERS)}"
    )


def find_parallel(root: Tree, split: str) -> Found:
    """Returns the files of a split in parallel folders.

    These are `images/<split>` and `labels/<split>`, or `<split>/images` and `<split>/labels`.

    Raises:
        UserError: A folder is missing, or the split is empty.
    """
    if split and root.is_dir(f"{split}/images") and not root.is_dir("images"):
        image_folder, label_folder = f"{split}/images", f"{split}/{_label_folder(root, split)}"
    else:
        if not root.is_dir("images"):
            raise UserError(
                f"{root.on_disk()}: it has no folder 'images'; `dataset_dir` must contain "
                f"images/{split} and labels/{split}, or a list {split}.csv or {split}.txt"
            )
        image_folder, label_folder = f"images/{split}", f"{_label_folder(root)}/{split}"
        for folder in (image_folder, label_folder):
            if not split or not root.is_dir(folder):
                parent = folder.partition("/")[0]
                splits = ", ".join(root.folders(parent)) or "none"
                raise UserError(
                    f"{root.on_disk(parent)}: it has no split {split!r}; splits for `train_split` "
                    f"and `eval_split`: {splits}"
                )
    images = files_by_name(root, image_folder, IMAGE_SUFFIXES)
    if not images:
        others = root.files(image_folder, OTHER_PICTURES, deep=True)
        there = (
            f"; convert the {len(others)} files of other formats, such as {others[0]}"
            if others
            else ""
        )
        raise UserError(
            f"{root.on_disk(image_folder)}: it has no images; supported: "
            f"{', '.join(IMAGE_SUFFIXES)}{there}"
        )
    masks = files_by_name(root, label_folder, (".png",))
    if not masks and (
        others := root.files(label_folder, (*IMAGE_SUFFIXES, *OTHER_PICTURES), deep=True)
    ):
        raise UserError(
            f"{root.on_disk(label_folder)}: it has no masks; masks must be .png: export the "
            f"{len(others)} files of other formats, such as {others[0]}, again as PNG, because "
            "JPEG blends the ids at every edge; for black-and-white masks, run "
            "`scripts/convert_masks.py` --from=binary"
        )
    warn_left_out(root, image_folder, IMAGE_SUFFIXES, deep=True)
    labels = {name: mask_of(masks, name, label_folder) for name in images}
    _require_masks_of_their_own(root, images, labels)
    if unused := set(masks.values()) - set(labels.values()):
        logger.warning(
            "%s: %d masks have no image and are not used", root.on_disk(label_folder), len(unused)
        )
    expected = f"each image in {root.on_disk(image_folder)} needs a mask of the same name"
    on_disk = [
        tuple(str(root.on_disk(path)) for path in paths)
        for paths in (images.values(), labels.values())
    ]
    return Found(tuple(images), on_disk[0], on_disk[1], expected)


def _require_masks_of_their_own(
    root: Tree, images: Mapping[str, str], labels: Mapping[str, str]
) -> None:
    """Raises `UserError` if two images have the same mask.

    One of them is usually a mask that is among the images.
    """
    first: dict[str, str] = {}
    for name, label in labels.items():
        if (other := first.setdefault(label, name)) != name:
            raise UserError(
                f"{root.on_disk(images[name])}: it has the same mask as "
                f"{root.on_disk(images[other])}, {root.on_disk(label)}; if it is a mask itself, "
                "move the masks out of the images' folder, otherwise give each image a mask of the "
                "same name"
            )


# --- Classes of a dataset without classes.txt ---


def _labels_of_all_splits(root: Tree, config: DataConfig, found: Found) -> list[str]:
    """Returns the masks of all splits, so that every split gets the same classes."""
    for folder in LABEL_FOLDERS:
        if root.is_dir(folder):
            return [
                str(root.on_disk(f"{folder}/{path}"))
                for path in root.files(folder, (".png",), deep=True)
            ]
    labels = dict.fromkeys(found.labels)
    for split in (config.train_split, config.eval_split):
        try:
            labels |= dict.fromkeys(find_split(root, split).labels)
        except UserError as error:
            logger.info(
                "the classes are inferred without the masks of the split %s: %s", split, error
            )
    return list(labels)


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
