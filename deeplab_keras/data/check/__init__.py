"""The full check of a dataset: decodes, counts and compares all pairs, and recognizes mistakes.

`files.pairs.open_pairs` is the quick check that runs before each training run.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deeplab_keras.config import DataConfig, UserError, require_instance
from deeplab_keras.data.check.findings import DatasetCheck, Problem, Scan, SplitCheck
from deeplab_keras.data.check.notes import in_two_splits, notes
from deeplab_keras.data.datasets.catalog import FILES
from deeplab_keras.data.datasets.folder_parts import in_one_part
from deeplab_keras.data.files.mask_values import MaskValues
from deeplab_keras.data.files.mistakes import likely_mistake
from deeplab_keras.data.files.pairs import (
    IdsUserError,
    Pairs,
    advised,
    explained,
    in_threads,
    nothing_labeled,
    require_files,
    require_known,
    require_photograph,
)
from deeplab_keras.data.files.reading import FileUserError, open_picture, turn_of
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.io.progress import Progress

NOT_OPENED = "splits that cannot be opened"
NOTHING_LABELED = "splits without a labeled pixel"
IN_ONE_PART = "classes in one part of a fold only"


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(image.tobytes() + repr(image.shape).encode(), digest_size=16).digest()


def scan_files(pairs: Pairs, index: int) -> tuple[Scan, MaskValues]:
    """Reads a pair of files and returns its contents and the statistics of its mask.

    Raises:
        UserError: A file is missing or broken, or the sizes differ.
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
    """A split to be checked.

    Attributes:
        info: The classes.
        count: The number of pairs.
        scan: Reads the pair with the given index; see `scan_files`.
        load: Returns the image and the ids in the mask file of the pair with the given index.
        class_of_id: See `Pairs.class_of_id`.
        label_map: See `Pairs`.
        in_colors: Whether the masks encode ids as colors.
        available: See `Pairs`.
    """

    info: DatasetInfo
    count: int
    scan: Callable[[int], tuple[Scan, MaskValues]]
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]
    class_of_id: np.ndarray
    label_map: Mapping[int, int] | None = None
    in_colors: bool = False
    available: str = ""


def _open(config: DataConfig, split: str) -> _Split:
    if config.dataset in FILES:
        # The scan reports broken files.
        pairs = FILES[config.dataset](config.replace(skip_broken_files=True), split)
        scan_pair, colors = functools.partial(scan_files, pairs), pairs.colors is not None
        return _Split(
            pairs.info,
            len(pairs),
            scan_pair,
            pairs.load_ids,
            pairs.class_of_id(),
            pairs.label_map,
            colors,
            pairs.available,
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
    """The results for the pairs of a split.

    Attributes:
        scans: The pairs that can be read.
        problems: The problems of single pairs.
        values: The values in all masks.
        wrong: The values in masks that hold ids outside the classes.
    """

    scans: list[Scan] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    values: MaskValues = dataclasses.field(default_factory=MaskValues)
    wrong: MaskValues = dataclasses.field(default_factory=MaskValues)


def _read(split: str, opened: _Split) -> _Found:
    """Scans every pair, with a progress bar."""
    found = _Found()
    errors: list[UserError] = []
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
            errors.append(error)
        progress.update(done)
    errors = advised(errors, opened.count, opened.available)
    found.problems.extend(
        Problem(split, getattr(error, "kind", FileUserError.kind), error.text)
        for error in explained(errors, opened.info, opened.label_map)
    )
    return found


def _count(name: str, opened: _Split, scans: Sequence[Scan]) -> SplitCheck:
    info, class_of_id = opened.info, opened.class_of_id
    is_ignored = class_of_id == info.ignore_label
    valid = (class_of_id >= 0) & ~is_ignored
    own = np.zeros((len(scans), info.num_classes), np.int64)  # pixels of each class in each pair
    for row, scan in zip(own, scans, strict=True):
        np.add.at(row, class_of_id[valid], scan.ids[valid])
    labeled = own.sum(1)
    return SplitCheck(
        name=name,
        pairs=opened.count,
        scans=tuple(scans),
        pixels=own.sum(0),
        images=(own > 0).sum(0),
        counted=((own > 0) * labeled[:, None]).sum(0),
        ignored=sum(int(scan.ids[is_ignored].sum()) for scan in scans),
        strange=sum(int(scan.ids[class_of_id < 0].sum()) for scan in scans),
        unlabeled=tuple(scan.name for scan, count in zip(scans, labeled, strict=True) if not count),
        class_of_id=class_of_id,
        load=opened.load,
    )


def check_dataset(config: DataConfig, splits: Sequence[str] = ()) -> DatasetCheck:
    """Reads every pair of the splits and reports problems, with a progress bar on stderr.

    Args:
        config: A `DataConfig` that names the dataset and its folder.
        splits: The names of the splits to check. The first one is the training split. The default
            is `train_split` and `eval_split`.

    Returns:
        A `DatasetCheck` with the problems, the likely mistake behind them, statistics of each
        split, and class weights. Its `to_dict()` returns JSON values, and `print` shows what
        `check_dataset.py` prints.

    Raises:
        UserError: The dataset is unknown, or none of its splits can be opened.

    Example:
        >>> config = dk.DataConfig(dataset="synthetic", train_samples=8, synthetic_size=(64, 64))
        >>> check = dk.check_dataset(config, ["train"])
        >>> check.wrong
        False
        >>> [(split.name, split.pairs, split.total) for split in check.splits]
        [('train', 8, 32768)]
        >>> sorted(check.label_weights())
        ['inverse_log', 'median_frequency', 'square_root']
        >>> print(check)
        train: 8 of 8 pairs read, all 64x64; 21.6% of the pixels ignored, 0.0% outside the classes
        ...
    """
    require_instance(config, DataConfig, "config")
    if isinstance(splits, str):
        raise UserError(f"`splits` must be a list of names, not {splits!r}")
    splits = splits or (config.train_split, config.eval_split)
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
                Problem(split, NOTHING_LABELED, nothing_labeled(config, split, opened.info))
            )
    if opened is None:
        raise UserError(problems[0].message if problems else "`splits`: give at least one split")
    problems += in_two_splits(checked)
    if config.fold and [split.name for split in checked] == [config.train_split, config.eval_split]:
        train, val = (np.flatnonzero(split.pixels).tolist() for split in checked)
        if message := in_one_part(config, opened.info, train, val):
            problems.append(Problem(checked[0].name, IN_ONE_PART, message))
    # Guess from the masks with ids outside the classes; if there are none, from all masks.
    guessed = wrong if wrong.present else values
    looks_like = "" if opened.in_colors else likely_mistake(guessed, opened.info, opened.label_map)
    return DatasetCheck(
        config,
        opened.info,
        tuple(checked),
        tuple(problems),
        looks_like,
        tuple(notes(checked, opened.info)),
    )
