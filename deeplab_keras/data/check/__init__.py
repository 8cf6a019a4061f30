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
from deeplab_keras.data import FILES, open_dataset
from deeplab_keras.data.check.findings import DatasetCheck, Problem, Scan, SplitCheck
from deeplab_keras.data.check.notes import in_two_splits, notes
from deeplab_keras.data.files import Pairs, in_threads, require_files, require_known
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.mistakes import likely_mistake
from deeplab_keras.data.reading import FileUserError, open_picture, turn_of
from deeplab_keras.progress import Progress

NOT_OPENED = "splits that cannot be opened"


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=16).digest()


def scan_files(pairs: Pairs, index: int) -> Scan:
    """Reads a pair of files.

    Raises:
        UserError: a file is missing or broken, or the sizes differ.
    """
    require_files(pairs, index)
    image, ids = pairs.load_ids(index)
    counts = np.bincount(ids.ravel(), minlength=256)
    try:
        require_known(pairs.labels[index], np.flatnonzero(counts), pairs.class_of_id(), pairs)
        error = None
    except UserError as found:
        error = found
    with open_picture(pairs.images[index], header=True) as picture:
        turn = turn_of(picture)
    return Scan(index, pairs.names[index], (image.shape[1], image.shape[0]), counts, _digest(image), turn, error)


@dataclasses.dataclass(frozen=True)
class _Split:
    """A split to be read: its classes, the number of pairs, what reads one, and what the ids in the masks stand for."""

    info: DatasetInfo
    count: int
    scan: Callable[[int], Scan]
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]
    class_of_id: np.ndarray
    label_map: Mapping[int, int] | None = None
    in_colours: bool = False


def _open(config: DataConfig, split: str) -> _Split:
    if config.dataset in FILES:
        pairs = FILES[config.dataset](config.replace(skip_broken_files=True), split)  # what is broken is found by the scan
        scan_pair, colours = functools.partial(scan_files, pairs), pairs.colours is not None
        return _Split(pairs.info, len(pairs), scan_pair, pairs.load_ids, pairs.class_of_id(), pairs.label_map, colours)
    source = open_dataset(config.replace(cache=False), split)

    def scan(index: int) -> Scan:
        image, label = source.load(index)
        counts = np.bincount(label.ravel(), minlength=256)
        return Scan(index, source.names[index], (image.shape[1], image.shape[0]), counts, _digest(image))

    return _Split(source.info, len(source), scan, source.load, Pairs(source.info, (), (), ()).class_of_id())


def _read(split: str, opened: _Split) -> tuple[list[Scan], list[Problem]]:
    """Scans every pair, with a progress bar; the problems are those of single pairs."""
    scans: list[Scan] = []
    problems: list[Problem] = []
    progress = Progress(opened.count, f"checking {split}")
    for done, (scan, error) in enumerate(in_threads(opened.scan, range(opened.count)), 1):
        error = scan.error if scan else error
        if scan:
            scans.append(scan)
        if error:
            problems.append(Problem(split, getattr(error, "kind", FileUserError.kind), str(error)))
        progress.update(done)
    return scans, problems


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
        unlabelled=tuple(scan.name for scan, count in zip(scans, labelled, strict=True) if not count),
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
    opened = None
    for split in dict.fromkeys(splits):
        try:
            opened = _open(config, split)
        except UserError as error:
            problems.append(Problem(split, NOT_OPENED, str(error)))
            continue
        scans, wrong = _read(split, opened)
        problems += wrong
        checked.append(_count(split, opened, scans))
    if opened is None:
        raise UserError(problems[0].message if problems else "--splits: name at least one split")
    problems += in_two_splits(checked)
    looks_like = "" if opened.in_colours else _guess([scan for split in checked for scan in split.scans], opened)
    return DatasetCheck(config, opened.info, tuple(checked), tuple(problems), looks_like, tuple(notes(checked, opened.info)))


def _guess(scans: Sequence[Scan], opened: _Split) -> str:
    """The likely mistake of the masks with ids outside the classes; where there are none, of all."""
    wrong = [scan for scan in scans if scan.error] or scans
    ids = np.sum([scan.ids for scan in wrong], axis=0) if wrong else np.zeros(256)
    return likely_mistake(np.flatnonzero(ids).tolist(), opened.info, opened.label_map)
