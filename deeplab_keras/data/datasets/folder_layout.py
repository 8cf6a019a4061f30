"""Finds the image and mask files of your own dataset, in its folders or by its lists.

docs/your_own_dataset.md lists the layouts. Folders are recognized in any letter case.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from deeplab_keras.config import UserError
from deeplab_keras.data.files.lists import (
    IMAGE_FOLDERS,
    IMAGE_SUFFIXES,
    LABEL_ENDINGS,
    LABEL_FOLDERS,
    LABEL_SUFFIXES,
    OTHER_PICTURES,
    Found,
    Masks,
    files_by_name,
    find_listed,
    is_list,
    lists_of,
    warn_left_out,
)
from deeplab_keras.data.files.tree import Tree, same_name

logger = logging.getLogger(__name__)

# Names of the validation split. The others are used if the requested one does not exist.
VALIDATION = ("val", "valid", "validation")
# Folders with these names are splits, so their images are not mixed.
SPLIT_NAMES = (*VALIDATION, "train", "training", "trainval", "test", "testing", "dev")
ANNOTATIONS = (".json", ".xml")  # suffixes of files that labeling tools export
HELP = "see docs/your_own_dataset.md"


@dataclasses.dataclass(frozen=True)
class Place:
    """The folders of a split.

    Attributes:
        images: The folder of the images.
        labels: The folder of the masks, which is the same one if images and masks lie side by side;
            "" if there is none.
    """

    images: str
    labels: str


def find_split(root: Tree, split: str) -> Found:
    """Returns the files of a split of your own dataset, from lists or folders.

    Raises:
        UserError: A list or a folder is missing or empty.
    """
    place = where_is(root, split)
    if isinstance(place, list):
        return find_listed(root, place, _Named(root).find)
    if place is None:
        raise no_split(root, split)
    return files_in(root, place)


def find_parallel(root: Tree, split: str) -> Found:
    """Returns the files of a split in folders.

    Raises:
        UserError: A folder is missing, or the split is empty.
    """
    place = place_of(root, split)
    if place is None:
        raise no_split(root, split, divisible=False)
    return files_in(root, place)


def where_is(root: Tree, split: str) -> Place | list[str] | None:
    """Returns the folders or the lists of a split; `None` if the dataset does not have it.

    Raises:
        UserError: Several folders could be meant.
    """
    if is_list(split):
        return [path.strip() for path in split.split(",")]
    if found := _exactly(root, split):
        return found
    others = {
        name: place
        for name in (VALIDATION if split.lower() in VALIDATION else ())
        if name != split.lower() and (place := _exactly(root, name))
    }
    if len(others) > 1:
        raise UserError(
            f"{root.on_disk()}: it has no split {split!r} but {' and '.join(others)}; give one of "
            "them as `eval_split`"
        )
    for name, place in others.items():
        logger.info("%s: it has no split %r; using %r", root.on_disk(), split, name)
        return place
    return None


def _exactly(root: Tree, split: str) -> Place | list[str] | None:
    """Does the same as `where_is`, without other names of the split."""
    parallel = place_of(root, split, in_folders=True)
    return parallel or lists_of(root, split) or place_of(root, split)


# --- Folders ---


def place_of(root: Tree, split: str, *, in_folders: bool = False) -> Place | None:
    """Returns the folders of a split; `None` if the dataset does not have it.

    Args:
        root: The dataset.
        split: The name of the split.
        in_folders: Whether only folders named images are searched.

    Raises:
        UserError: Two folders differ only in letter case.
    """
    if not split:
        return None
    images, labels = image_folder(root), label_folder(root)
    if images and (name := _subfolder(root, images, split)):
        return Place(
            f"{images}/{name}",
            labels and f"{labels}/{_subfolder(root, labels, split) or name}",
        )
    outside = _subfolder(root, ".", split)
    if outside and (inner := image_folder(root, outside)):
        return Place(inner, label_folder(root, outside))
    if in_folders:
        return None
    endings = (f"{mark}{name}" for name in (*LABEL_FOLDERS, "annot") for mark in ("_", "-", ""))
    beside = _called(root, [f"{split}{ending}" for ending in endings])
    endings = (f"{mark}{name}" for name in IMAGE_FOLDERS for mark in ("_", "-", ""))
    pictures = _called(root, [f"{split}{ending}" for ending in endings]) or [outside]
    if beside and pictures[0]:
        return Place(pictures[0], _first_with(root, beside, LABEL_SUFFIXES))
    if outside and root.files(outside, IMAGE_SUFFIXES, deep=True):
        return Place(outside, outside)
    return None


def flat_place(root: Tree) -> Place | None:
    """Returns the folders of a dataset without splits; `None` if it has splits or no images."""
    if images := image_folder(root):
        return None if _splits_in(root, images) else Place(images, label_folder(root))
    if _splits_in(root, ".") or not root.files(".", IMAGE_SUFFIXES, deep=True):
        return None
    return Place(".", ".")


def image_folder(root: Tree, inside: str = ".") -> str:
    """Returns the path of the folder of images in a folder; "" if there is none."""
    return _first_with(root, _called(root, IMAGE_FOLDERS, inside), IMAGE_SUFFIXES)


def label_folder(root: Tree, inside: str = ".") -> str:
    """Returns the path of the folder of masks in a folder; "" if there is none."""
    return _first_with(root, _called(root, LABEL_FOLDERS, inside), LABEL_SUFFIXES)


def _called(root: Tree, names: Iterable[str], inside: str = ".") -> list[str]:
    """Returns the paths of the folders with one of the names, in the order of the names."""
    there: dict[str, list[str]] = {}
    for folder in root.folders(inside):
        there.setdefault(folder.lower(), []).append(folder)
    found = []
    for name in names:
        same = there.get(name.lower(), [])
        chosen = [name] if name in same else same
        if len(chosen) > 1:
            raise UserError(
                f"{root.on_disk(inside)}: its folders {chosen[0]} and {chosen[1]} differ only in "
                "letter case; rename or remove one"
            )
        found += chosen
    return [posixpath.normpath(posixpath.join(inside, name)) for name in found]


def _first_with(root: Tree, folders: Sequence[str], suffixes: Sequence[str]) -> str:
    """Returns the first folder that has such files, else the first folder; "" without folders."""
    if len(folders) > 1:
        folders = [f for f in folders if root.files(f, suffixes, deep=True)] or folders
    return folders[0] if folders else ""


def _subfolder(root: Tree, parent: str, split: str) -> str:
    """Returns the name of a split's folder in any letter case; "" if there is none."""
    if root.is_dir(f"{parent}/{split}"):
        return split
    same = [folder for folder in root.folders(parent) if folder.lower() == split.lower()]
    return same[0] if len(same) == 1 else ""


