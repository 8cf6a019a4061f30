"""Opens datasets by name, all with the same interface: `Source`."""

from __future__ import annotations

from collections.abc import Callable

from deeplab_keras.config import DataConfig, UserError, require_instance, unknown_option
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
    """Opens and checks a split of the dataset that the config names.

    Args:
        config: A `DataConfig` with the name of the dataset, its folder and the caching options.
        split: The name of the split, such as "train" or "val".

    Returns:
        A `Source`: `source.load(i)` returns image and label, `len(source)` is the number of pairs,
        and `source.info` has the classes.

    Raises:
        UserError: The dataset or the split is unknown, or a file is missing or wrong. The message
            names it in one line.

    Example:
        >>> config = dk.DataConfig(dataset="synthetic", synthetic_size=(64, 96), eval_samples=10)
        >>> source = dk.open_dataset(config, "val")
        >>> len(source), source.info.num_classes
        (10, 10)
        >>> image, label = source.load(0)
        >>> image.shape, image.dtype, label.shape, label.dtype
        ((64, 96, 3), dtype('uint8'), (64, 96), dtype('uint8'))
    """
    require_instance(config, DataConfig, "config")
    require_instance(split, str, "split")
    if config.dataset.startswith(PREFIX):
        source: Source = open_tfds(config, split)
    elif config.dataset not in DATASETS:
        raise unknown_option("dataset", config.dataset, DATASETS)
    else:
        records = has_records(config, split)
        if records and (config.val_fraction or config.fold):
            option = "val_fraction" if config.val_fraction else "fold"
            raise UserError(
                f"`{option}` has no effect on the records in {config.dataset_dir}; give it to "
                "`scripts/build_tfrecords.py` instead"
            )
        source = (open_records if records else DATASETS[config.dataset])(config, split)
    if config.cache_dir:
        source = cache_on_disk(source, config.cache_dir, f"{config.dataset}/{split}")
    return CachedSource(source) if config.cache else source
