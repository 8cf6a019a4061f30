"""Converts exports of labeling tools, and masks of other forms, to datasets of index masks.

An export becomes a dataset that `dataset="folder"` reads: `images/<split>`, `labels/<split>` and
`classes.txt`. Each form has a reader that returns an `Export`; drawing and writing are the same for
all of them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deeplab_keras.config import UserError, unknown_option
from deeplab_keras.data.annotations.coco import CROWDS, read_coco, read_panoptic
from deeplab_keras.data.annotations.cvat import read_cvat, read_cvat_masks
from deeplab_keras.data.annotations.exports import (
    BACKGROUND,
    BACKGROUND_NAMES,
    ONLY_SPLIT,
    Export,
    ImageFiles,
    Picture,
    is_inside,
    listed,
    safe_name,
    without_suffix,
)
from deeplab_keras.data.annotations.label_studio import read_label_studio
from deeplab_keras.data.annotations.masks import (
    ALIASES,
    KINDS,
    RECORD,
    Result,
    convert_masks,
    read_class_list,
    require_outside,
    require_same_conversion,
    write_classes,
)
from deeplab_keras.data.annotations.recognize import export_tree, find_files, recognize
from deeplab_keras.data.annotations.rendering import (
    ORDERS,
    Size,
    UndrawableError,
    draw_shapes,
    require_drawable,
)
from deeplab_keras.data.annotations.roboflow import read_roboflow_masks
from deeplab_keras.data.annotations.yolo import read_yolo
from deeplab_keras.data.datasets.classes_file import Classes, read_classes
from deeplab_keras.data.files.archives import read_bytes, split_member
from deeplab_keras.data.files.pairs import in_threads
from deeplab_keras.data.files.reading import FileUserError, open_picture, turn_of, turned_to_fit
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import Color, DatasetInfo, pascal_palette
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing, write_text

IGNORE_LABEL = DatasetInfo.ignore_label

# Form -> function from the export, its annotation files and the option `crowd` to its contents.
FORMS: dict[str, Callable[[Tree, Sequence[str], str], Export]] = {
    "coco": read_coco,
    "coco_panoptic": read_panoptic,
    "yolo": read_yolo,
    "cvat": read_cvat,
    "cvat_masks": read_cvat_masks,
    "label_studio": read_label_studio,
    "roboflow_masks": read_roboflow_masks,
}


@dataclasses.dataclass(frozen=True)
class _Job:
    """A picture of an export, with the files to write.

    Attributes:
        picture: The picture.
        source: The image file, "" if there is none.
        mask: The mask to write.
        image: The place of the image in the dataset.
    """

    picture: Picture
    source: str
    mask: Path
    image: Path


def convert_annotations(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    kind: str = "",
    classes: str = "",
    images: str | os.PathLike[str] = "",
    overlap: str = "file",
    crowd: str = "ignore",
    id_offset: int = 0,
    overwrite: bool = False,
) -> Result:
    """Converts the export of a labeling tool, or a folder of masks, to index masks.

    An export becomes a dataset for `dataset="folder"`: masks in `labels/<split>`, `classes.txt`,
    and the images in `images/<split>`, as links where possible. Class 0 is `background`, except for
    COCO panoptic, where pixels without a segment are ignored. A folder of masks keeps its
    structure. Existing masks are kept, so that an interrupted conversion can be resumed.

    Args:
        source: The export: a folder, an archive or a single annotation file.
        target: The folder for the dataset.
        kind: The form of the input, one of `FORMS` or of `masks.KINDS`. By default, it is
            recognized.
        classes: A classes.txt with the classes to use, or the name of a dataset.
        images: The folder of the images, if they are not in the export.
        overlap: How overlapping objects are drawn. "file": each covers the previous ones. "area":
            smaller ones cover larger ones.
        crowd: "ignore": COCO's crowds become the ignore label. "class": they are objects.
        id_offset: Added to each id, only for masks of ids (`kind="index"`).
        overwrite: Whether to convert masks again that already exist.

    Returns:
        A `Result` with the numbers of masks, the errors, and what was recognized.

    Raises:
        UserError: The input is not recognized or cannot be read, or a mask cannot be written.

    Example:
        >>> import json, pathlib
        >>> left_half = {"counts": [0, 30 * 40, 30 * 40], "size": [40, 60]}
        >>> content = {
        ...     "images": [{"id": 1, "file_name": "street.png", "width": 60, "height": 40}],
        ...     "categories": [{"id": 1, "name": "sign"}],
        ...     "annotations": [{"image_id": 1, "category_id": 1, "segmentation": left_half}],
        ... }
        >>> _ = pathlib.Path("photos/annotations.json").write_text(json.dumps(content))
        >>> result = dk.convert_annotations("photos", "dataset")
        >>> result.recognized
        'COCO annotations, 2 classes, train: 1 image'
        >>> sorted(str(path) for path in pathlib.Path("dataset").rglob("street.png"))
        ['dataset/images/train/street.png', 'dataset/labels/train/street.png']
    """
    source, target = os.fspath(source), os.fspath(target)
    for option, value, allowed in (("overlap", overlap, ORDERS), ("crowd", crowd, CROWDS)):
        if value not in allowed:
            raise unknown_option(option, value, allowed)
    kind = ALIASES.get(kind, kind)
    if kind and kind not in FORMS and kind not in KINDS:
        raise unknown_option("from", kind, [*FORMS, *KINDS])
    require_outside(source, target)
    root, names = export_tree(source)
    given, kind = kind, kind or recognize(root, names, source)
    if kind in KINDS:
        if not os.path.isdir(source):
            raise UserError(
                f"`input={source}`: masks are converted from a folder; extract the archive, or "
                "give the folder of the file"
            )
        done = convert_masks(
            kind, source, target, classes=classes, id_offset=id_offset, overwrite=overwrite
        )
        count = done.converted + done.kept + len(done.failures)
        what = "" if given else f"masks for from={kind}, {_plural(count, 'file')}"
        return dataclasses.replace(done, recognized=what)
    if id_offset:
        raise UserError(f"`id_offset={id_offset}`: only `from='index'` uses it, but got {kind}")
    export = FORMS[kind](root, find_files(kind, root, names, source), crowd)
    record = {"from": kind, "overlap": overlap, "crowd": crowd}
    return _convert(export, root, Path(target), classes, os.fspath(images), record, overwrite)


def _convert(
    export: Export,
    root: Tree,
    target: Path,
    classes_option: str,
    images: str,
    record: dict[str, Any],
    overwrite: bool,
) -> Result:
    classes, ids = _classes(export, read_class_list(classes_option), classes_option)
    _require_readable(classes)
    failed: dict[str, str] = {}
    jobs = _jobs(export, root, _image_files(root, images, target), target, failed)
    record = {**record, "classes": ids, "export": _fingerprint(export.sources)}
    done = set() if overwrite else _done(jobs, target, record)
    _require_same_classes(target, jobs, classes)
    write_text(target / RECORD, json.dumps(record, indent=1) + "\n")
    left = [job for job in jobs if job.mask not in done]
    progress = Progress(len(left), "converting")
    write = functools.partial(_write, ids=ids, order=record["overlap"])
    written = [job for job in jobs if job.mask in done]
    for number, (job, (_, error)) in enumerate(zip(left, in_threads(write, left), strict=True), 1):
        progress.update(number)
        if isinstance(error, FileUserError):
            failed[_key(job.picture, failed)] = error.message
        elif error is not None:
            raise error
        else:
            written.append(job)
    file = write_classes(target, classes)
    return Result(
        len(written) - len(done),
        len(done),
        failed,
        file,
        _summary(export, classes),
        collections.Counter(job.picture.split or ONLY_SPLIT for job in written),
        sum(bool(job.source) for job in written),
        tuple(export.notes),
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun[-1] == 's' else 's'}"


def _summary(export: Export, classes: Classes) -> str:
    counts = collections.Counter(picture.split or ONLY_SPLIT for picture in export.pictures)
    splits = ", ".join(f"{split}: {_plural(count, 'image')}" for split, count in counts.items())
    return f"{export.form}, {_plural(len(classes.names), 'class')}, {splits}"


# --- Classes ---


def _classes(
    export: Export, given: Classes | None, option: str
) -> tuple[Classes, Mapping[str, int]]:
    """Returns the classes of the dataset, and the id of each label."""
    if export.classes:
        if given:
            raise UserError(
                f"`classes={option}`: {export.form} has its own list of classes; omit the option"
            )
        return export.classes, {name: i for i, name in enumerate(export.classes.names)}
    shapes = [shape for picture in export.pictures for shape in picture.shapes]
    used = collections.Counter(shape.label for shape in shapes if not shape.crowd)
    given = given or _own_classes(export, used)
    ids = {name: number for number, name in enumerate(given.names)}
    background = next((ids[name] for name in ids if name.lower() in BACKGROUND_NAMES), None)
    if background != 0:
        raise UserError(
            f"`classes={option}`: the first class must be {BACKGROUND!r}, for the pixels outside "
            "all objects; add it"
        )
    ids |= {name: 0 for name in used if name.lower() in BACKGROUND_NAMES}
    if unknown := [name for name in used if name not in ids]:
        raise UserError(
            f"`classes={option}`: it does not list {listed(unknown)}, of which there are objects; "
            "add them, or rename the objects"
        )
    return given, ids


def _own_classes(export: Export, used: Mapping[str, int]) -> Classes:
    """Returns the classes of an export of shapes, with the background first."""
    labels = [name for name in export.labels if name.lower() not in BACKGROUND_NAMES]
    if unused := [name for name in labels if name not in used]:
        export.notes.append(
            f"classes without an object: {listed(unused)}; to leave them out, list the others "
            "in `classes='FILE'`"
        )
    if not labels:
        raise UserError(
            f"`input`: {export.form} was recognized, but no object with an area has a label; "
            "export polygons or masks"
        )
    if len(labels) >= IGNORE_LABEL:
        raise UserError(
            f"`input`: the export has {len(labels)} classes, but at most {IGNORE_LABEL - 1} "
            "are allowed; list the ones to use in `classes='FILE'`"
        )
    palette = pascal_palette(len(labels) + 1)
    colors = [export.colors.get(name, palette[i]) for i, name in enumerate(labels, 1)]
    return Classes((BACKGROUND, *labels), (palette[0], *colors))


def _names_in(target: Path) -> tuple[str, ...]:
    """Returns the class names in the dataset's classes.txt; () if there are none."""
    try:
        return read_classes(Tree(str(target)), "classes.txt").names
    except UserError:
        return ()


