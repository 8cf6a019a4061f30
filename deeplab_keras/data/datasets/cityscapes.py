"""Cityscapes: street scenes of 2048x1024 pixels, 19 classes.

It has 2975 training and 500 validation images with fine masks. The masks are the *_labelIds.png
files of the download: 19 of their 34 ids are classes, and the others are ignored. Without these
files, the masks are *_labelTrainIds.png, which hold class ids.
"""

from __future__ import annotations

from deeplab_keras.config import DataConfig
from deeplab_keras.data.datasets.layout import check_split, expected, find_home, find_images
from deeplab_keras.data.files.pairs import Pairs
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import DatasetInfo

# Class name, id in *_labelIds.png, color.
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic_light", 19, (250, 170, 30)),
    ("traffic_sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CITYSCAPES = DatasetInfo(
    "cityscapes", tuple(name for name, _, _ in CLASSES), tuple(color for _, _, color in CLASSES)
)
# Ids 0 to 33. Some tools write 255 for the id -1 of license plates.
LABEL_MAP = dict.fromkeys([*range(34), 255], CITYSCAPES.ignore_label) | {
    label: train_id for train_id, (_, label, _) in enumerate(CLASSES)
}
LABEL_IDS, TRAIN_IDS = "labelIds", "labelTrainIds"
# Split -> pairs of a folder of masks and a folder below it and below leftImg8bit.
SPLITS = {
    "train": (("gtFine", "train"),),
    "val": (("gtFine", "val"),),
    "trainval": (("gtFine", "train"), ("gtFine", "val")),
    "train_extra": (("gtCoarse", "train_extra"),),
    "train_coarse": (("gtCoarse", "train"), ("gtCoarse", "train_extra")),
    "trainval_coarse": (("gtCoarse", "train"), ("gtCoarse", "val"), ("gtCoarse", "train_extra")),
}
# The official DeepLab's names.
SPLIT_ALIASES = {"train_fine": "train", "val_fine": "val", "trainval_fine": "trainval"}
IMAGES = "leftImg8bit"
TREE = (
    "leftImg8bit/{1}/CITY/ID_leftImg8bit.png, {0}/{1}/CITY/ID_{0}_labelIds.png (or "
    "_labelTrainIds.png)"
)
ARCHIVES = ("leftImg8bit*.zip", "gtFine*.zip", "gtCoarse*.zip")


def find_cityscapes(config: DataConfig, split: str) -> Pairs:
    """Returns the pairs of one of `SPLITS`, city by city.

    `dataset_dir` contains leftImg8bit and gtFine (and gtCoarse for the coarse splits), as folders
    or .zip files.

    Raises:
        UserError: Something is missing; the message names the file or the option.
    """
    split = SPLIT_ALIASES.get(split, split)
    check_split(split, tuple(SPLITS), config.dataset)
    # Tree, path of the image, path of the mask without its kind, name.
    found: list[tuple[Tree, str, str, str]] = []
    for annotation, folder in SPLITS[split]:
        tree = TREE.format(annotation, folder)
        home = find_home(
            config, (".",), tree, (f"{IMAGES}/{folder}", f"{annotation}/{folder}"), ARCHIVES
        )
        for image in find_images(home, f"{IMAGES}/{folder}", f"_{IMAGES}.png", tree, deep=True):
            name = image[: -len(f"_{IMAGES}.png")]
            found.append(
                (
                    home,
                    f"{IMAGES}/{folder}/{image}",
                    f"{annotation}/{folder}/{name}_{annotation}_",
                    name,
                )
            )
    kind = _kind_of_masks(found)
    return Pairs(
        CITYSCAPES,
        tuple(name for *_, name in found),
        tuple(str(home.on_disk(image)) for home, image, _, _ in found),
        tuple(str(home.on_disk(f"{mask}{kind}.png")) for home, _, mask, _ in found),
        LABEL_MAP if kind == LABEL_IDS else None,
        expected=expected(TREE.format(*SPLITS[split][0])),
    )


def _kind_of_masks(found: list[tuple[Tree, str, str, str]]) -> str:
    """Returns TRAIN_IDS if the first mask has only this form and no mask is in LABEL_IDS form."""
    (home, _, mask, _), *_ = found
    only_train_ids = home.is_file(f"{mask}{TRAIN_IDS}.png") and not any(
        home.is_file(f"{mask}{LABEL_IDS}.png") for home, _, mask, _ in found
    )
    return TRAIN_IDS if only_train_ids else LABEL_IDS
