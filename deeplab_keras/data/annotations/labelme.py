"""Converts labelme's JSON files of polygons to label maps.

Shapes are drawn as labelme draws them, each over the previous ones. `_background_` is class 0, and
`__ignore__` becomes the ignore label.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from deeplab_keras.data.files.archives import read_bytes
from deeplab_keras.data.files.reading import BrokenFileError, NoMaskUserError
from deeplab_keras.data.info import DatasetInfo

BACKGROUND, IGNORE = "_background_", "__ignore__"
IGNORE_LABEL = DatasetInfo.ignore_label
AREAS = ("polygon", "rectangle", "circle", "mask")
LARGEST = 1 << 27  # pixels; drawing more would take more than 256 MiB
# Largest coordinate in pixels; beyond it, Pillow's integers overflow and the drawing is wrong.
FAR = 1e6
LINES = ("line", "linestrip", "point", "points")  # shapes without area


def read_labelme(path: str) -> dict[str, Any]:
    """Reads a labelme file.

    Raises:
        BrokenFileError: The file cannot be read or is not a labelme file.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except Exception as error:  # including RecursionError
        reason = getattr(error, "strerror", None) or error
        raise BrokenFileError(f"{path}: cannot be read as JSON ({reason})") from error
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise BrokenFileError(f"{path}: not a labelme file, which would have a list 'shapes'")
    for shape in content["shapes"]:
        if (
            not isinstance(shape, dict)
            or not isinstance(shape.get("label"), str)
            or not isinstance(shape.get("points"), list)
        ):
            raise BrokenFileError(f"{path}: a shape has no label or no points")
    return content


def labels_of(path: str) -> set[str]:
    """Returns the labels of the shapes in a file, without background and ignored shapes."""
    return {shape["label"] for shape in read_labelme(path)["shapes"]} - {BACKGROUND, IGNORE}


def draw_labelme(path: str, ids: Mapping[str, int]) -> np.ndarray:
    """Draws the label map of a file, uint8 `[height, width]`.

    Args:
        path: The path of the JSON file.
        ids: The class id of each label.

    Raises:
        BrokenFileError: The file cannot be read.
        NoMaskUserError: A label is not a class, or a shape cannot be drawn.
    """
    content = read_labelme(path)
    width, height = _size(path, content)
    canvas = Image.new("L", (width, height), ids.get(BACKGROUND, 0))
    for shape in content["shapes"]:
        label = shape["label"]
        if label == IGNORE:
            value = IGNORE_LABEL
        elif label in ids or label == BACKGROUND:
            value = ids.get(label, 0)
        else:
            raise NoMaskUserError(
                f"{path}: the label {label!r} is not a class; known: {', '.join(ids)}"
            )
        _draw(path, canvas, shape, value)
    return np.asarray(canvas)


def _size(path: str, content: dict[str, Any]) -> tuple[int, int]:
    """Returns width and height as given in the file, otherwise those of the embedded image."""
    width, height = content.get("imageWidth"), content.get("imageHeight")
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        if width * height > LARGEST:  # Pillow would allocate memory for it
            raise BrokenFileError(
                f"{path}: it gives an image size of {width}x{height}, which is too large; save it "
                "again in labelme"
            )
        return width, height
    try:
        with Image.open(io.BytesIO(base64.b64decode(content.get("imageData") or ""))) as picture:
            return picture.size
    except Exception as error:
        raise BrokenFileError(
            f"{path}: it has neither imageWidth and imageHeight nor an embedded image; save it "
            "again in labelme"
        ) from error


def _draw(path: str, canvas: Image.Image, shape: dict[str, Any], value: int) -> None:
    kind, draw = shape.get("shape_type") or "polygon", ImageDraw.Draw(canvas)
    kind = kind if isinstance(kind, str) and kind.isprintable() else repr(kind)
    if kind in LINES:
        return
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        for x, y in points:
            if not (abs(x) <= FAR and abs(y) <= FAR):  # also true for NaN
                raise ValueError(f"a point at {x:g}, {y:g}")
        if kind == "polygon" and len(points) > 2:
            draw.polygon(points, outline=value, fill=value)
        elif kind == "rectangle" and len(points) == 2:
            (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
            draw.rectangle((left, top, right, bottom), outline=value, fill=value)
        elif kind == "circle" and len(points) == 2:
            (x, y), radius = (
                points[0],
                float(np.hypot(points[1][0] - points[0][0], points[1][1] - points[0][1])),
            )
            draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius), outline=value, fill=value
            )
        elif kind == "mask":
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                if picture.width * picture.height > LARGEST // 8:
                    raise ValueError(f"its mask has {picture.width}x{picture.height} pixels")
                inside = picture.convert("L").point(lambda level: 255 * (level > 0))
                canvas.paste(value, (round(points[0][0]), round(points[0][1])), inside)
        elif kind in AREAS:
            raise ValueError(f"{len(points)} points")
        else:
            raise ValueError(f"unknown shape_type, known: {', '.join(AREAS)}")
    except Exception as error:
        raise NoMaskUserError(
            f"{path}: the {kind[:40]} {shape['label']!r:.60} cannot be drawn ({error!s:.120}); fix "
            "it in labelme"
        ) from error


def lines_in(path: str) -> int:
    """Returns the number of shapes in a file that have no area."""
    return sum(shape.get("shape_type") in LINES for shape in read_labelme(path)["shapes"])
