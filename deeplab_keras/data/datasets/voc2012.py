"""PASCAL VOC 2012: 20 object classes and background; 1464 training and 1449 validation images.

Reads the extracted folder or the .tar itself. `trainaug` is the larger training set of 10582
images, with the masks of the Semantic Boundaries Dataset (SBD). Its list is
ImageSets/Segmentation/trainaug.txt. Without this file, the list consists of SBD's images (those of
its own two lists, or those in SegmentationClassAug) and VOC's training images, without VOC's
validation images. The masks are SegmentationClassAug/ID.png if they exist, otherwise
SegmentationClass/ID.png, otherwise SBD's own cls/ID.mat.
"""

from __future__ import annotations

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.layout import HELP, expected, find_home, read_list
from deeplab_keras.data.files.pairs import Pairs
from deeplab_keras.data.files.tree import Tree, with_archives
from deeplab_keras.data.info import DatasetInfo, pascal_palette

VOC2012 = DatasetInfo(
    name="voc2012",
    class_names=(
        "__background__",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    palette=pascal_palette(21),
)
SPLIT_ALIASES = {"train_aug": "trainaug"}  # the official DeepLab's name
AUGMENTED = "trainaug"
TREE = (
    "VOCdevkit/VOC2012/JPEGImages/ID.jpg, .../SegmentationClass{}/ID.png, "
    ".../ImageSets/Segmentation/{}.txt"
)
SBD_TREE = ".txt, or SBD's benchmark_RELEASE/dataset/cls/ID.mat, .../train"
ARCHIVES = ("VOCtrainval*.tar", "SegmentationClassAug*.zip", "SegmentationClassAug*.tar")
PLACES = (".", "VOCdevkit/VOC2012", "VOC2012")
LISTS = "ImageSets/Segmentation"
READY = "SegmentationClassAug"
SBD_ARCHIVES = ("benchmark*.tgz", "benchmark*.tar.gz")
SBD_PLACES = (
    "benchmark_RELEASE/dataset",
    "sbd/dataset",
    "sbd",
    "VOCaug/dataset",
    "dataset",
    "../VOCaug/dataset",
)


def find_voc2012(config: DataConfig, split: str) -> Pairs:
    """Returns the pairs of a split.

    A split is train, val, trainval, trainaug, or any list in ImageSets/Segmentation. `dataset_dir`
    is VOCdevkit, VOC2012, the .tar, or a folder that contains one of them.

    Raises:
        UserError: Something is missing; the message names the file or the option.
    """
    split = SPLIT_ALIASES.get(split, split)
    tree = (
        TREE.format("Aug", f"{split}{SBD_TREE}") if split == AUGMENTED else TREE.format("", split)
    )
    home = find_home(config, PLACES, tree, ("JPEGImages", LISTS), ARCHIVES)
    root = home.top()
    if split == AUGMENTED and not home.is_dir(READY):
        root = with_archives(root, ARCHIVES)
    sbd = next(
        (
            at
            for place in (home, root)
            for inner in SBD_PLACES
            if (at := place.at(inner)).is_dir("cls")
        ),
        None,
    )
    if split == AUGMENTED and not home.is_file(f"{LISTS}/{AUGMENTED}.txt"):
        ids = _augmented_list(home, root, sbd, tree)
    else:
        ids = read_list(home, f"{LISTS}/{split}.txt", tree)
    images = tuple(str(home.on_disk(f"JPEGImages/{name}.jpg")) for name in ids)
    masks = tuple(_mask(home, root, sbd, name, split) for name in ids)
    return Pairs(VOC2012, tuple(ids), images, masks, expected=expected(tree))


def _augmented_list(home: Tree, root: Tree, sbd: Tree | None, tree: str) -> list[str]:
    ready = next((place for place in (home, root) if place.is_dir(READY)), None)
    if sbd is not None:
        others = {
            name
            for part in ("train", "val")
            for name in read_list(sbd, f"{part}.txt", "cls/ID.mat, train.txt, val.txt")
        }
    elif ready is not None:
        others = {name.rpartition(".")[0] for name in ready.files(READY, (".png",))}
    else:
        with_archives(root, SBD_ARCHIVES)  # raises for compressed ones: how to extract them
        return read_list(home, f"{LISTS}/{AUGMENTED}.txt", tree)  # raises: what is missing
    train, val = (set(read_list(home, f"{LISTS}/{name}.txt", tree)) for name in ("train", "val"))
    if not (ids := (train | others) - val):
        raise UserError(
            f"{(sbd or ready or home).on_disk()}: all of its images are in VOC's val.txt, so none "
            f"are left for training; {HELP}"
        )
    return sorted(ids)


def _mask(home: Tree, root: Tree, sbd: Tree | None, name: str, split: str) -> str:
    plain, augmented = f"SegmentationClass/{name}.png", f"{READY}/{name}.png"
    if split == AUGMENTED:
        for tree in (home, root):  # SegmentationClassAug.zip contains only this folder
            if tree.is_file(augmented):
                return str(tree.on_disk(augmented))
        if not home.is_file(plain):
            return str(home.on_disk(augmented) if sbd is None else sbd.on_disk(f"cls/{name}.mat"))
    return str(home.on_disk(plain))