def _require_same_classes(target: Path, jobs: Sequence[_Job], classes: Classes) -> None:
    """Checks that masks of other exports in the dataset have the same classes."""
    masks = {str(job.mask.relative_to(target / "labels")) for job in jobs}
    found = Tree(str(target)).files("labels", (".png",), deep=True)
    others = [name for name in found if name not in masks]
    if others and _names_in(target) != classes.names:
        raise UserError(
            f"`output={target}`: it has {len(others)} masks of another export with other classes, "
            f"such as {others[0]}; give another folder, or convert both exports with the same "
            "`classes='FILE'`"
        )


def _require_readable(classes: Classes) -> None:
    """Checks that class names, which may be hostile, are the same when classes.txt is read."""
    if not _is_read_back(classes.names, classes.palette):
        entries = zip(classes.names, classes.palette, strict=True)
        strange = (name for name, color in entries if not _is_read_back((name,), (color,)))
        raise UserError(
            f"`input`: the class name {next(strange, classes.names[0])[:80]!a} cannot be written "
            "to classes.txt; rename the class in the labeling tool, or in the export"
        )


def _is_read_back(names: tuple[str, ...], palette: tuple[Color, ...]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_classes(Path(folder), Classes(names, palette))
        except UnicodeEncodeError:  # half a character
            return False
        return _names_in(Path(folder)) == names


# --- Files ---


def _image_files(root: Tree, images: str, target: Path) -> ImageFiles:
    if images and not Path(images).is_dir():
        raise UserError(f"`images={images}`: this folder does not exist")
    return ImageFiles([Tree(images)] if images else [root], masks=target / "labels")


def _key(picture: Picture, taken: Mapping[str, str]) -> str:
    """Returns a name for a picture in the list of failures."""
    key = f"{picture.where}: {picture.name[:200]!r}"
    return key if key not in taken else f"{key} ({len(taken)})"


def _jobs(
    export: Export, root: Tree, images: ImageFiles, target: Path, failed: dict[str, str]
) -> list[_Job]:
    jobs: list[_Job] = []
    masks: dict[Path, Picture] = {}
    without = 0
    last = collections.Counter(picture.name.rpartition("/")[2] for picture in export.pictures)
    for picture in export.pictures:
        split = picture.split or ONLY_SPLIT
        try:
            if picture.problem:
                raise UndrawableError(picture.problem)
            name = safe_name(picture.name)
            mask = target / "labels" / split / f"{without_suffix(name)}.png"
            if mask in masks:
                raise UndrawableError(f"{masks[mask].name!r} would have the same mask; rename one")
            only_name = last[name.rpartition("/")[2]] == 1
            near = os.path.dirname(picture.where)
            source = picture.image if is_inside(picture.image, root.path) else ""
            source = source or images.find(name, split, near, only_name=only_name)
            if not source and picture.alias:
                source = images.find(picture.alias, split, near)
            if len(images) and not source:
                raise UndrawableError("its image is not in the export")
            without += not source
        except UndrawableError as error:
            key = _key(picture, failed)
            failed[key] = f"{picture.where}: {picture.name[:200]!r}: {error}"
            continue
        masks[mask] = picture
        suffix = source[source.rindex(".") :] if source else ""
        image = target / "images" / split / f"{without_suffix(name)}{suffix}"
        jobs.append(_Job(picture, source, mask, image))
    if without:
        export.notes.append(
            f"the export has no images; give their folder as `images='FOLDER'`, or copy them to "
            f"{target / 'images'}, into the same subfolders as the masks"
        )
    empty = sum(not job.picture.shapes and job.picture.mask is None for job in jobs)
    if empty:
        export.notes.append(f"images without an object, which are all background: {empty}")
    return jobs


def _fingerprint(sources: Sequence[str]) -> str:
    """Returns a hash of the annotation files, by which a changed export is noticed."""
    digest = hashlib.sha256()
    for path in sorted({(split_member(path) or (path,))[0] for path in sources}):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _done(jobs: Sequence[_Job], target: Path, record: Mapping[str, object]) -> set[Path]:
    """Returns the masks that an earlier, equal conversion has written."""
    existing = [job for job in jobs if job.mask.exists()]
    require_same_conversion(target, len(existing), dict(record))
    return {job.mask for job in existing if not job.source or job.image.exists()}


def _write(job: _Job, ids: Mapping[str, int], order: str) -> None:
    """Writes the mask and the image of a picture.

    Raises:
        FileUserError: The picture cannot be converted.
    """
    picture = job.picture
    try:
        size = picture.size or _size(job.source)
        if not picture.mask:  # before memory is taken for the stated size
            require_drawable(size)
            if job.source:
                _require_size(job.source, size)
        if picture.mask:
            labels = picture.mask()
        else:
            labels = draw_shapes(picture.shapes, size, ids, order)
        if job.source and picture.mask:
            _require_size(job.source, labels.shape[:2])
    except UndrawableError as error:
        raise FileUserError(f"{picture.where}: {picture.name!r}: {error}") from error
    if job.source:
        _link(job.source, job.image)
    with replacing(job.mask) as aside:
        Image.fromarray(labels).save(aside, format="PNG")


def _size(path: str) -> Size:
    """Returns height and width of an image file as tools show it, rotated by EXIF data."""
    if not path:
        raise UndrawableError("its size is unknown without its image")
    with open_picture(path, header=True) as picture:
        width, height = picture.size
        return (width, height) if turn_of(picture) >= 5 else (height, width)


def _require_size(path: str, size: tuple[int, ...]) -> None:
    with open_picture(path, header=True) as picture:
        if picture.size[::-1] == size:
            _require_known_turn(picture)
            return
        found = picture.size
    with open_picture(path) as picture:
        turned = turned_to_fit(picture, (size[1], size[0]))
    if not turned:
        raise UndrawableError(
            f"the annotations are of an image of {size[1]}x{size[0]} pixels, but {path} has "
            f"{found[0]}x{found[1]}"
        )


def _require_known_turn(picture: Image.Image) -> None:
    """Refuses an image whose size is the same with and without its EXIF orientation.

    Tools that show the rotated image export annotations of that, and others of the pixels as
    stored. The size tells which it is, unless both are equal.
    """
    turn, (width, height) = turn_of(picture), picture.size
    if 2 <= turn <= 4 or (turn > 4 and width == height):
        raise UndrawableError(
            f"its EXIF orientation is {turn}, and its size does not tell whether it was annotated "
            "rotated; save it as it was annotated, without an EXIF orientation"
        )


def _link(source: str, target: Path) -> None:
    """Puts an image into the dataset: as a hard link, or a copy on another disk."""
    with replacing(target) as aside:
        if split_member(source):
            aside.write_bytes(read_bytes(source))
            return
        try:
            os.link(os.path.realpath(source), aside)
        except OSError:
            shutil.copyfile(source, aside)
