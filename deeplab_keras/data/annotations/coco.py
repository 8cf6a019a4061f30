"""Reads COCO's JSON files: instances, stuff and panoptic segmentation, and Roboflow's exports."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.annotations.exports import (
    BACKGROUND_NAMES,
    FLAT,
    IGNORE_NAMES,
    Export,
    Picture,
    listed,
    split_of,
)
from deeplab_keras.data.annotations.json_elements import read_elements
from deeplab_keras.data.annotations.rendering import (
    IGNORE_LABEL,
    Shape,
    Size,
    UndrawableError,
    fill_counts,
    fill_polygons,
    rectangle,
    ring_of,
    runs_of,
)
from deeplab_keras.data.datasets.classes_file import Classes
from deeplab_keras.data.files.reading import open_picture
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import Color, pascal_palette
from deeplab_keras.io.foreign import reading

ROBOFLOW = "_annotations.coco.json"
# Parts of the names of COCO's files. Of several files for one split, the first kind is used.
PARTS = ("instances", "stuff", "labels", "person_keypoints", "captions", "image_info", "panoptic")
CROWDS = ("ignore", "class")


@dataclasses.dataclass
class _File:
    """The contents of one file; `annotations` has those of each image by its id."""

    path: str
    categories: dict[Any, tuple[str, Color | None]] = dataclasses.field(default_factory=dict)
    placeholder: str = ""  # Roboflow's first category, which stands for the whole project
    images: dict[Any, Picture] = dataclasses.field(default_factory=dict)
    annotations: dict[Any, list[Any]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )


def read_coco(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads COCO files of polygons and run lengths, one per split.

    Args:
        root: The export.
        files: The paths of the JSON files.
        crowd: "ignore": annotations with `iscrowd` become the ignore label. "class": they are
            objects.

    Raises:
        UserError: A file cannot be read, its categories contradict each other, or no object has an
            outline.
    """
    files, others = _of_one_part(files)
    export = Export(f"COCO {_part(files[0]) or 'annotations'}", [])
    counts = collections.Counter[str]()
    placeholders: set[str] = set()
    read = [_read(str(root.on_disk(name)), split_of(name), _object) for name in files]
    _require_outlines(read)
    for file in read:
        export.sources.append(file.path)
        _add_categories(export, file)
        placeholders.add(file.placeholder)
        for identity, picture in file.images.items():
            _add_shapes(picture, file, file.annotations.pop(identity, []), crowd, counts)
            export.pictures.append(picture)
        counts["strangers"] += sum(map(len, file.annotations.values()))
    if counts["strangers"] and not any(picture.shapes for picture in export.pictures):
        _require_own(export, read, counts["strangers"])
    if counts["crowds"] and not counts["objects"] and crowd == "ignore":
        raise UserError(
            f"{export.sources[0]}: all {counts['crowds']} annotations are marked as iscrowd, so "
            "every object would be ignored; if they are objects, as in masks that CVAT exports, "
            "give `crowd='class'`"
        )
    used = {shape.label for picture in export.pictures for shape in picture.shapes}
    export.labels = [name for name in export.labels if name in used or name not in placeholders]
    if others:
        export.notes.append(f"not used: {listed(others)}")
    export.notes += [text % counts[what] for what, text in _NOTES.items() if counts[what]]
    return export


def _require_own(export: Export, files: Sequence[_File], strangers: int) -> None:
    """Raises `UserError` if all annotations are of images that their file does not list."""
    if not any(picture.problem for picture in export.pictures):
        image = next(iter(next(file.annotations for file in files if file.annotations)))
        raise UserError(
            f"{export.sources[0]}: its {strangers} annotations are all of images that the file "
            f"does not list, such as the image {image!r:.60}; export it again"
        )


_NOTES = {
    "crowds": "crowds and regions to ignore, which become the ignore label: %d; if crowds are "
    "objects, as in masks that CVAT exports, give `crowd='class'`",
    "boxes": "objects with only a box, which becomes the ignore label: %d",
    "empty": "skipped, annotations without an outline and a box: %d",
    "flat": FLAT,
    "strangers": "skipped, annotations of images that the file does not list: %d",
}


def _part(name: str) -> str:
    stem = posixpath.basename(name).lower()
    return next((part for part in PARTS if part in stem), "")


