"""A dataset of one's own: image and mask files in parallel folders, or named by lists.

The images are `images/<split>/**/NAME.jpg` (.jpeg, .png), the masks `labels/<split>/**/NAME.png`
(or masks/, annotations/); or both in `<split>/`; or a list `<split>.csv`, `<split>_images.txt` with
`<split>_labels.txt`, or `<split>.txt` names them. A mask holds one class id a pixel, or the colours
that `classes.txt` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from absl import logging

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
    colour_codes,
    opaque_colours,
    open_picture,
    read_label,
)
from deeplab_keras.data.files.tree import Tree, dataset_tree
from deeplab_keras.data.info import (
    MAX_CLASSES,
    Colour,
    DatasetInfo,
    info_for_classes,
    pascal_palette,
    require_ignored_apart,
)

T = TypeVar("T")

_NAMES = tuple(map(str, range(256)))  # of classes that nobody named
IGNORE_LABEL = DatasetInfo.ignore_label


def find_folder(config: DataConfig, split: str) -> Pairs:
    """A folder of one's own; its classes are those of classes.txt or, without it, what its masks hold.

    Raises:
        UserError: something is missing or wrong; names the file or the flag.
    """
    root = dataset_tree(config)
    if (
        root.archives and not root.files() and len(root.folders()) == 1
    ):  # an archive mostly holds one folder
        root = root.at(root.folders()[0])
    found = find_split(root, split)
    name = root.on_disk().resolve().name
    by_colour = config.mask_format == "colour"
    if file := next((file for file in CLASSES_FILES if root.is_file(file)), None):
        classes = read_classes(root, file, with_ignored=by_colour)
        require_ignored_apart(root.on_disk(file), classes.names, config.ignore_label)
        colours = classes.colours(root.on_disk(file), config.ignore_label) if by_colour else None
    else:
        labels = _labels_of_all_splits(root, config, found)
        classes = (infer_colours if by_colour else infer_classes)(root, config, labels)
        colours = classes.colours(root.on_disk(), config.ignore_label) if by_colour else None
    info = info_for_classes(name, classes.names, classes.palette, config.ignore_label)
    return Pairs(info, *found[:3], colours=colours, expected=found.expected)


def find_split(root: Tree, split: str) -> Found:
    """The files of a split of a folder of one's own, by lists or in parallel folders.

    Raises:
        UserError: a list or a folder is missing or empty.
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
    """Image and mask of a name in images/ and labels/, with or without its suffix."""
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
        f"{root.on_disk(inside)}: there is no folder of masks; it has to be called one of "
        f"{', '.join(LABEL_FOLDERS)}"
    )


def find_parallel(root: Tree, split: str) -> Found:
    """The files of a split of parallel folders, `images/<split>` and `labels/<split>`, or `<split>/images`, `<split>/labels`.

    Raises:
        UserError: a folder is missing, or the split is empty.
    """
    if split and root.is_dir(f"{split}/images") and not root.is_dir("images"):
        image_folder, label_folder = f"{split}/images", f"{split}/{_label_folder(root, split)}"
    else:
        if not root.is_dir("images"):
            raise UserError(
                f"{root.on_disk()}: there is no folder 'images'; `dataset_dir` has to hold "
                f"images/{split} and labels/{split}, "
                f"or a list {split}.csv or {split}.txt"
            )
        image_folder, label_folder = f"images/{split}", f"{_label_folder(root)}/{split}"
        for folder in (image_folder, label_folder):
            if not split or not root.is_dir(folder):
                parent = folder.partition("/")[0]
                splits = ", ".join(root.folders(parent)) or "none"
                raise UserError(
                    f"{root.on_disk(parent)}: there is no split {split!r}; there are (for "
                    f"`train_split`, `eval_split`): {splits}"
                )
    images = files_by_name(root, image_folder, IMAGE_SUFFIXES)
    if not images:
        others = root.files(image_folder, OTHER_PICTURES, deep=True)
        there = (
            f"; the {len(others)} others, as {others[0]}, have to be converted" if others else ""
        )
        raise UserError(
            f"{root.on_disk(image_folder)}: there is no image in it; wanted are "
            f"{', '.join(IMAGE_SUFFIXES)}{there}"
        )
    masks = files_by_name(root, label_folder, (".png",))
    if not masks and (
        others := root.files(label_folder, (*IMAGE_SUFFIXES, *OTHER_PICTURES), deep=True)
    ):
        raise UserError(
            f"{root.on_disk(label_folder)}: there is no mask in it; wanted are .png; the "
            f"{len(others)} others, as {others[0]}, "
            "have to be exported as PNG again: JPEG blends the ids at every edge; black and white "
            "ones are mended by "
            "scripts/convert_masks.py --from=binary"
        )
    warn_left_out(root, image_folder, IMAGE_SUFFIXES, deep=True)
    labels = {name: mask_of(masks, name, label_folder) for name in images}
    _require_masks_of_their_own(root, images, labels)
    if unused := set(masks.values()) - set(labels.values()):
        logging.warning(
            "%s: %d masks have no image and are not used", root.on_disk(label_folder), len(unused)
        )
    expected = f"each image in {root.on_disk(image_folder)} needs a mask of its name"
    on_disk = [
        tuple(str(root.on_disk(path)) for path in paths)
        for paths in (images.values(), labels.values())
    ]
    return Found(tuple(images), on_disk[0], on_disk[1], expected)


