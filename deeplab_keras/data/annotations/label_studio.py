"""Reads Label Studio's JSON export: polygons, brush strokes, rectangles and ellipses."""

from __future__ import annotations

import collections
import functools
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_keras.data.annotations.exports import (
    FLAT,
    IGNORE_NAMES,
    Export,
    Picture,
    split_of,
)
from deeplab_keras.data.annotations.json_elements import read_elements
from deeplab_keras.data.annotations.rendering import (
    LARGEST,
    Shape,
    Size,
    UndrawableError,
    ellipse,
    fill_polygons,
    rectangle,
    ring_of,
)
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.io.foreign import reading

AREAS = ("polygonlabels", "brushlabels", "rectanglelabels", "ellipselabels")


def read_label_studio(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads JSON files with a list of tasks.

    Of several annotations of a task, the one marked as ground truth is used, otherwise the first.
    Tasks without an annotation are skipped. Class names are sorted, because the export does not
    list them.

    Args:
        root: The export.
        files: The paths of the JSON files.
        crowd: Not used: Label Studio has no crowds.

    Raises:
        UserError: A file cannot be read.
    """
    export, counts = Export("Label Studio", []), collections.Counter[str]()
    for name in files:
        path = str(root.on_disk(name))
        export.sources.append(path)
        with reading(path, "a JSON export of Label Studio", "export it again as JSON"):
            for _, task in read_elements(path, "a JSON export of Label Studio"):
                if picture := _picture(task, path, split_of(name), counts):
                    export.pictures.append(picture)
    used = {shape.label for picture in export.pictures for shape in picture.shapes}
    export.labels = sorted(label for label in used if label.lower() not in IGNORE_NAMES)
    export.notes += [text % counts[what] for what, text in _NOTES.items() if counts[what]]
    return export


_NOTES = {
    "unlabeled": "skipped, tasks without an annotation: %d",
    "several": "tasks with several annotations, of which one is used: %d",
    "flat": FLAT,
    "labels": "objects with several labels, of which the first is used: %d",
    "no area": "skipped, keypoints and other results without an area: %d",
}


def _picture(
    task: Mapping[str, Any], path: str, split: str, counts: collections.Counter[str]
) -> Picture | None:
    annotations = task.get("annotations", task.get("completions")) or []
    valid = [item for item in annotations if not item.get("was_cancelled")]
    if not valid:
        counts["unlabeled"] += 1
        return None
    counts["several"] += len(valid) > 1
    chosen = next((item for item in valid if item.get("ground_truth")), valid[0])
    results = [item for item in chosen.get("result") or [] if item.get("type") != "relation"]
    picture = Picture(_file_name(task, results), path, split)
    picture.alias = re.sub("^[0-9a-f]{8}-", "", picture.name)  # before it was uploaded
    for item in results:
        kind = item.get("type")
        label = next(iter(_labels(item)), "")
        if kind not in _DRAWN or not label:
            counts["no area"] += 1
            continue
        size = int(item["original_height"]), int(item["original_width"])
        try:
            if picture.size not in (None, size):
                raise UndrawableError("results for images of two sizes")
            picture.size = size
            if item.get("image_rotation"):
                raise UndrawableError("a rotated image; rotate the file itself")
            draw = _DRAWN[kind](item["value"], size)
            counts["flat"] += "polygon" in kind and len(item["value"]["points"]) < 3
            counts["labels"] += len(_labels(item)) > 1
            picture.shapes.append(Shape(label, draw, label.lower() in IGNORE_NAMES))
        except UndrawableError as error:
            picture.problem = picture.problem or f"it has {error}"
    return picture


def _file_name(task: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the name of the image file, without the folders of the server."""
    data = task.get("data") or {}
    places = [item.get("to_name") for item in results] + ["image", "img", "ocr"]
    urls = [data[place] for place in places if isinstance(data.get(place), str)]
    urls += [value for value in data.values() if isinstance(value, str)]
    name = task.get("file_upload") or next(iter(urls), "")
    parsed = urllib.parse.urlparse(str(name))
    query = urllib.parse.parse_qs(parsed.query).get("d")  # /data/local-files/?d=folder/a.jpg
    text = query[0] if query else urllib.parse.unquote(parsed.path)
    return re.split(r"[/\\]", text)[-1]


def _labels(item: Mapping[str, Any]) -> list[str]:
    value = item.get("value") or {}
    for key in (*AREAS, "labels"):
        if isinstance(value.get(key), list) and value[key]:
            return [str(name) for name in value[key]]
    return []


# --- Shapes; coordinates are percentages of the image ---

Draw = Callable[[Size], np.ndarray]


def _finite(value: Mapping[str, Any], *names: str) -> list[float]:
    numbers = [float(value.get(name) or 0) for name in names]
    if not np.isfinite(numbers).all():
        raise UndrawableError("a shape with NaN or infinite coordinates")
    return numbers


def _polygon(value: Mapping[str, Any], size: Size) -> Draw:
    ring = ring_of(value["points"])
    if ring is None:
        return functools.partial(fill_polygons, [])
    scaled = ring.reshape(-1, 2) * np.array(size[::-1]) / 100
    return functools.partial(fill_polygons, [scaled.ravel()])


def _rectangle(value: Mapping[str, Any], size: Size) -> Draw:
    x, y, width, height, turn = _finite(value, "x", "y", "width", "height", "rotation")
    across, down = size[1] / 100, size[0] / 100
    ring = rectangle((x * across, y * down), (width * across, height * down), turn, center=False)
    return functools.partial(fill_polygons, [ring])


def _ellipse(value: Mapping[str, Any], size: Size) -> Draw:
    x, y, radius_x, radius_y, turn = _finite(value, "x", "y", "radiusX", "radiusY", "rotation")
    across, down = size[1] / 100, size[0] / 100
    ring = ellipse((x * across, y * down), (radius_x * across, radius_y * down), turn)
    return functools.partial(fill_polygons, [ring])


def _brush(value: Mapping[str, Any], size: Size) -> Draw:
    if value.get("format") != "rle":
        raise UndrawableError("a brush stroke in an unknown format; export again as JSON")
    data = np.array(value.get("rle") or [], np.int64)
    if data.ndim != 1 or ((data < 0) | (data > 255)).any():
        raise UndrawableError("a brush stroke that is not a list of bytes")
    return functools.partial(fill_brush, data.astype(np.uint8).tobytes())


_DRAWN: Mapping[str, Callable[[Mapping[str, Any], Size], Draw]] = {
    "polygonlabels": _polygon,
    "polygon": _polygon,
    "brushlabels": _brush,
    "brush": _brush,
    "rectanglelabels": _rectangle,
    "rectangle": _rectangle,
    "ellipselabels": _ellipse,
    "ellipse": _ellipse,
}


def fill_brush(data: bytes, size: Size) -> np.ndarray:
    """Decodes the pixels of a brush stroke, bool `[height, width]`.

    The format is that of the JavaScript package rle-pack: bits of runs of RGBA bytes, of which the
    last is the stroke. The only decoder in Python is part of Label Studio's SDK.

    Raises:
        UndrawableError: The data is damaged or of another size.
    """
    height, width = size
    if height * width > LARGEST:
        raise UndrawableError("a brush stroke in an image that is too large")
    values = np.concatenate([*_runs(data, 4 * height * width), np.zeros(0, np.uint8)])
    if len(values) != 4 * height * width:
        raise UndrawableError(f"a brush stroke of another size than {width}x{height}")
    return values.reshape(height, width, 4)[..., 3] > 0


def _runs(data: bytes, expected: int) -> Iterator[np.ndarray]:
    """Yields the runs of values; see `fill_brush`."""
    place = 0  # in bits

    def read(count: int) -> int:  # at most 32 bits, so they are in 5 bytes
        nonlocal place
        start, place = place, place + count
        if place > 8 * len(data):
            raise UndrawableError("a brush stroke whose data is cut off")
        window = int.from_bytes(data[start // 8 : start // 8 + 5].ljust(5, b"\0"), "big")
        return (window >> (40 - start % 8 - count)) & ((1 << count) - 1)

    total, word = read(32), read(5) + 1
    if total != expected:
        raise UndrawableError(
            f"a brush stroke of {total // 4} pixels in an image of {expected // 4}"
        )
    lengths = [read(4) + 1 for _ in range(4)]
    done = 0
    while done < total:
        same = read(1)
        count = min(1 + read(lengths[read(2)]), total - done)
        if same:
            yield np.full(count, read(word) & 255, np.uint8)
        else:
            yield np.array([read(word) & 255 for _ in range(count)], np.uint8)
        done += count
