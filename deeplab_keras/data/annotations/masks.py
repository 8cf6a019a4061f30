"""Converts masks of other forms to index masks: gray PNGs of one byte per pixel, the class id.

Each kind of mask has a plan: which files it accepts, what is collected from all files first, and
how a file is converted to ids. Each mask is written to a temporary file and renamed, so that an
interrupted conversion can be resumed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deeplab_keras.config import UserError, number, unknown_option
from deeplab_keras.data.annotations.labelme import BACKGROUND, draw_labelme, labels_of, lines_in
from deeplab_keras.data.datasets.ade20k import ADE20K_151
from deeplab_keras.data.datasets.camvid import CAMVID
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES, LABEL_IDS, LABEL_MAP, TRAIN_IDS
from deeplab_keras.data.datasets.classes_file import Classes, read_classes
from deeplab_keras.data.datasets.voc2012 import VOC2012
from deeplab_keras.data.files.mask_values import STRAY
from deeplab_keras.data.files.mistakes import VOC_CONTOUR, luminances
from deeplab_keras.data.files.pairs import in_threads
from deeplab_keras.data.files.reading import (
    FileUserError,
    NoMaskUserError,
    PngHeader,
    color_codes,
    ids_of_colors,
    opaque_colors,
    open_picture,
    read_label,
    read_png_header,
)
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import (
    MAX_CLASSES,
    Color,
    DatasetInfo,
    pascal_palette,
    require_ignored_apart,
)
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing, write_text

logger = logging.getLogger(__name__)

RECORD = ".convert_masks.json"  # in the output folder: how its masks were converted
LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")
LOSSY = (*LOSSLESS, ".jpg", ".jpeg", ".webp")
IGNORE_LABEL = DatasetInfo.ignore_label
# Datasets whose colors --classes can name, each with the colors of pixels to ignore.
PALETTES: dict[str, tuple[DatasetInfo, tuple[Color, ...]]] = {
    "voc2012": (VOC2012, ((224, 224, 192),)),
    "cityscapes": (CITYSCAPES, ((0, 0, 0),)),
    "camvid": (CAMVID, ((0, 0, 0),)),
    "ade20k_151": (ADE20K_151, ()),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How files of one kind are converted to index masks.

    Attributes:
        convert: Returns the ids of a file, uint8 `[height, width]`.
        classes: The classes of the ids, if known.
        settings: The settings that determine the ids, as JSON values, for the record.
        rename: Returns the name of a mask for the name of its file.
    """

    convert: Callable[[str], np.ndarray]
    classes: Classes | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rename: Callable[[str], str] = str


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a conversion.

    Attributes:
        converted: The number of masks that were written.
        kept: The number of masks that already existed.
        failures: The files that could not be converted, each with its error.
        classes_file: The path of the file with the names and colors of the ids.
        recognized: What the input is, such as "COCO instances, 3 classes, train: 20 images".
        splits: The number of masks of each split, if the output is a dataset.
        images: The number of images that are in the output folder with their masks.
        notes: What was skipped or changed in the conversion.
    """

    converted: int
    kept: int
    failures: dict[str, str]
    classes_file: Path | None
    recognized: str = ""
    splits: dict[str, int] = dataclasses.field(default_factory=dict)
    images: int = 0
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """The errors of the files that could not be converted."""
        return tuple(self.failures.values())


Read = Callable[[str], Any]
Gather = Callable[[Read], list[Any]]  # calls a function for every file, in threads


# --- The kinds ---


def _index(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    def convert(path: str) -> np.ndarray:
        ids = read_label(path).astype(np.int32)
        moved = np.where(ids == IGNORE_LABEL, IGNORE_LABEL, ids + offset)
        if moved.max(initial=0) > IGNORE_LABEL:
            raise NoMaskUserError(
                f"{path}: it holds the id {ids.max()}, which exceeds 255 with `id_offset={offset}`"
            )
        return np.where(moved < 0, IGNORE_LABEL, moved).astype(np.uint8)

    return Plan(convert, classes, {"id_offset": offset})


def _palette(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    def convert(path: str) -> np.ndarray:
        header = read_png_header(path)
        if header.color_type != PngHeader.PALETTE:
            form = (
                "it has RGB colors; use `from='rgb'`"
                if header.colored
                else "it is gray; if its values are ids, use `from='index'`"
            )
            raise NoMaskUserError(f"{path}: not a palette PNG: {form}")
        return read_label(path)

    return Plan(convert, classes)


def _in_colors(path: str, gray: bool = False) -> np.ndarray:
    """Returns the RGB pixels of a mask; with `gray`, refuses colors."""
    with open_picture(path) as picture:
        if picture.mode.startswith("I"):
            raise NoMaskUserError(
                f"{path}: this mask has 16 bits per pixel, so it holds ids; use `from='index'`"
            )
        pixels = opaque_colors(path, picture)
    if gray and not (pixels == pixels[..., :1]).all():
        raise NoMaskUserError(f"{path}: this mask is in colors; use `from='rgb'`")
    return pixels


def _rgb(classes: Classes | None, offset: int, gather: Gather, gray: bool = False) -> Plan:
    def codes_in(path: str) -> list[int]:
        return np.unique(color_codes(_in_colors(path, gray)))[:MAX_CLASSES].tolist()

    if classes is None:
        found = sorted({code for codes in gather(codes_in) for code in codes})
        if len(found) >= MAX_CLASSES:
            raise UserError(
                f"`input`: the masks have {MAX_CLASSES} {'gray levels' if gray else 'colors'} or "
                "more; list the classes in `classes='FILE'`, one line 'name #rrggbb' each, or "
                "export the masks again if they were saved as JPEG or resized smoothly"
            )
        palette = tuple((code >> 16, code >> 8 & 255, code & 255) for code in found)
        levels = {color[0] for color in palette}
        if (
            gray
            and len(levels - {0, 128, 255}) > 1
            and levels <= luminances([*pascal_palette(21), VOC_CONTOUR]) | {255}
        ):
            logger.warning(
                "`input`: these gray levels are the luminances of PASCAL VOC's colors, and two "
                "classes share one of them; convert the original masks with `from='palette'` or "
                "`from='rgb'` `classes='voc2012'`"
            )
        names = tuple(
            f"gray_{color[0]}" if gray else f"color_{bytes(color).hex()}" for color in palette
        )
        classes = Classes(names, palette)
    colors = classes.colors("`classes`", IGNORE_LABEL)
    settings = {f"#{bytes(color).hex()}": label for color, label in colors.items()}
    return Plan(lambda path: ids_of_colors(path, _in_colors(path, gray), colors), classes, settings)


def _binary(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    def levels_of(path: str) -> np.ndarray:
        return _in_colors(path, gray=True)[..., 0]

    white = max(gather(lambda path: int(levels_of(path).max(initial=0))), default=0)
    white = white if white < 128 else 255
    strays: list[str] = []

    def convert(path: str) -> np.ndarray:
        levels = levels_of(path)
        present, counts = np.unique(levels, return_counts=True)
        if path.lower().endswith(LOSSLESS) and (
            len(present) == 1 or (len(present) == 2 and present[0] == 0)
        ):
            highest = int(present[-1])
            if highest <= 1 or 2 * highest >= white or counts[-1] > STRAY * levels.size:
                return (levels > 0).astype(np.uint8)
            strays.append(path)
            if len(strays) == 1:
                logger.warning(
                    "%s: it holds 0 and a few pixels of %d, which are treated as stray values "
                    "because other masks hold %d; more such masks are not listed",
                    path,
                    highest,
                    white,
                )
        between = ((levels > 64 / 255 * white) & (levels < 192 / 255 * white)).mean()
        if between > 0.05:  # JPEG blurs fewer pixels
            raise NoMaskUserError(
                f"{path}: {between:.0%} of the pixels are neither black nor white; use "
                "`from='gray'` or `from='index'`"
            )
        return (levels >= white / 2).astype(np.uint8)

    return Plan(convert, classes or Classes(("background", "foreground"), pascal_palette(2)))


def _cityscapes(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    table = np.array([LABEL_MAP.get(label, -1) for label in range(256)])

    def convert(path: str) -> np.ndarray:
        ids = table[read_label(path)]
        if ids.min() < 0:
            raise NoMaskUserError(
                f"{path}: it holds ids that Cityscapes does not have; the ids in its "
                f"*_{LABEL_IDS}.png files are 0 to 33"
            )
        return ids.astype(np.uint8)

    own = Classes(CITYSCAPES.class_names, CITYSCAPES.palette)
    return Plan(convert, classes or own, rename=lambda name: name.replace(LABEL_IDS, TRAIN_IDS))


def _labelme(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    if classes is None:
        labels = sorted({label for labels in gather(labels_of) for label in labels})
        if len(labels) >= IGNORE_LABEL:
            raise UserError(
                f"`input`: the files have {len(labels)} labels, but at most {IGNORE_LABEL - 1} are "
                "allowed; list the ones to use in `classes='FILE'`"
            )
        if strange := [label for label in labels if not label.strip() or not label.isprintable()]:
            raise UserError(
                f"`input`: a shape has the label {strange[0]!r}, which is not a valid class name; "
                "rename it in labelme"
            )
        classes = Classes((BACKGROUND, *labels), pascal_palette(len(labels) + 1))
    ids = {name: label for label, name in enumerate(classes.names)}
    if lines := sum(gather(lines_in)):
        logger.warning("%d lines and points are skipped: they have no area", lines)
    return Plan(lambda path: draw_labelme(path, ids), classes, ids)


# The function that makes the plan of a kind, and the suffixes of the files that it accepts.
KINDS: dict[str, tuple[Callable[[Classes | None, int, Gather], Plan], tuple[str, ...]]] = {
    "palette": (_palette, (".png",)),
    "rgb": (_rgb, LOSSLESS),
    "gray": (functools.partial(_rgb, gray=True), LOSSLESS),
    "binary": (_binary, LOSSY),
    "cityscapes": (_cityscapes, (".png",)),
    "labelme": (_labelme, (".json",)),
    "index": (_index, (".png",)),
}
ALIASES = {"grey": "gray"}


# --- The conversion ---


def convert_masks(
    kind: str,
    source: str,
    target: str,
    *,
    classes: str = "",
    id_offset: int = 0,
    overwrite: bool = False,
) -> Result:
    """Converts all masks in a folder to index masks, with a progress bar; keeps existing ones.

    Args:
        kind: The form of the masks, one of `KINDS`.
        source: The folder of the masks; subfolders are searched too.
        target: The folder for the index masks, which keep their names.
        classes: A classes.txt, or one of `PALETTES`. By default, the classes are those of the
            dataset or are inferred from the masks.
        id_offset: Added to each id, only for `index`; negative results become the ignore label.
        overwrite: Whether to convert masks again that already exist.

    Raises:
        UserError: A folder is missing, a mask cannot be written, or existing masks were converted
            in another way.
    """
    number(id_offset, int, "id_offset", low=-255, high=255)
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise unknown_option("from", kind, KINDS)
    if id_offset and kind != "index":
        raise UserError(
            f"`id_offset={id_offset}`: only `from='index'` uses it, but `from={kind}` is given"
        )
    require_outside(source, target)
    files = _files(kind, Path(source))
    failed: dict[str, str] = {}

    def gather(read: Read) -> list[Any]:
        found = zip(files, _each(read, files, failed), strict=True)
        return [result for path, result in found if path not in failed]

    make_plan, _ = KINDS[kind]
    plan = make_plan(read_class_list(classes), id_offset, gather)
    record = {"from": kind, **plan.settings}
    jobs = _jobs(Path(source), Path(target), [path for path in files if path not in failed], plan)
    fresh = set() if overwrite else _fresh(Path(target), jobs, record)
    write_text(Path(target) / RECORD, json.dumps(record, indent=1) + "\n")
    left = [path for path in jobs if path not in fresh]
    progress = Progress(len(left), "converting")

    def convert(path: str) -> None:
        ids = plan.convert(path)
        with replacing(jobs[path]) as aside:
            Image.fromarray(ids).save(aside, format="PNG")

    for done, _ in enumerate(_each(convert, left, failed), 1):
        progress.update(done)
    converted = sum(path not in failed for path in left)
    return Result(converted, len(fresh), failed, write_classes(Path(target), plan.classes))


def require_outside(source: str, target: str) -> None:
    """Checks that the target is not in the source folder.

    Raises:
        UserError: It is.
    """
    # `Path.resolve` raises an error for a loop of links.
    inner, outer = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if Path(source).is_dir() and (inner == outer or outer in inner.parents):
        raise UserError(
            f"`output={target}`: give a folder outside `input={source}`, so that no mask is "
            "converted twice"
        )


def _files(kind: str, source: Path) -> list[str]:
    if not source.is_dir():
        raise UserError(f"`input={source}`: this folder does not exist")
    _, suffixes = KINDS[kind]
    names = Tree(str(source)).files(".", suffixes, deep=True)
    if kind == "cityscapes":
        names = [name for name in names if name.endswith(f"_{LABEL_IDS}.png")] or names
    if not names:
        raise UserError(
            f"`input={source}`: it has no files for `from={kind}`; supported: {', '.join(suffixes)}"
        )
    return [str(source / name) for name in names]


def read_class_list(name: str) -> Classes | None:
    """Returns the classes of the option `classes`: a file, or the name of a dataset.

    Raises:
        UserError: The file does not exist or cannot be read.
    """
    if not name:
        return None
    if name in PALETTES:
        info, ignored = PALETTES[name]
        return Classes(info.class_names, info.palette, ignored)
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"`classes={name}`: this file does not exist; give a file or one of "
            f"{', '.join(PALETTES)}"
        )
    classes = read_classes(Tree(str(path.parent)), path.name, with_ignored=True)
    require_ignored_apart(f"`classes={name}`", classes.names, IGNORE_LABEL)
    return classes


def _each(read: Read, paths: Sequence[str], failed: dict[str, str]) -> Iterator[Any]:
    """Yields the result of `read` for each file; None for a file that fails.

    The messages of failed files are added to `failed`. Errors that are not about a file are raised.
    """
    for path, (result, error) in zip(paths, in_threads(read, paths), strict=True):
        if isinstance(error, FileUserError):
            failed.setdefault(path, error.message)
        elif error is not None:
            raise error
        yield result


def _jobs(source: Path, target: Path, files: Sequence[str], plan: Plan) -> dict[str, Path]:
    """Maps each file to the mask to write."""
    jobs: dict[str, Path] = {}
    taken: dict[Path, str] = {}
    for path in files:
        mask = target / plan.rename(str(Path(path).relative_to(source).with_suffix(".png")))
        if mask in taken:
            raise UserError(
                f"{path}: {taken[mask]} would be converted to the same mask, {mask}; remove one of "
                "the two"
            )
        taken[mask], jobs[path] = path, mask
    return jobs


def _fresh(target: Path, jobs: dict[str, Path], record: dict[str, Any]) -> set[str]:
    """Returns the files whose masks already exist and were written by the same conversion."""
    there = {path for path, mask in jobs.items() if mask.exists()}
    require_same_conversion(target, len(there), record)
    return {path for path in there if jobs[path].stat().st_mtime_ns >= os.stat(path).st_mtime_ns}


def require_same_conversion(target: Path, existing: int, record: dict[str, Any]) -> None:
    """Checks that existing masks were converted in the same way.

    Args:
        target: The folder of the masks.
        existing: The number of masks that exist.
        record: The settings of this conversion.

    Raises:
        UserError: They were converted in another way.
    """
    try:
        made = json.loads((target / RECORD).read_text(encoding="utf-8"))
        made["from"] = ALIASES.get(made["from"], made["from"])
    except Exception:  # no record, or a damaged one
        made = None
    if existing and made != record:
        how = "by another conversion or with other classes" if made else "by another program"
        raise UserError(
            f"`output={target}`: {existing} of these masks already exist, written {how}; give "
            "another folder, or `overwrite`"
        )


def write_classes(target: Path, classes: Classes | None) -> Path | None:
    """Writes classes.txt into a folder and returns its path; None if no classes are known."""
    if classes is None:
        return None
    lines = [
        f"{name} #{bytes(color).hex()}"
        for name, color in zip(classes.names, classes.palette, strict=True)
    ]
    write_text(target / "classes.txt", "\n".join(lines) + "\n")
    return target / "classes.txt"