def _of_one_part(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the files to use, and those that describe the same images in another way."""
    parts = {_part(name) for name in files}
    used = next((part for part in PARTS if part in parts), "")
    return (
        [name for name in files if _part(name) in (used, "")],
        [name for name in files if _part(name) not in (used, "")],
    )


def _read(path: str, split: str, compact: Any) -> _File:
    file = _File(path)
    for key, value in read_elements(path, "a COCO file"):
        if key == "categories" and isinstance(value, dict):
            _category(file, value)
        elif key == "images" and isinstance(value, dict):
            _image(file, value, split)
        elif key == "annotations" and isinstance(value, dict):
            file.annotations[_hashable(value.get("image_id"))].append(compact(value))
        elif key in ("categories", "images", "annotations"):
            raise UserError(f"{path}: an entry of {key!r} is not an object; export it again")
    if not file.images or not file.categories:
        missing = "images" if not file.images else "categories"
        raise UserError(f"{path}: this COCO file has no {missing}; export it again")
    return file


def _hashable(value: Any) -> Any:
    """Returns an id by which files are compared: programs also write the id 1 as 1.0 or "1"."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch("0|[1-9][0-9]{0,18}", value):
        return int(value)
    return value if isinstance(value, int | str) else repr(value)


def _category(file: _File, value: Mapping[str, Any]) -> None:
    identity, name = _hashable(value.get("id")), value.get("name")
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{file.path}: the category {identity!r} has no name; export it again")
    before = file.categories.get(identity)
    if before and before[0] != name:
        raise UserError(
            f"{file.path}: the category id {identity!r} is both {before[0]!r} and {name!r}, so its "
            "objects have no certain class; give each category a different id"
        )
    color = value.get("color")
    is_color = (
        isinstance(color, list)
        and len(color) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in color)
    )
    file.categories[identity] = (name, tuple(color) if is_color and color else None)
    if file.path.endswith(ROBOFLOW) and identity == 0 and value.get("supercategory") == "none":
        file.placeholder = name


def _image(file: _File, value: Mapping[str, Any], split: str) -> None:
    name, identity = value.get("file_name"), _hashable(value.get("id"))
    width, height = value.get("width"), value.get("height")
    sides = [side for side in (height, width) if isinstance(side, int | float)]
    whole = len(sides) == 2 and all(math.isfinite(side) and side % 1 == 0 for side in sides)
    size = (int(sides[0]), int(sides[1])) if whole else None
    picture = Picture(name if isinstance(name, str) else "", file.path, split, size)
    if identity in file.images:
        picture.problem = f"another image has the same id {identity!r:.60}"
        identity = ("again", len(file.images))
    file.images[identity] = picture


def _add_categories(export: Export, file: _File) -> None:
    names = [name for name, _ in file.categories.values()]
    if again := [name for name, count in collections.Counter(names).items() if count > 1]:
        export.notes.append(f"categories of one name are one class: {listed(again)}")
    for name, color in file.categories.values():
        plain = name.lower() not in (*BACKGROUND_NAMES, *IGNORE_NAMES)
        if plain and name not in export.labels:
            export.labels.append(name)
        if color:
            export.colors.setdefault(name, color)


# --- Objects ---


def _object(value: Mapping[str, Any]) -> tuple[Any, bool, Any]:
    """Returns the category, whether it is a crowd, and the outline of an annotation.

    The outline is a list of arrays for polygons, (counts, size) for run lengths, a box `(x, y,
    width, height)` if there are neither, or the error in it. Arrays take less memory than JSON's
    lists.
    """
    crowd = bool(value.get("iscrowd") or value.get("ignore"))
    try:
        outline = _outline(value.get("segmentation"), value.get("bbox"))
    except UndrawableError as error:
        outline = error
    return _hashable(value.get("category_id")), crowd, outline


def _outline(segmentation: Any, box: Any) -> Any:
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        runs = counts if isinstance(counts, str) else runs_of(counts)
        size = segmentation.get("size")
        return runs, tuple(size) if isinstance(size, list) else size
    if isinstance(segmentation, list) and segmentation:
        flat = not isinstance(segmentation[0], list)  # a single polygon without its list
        return [ring_of(ring) for ring in ([segmentation] if flat else segmentation)]
    if segmentation not in (None, [], ""):
        raise UndrawableError("a segmentation that is neither polygons nor run lengths")
    return _box(box) if isinstance(box, list) and len(box) == 4 else None


def _box(numbers: list[Any]) -> np.ndarray:
    ring_of(numbers)  # raises an error for NaN
    return np.array(numbers, np.float64)


def _require_outlines(files: Sequence[_File]) -> None:
    found = [item for file in files for items in file.annotations.values() for item in items]
    if found and all(outline is None or _is_box(outline) for _, _, outline in found):
        raise UserError(
            f"{files[0].path}: none of its {len(found)} annotations has an outline, only boxes or "
            "nothing; export polygons or masks, because boxes are not segmentation"
        )


def _is_box(outline: Any) -> bool:
    return isinstance(outline, np.ndarray)


