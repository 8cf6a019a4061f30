"""Targets of the fuzz lane for the exports of labeling tools, and their impossible contents.

Each export is converted as `convert_masks.py` does. A conversion that fails for an image counts as
refused, and it must leave nothing outside its output folder.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from data_files import photograph
from PIL import Image

import deeplab_keras as dk
from deeplab_keras.config import UserError

Folder = pathlib.Path
Rewrite = Callable[[bytes], bytes]
HEIGHT, WIDTH = 12, 20
HUGE = 10**12
DEEP = 100_000
CLIMBING = "../../../escaped.png"
# Names that classes.txt cannot hold, or that a terminal or an HTML page would interpret.
HOSTILE_NAMES = {
    "a class name of two lines": "sign\nroad #ff0000",
    "a class name with an escape": "\x1b]0;title\x07",
    "a class name of half a character": "\ud800",
    "a class name that is empty": " ",
}


# === Reading ===


def _converted(folder: Folder, source: str = "export", kind: str = "", **options: Any) -> Any:
    """Converts an export, and returns its classes and masks."""
    around = {path for path in folder.parent.iterdir()}
    result = dk.convert_annotations(folder / source, folder / "out", kind=kind, **options)
    assert {path for path in folder.parent.iterdir()} == around, "a file outside of the output"
    assert {path.name for path in folder.iterdir()} <= {source, "out"}, "a file outside"
    assert not list(folder.rglob("*.tmp")), "a half-written file"
    if result.failed:
        raise UserError(result.failed[0])
    masks = sorted((folder / "out").rglob("*.png"))
    return (
        (folder / "out/classes.txt").read_text(),
        {
            str(path.relative_to(folder)): np.asarray(Image.open(path))
            for path in masks
            if "labels" in path.parts
        },
    )


def _photo(path: Folder) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(HEIGHT, WIDTH)).save(path)


# === COCO ===

HALF = {"counts": [HEIGHT * WIDTH // 2] * 2, "size": [HEIGHT, WIDTH]}
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]


def _coco_content() -> dict[str, Any]:
    shapes = [[SQUARE, [10, 2, 18, 2, 18, 6]], HALF, [SQUARE]]
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT},
            {"id": 2, "file_name": "b.png", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 1, "name": "sign"}, {"id": 2, "name": "car", "color": [9, 8, 7]}],
        "annotations": [
            {"id": i, "image_id": 1 + i % 2, "category_id": 1 + i % 2, "segmentation": shape}
            for i, shape in enumerate(shapes)
        ]
        + [{"id": 9, "image_id": 1, "category_id": 2, "segmentation": HALF, "iscrowd": 1}]
        + [{"id": 10, "image_id": 2, "category_id": 1, "bbox": [1, 1, 3, 3]}],
    }


def _coco(folder: Folder) -> None:
    for name in ("a", "b"):
        _photo(folder / f"export/{name}.png")
    (folder / "export/annotations.json").write_text(json.dumps(_coco_content(), indent=1))


def _json(change: Callable[[Any], object]) -> Rewrite:
    """Changes the parsed content of a JSON file."""

    def rewrite(data: bytes) -> bytes:
        content = json.loads(data)
        change(content)
        return json.dumps(content).encode()

    return rewrite


def _set(*path: str | int, **values: Any) -> Rewrite:
    """Sets fields of the object at a path."""

    def change(content: Any) -> None:
        for part in path:
            content = content[part]
        content |= values

    return _json(change)


def _segmentation(value: Any) -> Rewrite:
    return _set("annotations", 0, segmentation=value)


def _runs(**changes: Any) -> Rewrite:
    return _segmentation(HALF | changes)


def _nested(data: bytes) -> bytes:
    """Nests a polygon."""
    start = data.index(b'"segmentation": [') + len('"segmentation": ')
    return data[:start] + b"[" * DEEP + b"]" * DEEP + b"," + data[start:]


NAN = float("nan")
COCO: dict[str, Rewrite] = {
    "a coordinate that is not a number": _segmentation([[1, 2, NAN, 4, 5, 6]]),
    "a coordinate at infinity": _segmentation([[1, 2, float("-inf"), 4, 5, 6]]),
    "coordinates that are text": _segmentation([["a", "b", "c", "d", "e", "f"]]),
    "an odd number of coordinates": _segmentation([[1, 2, 3, 4, 5, 6, 7]]),
    "a polygon that is an object": _segmentation([{"x": 1}]),
    "a polygon of 100,000 levels": _nested,
    "run lengths of another size": _runs(size=[WIDTH, HEIGHT]),
    "run lengths without a size": _runs(size=None),
    "run lengths that do not sum up": _runs(counts=[10, 10]),
    "negative run lengths": _runs(counts=[-10, HEIGHT * WIDTH + 10]),
    "run lengths that are fractions": _runs(counts=[0.5, HEIGHT * WIDTH - 0.5]),
    "huge run lengths": _runs(counts=[HUGE, -HUGE, HEIGHT * WIDTH]),
    "a damaged string of run lengths": _runs(counts="ooooooooooooo"),
    "a string of run lengths in other letters": _runs(counts="\u2603\x01"),
    "an image of a terapixel": _set("images", 0, width=1 << 20, height=1 << 20),
    "an image of negative size": _set("images", 0, width=-WIDTH),
    "an image without pixels": _set("images", 0, width=0),
    "an image of another size": _set("images", 0, width=WIDTH + 1),
    "an image turned by 90 degrees": _set("images", 0, width=HEIGHT, height=WIDTH),
    "two images of one id": _set("images", 1, id=1),
    "two images of one name": _set("images", 1, file_name="a.png"),
    "an image that leads out of the export": _set("images", 0, file_name=CLIMBING),
    "an image with an absolute path": _set("images", 0, file_name="/etc/hostname"),
    "an image of another drive": _set("images", 0, file_name="C:\\a.png"),
    "an image name with a zero byte": _set("images", 0, file_name="a\0.png"),
    "an image name that is a list": _set("images", 0, file_name=["a.png"]),
    "an image name of a megabyte": _set("images", 0, file_name="a" * (1 << 20) + ".png"),
    "an image that is missing": _set("images", 0, file_name="c.png"),
    "a category that is not listed": _set("annotations", 0, category_id=7),
    "a category that is a list": _set("annotations", 0, category_id=[1]),
    "a category id that repeats": _set("categories", 1, id=1),
    "a category id that repeats as text": _set("categories", 1, id="1"),
    "a category without a name": _set("categories", 0, name=None),
    "no categories": _json(lambda content: content.update(categories=[])),
    "no images": _json(lambda content: content.update(images=[])),
    "images that are numbers": _json(lambda content: content.update(images=[1, 2])),
    "annotations without an outline": _json(
        lambda content: [item.update(segmentation=[]) for item in content["annotations"]]
    ),
    "300 categories": _json(
        lambda content: content.update(
            categories=[{"id": i, "name": f"c{i}"} for i in range(300)],
            annotations=[
                {"image_id": 1, "category_id": i, "segmentation": HALF} for i in range(300)
            ],
        )
    ),
} | {what: _set("categories", 0, name=name) for what, name in HOSTILE_NAMES.items()}


def _panoptic(folder: Folder) -> None:
    _photo(folder / "export/images/a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 5, "name": "sign"}, {"id": 6, "name": "car"}],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "a.png",
                "segments_info": [
                    {"id": 1, "category_id": 5},
                    {"id": 300, "category_id": 6, "iscrowd": 0},
                ],
            }
        ],
    }
    (folder / "export/panoptic.json").write_text(json.dumps(content, indent=1))
    numbers = np.where(np.arange(WIDTH) < 7, 1, 300)[None].repeat(HEIGHT, 0)
    numbers[:2] = 0
    colors = np.stack([numbers % 256, numbers // 256, numbers // 65536], -1).astype(np.uint8)
    (folder / "export/panoptic").mkdir()
    Image.fromarray(colors).save(folder / "export/panoptic/a.png")


_SEGMENTS = ("annotations", 0)
PANOPTIC: dict[str, Rewrite] = {
    "a segment that is not listed": _set(*_SEGMENTS, segments_info=[]),
    "a segment of an unknown category": _set(*_SEGMENTS, "segments_info", 0, category_id=7),
    "a segment id that is text": _set(*_SEGMENTS, "segments_info", 0, id="1"),
    "segments that are text": _set(*_SEGMENTS, segments_info="all"),
    "segments of numbers": _set(*_SEGMENTS, segments_info=[1, 2]),
    "a mask that leads out of the export": _set(*_SEGMENTS, file_name=CLIMBING),
    "a mask with an absolute path": _set(*_SEGMENTS, file_name="/etc/hostname"),
    "a mask that is missing": _set(*_SEGMENTS, file_name="b.png"),
    "a mask name that is a number": _set(*_SEGMENTS, file_name=7),
    "an image without an annotation": _set(*_SEGMENTS, image_id=2),
    "an image that leads out of the export": _set("images", 0, file_name=CLIMBING),
    "a category id that repeats": _set("categories", 1, id=5),
    "300 categories": _json(
        lambda content: content["categories"].extend(
            {"id": 10 + i, "name": f"c{i}"} for i in range(300)
        )
    ),
} | {what: _set("categories", 0, name=name) for what, name in HOSTILE_NAMES.items()}


# === YOLO ===


def _yolo(folder: Folder) -> None:
    for name in ("a", "b"):
        _photo(folder / f"export/train/images/{name}.png")
    labels = folder / "export/train/labels"
    labels.mkdir()
    (labels / "a.txt").write_text("0 0.1 0.2 0.5 0.2 0.5 0.75\n1 0.6 0.5 0.9 0.5 0.9 0.9 0.6 0.9\n")
    (labels / "b.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 0.75\n1 0.5 0.5 0.25 0.25\n")
    (folder / "export/data.yaml").write_text("train: train/images\nnc: 2\nnames: ['sign', 'car']\n")


def _line(text: str) -> Rewrite:
    return lambda data: data + text.encode() + b"\n"


def _names(text: str) -> Rewrite:
    return lambda data: re.sub(rb"names: .*\n", lambda _: text.encode(), data)


YOLO: dict[str, Rewrite] = {
    "a class that is not listed": _line("2 0.1 0.2 0.5 0.2 0.5 0.75"),
    "a negative class": _line("-1 0.1 0.2 0.5 0.2 0.5 0.75"),
    "half a class": _line("0.5 0.1 0.2 0.5 0.2 0.5 0.75"),
    "a class that is not a number": _line("nan 0.1 0.2 0.5 0.2 0.5 0.75"),
    "a huge class": _line("1e300 0.1 0.2 0.5 0.2 0.5 0.75"),
    "coordinates in pixels": _line("0 10 20 50 20 50 75"),
    "a coordinate that is not a number": _line("0 nan 0.2 0.5 0.2 0.5 0.75"),
    "a coordinate at infinity": _line("0 inf 0.2 0.5 0.2 0.5 0.75"),
    "an odd number of coordinates": _line("0 0.1 0.2 0.5 0.2 0.5 0.75 0.5"),
    "text": _line("sign 0.1 0.2 0.5 0.2 0.5 0.75"),
    "a line of a million numbers": _line("0 " + "0.5 " * 1_000_001),
}
YAML: dict[str, Rewrite] = {
    "one name less": _names("names: ['sign']\n"),
    "no names": _names(""),
    "ids with a gap": _names("names:\n  0: sign\n  2: car\n"),
    "a huge id": _names("names: {0: sign, 1000000000000: car}\n"),
    "an alias": _names("names: &all [*all]\n"),
    "nested names": _names("names: [a, {b: c}]\n"),
    "a tag that would run code": _names("names: !!python/object/apply:os.system ['id']\n"),
    "keypoints": _line("kpt_shape: [17, 3]"),
    "a class name with an escape": _names("names: ['sign', '\x1b[2J']\n"),
}


# === CVAT ===

CVAT_XML = f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><labels>
    <label><name>sign</name><color>#112233</color></label><label><name>car</name></label>
  </labels></task></meta>
  <image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">
    <polygon label="sign" points="2.0,3.0;8.0,3.0;8.0,9.0" z_order="1"/>
    <mask label="car" rle="4, 8" left="10" top="4" width="4" height="3" z_order="0"/>
    <box label="sign" xtl="14" ytl="1" xbr="18" ybr="3" z_order="2"/>
    <ellipse label="car" cx="5" cy="5" rx="2" ry="1" z_order="3"/>
  </image>
</annotations>
"""


