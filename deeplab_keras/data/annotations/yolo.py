"""Reads YOLO's segmentation polygons: one text file per image, with coordinates from 0 to 1."""

from __future__ import annotations

import collections
import functools
import posixpath
import re
from collections.abc import Mapping, Sequence

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.annotations.exports import FLAT, PICTURES, Export, Picture, split_of
from deeplab_keras.data.annotations.rendering import (
    Shape,
    Size,
    UndrawableError,
    fill_polygons,
    ring_of,
)
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.io.foreign import reading

NAME_LISTS = ("classes.txt", "obj.names")
LARGEST_YAML = 1 << 20  # characters
_INLINE = re.compile(r"""\s*(?:(\d+)\s*:\s*)?('(?:[^']|'')*'|"(?:[^"\\]|\\.)*"|[^,'"\[\]{}]+)\s*""")
_BLOCK = re.compile(r"\s*(?:-|(\d+)\s*:)\s+(.+?)\s*")


def read_yolo(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads labels/**/NAME.txt, a line `class x y x y ...` per object.

    The image of a label file has the same path with `images` in place of `labels`. Images without a
    label file have no objects.

    Args:
        root: The export.
        files: The label files.
        crowd: Not used: YOLO has no crowds.

    Raises:
        UserError: The class names are missing, or no object has an outline.
    """
    names_file, names = _class_names(root)
    export = Export("YOLO polygons", [names_file], labels=list(dict.fromkeys(names)))
    counts = collections.Counter[str]()
    texts = {path.rpartition(".")[0]: path for path in files}
    images = _images(root)
    labels = {stem: _label_of(stem, texts) for stem in images}
    # The images of these are looked for by their names, so they are not all background.
    alone = {
        (split, posixpath.basename(stem).lower())
        for stem in texts.keys() - set(labels.values())
        for split in (split_of(texts[stem]), "any")
    }
    for stem, image in images.items():
        parts, label = stem.split("/"), labels[stem]
        splits = (split_of(image) or "any", "")
        if not label and any((split, parts[-1].lower()) in alone for split in splits):
            continue
        place = _last(parts, "images")
        picture = _picture(root, texts.pop(label, ""), parts[place + 1 :], names, counts)
        picture.image = str(root.on_disk(image))
        picture.name = f"{picture.name}.{image.rpartition('.')[2]}"
        picture.split = split_of(image)
        picture.where = picture.where or str(root.on_disk(image))
        export.pictures.append(picture)
    for stem, path in texts.items():  # the images may be in another folder
        parts = stem.split("/")
        place = _last(parts, "labels")
        picture = _picture(root, path, parts[place + 1 :], names, counts)
        picture.split = split_of(path)
        export.pictures.append(picture)
    if counts["boxes"] and not counts["polygons"]:
        raise UserError(
            f"{names_file}: all {counts['boxes']} objects are boxes; export polygons, such as "
            "'YOLOv8 segmentation', because boxes are not segmentation"
        )
    if counts["boxes"]:
        export.notes.append(
            f"objects with only a box, which becomes the ignore label: {counts['boxes']}"
        )
    if counts["flat"]:
        export.notes.append(FLAT % counts["flat"])
    export.sources += [str(root.on_disk(path)) for path in files]
    return export


def _images(root: Tree) -> dict[str, str]:
    """Returns the images in folders called images, by their paths without the suffix.

    Raises:
        UserError: Two images differ only in their suffixes, so they have one label file.
    """
    found: dict[str, str] = {}
    for path in root.files(".", PICTURES, deep=True):
        if "images" in path.lower().split("/")[:-1]:
            other = found.setdefault(path.rpartition(".")[0], path)
            if other != path:
                raise UserError(
                    f"{root.on_disk(path)}: {posixpath.basename(other)} has the same name, so both "
                    "would have the same labels; remove or rename one"
                )
    return found


def _last(parts: Sequence[str], word: str) -> int:
    """Returns the place of the last folder with a name."""
    return max(i for i, part in enumerate(parts[:-1]) if part.lower() == word)


def _label_of(stem: str, texts: Mapping[str, str]) -> str:
    """Returns the path of an image's label file, without the suffix; "" if there is none."""
    parts = stem.split("/")
    place = _last(parts, "images")
    words = ("labels", "Labels", "LABELS")
    paths = ("/".join([*parts[:place], word, *parts[place + 1 :]]) for word in words)
    return next((path for path in paths if path in texts), "")


def _picture(
    root: Tree,
    path: str,
    parts: Sequence[str],
    names: Sequence[str],
    counts: collections.Counter[str],
) -> Picture:
    inner = [part for part in parts[:-1] if not split_of(f"{part}/")]
    picture = Picture("/".join([*inner, parts[-1]]), "")
    if not path:
        return picture
    picture.where = str(root.on_disk(path))
    try:
        lines = root.read_text(path).splitlines()
        for line in filter(None, map(str.split, lines)):
            picture.shapes.append(_shape(line, names, counts))
    except UndrawableError as error:
        picture.problem = str(error)
    except (OSError, UnicodeDecodeError) as error:
        picture.problem = f"its labels cannot be read ({error})"
    return picture


def _shape(words: Sequence[str], names: Sequence[str], counts: collections.Counter[str]) -> Shape:
    try:
        number, values = float(words[0]), np.array([float(word) for word in words[1:]])
    except ValueError as error:
        raise UndrawableError(f"it has a line that is not numbers: {' '.join(words)[:60]!r}") from (
            error
        )
    if not 0 <= number < len(names) or number != int(number):  # NaN too
        raise UndrawableError(
            f"it has the class {words[0][:40]}, but there are {len(names)} classes"
        )
    label = names[int(number)]
    if np.isfinite(values).all() and (abs(values - 0.5) > 1.5).any():
        raise UndrawableError(
            f"it has the coordinate {values[abs(values - 0.5).argmax()]:g}, but coordinates are "
            "fractions of the image, from 0 to 1"
        )
    if len(values) == 4:
        counts["boxes"] += 1
        x, y, width, height = values
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
        corners = [left, top, right, top, right, bottom, left, bottom]
        return Shape(label, functools.partial(_fill, ring_of(corners)), crowd=True)
    counts["polygons"] += 1
    ring = ring_of(values)
    counts["flat"] += ring is None
    return Shape(label, functools.partial(_fill, ring))


def _fill(ring: np.ndarray | None, size: Size) -> np.ndarray:
    scale = np.array(size[::-1], np.float64)
    rings = [] if ring is None else [(ring.reshape(-1, 2) * scale).ravel()]
    return fill_polygons(rings, size)


# --- Class names ---


def _class_names(root: Tree) -> tuple[str, list[str]]:
    """Returns the file with the class names, and the names in the order of their ids."""
    files = root.files(".", (".yaml", ".yml", *NAME_LISTS), deep=True)
    files.sort(key=lambda name: (not name.lower().endswith((".yaml", ".yml")), name.count("/")))
    found: tuple[str, list[str]] | None = None
    for name in files:
        path, is_yaml = str(root.on_disk(name)), name.lower().endswith((".yaml", ".yml"))
        if found and not is_yaml:
            break
        with reading(path, "a list of class names", "list the names in data.yaml"):
            text = root.read_text(name)[:LARGEST_YAML]
            if re.search(r"^kpt_shape\s*:", text, re.MULTILINE):
                raise UserError(
                    f"{path}: its objects are keypoints (kpt_shape); export polygons, such as "
                    "'YOLOv8 segmentation'"
                )
            if is_yaml:
                names = yaml_names(text)
            else:
                names = [line.strip() for line in text.splitlines() if line.strip()]
        if names and found and is_yaml and found[1] != names:
            raise UserError(
                f"{path}: its class names are not those of {found[0]}; remove one of the two"
            )
        if names and (is_yaml or not found):
            found = found or (path, names)
    if found:
        return found
    raise UserError(
        f"{root.on_disk()}: it has no class names; add data.yaml with a line "
        "names: ['first', 'second']"
    )


def yaml_names(text: str) -> list[str]:
    """Returns the entry `names` of a data.yaml, a list or a mapping from ids; [] if it has none.

    Only what exports write is understood, so that no YAML parser is required: a list in brackets
    or braces, or one line per name.

    Raises:
        ValueError: The entry is not understood.
    """
    found = re.search(r"^names\s*:(.*)$", text, re.MULTILINE)
    if not found:
        return []
    rest = text[found.start(1) :].lstrip()
    names: dict[int, str] = {}
    if rest[:1] in ("[", "{"):
        place = 1
        while match := _INLINE.match(rest, place):
            names[int(match[1]) if match[1] else len(names)] = _unquoted(match[2])
            place = match.end()
            if rest[place : place + 1] != ",":
                break
            place += 1
        if rest[place:].lstrip()[:1] not in ("]", "}"):
            raise ValueError("the entry 'names' is not understood")
    else:
        for line in rest.splitlines():
            entry = _BLOCK.fullmatch(line)
            if not entry:
                if line.strip() and not line.lstrip().startswith("#"):
                    break
                continue
            names[int(entry[1]) if entry[1] else len(names)] = _unquoted(entry[2])
    if sorted(names) != [*range(len(names))]:
        raise ValueError("the ids of 'names' are not 0, 1, 2, ...")
    return [names[number] for number in range(len(names))]


def _unquoted(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
