"""Whether a checkpoint knows the classes of the dataset that it is measured on."""

from __future__ import annotations

from absl import logging

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo


def check_classes(path: str, trained: DatasetInfo, dataset: DatasetInfo) -> None:
    """Looks whether two lists of classes mean the same; of two that have nothing but their number in common a warning tells.

    Args:
        path: of the checkpoint.
        trained: the classes that it was trained on.
        dataset: the classes that it meets now.

    Raises:
        UserError: another number of classes, or the same ones in another order.
    """
    if trained.num_classes != dataset.num_classes:
        raise UserError(
            f"{path}: was trained on the {trained.num_classes} classes of {trained.name!r}, and "
            f"the dataset {dataset.name!r} has "
            f"{dataset.num_classes}; give the dataset that it was trained on"
        )
    other = trained.renamed(dataset)
    if not other:
        return
    first = (
        f"class {other[0]} is {trained.class_names[other[0]]!r} there and "
        f"{dataset.class_names[other[0]]!r} here"
    )
    if sorted(trained.plain_names) == sorted(dataset.plain_names):
        hint = "give classes.txt the order of the training"
        raise UserError(f"{path}: was trained on these classes in another order: {first}; {hint}")
    more = f", and {len(other) - 1} more" if len(other) > 1 else ""
    what = f"was trained on other classes, those of {trained.name!r}: {first}{more}"
    logging.warning("%s %s; compared by their numbers", path, what)