def _cvat(folder: Folder) -> None:
    _photo(folder / "export/images/a.png")
    (folder / "export/annotations.xml").write_text(CVAT_XML)


def _replaced(old: str, new: str) -> Rewrite:
    def rewrite(data: bytes) -> bytes:
        assert data.count(old.encode()) == 1
        return data.replace(old.encode(), new.encode())

    return rewrite


ENTITY = '<!DOCTYPE a [<!ENTITY b "car">]>\n<annotations>'
CVAT: dict[str, Rewrite] = {
    "a coordinate that is not a number": _replaced("2.0,3.0", "nan,3.0"),
    "a coordinate at infinity": _replaced("2.0,3.0", "1e400,3.0"),
    "an odd number of coordinates": _replaced("2.0,3.0", "2.0"),
    "points that are text": _replaced("2.0,3.0", "a,b"),
    "a box at infinity": _replaced('xtl="14"', 'xtl="-inf"'),
    "an ellipse that is not a number": _replaced('rx="2"', 'rx="nan"'),
    "run lengths that do not sum up": _replaced("4, 8", "4, 9"),
    "negative run lengths": _replaced("4, 8", "-4, 16"),
    "run lengths that are text": _replaced("4, 8", "four"),
    "a mask without pixels": _replaced('width="4"', 'width="0"'),
    "a mask of a terapixel": _replaced('width="4"', f'width="{HUGE}"'),
    "an image of a terapixel": _replaced(f'width="{WIDTH}"', f'width="{HUGE}"'),
    "an image of negative size": _replaced(f'width="{WIDTH}"', 'width="-20"'),
    "an image of another size": _replaced(f'width="{WIDTH}"', f'width="{WIDTH + 1}"'),
    "an image size of text": _replaced(f'width="{WIDTH}"', 'width="20px"'),
    "a label that is not listed": _replaced('polygon label="sign"', 'polygon label="lamp"'),
    "an unknown shape": _replaced("<polygon", "<spiral"),
    "an order that is text": _replaced('z_order="1"', 'z_order="top"'),
    "an image that leads out of the export": _replaced('"a.png"', f'"{CLIMBING}"'),
    "an image with an absolute path": _replaced('"a.png"', '"/etc/hostname"'),
    "a document type with an entity": _replaced("<annotations>", ENTITY),
    "an export for videos": _replaced("</annotations>", "<track/></annotations>"),
    "elements of 100,000 levels": _replaced("</image>", "<a>" * DEEP + "</a>" * DEEP + "</image>"),
    "a class name of two lines": lambda data: data.replace(b"sign", b"sign&#10;road #ff0000"),
}