def _add_shapes(
    picture: Picture,
    file: _File,
    objects: Sequence[tuple[Any, bool, Any]],
    crowd: str,
    counts: collections.Counter[str],
) -> None:
    for category, is_crowd, outline in objects:
        if category not in file.categories:
            picture.problem = picture.problem or f"the category {category!r:.60} is not listed"
            continue
        name = file.categories[category][0]
        ignored = (is_crowd and crowd == "ignore") or name.lower() in IGNORE_NAMES
        if isinstance(outline, UndrawableError):
            picture.problem = picture.problem or f"it has {outline}"
        elif outline is None:
            counts["empty"] += 1
        elif _is_box(outline):
            counts["boxes"] += 1
            x, y, width, height = outline
            ring = rectangle((x, y), (width, height))
            picture.shapes.append(Shape(name, functools.partial(fill_polygons, [ring]), True))
        elif isinstance(outline, tuple):
            counts["crowds" if ignored else "objects"] += 1
            picture.shapes.append(Shape(name, functools.partial(_fill, *outline), ignored))
        else:
            rings = [ring for ring in outline if ring is not None]
            counts["flat"] += len(outline) - len(rings)
            if rings:
                counts["crowds" if ignored else "objects"] += 1
                draw = functools.partial(fill_polygons, rings)
                picture.shapes.append(Shape(name, draw, ignored))


def _fill(counts: Any, stated: Any, size: Size) -> np.ndarray:
    return fill_counts(counts, stated if isinstance(stated, tuple) else (), size)


# --- Panoptic ---


def read_panoptic(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads COCO's panoptic annotations: PNG files whose colors are the ids of segments.

    Raises:
        UserError: A file cannot be read or is not panoptic.
    """
    export = Export("COCO panoptic", [])
    read = [_read(str(root.on_disk(name)), split_of(name), dict) for name in files]
    for file in read:
        export.sources.append(file.path)
        _add_categories(export, file)
    # No background: the pixels of every class are listed, and the others are to be ignored.
    names = tuple(dict.fromkeys(name for file in read for name, _ in file.categories.values()))
    if len(names) > IGNORE_LABEL:
        raise UserError(
            f"{export.sources[0]}: it has {len(names)} categories, but at most {IGNORE_LABEL} are "
            "allowed; remove those that are not used"
        )
    palette = pascal_palette(len(names))
    export.classes = Classes(
        names, tuple(export.colors.get(name, palette[i]) for i, name in enumerate(names))
    )
    ids = {name: number for number, name in enumerate(names)}
    for name, file in zip(files, read, strict=True):
        folder = re.sub(r"\.json$", "", name)
        for identity, picture in file.images.items():
            entry = next(iter(file.annotations.get(identity, [])), None)
            if entry is None:
                picture.problem = "it has no annotation"
            else:
                with reading(file.path, "a panoptic COCO file", "export it again"):
                    segments = _segments(file, entry, ids, crowd)
                png = _png(root, [folder, posixpath.dirname(name)], entry.get("file_name"))
                picture.mask = functools.partial(_panoptic_mask, png, segments)
                export.sources += [png] if png else []
            export.pictures.append(picture)
    return export


def _png(root: Tree, folders: Sequence[str], name: Any) -> str:
    """Returns the path of a mask in one of the folders, "" if it is not there."""
    fits = isinstance(name, str) and not {"..", ""} & set(name.replace("\\", "/").split("/"))
    paths = [posixpath.join(folder, name) for folder in folders] if fits else []
    return next((str(root.on_disk(path)) for path in paths if root.is_file(path)), "")


def _segments(
    file: _File, entry: Mapping[str, Any], ids: Mapping[str, int], crowd: str
) -> dict[int, int]:
    """Returns the class of each segment of an image."""
    found: dict[int, int] = {0: IGNORE_LABEL}
    for segment in entry.get("segments_info") or ():
        category = file.categories.get(_hashable(segment.get("category_id")))
        number = segment.get("id")
        if category is None or type(number) is not int:
            raise UserError(
                f"{file.path}: a segment has the category {segment.get('category_id')!r:.60}, "
                "which is not listed; export it again"
            )
        ignored = segment.get("iscrowd") and crowd == "ignore"
        ignored = ignored or category[0].lower() in IGNORE_NAMES
        found[number] = IGNORE_LABEL if ignored else ids[category[0]]
    return found


def _panoptic_mask(path: str, segments: Mapping[int, int]) -> np.ndarray:
    if not path:
        raise UndrawableError("its mask is not in the export")
    with open_picture(path) as picture:
        colors = np.asarray(picture.convert("RGB")).astype(np.int64)
    numbers = colors @ np.array([1, 256, 256**2])
    found, places = np.unique(numbers, return_inverse=True)
    if strange := [number for number in found.tolist() if number not in segments]:
        raise UndrawableError(f"its mask has the segment {strange[0]}, which is not listed")
    table = np.array([segments[number] for number in found.tolist()], np.uint8)
    return table[places.reshape(numbers.shape)]
