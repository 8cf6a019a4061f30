"""Reads CVAT's exports: "CVAT for images 1.1" (XML) and "Segmentation mask 1.1" (PNG)."""

from __future__ import annotations

import collections
import functools
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from xml.etree import ElementTree

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.annotations.exports import (
    BACKGROUND_NAMES,
    FLAT,
    IGNORE_NAMES,
    PICTURES,
    Export,
    Picture,
    read_text,
    split_of,
)
from deeplab_keras.data.annotations.rendering import (
    IGNORE_LABEL,
    Shape,
    UndrawableError,
    ellipse,
    fill_polygons,
    fill_rows,
    rectangle,
    ring_of,
)
from deeplab_keras.data.datasets.classes_file import Classes, read_classes
from deeplab_keras.data.datasets.voc2012 import VOC2012
from deeplab_keras.data.files.reading import ids_of_colors, opaque_colors, open_picture
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import Color
from deeplab_keras.io.foreign import reading

LARGEST_XML = 1 << 28  # bytes
MOST_TAGS = 1 << 23  # ElementTree takes about 100 bytes for each element
NO_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
VOC_IGNORED: Color = (224, 224, 192)  # contours in PASCAL VOC's masks

Draw = Callable[[tuple[int, int]], np.ndarray]


# --- XML ---