def _cvat_masks(folder: Folder) -> None:
    root = folder / "export"
    _photo(root / "JPEGImages/a.jpg")
    for place in ("SegmentationClass", "ImageSets/Segmentation"):
        (root / place).mkdir(parents=True)
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nsign:128,0,0::\ncar:0,128,0::\n"
    )
    (root / "ImageSets/Segmentation/default.txt").write_text("a\n")
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[:4, :, 0], colors[8:, :, 1] = 128, 128
    Image.fromarray(colors).save(root / "SegmentationClass/a.png")


LABELMAP: dict[str, Rewrite] = {
    "two classes of one color": _replaced("128,0,0", "0,128,0"),
    "two classes of one name": _replaced("sign", "car"),
    "a class less": _replaced("car:0,128,0::\n", ""),
    "a color of large numbers": _replaced("128,0,0", "128,0,300"),
    "a negative color": _replaced("128,0,0", "-128,0,0"),
    "two numbers for a color": _replaced("128,0,0", "128,0"),
    "a class name with an escape": _replaced("sign", "\x1b[2J"),
    "300 classes": _line("\n".join(f"c{i}:{i % 256},{i // 256},9::" for i in range(300))),
}


# === Label Studio ===


def _label_studio(folder: Folder) -> None:
    _photo(folder / "export/images/a.png")
    values = {
        "polygonlabels": {"points": [[10, 20], [50, 20], [50, 75]]},
        "rectanglelabels": {"x": 60, "y": 10, "width": 20, "height": 30, "rotation": 15},
        "ellipselabels": {"x": 30, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0},
        "brushlabels": {"format": "rle", "rle": _brush()},
    }
    results = [
        {
            "id": kind,
            "type": kind,
            "to_name": "image",
            "original_width": WIDTH,
            "original_height": HEIGHT,
            "image_rotation": 0,
            "value": value | {kind: ["sign" if kind < "c" else "car"]},
        }
        for kind, value in values.items()
    ]
    task = {"data": {"image": "/data/upload/1/a.png"}, "annotations": [{"result": results}]}
    (folder / "export/tasks.json").write_text(json.dumps([task], indent=1))


