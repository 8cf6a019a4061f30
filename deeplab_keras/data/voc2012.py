"""PASCAL VOC 2012: 20 kinds of things and the background; 1464 training and 1449 validation images.

Read from the folder as extracted. `trainaug` is the larger training set, 10582 images, with the masks of the Semantic
Boundaries Dataset: its list is ImageSets/Segmentation/trainaug.txt and its masks are SegmentationClassAug/ID.png;
a mask that is not there is taken from SegmentationClass.
"""

from __future__ import annotations

from pathlib import Path

from deeplab_keras.config import DataConfig
from deeplab_keras.data.files import FileSource, open_pairs
from deeplab_keras.data.info import DatasetInfo, pascal_palette
from deeplab_keras.data.layout import Pairs, check_pairs, find_home, read_list

VOC2012 = DatasetInfo(
    name="voc2012",
    class_names=(
        "__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
    ),
    palette=pascal_palette(21),
)  # fmt: skip
SPLIT_ALIASES = {"train_aug": "trainaug"}  # the official DeepLab's name
AUGMENTED = "trainaug"
TREE = "VOCdevkit/VOC2012/JPEGImages/ID.jpg, .../SegmentationClass{}/ID.png, .../ImageSets/Segmentation/{}.txt"


def open_voc2012(config: DataConfig, split: str) -> FileSource:
    """A split that has a list in ImageSets/Segmentation: train, val, trainval, trainaug, or one of your own.

    --dataset_dir holds VOCdevkit/VOC2012, or is one of these two folders.

    Raises:
        UserError: something is missing or wrong; names the file or the flag.
    """
    split = SPLIT_ALIASES.get(split, split)
    tree = TREE.format("Aug" if split == AUGMENTED else "", split)
    home = find_home(config, (".", "VOCdevkit/VOC2012", "VOC2012"), tree, ("JPEGImages", "ImageSets/Segmentation"))
    ids = read_list(home / "ImageSets" / "Segmentation" / f"{split}.txt", tree)
    pairs: Pairs = [(name, home / "JPEGImages" / f"{name}.jpg", _mask(home, name, split)) for name in ids]
    return open_pairs(config, VOC2012, *check_pairs(config, pairs, tree))


def _mask(home: Path, name: str, split: str) -> Path:
    plain, augmented = (home / folder / f"{name}.png" for folder in ("SegmentationClass", "SegmentationClassAug"))
    return augmented if split == AUGMENTED and (augmented.is_file() or not plain.is_file()) else plain
