"""Masks of other forms made into index masks: grey PNGs of one byte a pixel that is the class id.

Every kind has a plan: which files it takes, what is looked at in all of them first, and how one
becomes ids. Each mask is written aside and renamed, so that a conversion that was stopped goes on
where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from deeplab_keras.config import UserError, unknown_option
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
    colour_codes,
    ids_of_colours,
    opaque_colours,
    open_picture,
    read_label,
    read_png_header,
)
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import (
    MAX_CLASSES,
    Colour,
    DatasetInfo,
    pascal_palette,
    require_ignored_apart,
)
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing, write_text

RECORD = ".convert_masks.json"  # in the output folder: how its masks were made
LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".gif")
LOSSY = (*LOSSLESS, ".jpg", ".jpeg", ".webp")
IGNORE_LABEL = DatasetInfo.ignore_label
# Datasets whose colours --classes can name; the colour of pixels that count nowhere with them.
PALETTES: dict[str, tuple[DatasetInfo, tuple[Colour, ...]]] = {
    "voc2012": (VOC2012, ((224, 224, 192),)),
    "cityscapes": (CITYSCAPES, ((0, 0, 0),)),
    "camvid": (CAMVID, ((0, 0, 0),)),
    "ade20k_151": (ADE20K_151, ()),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How files of one kind become index masks.

    Attributes:
        convert: the ids of a file, uint8 `[height, width]`.
        classes: what the ids mean, where that is known.
        settings: what decides on the ids, for the record; JSON values.
        rename: a mask's name from its file's.
    """

    convert: Callable[[str], np.ndarray]
    classes: Classes | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rename: Callable[[str], str] = str


@dataclasses.dataclass(frozen=True)
class Result:
    """What a conversion did.

    Attributes:
        converted: number of masks that were written.
        kept: number of those that were there already.
        failed: a line for each file that could not be converted.
        classes_file: names and colours of the ids.
    """

    converted: int
    kept: int
    failed: tuple[str, ...]
    classes_file: Path | None


Read = Callable[[str], Any]
Gather = Callable[[Read], list[Any]]  # calls a function for every file, in threads


# --- The kinds ---


