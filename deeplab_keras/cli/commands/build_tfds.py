r"""Prepares a dataset for use with tensorflow-datasets.

Writes the dataset deeplab_NAME with images, masks of class ids, and the class names in its
metadata. tfds.load("deeplab_camvid") reads it after `import deeplab_keras.data.tfds.builders`, and
all scripts read it with --dataset=tfds:deeplab_camvid.

    python scripts/build_tfds.py --dataset=camvid --dataset_dir=datasets/camvid
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, DataConfig, option


@dataclasses.dataclass(frozen=True)
class TfdsOptions(Config):
    """Where to write the dataset."""

    data_dir: str = option("", "folder of tensorflow-datasets; default: ~/tensorflow_datasets")


def main(command: Command) -> None:
    """Prepares all splits of the dataset."""
    options, config = command.config(TfdsOptions), command.config(DataConfig)
    load_keras()

    from deeplab_keras.data.tfds.builders import build_tfds

    name, folder, splits = build_tfds(config, options.data_dir)
    command.summary.count(**splits)
    command.summary.wrote(folder)
    print(
        f"{folder}: {name} with {', '.join(f'{split} {count}' for split, count in splits.items())}"
    )


SECTIONS = (TfdsOptions, DataConfig)
