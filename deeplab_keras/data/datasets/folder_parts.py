"""Sets a part of the training split aside for validation, for a dataset without such a split.

Which part an image belongs to depends only on a hash of its name and on `split_seed`. So training,
evaluation and a resumed run use the same images, and images that are added later move no others.
"""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import re
from collections.abc import Collection, Sequence

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.folder_layout import (
    files_in,
    find_split,
    flat_place,
    no_split,
    where_is,
)
from deeplab_keras.data.files.lists import Found
from deeplab_keras.data.files.pairs import THREADS, and_more, in_threads
from deeplab_keras.data.files.tree import Tree, same_name
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source

logger = logging.getLogger(__name__)

# Roboflow's export of several versions of an image, which belong together.
_VERSION = re.compile(r"\.rf\.[0-9A-Za-z]+$")
_NUMBER = re.compile(r"[\W_]*\d+(?![^\W_])")  # not within a word, as in leftImg8bit
_SEPARATOR = re.compile(r"[\W_]+")


def find_part(root: Tree, config: DataConfig, split: str) -> tuple[Found, Found]:
    """Returns the files of a split, a part of which may be set aside, and those of all parts.

    Args:
        root: The dataset.
        config: The config, with `val_fraction` or `fold`.
        split: The name of the split.

    Raises:
        UserError: The dataset has the validation split, a part is empty, or see `find_split`.
    """
    whole, option = config.eval_split, _option(config)
    if split not in (config.train_split, whole):
        found = find_split(root, split)
        return found, found
    if whole != config.train_split and where_is(root, whole) is not None:
        if split == config.train_split:
            raise UserError(
                f"{option} has no effect: {root.on_disk()} has the split {whole!r}; leave the "
                "option out, or name a validation split that does not exist with `eval_split`"
            )
        logger.info("%s: %r is a split of the dataset and is used unchanged", option, whole)
        found = find_split(root, whole)
        return found, found
    if whole == config.train_split:
        logger.warning(
            "%s: `eval_split` is the training split, so the images that are trained on are used",
            option,
        )
    pool = _pool(root, config.train_split)
    held_out = _held_out(root, config, pool)
    validating = split != config.train_split
    chosen = [index for index, held in enumerate(held_out) if held == validating]
    logger.info(
        "%s: %d of %d images are for %s (%s)",
        root.on_disk(),
        len(chosen),
        len(held_out),
        "validation" if validating else "training",
        option,
    )
    return pool.take(chosen), pool


def _option(config: DataConfig) -> str:
    return f"`fold={config.fold}`" if config.fold else f"`val_fraction={config.val_fraction:g}`"


def _pool(root: Tree, split: str) -> Found:
    """Returns the files of the training split, or all files of a dataset without splits."""
    if where_is(root, split) is not None:
        return find_split(root, split)
    if place := flat_place(root):
        return files_in(root, place)
    raise no_split(root, split)


def _held_out(root: Tree, config: DataConfig, pool: Found) -> list[bool]:
    """Whether each image is in the validation part.

    Raises:
        UserError: A part is empty.
    """
    option, names = _option(config), stable_names(root, pool)
    groups = [prefix_of(name) for name in names] if config.split_by == "prefix" else names
    count = len(set(groups))
    if config.split_by == "prefix" and count == 1:
        raise UserError(
            f"`split_by=prefix`: all {len(names)} images have the prefix {groups[0]!r}, so they "
            "cannot be divided; use `split_by='name'`, or name the images like their sequences"
        )
    held_out = [is_held_out(group, config) for group in groups]
    if len(set(held_out)) < 2:
        part = "training" if held_out[0] else "validation"
        of = f"{len(names)} images" + (f" in {count} groups" if count < len(names) else "")
        raise UserError(
            f"{option}: none of the {of} are in the {part} part; give another "
            f"{'number of folds' if config.fold else 'fraction'}, or another `split_seed`"
        )
    return held_out


def stable_names(root: Tree, pool: Found) -> list[str]:
    """Returns names that stay the same when images are added or the dataset is moved.

    Images from lists are named by their paths in the dataset, or without their folder if they are
    elsewhere.
    """
    if pool.folders:
        names: Sequence[str] = pool.names
    else:
        home = os.path.abspath(root.on_disk())
        paths = [os.path.relpath(os.path.abspath(image), home) for image in pool.images]
        names = [
            posixpath.splitext(
                os.path.basename(path) if path.startswith(os.pardir) else path.replace(os.sep, "/")
            )[0]
            for path in paths
        ]
    # Without the letter case, so that IMG_1.rf.abc and img_1.rf.def stay together.
    return [_VERSION.sub("", same_name(name)).casefold() for name in names]


def prefix_of(name: str) -> str:
    """Returns the folder of a name and its part before the last number.

    Without a number, this is the part before the last separator.
    """
    folder, stem = posixpath.split(name)
    found = list(_NUMBER.finditer(stem)) or list(_SEPARATOR.finditer(stem))
    return posixpath.join(folder, stem[: found[-1].start()] if found else stem)


def is_held_out(group: str, config: DataConfig) -> bool:
    """Whether the images of a group are in the validation part."""
    digest = hashlib.sha256(f"{config.split_seed}/{group}".encode(errors="surrogateescape"))
    position = int.from_bytes(digest.digest()[:8], "big")  # uniform in [0, 2**64)
    if config.fold:
        fold, folds = map(int, config.fold.split("/"))
        return position * folds >> 64 == fold - 1
    return position < int(config.val_fraction * 2**64)


def require_classes_in_parts(train: Source, val: Source, config: DataConfig) -> None:
    """Refuses a fold in which a class of one part has no pixel in the other part.

    Such a class is not learned, or has no IoU in this fold. With `val_fraction`, this is a warning.
    Each part is read until all classes are found, usually after a few pairs.

    Args:
        train: The training part.
        val: The validation part.
        config: The config, with `fold` or `val_fraction`. Without them, nothing is read.

    Raises:
        UserError: A class is in one part of a fold only.
    """
    if not (config.fold or config.val_fraction) or config.train_split == config.eval_split:
        return
    if message := in_one_part(config, train.info, _classes_in(train), _classes_in(val)):
        if config.fold:
            raise UserError(message)
        logger.warning("%s", message)


def in_one_part(
    config: DataConfig, info: DatasetInfo, train: Collection[int], val: Collection[int]
) -> str:
    """Returns the message about classes with pixels in one part only, or an empty string.

    Args:
        config: The config, with `fold` or `val_fraction`.
        info: The names of the classes.
        train: The classes with pixels in the training part.
        val: The classes with pixels in the validation part.
    """
    found = {"training": set(train), "validation": set(val)}
    for part, other in (("training", "validation"), ("validation", "training")):
        if missing := sorted(found[other] - found[part]):
            names = ", ".join(repr(info.class_names[index]) for index in missing[:5])
            return (
                f"{_option(config)}: the {part} part has no pixel of {names}"
                f"{and_more(len(missing) - 4)}, which the {other} part has; "
                "give another `split_seed`, or "
                f"{'fewer folds' if config.fold else 'another fraction'}"
            )
    return ""


def _classes_in(source: Source) -> set[int]:
    """Returns the classes with at least one pixel."""
    found: set[int] = set()
    everything = set(range(source.info.num_classes))
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    for start in range(0, len(order), THREADS):
        for label, error in in_threads(
            lambda index: np.unique(source.load(index)[1]), order[start : start + THREADS]
        ):
            if error:
                raise error
            assert label is not None
            found |= everything & set(label.tolist())
        if found == everything:
            break
    return found