def _index(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    def convert(path: str) -> np.ndarray:
        ids = read_label(path).astype(np.int32)
        moved = np.where(ids == IGNORE_LABEL, IGNORE_LABEL, ids + offset)
        if moved.max(initial=0) > IGNORE_LABEL:
            raise NoMaskUserError(
                f"{path}: it holds the id {ids.max()}, with `id_offset={offset}` above 255"
            )
        return np.where(moved < 0, IGNORE_LABEL, moved).astype(np.uint8)

    return Plan(convert, classes, {"id_offset": offset})


def _palette(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    def convert(path: str) -> np.ndarray:
        header = read_png_header(path)
        if header.colour_type != PngHeader.PALETTE:
            form = (
                "in colours; use `from='rgb'`"
                if header.coloured
                else "grey; if its values are ids, use `from='index'`"
            )
            raise NoMaskUserError(f"{path}: this is no palette PNG but {form}")
        return read_label(path)

    return Plan(convert, classes)


def _in_colours(path: str, grey: bool = False) -> np.ndarray:
    """RGB pixels of a mask; with `grey`, colours are refused."""
    with open_picture(path) as picture:
        if picture.mode.startswith("I"):
            raise NoMaskUserError(
                f"{path}: this mask has 16 bits, whose values are ids; use `from='index'`"
            )
        pixels = opaque_colours(path, picture)
    if grey and not (pixels == pixels[..., :1]).all():
        raise NoMaskUserError(f"{path}: this mask is in colours; use `from='rgb'`")
    return pixels


def _rgb(classes: Classes | None, offset: int, gather: Gather, grey: bool = False) -> Plan:
    def codes_in(path: str) -> list[int]:
        return np.unique(colour_codes(_in_colours(path, grey)))[:MAX_CLASSES].tolist()

    if classes is None:
        found = sorted({code for codes in gather(codes_in) for code in codes})
        if len(found) >= MAX_CLASSES:
            raise UserError(
                f"`input`: the masks have {MAX_CLASSES} {'grey levels' if grey else 'colours'} or "
                "more; name those that count in "
                "`classes='FILE'`, a line 'name #rrggbb' each, or export masks that were saved as "
                "JPEG or resized smoothly again"
            )
        palette = tuple((code >> 16, code >> 8 & 255, code & 255) for code in found)
        levels = {colour[0] for colour in palette}
        if (
            grey
            and len(levels - {0, 128, 255}) > 1
            and levels <= luminances([*pascal_palette(21), VOC_CONTOUR]) | {255}
        ):
            logging.warning(
                "`input`: these grey levels are the luminances of PASCAL VOC's colours, of which "
                "two classes share one; "
                "convert the original masks, `from='palette'` or `from='rgb'` `classes='voc2012'`"
            )
        names = tuple(
            f"grey_{colour[0]}" if grey else f"colour_{bytes(colour).hex()}" for colour in palette
        )
        classes = Classes(names, palette)
    colours = classes.colours("`classes`", IGNORE_LABEL)
    settings = {f"#{bytes(colour).hex()}": label for colour, label in colours.items()}
    return Plan(
        lambda path: ids_of_colours(path, _in_colours(path, grey), colours), classes, settings
    )


def _binary(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    def levels_of(path: str) -> np.ndarray:
        return _in_colours(path, grey=True)[..., 0]

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
                logging.warning(
                    "%s: it holds 0 and a few pixels of %d, which are taken for stray values "
                    "because other masks hold %d; "
                    "more such masks are not listed",
                    path,
                    highest,
                    white,
                )
        between = (
            (levels > 64 / 255 * white) & (levels < 192 / 255 * white)
        ).mean()  # JPEG blurs a small part
        if between > 0.05:
            raise NoMaskUserError(
                f"{path}: {between:.0%} of the pixels are neither black nor white; use "
                "`from='grey'` or index"
            )
        return (levels >= white / 2).astype(np.uint8)

    return Plan(convert, classes or Classes(("background", "foreground"), pascal_palette(2)))


def _cityscapes(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    table = np.array([LABEL_MAP.get(label, -1) for label in range(256)])

    def convert(path: str) -> np.ndarray:
        ids = table[read_label(path)]
        if ids.min() < 0:
            raise NoMaskUserError(
                f"{path}: it holds ids that Cityscapes does not have; its *_{LABEL_IDS}.png hold "
                "0 to 33"
            )
        return ids.astype(np.uint8)

    own = Classes(CITYSCAPES.class_names, CITYSCAPES.palette)
    return Plan(convert, classes or own, rename=lambda name: name.replace(LABEL_IDS, TRAIN_IDS))


def _labelme(classes: Classes | None, offset: int, gather: Gather) -> Plan:
    if classes is None:
        labels = sorted({label for labels in gather(labels_of) for label in labels})
        if len(labels) >= IGNORE_LABEL:
            raise UserError(
                f"`input`: the files have {len(labels)} labels; name fewer in `classes='FILE'`"
            )
        if strange := [label for label in labels if not label.strip() or not label.isprintable()]:
            raise UserError(
                f"`input`: a shape has the label {strange[0]!r}, which is no name of a class; "
                "rename it in labelme"
            )
        classes = Classes((BACKGROUND, *labels), pascal_palette(len(labels) + 1))
    ids = {name: label for label, name in enumerate(classes.names)}
    if lines := sum(gather(lines_in)):
        logging.warning("%d lines and points are left out: they have no area", lines)
    return Plan(lambda path: draw_labelme(path, ids), classes, ids)


# What makes the plan, and the suffixes of the files that it takes.
KINDS: dict[str, tuple[Callable[[Classes | None, int, Gather], Plan], tuple[str, ...]]] = {
    "palette": (_palette, (".png",)),
    "rgb": (_rgb, LOSSLESS),
    "grey": (functools.partial(_rgb, grey=True), LOSSLESS),
    "binary": (_binary, LOSSY),
    "cityscapes": (_cityscapes, (".png",)),
    "labelme": (_labelme, (".json",)),
    "index": (_index, (".png",)),
}


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
    """Makes index masks of all masks in a folder, with a progress bar; those that are there already are kept.

    Args:
        kind: one of KINDS.
        source: the folder, with folders in it.
        target: the folder for the index masks, in which they have the same names.
        classes: a classes.txt, or one of PALETTES; without it the classes are those of the dataset
            or of the masks.
        id_offset: added to each id, with `index`; what falls below 0 counts nowhere.
        overwrite: makes all masks anew.

    Raises:
        UserError: a folder is missing, a mask cannot be written, or what is there was made in
            another way.
    """
    if kind not in KINDS:
        raise unknown_option("from", kind, KINDS)
    if id_offset and kind != "index":
        raise UserError(
            f"`id_offset={id_offset}`: this is for `from='index'`; `from={kind}` makes ids of its own"
        )
    files = _files(kind, Path(source), Path(target))
    failed: dict[str, str] = {}

    def gather(read: Read) -> list[Any]:
        found = zip(files, _each(read, files, failed), strict=True)
        return [result for path, result in found if path not in failed]

    make_plan, _ = KINDS[kind]
    plan = make_plan(_classes(classes), id_offset, gather)
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
    return Result(
        converted, len(fresh), tuple(failed.values()), _write_classes(Path(target), plan.classes)
    )


def _files(kind: str, source: Path, target: Path) -> list[str]:
    if not source.is_dir():
        raise UserError(f"`input={source}`: there is no such folder")
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise UserError(
            f"`output={target}`: give a folder outside of `input={source}`, so that no mask is "
            "converted twice"
        )
    _, suffixes = KINDS[kind]
    names = Tree(str(source)).files(".", suffixes, deep=True)
    if kind == "cityscapes":
        names = [name for name in names if name.endswith(f"_{LABEL_IDS}.png")] or names
    if not names:
        raise UserError(
            f"`input={source}`: there is no file for `from={kind}` in it; wanted are "
            f"{', '.join(suffixes)}"
        )
    return [str(source / name) for name in names]


def _classes(name: str) -> Classes | None:
    if not name:
        return None
    if name in PALETTES:
        info, ignored = PALETTES[name]
        return Classes(info.class_names, info.palette, ignored)
    path = Path(name)
    if not path.is_file():
        raise UserError(
            f"`classes={name}`: there is no such file; give one, or one of {', '.join(PALETTES)}"
        )
    classes = read_classes(Tree(str(path.parent)), path.name, with_ignored=True)
    require_ignored_apart(f"`classes={name}`", classes.names, IGNORE_LABEL)
    return classes


def _each(read: Read, paths: Sequence[str], failed: dict[str, str]) -> Iterator[Any]:
    """What `read` returns for each file; None for one with something wrong, which goes to `failed`; other trouble ends it."""
    for path, (result, error) in zip(paths, in_threads(read, paths), strict=True):
        if isinstance(error, FileUserError):
            failed.setdefault(path, error.message)
        elif error is not None:
            raise error
        yield result


def _jobs(source: Path, target: Path, files: Sequence[str], plan: Plan) -> dict[str, Path]:
    """File -> mask to be written."""
    jobs: dict[str, Path] = {}
    taken: dict[Path, str] = {}
    for path in files:
        mask = target / plan.rename(str(Path(path).relative_to(source).with_suffix(".png")))
        if mask in taken:
            raise UserError(
                f"{path}: {taken[mask]} would become the same mask, {mask}; remove one of the two"
            )
        taken[mask], jobs[path] = path, mask
    return jobs


def _fresh(target: Path, jobs: dict[str, Path], record: dict[str, Any]) -> set[str]:
    """The files whose masks are there, as this conversion made them."""
    there = {path for path, mask in jobs.items() if mask.exists()}
    try:
        made = json.loads((target / RECORD).read_text(encoding="utf-8"))
    except Exception:  # no record, or a damaged one
        made = None
    if there and made != record:
        how = "by another conversion, or of other classes" if made else "by something else"
        raise UserError(
            f"`output={target}`: {len(there)} of these masks are there, made {how}; give another "
            "folder, or `overwrite`"
        )
    return {path for path in there if jobs[path].stat().st_mtime_ns >= os.stat(path).st_mtime_ns}


def _write_classes(target: Path, classes: Classes | None) -> Path | None:
    if classes is None:
        return None
    lines = [
        f"{name} #{bytes(colour).hex()}"
        for name, colour in zip(classes.names, classes.palette, strict=True)
    ]
    write_text(target / "classes.txt", "\n".join(lines) + "\n")
    return target / "classes.txt"
