"""Datasets of image and mask files, by name."""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import DataConfig
from deeplab_keras.data.datasets.ade20k import find_ade20k, find_ade20k_151
from deeplab_keras.data.datasets.camvid import find_camvid
from deeplab_keras.data.datasets.cityscapes import find_cityscapes
from deeplab_keras.data.datasets.folder import find_folder
from deeplab_keras.data.datasets.voc2012 import find_voc2012
from deeplab_keras.data.files.pairs import FileSource, Pairs, open_pairs

# Datasets of image and mask files, each with the function that finds the files of a split.
FILES: dict[str, Callable[[DataConfig, str], Pairs]] = {
    "folder": find_folder,
    "camvid": find_camvid,
    "voc2012": find_voc2012,
    "pascal_voc_seg": find_voc2012,  # the official DeepLab's name
    "ade20k": find_ade20k,
    "ade20k_151": find_ade20k_151,
    "cityscapes": find_cityscapes,
}


def open_files(config: DataConfig, split: str) -> FileSource:
    """Opens and checks a split of one of the datasets in `FILES`."""
    return open_pairs(config, FILES[config.dataset](config, split))