def _brush() -> list[int]:
    """A brush stroke over the first 40 pixels, as the package rle-pack writes it."""
    values = [255] * 160 + [0] * (4 * HEIGHT * WIDTH - 160)
    bits = f"{len(values):032b}{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value, count in ((255, 160), (0, len(values) - 160)):
        bits += f"1{3:02b}{count - 1:016b}{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


_RESULTS = (0, "annotations", 0, "result")
_POLYGON, _BRUSH = (*_RESULTS, 0), (*_RESULTS, 3)
LABEL_STUDIO: dict[str, Rewrite] = {
    "a coordinate that is not a number": _set(
        *_POLYGON, "value", points=[[1, NAN], [2, 2], [3, 1]]
    ),
    "points that are text": _set(*_POLYGON, "value", points="all"),
    "no points": _set(*_POLYGON, "value", points=None),
    "points of three numbers": _set(*_POLYGON, "value", points=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    "a rectangle at infinity": _set(*_RESULTS, 1, "value", width=float("inf")),
    "a rectangle of text": _set(*_RESULTS, 1, "value", x="left"),
    "an ellipse that is not a number": _set(*_RESULTS, 2, "value", radiusX=NAN),
    "a brush stroke that is cut off": _set(*_BRUSH, "value", rle=_brush()[:12]),
    "a brush stroke of another size": _set(*_BRUSH, "value", rle=[0, 0, 0, 4, *_brush()[4:]]),
    "a brush stroke of terabytes": _set(*_BRUSH, "value", rle=[255] * 4 + _brush()[4:]),
    "a brush stroke of large numbers": _set(*_BRUSH, "value", rle=[300, -1]),
    "a brush stroke of text": _set(*_BRUSH, "value", rle="all"),
    "a brush stroke in another format": _set(*_BRUSH, "value", format="png"),
    "results for two sizes": _set(*_POLYGON, original_width=WIDTH + 1),
    "a size that is not a number": _set(*_POLYGON, original_width=NAN),
    "a size that is missing": _set(*_POLYGON, original_width=None),
    "a rotated image": _set(*_POLYGON, image_rotation=90),
    "an image of another size": _json(
        lambda content: [
            item.update(original_width=WIDTH + 1)
            for item in content[0]["annotations"][0]["result"][:3]
        ]
    ),
    "an image that is missing": _set(0, "data", image="/data/upload/1/b.png"),
    "an image that leads out of the export": _set(0, "data", image=CLIMBING),
    "an image on another server": _set(0, "data", image="https://host/b.png?token=1"),
    "a task that is a number": _json(lambda content: content.append(7)),
    "annotations that are text": _set(0, annotations="all"),
    "results that are text": _set(0, "annotations", 0, result=["all"]),
} | {what: _set(*_POLYGON, "value", polygonlabels=[name]) for what, name in HOSTILE_NAMES.items()}


# === Roboflow ===


def _roboflow(folder: Folder) -> None:
    root = folder / "export/train"
    _photo(root / "a.jpg")
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:4], ids[8:] = 1, 2
    Image.fromarray(ids).save(root / "a_mask.png")
    rows = [("Pixel Value", " Class"), (0, " background"), (1, " sign"), (2, " car")]
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    (root / "_classes.csv").write_text(stream.getvalue())


