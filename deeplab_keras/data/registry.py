"""Datasets by name, all behind one concept: the source."""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import DataConfig, unknown_option
from deeplab_keras.data.datasets.catalog import FILES, open_files
from deeplab_keras.data.datasets.synthetic import open_synthetic
from deeplab_keras.data.records.cache import CachedSource, cache_on_disk
from deeplab_keras.data.records.tfrecords import has_records, open_records
from deeplab_keras.data.source import Source
from deeplab_keras.data.tfds.source import PREFIX, open_tfds

DATASETS: dict[str, Callable[[DataConfig, str], Source]] = {
    "synthetic": open_synthetic,
    "tfrecord": open_records,
    **dict.fromkeys(FILES, open_files),
}


def open_dataset(config: DataConfig, split: str) -> Source:
    """A split of the dataset that the config names, checked, and cached if the config says so.

    Raises:
        UserError: the dataset or the split is unknown, or a file is missing or wrong; one line that
            says which.
    """
    if config.dataset.startswith(PREFIX):
        source: Source = open_tfds(config, split)
    elif config.dataset not in DATASETS:
        raise unknown_option("dataset", config.dataset, DATASETS)
    else:
        source = (open_records if has_records(config, split) else DATASETS[config.dataset])(
            config, split
        )
    if config.cache_dir:
        source = cache_on_disk(source, config.cache_dir, f"{config.dataset}/{split}")
    return CachedSource(source) if config.cache else source
