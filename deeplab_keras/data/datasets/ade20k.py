"""ADE20K scene parsing (ADEChallengeData2016), 150 classes.

It has 20210 training and 2000 validation images. In the masks, 0 is "other", and 1 to 150 are the
classes. Two conventions are in use, each under a dataset name of its own:

* `ade20k`: 150 classes; 0 is ignored, i becomes i - 1 (SSSegmentation and most others);
* `ade20k_151`: 151 classes with the ids of the masks; 0 is ignored but is a class of the network
  (official DeepLab).
"""

from __future__ import annotations

import functools

from deeplab_keras.config import DataConfig
from deeplab_keras.data.datasets.classes_ade20k import CLASS_NAMES, PALETTE
from deeplab_keras.data.datasets.layout import check_split, expected, find_home, find_images
from deeplab_keras.data.files.pairs import Pairs
from deeplab_keras.data.info import DatasetInfo

ADE20K = DatasetInfo("ade20k", CLASS_NAMES, PALETTE)
ADE20K_151 = DatasetInfo(
    "ade20k_151", ("other", *CLASS_NAMES), ((0, 0, 0), *PALETTE), ignore_label=0
)
LABEL_MAP = {0: ADE20K.ignore_label} | {label: label - 1 for label in range(1, 151)}
SPLITS = {"train": ("training",), "val": ("validation",), "trainval": ("training", "validation")}
TREE = "ADEChallengeData2016/images/{0}/ID.jpg, ADEChallengeData2016/annotations/{0}/ID.png"
ARCHIVES = ("ADEChallengeData2016*.zip",)


def _find(
    info: DatasetInfo, label_map: dict[int, int] | None, config: DataConfig, split: str
) -> Pairs:
    check_split(split, tuple(SPLITS), config.dataset)
    names: list[str] = []
    images: list[str] = []
    labels: list[str] = []
    for folder in SPLITS[split]:
        tree = TREE.format(folder)
        needed = (f"images/{folder}", f"annotations/{folder}")
        home = find_home(config, (".", "ADEChallengeData2016"), tree, needed, ARCHIVES)
        found = [
            name.rpartition(".")[0] for name in find_images(home, f"images/{folder}", ".jpg", tree)
        ]
        names += found
        images += [str(home.on_disk(f"images/{folder}/{name}.jpg")) for name in found]
        labels += [str(home.on_disk(f"annotations/{folder}/{name}.png")) for name in found]
    tree = TREE.format(SPLITS[split][0])
    return Pairs(
        info, tuple(names), tuple(images), tuple(labels), label_map, expected=expected(tree)
    )


find_ade20k = functools.partial(_find, ADE20K, LABEL_MAP)
find_ade20k_151 = functools.partial(_find, ADE20K_151, None)
