"""Reads Roboflow's semantic segmentation masks: NAME_mask.png and NAME.jpg in one folder."""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Sequence

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.annotations.exports import Export, Picture, split_of
from deeplab_keras.data.annotations.rendering import UndrawableError
from deeplab_keras.data.datasets.classes_file import read_classes
from deeplab_keras.data.files.reading import read_label
from deeplab_keras.data.files.tree import Tree

MASK = "_mask.png"


def read_roboflow_masks(root: Tree, files: Sequence[str], crowd: str = "ignore") -> Export:
    """Reads folders with `_classes.csv`, one per split.

    Args:
        root: The export.
        files: The paths of the files `_classes.csv`.
        crowd: Not used: masks have no crowds.

    Raises:
        UserError: A list of classes cannot be read, or two of them differ, or there are no masks.
    """
    export = Export("Roboflow masks", [str(root.on_disk(name)) for name in files])
    masks = {
        name: root.files(posixpath.dirname(name) or ".", (MASK,), deep=False) for name in files
    }
    if not any(masks.values()):
        raise UserError(
            f"{export.sources[0]}: its folder has no files *{MASK}; export 'Semantic "
            "Segmentation Masks' in Roboflow"
        )
    for name, path in zip(files, list(export.sources), strict=True):
        classes = read_classes(root, name)
        if export.classes and export.classes.names != classes.names:
            raise UserError(f"{path}: its classes are not those of {export.sources[0]}")
        export.classes = classes
        folder = posixpath.dirname(name)
        for mask in masks[name]:
            file = str(root.on_disk(posixpath.join(folder, mask)))
            picture = Picture(mask[: -len(MASK)], file, split_of(name))
            picture.mask = functools.partial(_ids, file, len(classes.names))
            picture.image = _image(root, folder, picture.name)
            export.sources.append(file)
            picture.problem = "" if picture.image else "its image is not in the export"
            export.pictures.append(picture)
    return export


def _image(root: Tree, folder: str, stem: str) -> str:
    paths = [posixpath.join(folder, stem + suffix) for suffix in (".jpg", ".jpeg", ".png")]
    return next((str(root.on_disk(path)) for path in paths if root.is_file(path)), "")


def _ids(path: str, classes: int) -> np.ndarray:
    ids = read_label(path)
    strange = ids[(ids >= classes) & (ids != 255)]
    if len(strange):
        raise UndrawableError(
            f"its mask holds the id {strange[0]}, but there are {classes} classes"
        )
    return ids.astype(np.uint8)
