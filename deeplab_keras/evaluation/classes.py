"""Whether a checkpoint knows the classes of the dataset that it is measured on."""

from __future__ import annotations

import re

from absl import logging

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo

NO_NAME = re.compile(r"class \d+")  # of a class that nobody named


def check_classes(path: str, trained: DatasetInfo, dataset: DatasetInfo) -> None:
    """Looks whether two lists of classes mean the same; of two that have nothing but their number in common a warning tells.

    Args:
        path: of the checkpoint.
        trained: the classes that it was trained on.
        dataset: the classes that it meets now.

    Raises:
        UserError: another number of classes, or the same ones in another order.
    """
    theirs, ours = _plain(trained), _plain(dataset)
    if len(theirs) != len(ours):
        raise UserError(
            f"{path}: was trained on the {len(theirs)} classes of {trained.name!r}, and the dataset {dataset.name!r} has "
            f"{len(ours)}; give the dataset that it was trained on"
        )
    named = [not NO_NAME.fullmatch(a) and not NO_NAME.fullmatch(b) for a, b in zip(theirs, ours, strict=True)]
    other = [i for i, known in enumerate(named) if known and theirs[i] != ours[i]]
    if not other:
        return
    first = f"class {other[0]} is {trained.class_names[other[0]]!r} there and {dataset.class_names[other[0]]!r} here"
    if sorted(theirs) == sorted(ours):
        hint = "give classes.txt the order of the training"
        raise UserError(f"{path}: was trained on these classes in another order: {first}; {hint}")
    more = f", and {len(other) - 1} more" if len(other) > 1 else ""
    what = f"was trained on other classes, those of {trained.name!r}: {first}{more}"
    logging.warning("%s %s; compared by their numbers", path, what)


def _plain(info: DatasetInfo) -> list[str]:
    """The names without what is a matter of spelling."""
    return [name.strip("_ ").replace("_", " ").casefold() for name in info.class_names]
