"""The full check of a dataset: every pair is decoded, counted and compared, and the mistake is guessed.

The quick form of it, which goes before each training, is `files.open_pairs`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.check.findings import DatasetCheck, Problem, Scan, SplitCheck
from deeplab_keras.data.check.notes import in_two_splits, notes
from deeplab_keras.data.datasets.catalog import FILES
from deeplab_keras.data.files.mask_values import MaskValues
from deeplab_keras.data.files.mistakes import likely_mistake
from deeplab_keras.data.files.pairs import (
    IdsUserError,
    Pairs,
    in_threads,
    nothing_labelled,
    require_files,
    require_known,
    require_photograph,
)
from deeplab_keras.data.files.reading import FileUserError, open_picture, turn_of
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.io.progress import Progress

NOT_OPENED = "splits that cannot be opened"
NOTHING_LABELLED = "splits without a labelled pixel"


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=16).digest()


def scan_files(pairs: Pairs, index: int) -> tuple[Scan, MaskValues]:
    """Reads a pair of files: what it holds, and the statistics of its mask.

    Raises:
        UserError: a file is missing or broken, or the sizes differ.
    """
    require_files(pairs, index)
    image, ids = pairs.load_ids(index)
    values = MaskValues.of(ids)
    try:
        require_known(pairs.labels[index], values, pairs.class_of_id(), pairs)
        require_photograph(pairs.images[index], image, ids)
        error = None
    except UserError as found:
        error = found
    with open_picture(pairs.images[index], header=True) as picture:
        turn = turn_of(picture)
    size = image.shape[1], image.shape[0]
    return Scan(index, pairs.names[index], size, values.pixels, _digest(image), turn, error), values


@dataclasses.dataclass(frozen=True)
class _Split:
    """A split to be read: its classes, the number of pairs, what reads one, and what the ids in the masks stand for."""

    info: DatasetInfo
    count: int
    scan: Callable[[int], tuple[Scan, MaskValues]]
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]
    class_of_id: np.ndarray
    label_map: Mapping[int, int] | None = None
    in_colours: bool = False


def _open(config: DataConfig, split: str) -> _Split:
    if config.dataset in FILES:
        pairs = FILES[config.dataset](
            config.replace(skip_broken_files=True), split
        )  # what is broken is found by the scan
        scan_pair, colours = functools.partial(scan_files, pairs), pairs.colours is not None
        return _Split(
            pairs.info,
            len(pairs),
            scan_pair,
            pairs.load_ids,
            pairs.class_of_id(),
            pairs.label_map,
            colours,
        )
    source = open_dataset(config.replace(cache=False), split)

    def scan(index: int) -> tuple[Scan, MaskValues]:
        image, label = source.load(index)
        values = MaskValues.of(label)
        return Scan(
            index,
            source.names[index],
            (image.shape[1], image.shape[0]),
            values.pixels,
            _digest(image),
        ), values

    return _Split(
        source.info, len(source), scan, source.load, Pairs(source.info, (), (), ()).class_of_id()
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the pairs of a split hold: those that can be read, the problems, and the values of all masks and of wrong ones."""

    scans: list[Scan] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    values: MaskValues = dataclasses.field(default_factory=MaskValues)
    wrong: MaskValues = dataclasses.field(default_factory=MaskValues)


def _read(split: str, opened: _Split) -> _Found:
    """Scans every pair, with a progress bar; the problems are those of single pairs."""
    found = _Found()
    progress = Progress(opened.count, f"checking {split}")
    for done, (result, error) in enumerate(in_threads(opened.scan, range(opened.count)), 1):
        if result:
            scan, values = result
            found.scans.append(scan)
            found.values.add(values)
            error = scan.error
            if isinstance(error, IdsUserError):
                found.wrong.add(values)
        if error:
            found.problems.append(
                Problem(split, getattr(error, "kind", FileUserError.kind), error.text)
            )
        progress.update(done)
    return found


def _count(name: str, opened: _Split, scans: Sequence[Scan]) -> SplitCheck:
    info, class_of_id = opened.info, opened.class_of_id
    is_ignored = class_of_id == info.ignore_label
    valid = (class_of_id >= 0) & ~is_ignored
    own = np.zeros((len(scans), info.num_classes), np.int64)  # pixels of each class in each pair
    for row, scan in zip(own, scans, strict=True):
        np.add.at(row, class_of_id[valid], scan.ids[valid])
    labelled = own.sum(1)
    return SplitCheck(
        name=name,
        pairs=opened.count,
        scans=tuple(scans),
        pixels=own.sum(0),
        images=(own > 0).sum(0),
        counted=((own > 0) * labelled[:, None]).sum(0),
        ignored=sum(int(scan.ids[is_ignored].sum()) for scan in scans),
        strange=sum(int(scan.ids[class_of_id < 0].sum()) for scan in scans),
        unlabelled=tuple(
            scan.name for scan, count in zip(scans, labelled, strict=True) if not count
        ),
        class_of_id=class_of_id,
        load=opened.load,
    )


def check_dataset(config: DataConfig, splits: Sequence[str]) -> DatasetCheck:
    """Reads every pair of the splits, shows how far it is on stderr, and says what is wrong.

    Raises:
        UserError: the dataset is unknown, or none of its splits can be opened.
    """
    problems: list[Problem] = []
    checked: list[SplitCheck] = []
    values, wrong = MaskValues(), MaskValues()
    opened = None
    for split in dict.fromkeys(splits):
        try:
            opened = _open(config, split)
        except UserError as error:
            problems.append(Problem(split, NOT_OPENED, error.text))
            continue
        found = _read(split, opened)
        problems += found.problems
        values.add(found.values)
        wrong.add(found.wrong)
        checked.append(_count(split, opened, found.scans))
        if found.scans and not checked[-1].pixels.any():
            problems.append(
                Problem(split, NOTHING_LABELLED, nothing_labelled(config, split, opened.info))
            )
    if opened is None:
        raise UserError(problems[0].message if problems else "`splits`: name at least one split")
    problems += in_two_splits(checked)
    # The likely mistake of the masks with ids outside the classes; where there are none, of all.
    guessed = wrong if wrong.present else values
    looks_like = "" if opened.in_colours else likely_mistake(guessed, opened.info, opened.label_map)
    return DatasetCheck(
        config,
        opened.info,
        tuple(checked),
        tuple(problems),
        looks_like,
        tuple(notes(checked, opened.info)),
    )