def _splits_in(root: Tree, folder: str) -> list[str]:
    return [name for name in root.folders(folder) if name.lower() in SPLIT_NAMES]


def no_split(root: Tree, split: str, *, divisible: bool = True) -> UserError:
    """Returns the error about a split that does not exist; it says what there is instead.

    Args:
        root: The dataset.
        split: The name of the split.
        divisible: Whether `val_fraction` can set images aside for the split.
    """
    aside = "`val_fraction=0.2` sets a fifth of the training images aside for validation"
    if images := image_folder(root):
        splits = ", ".join(root.folders(images)) or "none"
        divisible = divisible and (split in VALIDATION or flat_place(root) is not None)
        hint = f"; {aside}" if divisible else ""
        return UserError(
            f"{root.on_disk(images)}: it has no split {split!r}; splits for `train_split` and "
            f"`eval_split`: {splits}{hint}"
        )
    divisible = divisible and split in VALIDATION and place_of(root, "train") is not None
    hint = f"; {aside}" if divisible else ""
    return UserError(
        f"{root.on_disk()}: it has no folder 'images' with the split {split!r} but "
        f"{contents(root) or 'nothing'}; `dataset_dir` must contain images/{split} and "
        f"labels/{split}, {split}/images and {split}/labels, or a list {split}.csv or "
        f"{split}.txt{hint}; {HELP}"
    )


def contents(root: Tree) -> str:
    """Describes what is in a folder, for messages; "" if it is empty."""
    folders, files = root.folders(), root.files()
    kinds = Counter(posixpath.splitext(name)[1].lower() or "other" for name in files)
    parts = [f"the folders {', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''}"]
    parts = parts if folders else []
    parts += [f"{count} {kind} files" for kind, count in kinds.most_common(3)]
    return " and ".join(parts)


def annotations_hint(root: Tree, folder: str = ".", suffixes: Sequence[str] = ANNOTATIONS) -> str:
    """Returns a hint if a folder has annotations of a labeling tool instead of masks."""
    found = root.files(folder, suffixes, deep=True)
    if not found:
        return ""
    return f"; `scripts/convert_masks.py` converts annotations to masks, such as {found[0]}"


# --- The files of a split ---


