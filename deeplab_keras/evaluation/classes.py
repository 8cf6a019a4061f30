"""Compares the classes of a checkpoint with those of the dataset to evaluate on."""

from __future__ import annotations

import logging

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo

logger = logging.getLogger(__name__)


def check_classes(path: str, trained: DatasetInfo, dataset: DatasetInfo) -> None:
    """Checks that two lists of classes match; logs a warning if only their length matches.

    Args:
        path: The path of the checkpoint.
        trained: The classes that the checkpoint was trained on.
        dataset: The classes of the dataset.

    Raises:
        UserError: The numbers of classes differ, or the classes are the same in another order.
    """
    if trained.num_classes != dataset.num_classes:
        raise UserError(
            f"{path}: was trained on the {trained.num_classes} classes of {trained.name!r}, and "
            f"the dataset {dataset.name!r} has {dataset.num_classes}; give the dataset that it was "
            "trained on"
        )
    other = trained.renamed(dataset)
    if not other:
        return
    first = (
        f"class {other[0]} is {trained.class_names[other[0]]!r} in the checkpoint and "
        f"{dataset.class_names[other[0]]!r} in the dataset"
    )
    if sorted(trained.plain_names) == sorted(dataset.plain_names):
        hint = "put classes.txt into the order of the checkpoint"
        raise UserError(f"{path}: was trained on these classes in another order: {first}; {hint}")
    more = f", and {len(other) - 1} more" if len(other) > 1 else ""
    what = f"was trained on other classes, those of {trained.name!r}: {first}{more}"
    logger.warning("%s %s; classes are compared by id", path, what)