def _require_masks_of_their_own(
    root: Tree, images: Mapping[str, str], labels: Mapping[str, str]
) -> None:
    """Raises UserError where two images have the same mask: one of them is mostly a mask that lies among the images."""
    first: dict[str, str] = {}
    for name, label in labels.items():
        if (other := first.setdefault(label, name)) != name:
            raise UserError(
                f"{root.on_disk(images[name])}: it has the same mask as "
                f"{root.on_disk(images[other])}, {root.on_disk(label)}; "
                "if it is a mask itself, move the masks out of the images' folder; else give each "
                "image a mask of its name"
            )


# --- Classes, where no classes.txt names them ---


def _labels_of_all_splits(root: Tree, config: DataConfig, found: Found) -> list[str]:
    """The masks of all splits, so that every split gets the same classes."""
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
            logging.info(
                "the classes are those of the masks without the split %s: %s", split, error
            )
    return list(labels)


def _read_all(config: DataConfig, labels: Sequence[str], read: Callable[[str], T]) -> Iterator[T]:
    for result, error in in_threads(read, labels):
        if error is None:
            yield result  # type: ignore[misc]
        elif not (config.skip_broken_files and isinstance(error, BrokenFileError)):
            raise error


def infer_classes(root: Tree, config: DataConfig, labels: Sequence[str]) -> Classes:
    """Classes `class_0` ... up to the largest id in the masks.

    Raises:
        UserError: a mask cannot be read, or there is one class only.
    """
    where = root.on_disk()
    logging.info(
        "%s has no %s: reading %d masks to see which classes there are",
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
            f"{where}: the masks hold at most the id 0 beside the ignore label "
            f"{config.ignore_label}; "
            + (hint or "number the classes 0, 1, 2, ... in them, or give `ignore_label`")
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
            else f"; if they are ids, name the classes in {CLASSES_FILES[0]}"
        )
        raise UserError(f"{where}: the masks hold {listed}; {hint}{if_ids}")
    logging.info(
        "%s: %d classes, class_0 to class_%d; %s can name them, a line each",
        where,
        count,
        count - 1,
        CLASSES_FILES[0],
    )
    if unused:
        logging.warning(
            "%s: no mask holds the id %s; if %d is a stray value, find it with check_dataset.py, "
            "or name the classes in %s",
            where,
            ", ".join(map(str, unused[:5]))
            + (f" and {len(unused) - 5} more" if len(unused) > 5 else ""),
            max(present - {config.ignore_label}),
            CLASSES_FILES[0],
        )
    return Classes(tuple(f"class_{i}" for i in range(count)), pascal_palette(count))


def infer_colours(root: Tree, config: DataConfig, labels: Sequence[str]) -> Classes:
    """A class for each colour in the masks, in the order of the colours, so that black comes first.

    Raises:
        UserError: a mask cannot be read, or there are too many colours or one only.
    """
    where = root.on_disk()
    logging.info(
        "%s has no %s: reading %d masks to see which colours there are",
        where,
        CLASSES_FILES[0],
        len(labels),
    )
    colours: set[Colour] = set()
    found = sorted(colours.union(*_read_all(config, labels, colours_in)))
    if not 2 <= len(found) < MAX_CLASSES:
        count = f"{MAX_CLASSES} colours or more" if len(found) > 1 else f"{len(found)} colour"
        raise UserError(
            f"{where}: the masks have {count}, and without {CLASSES_FILES[0]} each is a class; "
            f"give {CLASSES_FILES[0]} with a line 'name #rrggbb' a class"
        )
    logging.info(
        "%s: %d colours, a class each; %s can name them", where, len(found), CLASSES_FILES[0]
    )
    return Classes(tuple(f"colour_{bytes(colour).hex()}" for colour in found), tuple(found))


def colours_in(path: str) -> set[Colour]:
    """The colours of a mask; no more than one above the number of classes that there can be.

    Raises:
        BrokenFileError: it cannot be decoded.
    """
    with open_picture(path) as picture:
        codes = np.unique(colour_codes(opaque_colours(path, picture)))[: MAX_CLASSES + 1].tolist()
    return {(code >> 16, code >> 8 & 255, code & 255) for code in codes}