ROBOFLOW: dict[str, Rewrite] = {
    "a class less": _replaced("2, car\n", ""),
    "an id that repeats": _replaced("2, car", "1, car"),
    "ids with a gap": _replaced("2, car", "7, car"),
    "a negative id": _replaced("2, car", "-2, car"),
    "a huge id": _replaced("2, car", f"{HUGE}, car"),
    "two classes of one name": _replaced("car", "sign"),
    "a class without a name": _replaced("car", ""),
    "a class name with an escape": _replaced("car", "\x1b[2J"),
}


# === Archives and labelme ===


def _zip(folder: Folder) -> None:
    inside = folder.parent / "inside"
    if not inside.exists():
        _coco(inside)
    with zipfile.ZipFile(folder / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((inside / "export").iterdir()):
            archive.write(path, path.name)


def _zip_bomb(data: bytes) -> bytes:
    """Replaces the annotations by 2 GiB of spaces, which take two megabytes in the file."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        archive.writestr("a.png", source.read("a.png"))
        with archive.open("annotations.json", "w", force_zip64=True) as member:
            member.write(b'{"images": [')
            for _ in range(128):
                member.write(b" " * (16 << 20))
    return stream.getvalue()


def _climbing_zip(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../annotations.json", source.read("annotations.json"))
        archive.writestr("../a.png", source.read("a.png"))
    return stream.getvalue()


ZIP: dict[str, Rewrite] = {"a zip bomb": _zip_bomb, "members outside": _climbing_zip}


def _labelme(folder: Folder) -> None:
    shapes = [{"label": "sign", "shape_type": "polygon", "points": [[2, 2], [15, 4], [9, 10]]}]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imagePath": "a.jpg", "imageData": None}
    (folder / "export").mkdir()
    (folder / "export/a.json").write_text(json.dumps(size | {"shapes": shapes}, indent=1))


def _label(name: str) -> Rewrite:
    return _set("shapes", 0, label=name)


LABELME: dict[str, Rewrite] = {what: _label(name) for what, name in HOSTILE_NAMES.items()} | {
    "a label that is a number": _set("shapes", 0, label=7)
}


def _labelme_masks(folder: Folder) -> Any:
    result = dk.convert_annotations(folder / "export", folder / "out")
    if result.failed:
        raise UserError(result.failed[0])
    assert result.classes_file is not None
    masks = sorted((folder / "out").rglob("*.png"))
    return result.classes_file.read_text(), [np.asarray(Image.open(path)) for path in masks]


# === Targets ===


def add(target: Callable[..., None]) -> None:
    """Adds the targets.

    Args:
        target: `fuzz_targets.target`.
    """

    def export(
        name: str,
        make: Callable[[Folder], None],
        victim: str,
        impossible: Mapping[str, Rewrite] | None = None,
        read: Callable[[Folder], Any] = _converted,
        **more: Any,
    ) -> None:
        more = {"inputs": 160, "package": "pycocotools"} | more
        target(name, make, victim, read, impossible=impossible or {}, **more)

    export("COCO annotations", _coco, "export/annotations.json", COCO, inputs=300)
    export("COCO panoptic annotations", _panoptic, "export/panoptic.json", PANOPTIC, inputs=200)
    export("COCO panoptic mask, PNG", _panoptic, "export/panoptic/a.png", checked=True, inputs=100)
    export("YOLO labels", _yolo, "export/train/labels/a.txt", YOLO)
    export("YOLO data.yaml", _yolo, "export/data.yaml", YAML)
    export("CVAT XML", _cvat, "export/annotations.xml", CVAT, inputs=200)
    export("CVAT labelmap.txt", _cvat_masks, "export/labelmap.txt", LABELMAP, inputs=100)
    export(
        "CVAT mask, PNG", _cvat_masks, "export/SegmentationClass/a.png", checked=True, inputs=100
    )
    export(
        "CVAT list of images", _cvat_masks, "export/ImageSets/Segmentation/default.txt", inputs=60
    )
    export("Label Studio tasks", _label_studio, "export/tasks.json", LABEL_STUDIO, inputs=240)
    export("Roboflow _classes.csv", _roboflow, "export/train/_classes.csv", ROBOFLOW, inputs=100)
    export("Roboflow mask, PNG", _roboflow, "export/train/a_mask.png", checked=True, inputs=100)
    export("labelme folder", _labelme, "export/a.json", LABELME, _labelme_masks, inputs=100)
    export(
        "export, zip",
        _zip,
        "export.zip",
        ZIP,
        lambda folder: _converted(folder, "export.zip"),
        checked=True,
    )
