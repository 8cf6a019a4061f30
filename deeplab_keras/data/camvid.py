"""CamVid: 367 training and 101 validation frames of a drive through Cambridge, 480x360, 11 classes.

The files lie as in the SegNet tutorial, where it is had: `{train,val,test}/ID.png`, `{train,val,test}annot/ID.png`; or as
those of a folder of one's own (folder.py): `images/{train,val}/ID.jpg`, `labels/{train,val}/ID.png`.
"""

from __future__ import annotations

from deeplab_keras.config import DataConfig
from deeplab_keras.data.files import FileSource, dataset_root, open_pairs
from deeplab_keras.data.folder import find_pairs
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.layout import check_pairs, find_images

# The 11-class split of the SegNet tutorial with its colours; 255 is unlabelled.
CAMVID = DatasetInfo(
    name="camvid",
    class_names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
)  # fmt: skip
# In the SegNet tutorial's masks 11 is unlabelled.
SEGNET_MAP = {label: label for label in range(11)} | {11: CAMVID.ignore_label}
SEGNET_TREE = "{0}/ID.png, {0}annot/ID.png"


def open_camvid(config: DataConfig, split: str) -> FileSource:
    """The frames of `split`.

    Raises:
        UserError: something is missing or wrong; names the file or the flag.
    """
    root = dataset_root(config)
    if not (root / f"{split}annot").is_dir():
        return open_pairs(config, CAMVID, *find_pairs(root, split))
    tree = SEGNET_TREE.format(split)
    images = find_images(root / split, "[!.]*.png", tree)
    pairs = [(image.stem, image, root / f"{split}annot" / image.name) for image in images]
    return open_pairs(config, CAMVID, *check_pairs(config, pairs, tree), label_map=SEGNET_MAP)
