"""Datasets by name, all behind one concept: the source."""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import DataConfig, unknown_name
from deeplab_keras.data.ade20k import find_ade20k, find_ade20k_151
from deeplab_keras.data.cache import CachedSource, cache_on_disk
from deeplab_keras.data.camvid import find_camvid
from deeplab_keras.data.cityscapes import find_cityscapes
from deeplab_keras.data.files import FileSource, Pairs, open_pairs
from deeplab_keras.data.folder import find_folder
from deeplab_keras.data.source import Source
from deeplab_keras.data.synthetic import open_synthetic
from deeplab_keras.data.tfds_source import PREFIX, open_tfds
from deeplab_keras.data.tfrecords import has_records, open_records
from deeplab_keras.data.voc2012 import find_voc2012

# Datasets of image and mask files: what finds the files of a split.
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
    """A split of one of FILES, checked."""
    return open_pairs(config, FILES[config.dataset](config, split))


DATASETS: dict[str, Callable[[DataConfig, str], Source]] = {
    "synthetic": open_synthetic,
    "tfrecord": open_records,
    **dict.fromkeys(FILES, open_files),
}


def open_dataset(config: DataConfig, split: str) -> Source:
    """A split of the dataset that the config names, checked, and cached if the config says so.

    Raises:
        UserError: the dataset or the split is unknown, or a file is missing or wrong; one line that says which.
    """
    if config.dataset.startswith(PREFIX):
        source: Source = open_tfds(config, split)
    elif config.dataset not in DATASETS:
        raise unknown_name("--dataset", config.dataset, DATASETS)
    else:
        source = (open_records if has_records(config, split) else DATASETS[config.dataset])(config, split)
    if config.cache_dir:
        source = cache_on_disk(source, config.cache_dir, f"{config.dataset}/{split}")
    return CachedSource(source) if config.cache else source