def files_in(root: Tree, place: Place) -> Found:
    """Returns the files in the folders of a split.

    Raises:
        UserError: A folder is missing or empty, or images and masks cannot be told apart.
    """
    if place.images == place.labels:
        return _side_by_side(root, place.images)
    if not place.labels:
        if masks_among(root, place.images):
            return _side_by_side(root, place.images)
        parent = posixpath.dirname(place.images) or "."
        raise UserError(
            f"{root.on_disk(parent if image_folder(root) != parent else '.')}: it has no folder of "
            f"masks; create one named {' or '.join(LABEL_FOLDERS[:3])}{annotations_hint(root)}"
        )
    if not root.is_dir(place.labels):
        parent, _, split = place.labels.rpartition("/")
        raise UserError(
            f"{root.on_disk(parent)}: it has no split {split!r}; splits for `train_split` "
            f"and `eval_split`: {', '.join(root.folders(parent)) or 'none'}"
            f"{annotations_hint(root, parent)}"
        )
    images = files_by_name(root, place.images, IMAGE_SUFFIXES)
    if not images:
        others = root.files(place.images, OTHER_PICTURES, deep=True)
        convert = f"convert the {len(others)} files of other formats, such as " + "".join(
            others[:1]
        )
        raise UserError(
            f"{root.on_disk(place.images)}: it has no images; supported: "
            f"{', '.join(IMAGE_SUFFIXES)}{f'; {convert}' if others else ''}"
        )
    masks = Masks(root, place.labels)
    _require_masks(root, masks)
    warn_left_out(root, place.images, IMAGE_SUFFIXES, deep=True)
    labels = {name: masks.of(name) for name in images}
    _require_masks_of_their_own(root, images, labels)
    expected = f"each image in {root.on_disk(place.images)} needs a mask of the same name"
    return _found(root, place, images, labels, masks.files, expected)


def _found(
    root: Tree,
    place: Place,
    images: Mapping[str, str],
    labels: Mapping[str, str],
    masks: Mapping[str, str],
    expected: str,
) -> Found:
    folder = place.labels
    if unused := set(masks.values()) - set(labels.values()):
        logger.warning(
            "%s: %d masks have no image and are not used", root.on_disk(folder), len(unused)
        )
    such_as = ", ".join(posixpath.basename(path) for path in list(masks.values())[:2])
    count = f"{len(masks)} masks, such as {such_as}" if masks else "no masks"
    available = f"{root.on_disk(folder)} has {count}"
    on_disk = [
        tuple(str(root.on_disk(path)) for path in paths)
        for paths in (images.values(), labels.values())
    ]
    folders = tuple(dict.fromkeys(map(posixpath.dirname, images.values())))[:1]
    return Found(tuple(images), on_disk[0], on_disk[1], expected, available, folders)


def _require_masks(root: Tree, masks: Masks) -> None:
    """Raises `UserError` if a folder of masks has none that keep their ids."""
    if masks.files:
        return
    where = root.on_disk(masks.folder)
    others = root.files(masks.folder, (*IMAGE_SUFFIXES, *OTHER_PICTURES), deep=True)
    if others:
        raise UserError(
            f"{where}: it has no masks; masks must be {', '.join(LABEL_SUFFIXES)}: export the "
            f"{len(others)} files of other formats, such as {others[0]}, again as PNG, because "
            "JPEG blends the ids at every edge; for black-and-white masks, run "
            "`scripts/convert_masks.py` --from=binary"
        )
    there = contents(root.at(masks.folder))
    raise UserError(
        f"{where}: it has no masks{f', only {there}' if there else ''}; each image needs a mask of "
        f"the same name{annotations_hint(root, masks.folder, (*ANNOTATIONS, '.txt'))}"
    )


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


# --- Images and masks in one folder ---


def masks_among(root: Tree, folder: str) -> dict[str, str]:
    """Returns the masks among the pictures of a folder: the path of the image -> that of the mask.

    Both paths are relative to the folder.

    A mask has the name of its image and an ending such as `_mask`. If no picture has such an
    ending, each name must have a JPEG image and a mask in another format.

    Raises:
        UserError: An image has two masks.
    """
    by_name: dict[str, list[str]] = {}
    for path in root.files(folder, IMAGE_SUFFIXES, deep=True):
        by_name.setdefault(same_name(posixpath.splitext(path)[0]).casefold(), []).append(path)
    masks: dict[str, str] = {}
    for name, same in by_name.items():
        for ending in LABEL_ENDINGS[1:]:
            found = [p for p in by_name.get(name + ending.casefold(), []) if _keeps_ids(p)]
            for image, mask in ((image, mask) for image in same for mask in found):
                if masks.setdefault(image, mask) != mask:
                    raise UserError(
                        f"{root.on_disk(f'{folder}/{image}')}: it has two masks, "
                        f"{masks[image]} and {mask}; remove one"
                    )
    if not masks:
        pairs = [same for same in by_name.values() if len(same) > 1]
        for same in pairs:
            lossless = [path for path in same if _keeps_ids(path)]
            if len(same) != 2 or len(lossless) != 1:
                return {}
            masks[next(path for path in same if path not in lossless)] = lossless[0]
    return {image: mask for image, mask in masks.items() if image not in set(masks.values())}


