"""Recognizes the form of an export or of a folder of masks by its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.annotations.coco import ROBOFLOW
from deeplab_keras.data.annotations.exports import PICTURES, listed
from deeplab_keras.data.datasets.cityscapes import LABEL_IDS
from deeplab_keras.data.files.archives import is_archive, open_archive, read_bytes
from deeplab_keras.data.files.reading import PngHeader, open_picture, read_png_header
from deeplab_keras.data.files.tree import Tree

START = 1 << 16  # bytes at the beginning of a file that tell its form
SAMPLED = 40  # masks that are looked at
NAMES = "classes.txt", "obj.names"  # files with the class names of a YOLO export
ADVICE = "give its form as `from`: "


def export_tree(source: str) -> tuple[Tree, list[str]]:
    """Returns the folder or archive of an export, and its files.

    For a single annotation file, this is its folder, with only that file.

    Raises:
        UserError: The source does not exist.
    """
    path = Path(source)
    if path.is_dir():
        root = Tree(source)
        return root, root.files(".", deep=True)
    if is_archive(path):
        root = Tree(source, (open_archive(path),))
        return root, root.files(".", deep=True)
    if path.is_file():
        return Tree(str(path.parent)), [path.name]
    raise UserError(f"`input={source}`: this folder does not exist, and no such file or archive")


def recognize(root: Tree, names: Sequence[str], source: str) -> str:
    """Returns the form of an export or of a folder of masks.

    Args:
        root: The folder or archive.
        names: Its files.
        source: The option `input`, for messages.

    Raises:
        UserError: The form is unknown, or several are possible.
    """
    for form, is_form in (
        ("coco", _has(f"(.*/)?{re.escape(ROBOFLOW)}")),
        ("roboflow_masks", _has(r"(.*/)?_classes\.csv")),
        ("cvat_masks", _has(r"(.*/)?SegmentationClass/.+\.png")),
    ):
        if any(map(is_form, names)):
            return form
    if _yolo_labels(names) and (_yaml_files(root, names) or any(map(_has(_NAMES), names))):
        return "yolo"
    if any(_is_cvat(root, name) for name in names if name.lower().endswith(".xml")):
        return "cvat"
    kinds: dict[str, str] = {}
    for name in names:
        if name.lower().endswith(".json"):
            kinds.setdefault(_json_kind(name, _start(root, name)), name)
    kinds.pop("", None)
    if len(kinds) == 1:
        return next(iter(kinds))
    if kinds:
        raise UserError(
            f"`input={source}`: it has files of several forms, "
            f"{', '.join(f'{name} ({kind})' for kind, name in sorted(kinds.items()))}; {ADVICE}"
            f"{' or '.join(sorted(kinds))}"
        )
    return _mask_kind(root, names, source)


def find_files(form: str, root: Tree, names: Sequence[str], source: str) -> list[str]:
    """Returns the annotation files of a form.

    Raises:
        UserError: There are none.
    """
    found = [name for name in names if _belongs(form, root, name)]
    if not found:
        raise UserError(
            f"`input={source}`: it has no files for `from={form}`, which are {_EXPECTED[form]}"
        )
    return found


_NAMES = "(.*/)?(" + "|".join(map(re.escape, NAMES)) + ")"
_EXPECTED = {
    "coco": "COCO's .json files",
    "coco_panoptic": "panoptic .json files of COCO",
    "cvat": ".xml files of 'CVAT for images 1.1'",
    "cvat_masks": "labelmap.txt and SegmentationClass/*.png",
    "label_studio": "Label Studio's .json files",
    "roboflow_masks": "_classes.csv and *_mask.png",
    "yolo": "labels/**/*.txt, and data.yaml or classes.txt",
}


def _belongs(form: str, root: Tree, name: str) -> bool:
    lower = name.lower()
    if form in ("coco", "coco_panoptic", "label_studio"):
        return lower.endswith(".json") and _json_kind(name, _start(root, name)) == form
    if form == "cvat":
        return lower.endswith(".xml") and _is_cvat(root, name)
    if form == "cvat_masks":
        return "SegmentationClass" in name.split("/")[:-1] and lower.endswith(".png")
    if form == "roboflow_masks":
        return name.rpartition("/")[2] == "_classes.csv"
    return bool(_yolo_labels([name]))


def _has(pattern: str) -> Callable[[str], bool]:
    return lambda name: bool(re.fullmatch(pattern, name))


def _start(root: Tree, name: str) -> str:
    try:
        data = read_bytes(str(root.on_disk(name)), START)
    except OSError:
        return ""
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(coding, "replace")


def _json_kind(name: str, start: str) -> str:
    """Returns the form of a JSON file by its name and first characters; "" for an unknown one."""
    if start.lstrip().startswith("["):
        return "label_studio" if re.search(r'"(result|completions|data)"', start) else ""
    if '"segments_info"' in start or "panoptic" in name.rpartition("/")[2]:
        return "coco_panoptic"
    if '"shapes"' in start:
        return "labelme"
    return "coco" if re.search(r'"(images|categories|annotations|licenses)"', start) else ""


def _is_cvat(root: Tree, name: str) -> bool:
    return bool(re.search(r"<annotations[\s>]", _start(root, name)))


def _yolo_labels(names: Sequence[str]) -> list[str]:
    """Returns the text files in folders called labels, without lists of class names."""
    return [
        name
        for name in names
        if name.lower().endswith(".txt")
        and "labels" in name.lower().split("/")[:-1]
        and name.rpartition("/")[2] not in NAMES
    ]


def _yaml_files(root: Tree, names: Sequence[str]) -> list[str]:
    """Returns the YAML files that list class names."""
    files = [name for name in names if name.lower().endswith((".yaml", ".yml"))]
    return [name for name in files if re.search(r"^names\s*:", _start(root, name), re.MULTILINE)]


# --- Masks ---


def _mask_kind(root: Tree, names: Sequence[str], source: str) -> str:
    """Returns the kind of masks in a folder, by some of them."""
    place = f"`input={source}`"
    pictures = [name for name in names if name.lower().endswith(PICTURES)]
    if not pictures:
        raise UserError(
            f"{place}: no export of a labeling tool is recognized, and it has no masks; "
            "docs/your_own_dataset.md lists the forms"
        )
    if any(name.endswith(f"_{LABEL_IDS}.png") for name in pictures):
        return "cityscapes"
    if any(name.lower().endswith((".jpg", ".jpeg", ".webp")) for name in pictures):
        raise UserError(
            f"{place}: no export of a labeling tool is recognized, and its JPEG and WebP files are "
            "photographs or damaged masks; docs/your_own_dataset.md lists the forms; if they are "
            "black-and-white masks, give `from='binary'`"
        )
    folders = {part.lower() for name in pictures for part in name.split("/")[:-1]}
    if folders & {"images", "imgs", "jpegimages", "img"}:
        raise UserError(f"{place}: it has images too; give the folder of the masks")
    sample = pictures[:: max(1, len(pictures) // SAMPLED)]
    paths = [str(root.on_disk(name)) for name in sample]
    if all(_is_palette(path) for path in paths):
        return "palette"
    colors: set[int] = set()
    for path in paths:
        with open_picture(path) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(np.int32)
        colors |= set(np.unique(pixels @ np.array([1 << 16, 1 << 8, 1])).tolist())
        if len(colors) >= 256:
            raise UserError(
                f"{place}: these pictures have 256 colors or more, as photographs do; give the "
                "folder of the masks"
            )
    if any(color % 0x10101 for color in colors):
        return "rgb"
    levels = {color & 255 for color in colors}
    if levels <= {0, 255}:
        return "binary"
    if levels - {255} == {*range(len(levels - {255}))}:
        return "index"
    raise UserError(
        f"{place}: these masks hold the gray levels {listed(sorted(map(str, levels)))}; if each is "
        f"a class, {ADVICE}gray, and if they are class ids, index"
    )


def _is_palette(path: str) -> bool:
    return path.lower().endswith(".png") and read_png_header(path).color_type == PngHeader.PALETTE