def read_cvat(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads the XML files of "CVAT for images 1.1": polygons, masks, rectangles and ellipses.

    Raises:
        UserError: A file cannot be read, or it is an export for videos.
    """
    export, counts = Export("CVAT for images", []), collections.Counter[str]()
    for name in files:
        path = str(root.on_disk(name))
        with reading(path, "an XML file of CVAT", "export it again as 'CVAT for images 1.1'"):
            top = parse_xml(path)
            if top.find("track") is not None:
                raise UserError(
                    f"{path}: an export for videos; export it again as 'CVAT for images 1.1'"
                )
            _add_labels(export, top)
            export.sources.append(path)
            for image in top.iter("image"):
                export.pictures.append(_picture(image, path, name, export.labels, counts))
    if not export.labels:  # the file has no <meta>
        used = {shape.label for picture in export.pictures for shape in picture.shapes}
        export.labels = sorted(label for label in used if label.lower() not in IGNORE_NAMES)
    if counts["flat"]:
        export.notes.append(FLAT % counts["flat"])
    if counts["no area"]:
        export.notes.append(f"skipped, points, lines and cuboids: {counts['no area']}")
    if counts["box"] and len(counts.keys() & {"polygon", "mask", "ellipse", "box"}) == 1:
        export.notes.append(f"all objects are boxes, which are filled: {counts['box']}")
    return export


def parse_xml(path: str) -> ElementTree.Element:
    """Parses an XML file without a document type, so that no entity can be defined.

    Raises:
        UserError: The file is too large or defines a document type.
        Exception: It is not XML.
    """
    text = read_text(path, LARGEST_XML)
    if text.count("<") > MOST_TAGS:
        raise UserError(
            f"{path}: it has more than {MOST_TAGS} tags; export the images in several parts"
        )
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError(f"{path}: it defines a document type, which is not read; export it again")
    return ElementTree.fromstring(text)


def _add_labels(export: Export, top: ElementTree.Element) -> None:
    for label in top.iterfind("meta//labels/label"):
        name = (label.findtext("name") or "").strip()
        if name and name not in export.labels:
            export.labels.append(name)
            if color := re.fullmatch("#([0-9a-fA-F]{6})", label.findtext("color") or ""):
                red, green, blue = bytes.fromhex(color[1])
                export.colors[name] = (red, green, blue)


def _picture(
    image: ElementTree.Element,
    path: str,
    name: str,
    labels: Sequence[str],
    counts: collections.Counter[str],
) -> Picture:
    file = image.get("name") or ""
    split = split_of(f"{image.get('subset') or ''}/") or split_of(f"{posixpath.dirname(file)}/")
    picture = Picture(file, path, split or split_of(name))
    if image.get("width") and image.get("height"):
        picture.size = int(image.attrib["height"]), int(image.attrib["width"])
    # CVAT draws objects with a larger z_order above the others.
    for element in sorted(image, key=lambda element: int(element.get("z_order") or 0)):
        label = element.get("label") or ""
        if element.tag in NO_AREA:
            counts["no area"] += 1
            continue
        if element.tag not in _DRAWN:
            picture.problem = picture.problem or f"it has an unknown shape, {element.tag!r:.40}"
            continue
        counts[element.tag] += 1
        if labels and label not in labels:
            picture.problem = picture.problem or f"its label {label[:40]!r} is not listed"
            continue
        try:
            draw = _DRAWN[element.tag](element)
            points = element.get("points") or ""
            counts["flat"] += element.tag == "polygon" and len(re.findall("[^;]+", points)) < 3
        except UndrawableError as error:
            picture.problem = picture.problem or f"it has {error}"
            continue
        picture.shapes.append(Shape(label, draw, label.lower() in IGNORE_NAMES))
    return picture


def _numbers(element: ElementTree.Element, *names: str) -> list[float]:
    values = [float(element.get(name) or 0) for name in names]
    if not np.isfinite(values).all():
        raise UndrawableError(f"a {element.tag} with NaN or infinite coordinates")
    return values


def _polygon(element: ElementTree.Element) -> Draw:
    text = re.split("[;,]", element.get("points") or "")
    ring = ring_of([float(number) for number in text if number.strip()])
    return functools.partial(fill_polygons, [] if ring is None else [ring])


def _box(element: ElementTree.Element) -> Draw:
    left, top, right, bottom, turn = _numbers(element, "xtl", "ytl", "xbr", "ybr", "rotation")
    ring = rectangle((left, top), (right - left, bottom - top), turn, center=True)
    return functools.partial(fill_polygons, [ring])


def _ellipse(element: ElementTree.Element) -> Draw:
    x, y, across, down, turn = _numbers(element, "cx", "cy", "rx", "ry", "rotation")
    return functools.partial(fill_polygons, [ellipse((x, y), (across, down), turn)])


def _mask(element: ElementTree.Element) -> Draw:
    left, top, width, height = map(int, _numbers(element, "left", "top", "width", "height"))
    counts = np.array([int(number) for number in (element.get("rle") or "").split(",")], np.int64)
    return functools.partial(fill_rows, counts, (left, top, width, height))


_DRAWN: Mapping[str, Callable[[ElementTree.Element], Draw]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}


# --- Masks ---


def read_cvat_masks(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads "Segmentation mask 1.1", the layout of PASCAL VOC with a labelmap.txt.

    Raises:
        UserError: labelmap.txt cannot be read.
    """
    folder = files[0].split("SegmentationClass/")[0]
    labelmap = f"{folder}labelmap.txt"
    if root.is_file(labelmap):
        form, sources = "CVAT Segmentation mask", [str(root.on_disk(labelmap))]
        classes, ignored = _background_first(read_classes(root, labelmap))
    else:
        form, sources = "PASCAL VOC masks", list[str]()
        classes, ignored = Classes(VOC2012.class_names, VOC2012.palette), ()
    export = Export(form, sources, classes=classes)
    colors = dict(classes.colors(root.on_disk(labelmap), IGNORE_LABEL))
    colors |= dict.fromkeys((*ignored, VOC_IGNORED), IGNORE_LABEL)
    splits = _splits(root, f"{folder}ImageSets/Segmentation")
    images = _by_stem(root, f"{folder}JPEGImages")
    for name in files:
        stem = name.split("SegmentationClass/")[-1].rpartition(".")[0]
        path = str(root.on_disk(name))
        picture = Picture(stem, path, splits.get(stem, ""), image=images.get(stem, ""))
        picture.mask = functools.partial(_ids, path, colors)
        export.sources.append(path)
        export.pictures.append(picture)
    return export


def _background_first(classes: Classes) -> tuple[Classes, tuple[Color, ...]]:
    """Returns the classes with the background first, and the colors of regions to ignore."""
    entries = list(zip(classes.names, classes.palette, strict=True))
    ignored = tuple(
        color
        for name, color in entries
        if name.lower() in IGNORE_NAMES or (name, color) == ("ignored", VOC_IGNORED)
    )
    kept = [entry for entry in entries if entry[1] not in ignored]
    kept.sort(key=lambda entry: entry[0].lower() not in BACKGROUND_NAMES)
    names, palette = zip(*kept, strict=True)
    return Classes(names, palette), ignored


def _splits(root: Tree, folder: str) -> dict[str, str]:
    """Returns the split of each name, from ImageSets/Segmentation/<split>.txt."""
    found: dict[str, str] = {}
    for list_name in root.files(folder, (".txt",)):
        path = f"{folder}/{list_name}"
        with reading(str(root.on_disk(path)), "a list of names"):
            names = root.read_text(path).splitlines()
        split = split_of(f"{list_name.rpartition('.')[0]}/")
        if split:
            found |= {name.strip(): split for name in names if name.strip()}
    return found


def _by_stem(root: Tree, folder: str) -> dict[str, str]:
    return {
        name.rpartition(".")[0]: str(root.on_disk(f"{folder}/{name}"))
        for name in root.files(folder, PICTURES, deep=True)
    }


def _ids(path: str, colors: Mapping[Color, int]) -> np.ndarray:
    with open_picture(path) as picture:
        pixels = opaque_colors(path, picture)
    return ids_of_colors(path, pixels, colors)