def _keeps_ids(path: str) -> bool:
    return path.lower().endswith(LABEL_SUFFIXES)


def _side_by_side(root: Tree, folder: str) -> Found:
    """Returns the files of a split whose images and masks are in the same folder.

    Raises:
        UserError: They cannot be told apart, or two images have the same name.
    """
    where = root.on_disk(folder)
    paths = root.files(folder, IMAGE_SUFFIXES, deep=True)
    mask_of = masks_among(root, folder)
    if not mask_of:
        raise UserError(
            f"{where}: which of its {len(paths)} pictures are masks cannot be told from their "
            f"names, such as {paths[0] if paths else 'none'}; name each mask like its image with "
            "_mask at the end, or move images and masks to the folders images and labels"
            f"{annotations_hint(root, folder)}"
        )
    warn_left_out(root, folder, IMAGE_SUFFIXES, deep=True)
    used = set(mask_of.values())
    # A mask whose image is missing, such as `b_mask.png`, is not an image.
    endings = tuple(ending.casefold() for ending in LABEL_ENDINGS[1:])
    by_ending = any(
        posixpath.splitext(mask)[0].casefold().endswith(endings) for mask in mask_of.values()
    )
    alone = {
        path
        for path in paths
        if by_ending
        and path not in mask_of
        and _keeps_ids(path)
        and posixpath.splitext(path)[0].casefold().endswith(endings)
    }
    images: dict[str, str] = {}
    for path in paths:
        if path in used or path in alone:
            continue
        name = same_name(posixpath.splitext(path)[0])
        if name in images:
            raise UserError(
                f"{root.on_disk(f'{folder}/{path}')}: {posixpath.basename(images[name])} has the "
                "same name; remove one of the two"
            )
        images[name] = f"{folder}/{path}"
    prefix = len(folder) + 1
    labels = {
        name: f"{folder}/{mask_of.get(path[prefix:], f'{name}_mask.png')}"
        for name, path in images.items()
    }
    _require_masks_of_their_own(root, images, labels)
    masks = {path: f"{folder}/{path}" for path in sorted(used | alone)}
    logger.info("%s: %d images and %d masks side by side", where, len(images), len(masks))
    expected = f"each image in {where} needs a mask next to it"
    return _found(root, Place(folder, folder), images, labels, masks, expected)


# --- Names in lists ---


class _Named:
    """Finds the image and the mask of a name in a list."""

    def __init__(self, root: Tree) -> None:
        self.root = root

    @functools.cached_property
    def place(self) -> Place:
        images = image_folder(self.root) or "."
        labels = label_folder(self.root)
        if not labels:
            raise UserError(
                f"{self.root.on_disk()}: it has no folder of masks; create one named "
                f"{' or '.join(LABEL_FOLDERS[:3])}"
            )
        return Place(images, labels)

    @functools.cached_property
    def masks(self) -> Callable[[str], str]:
        return Masks(self.root, self.place.labels).of

    @functools.cached_property
    def images(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.root.files(self.place.images, IMAGE_SUFFIXES, deep=True):
            found.setdefault(same_name(posixpath.splitext(path)[0]), []).append(path)
        return found

    def find(self, listed: str) -> tuple[str, str]:
        """Returns the paths of the image and the mask.

        Args:
            listed: The name, with or without the suffix of the image.

        Raises:
            UserError: Several images have the name.
        """
        folder, name = self.place.images, same_name(listed.replace("\\", "/"))
        name = name.removeprefix(f"{folder}/")
        stem, suffix = name, ""
        if name.lower().endswith(IMAGE_SUFFIXES):
            stem, suffix = posixpath.splitext(name)
        found = self.images.get(stem, [])
        if suffix:
            found = [path for path in found if path.endswith(suffix)]
        if len(found) > 1:
            raise UserError(
                f"{self.root.on_disk(f'{folder}/{found[1]}')}: {posixpath.basename(found[0])} has "
                "the same name; remove one of the two, or list the name with its suffix"
            )
        image = f"{folder}/{found[0] if found else stem + (suffix or IMAGE_SUFFIXES[0])}"
        return str(self.root.on_disk(image)), str(self.root.on_disk(self.masks(stem)))
