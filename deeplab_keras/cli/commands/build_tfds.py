r"""Prepares a dataset for tensorflow-datasets, for those whose other code works with it.

What is written is the builder deeplab_NAME, with images, masks of class ids and the classes'
names in its metadata. tfds.load("deeplab_camvid") reads it where deeplab_keras.data.tfds.builders
is imported, the scripts here with --dataset=tfds:deeplab_camvid.

    python scripts/build_tfds.py --dataset=camvid --dataset_dir=datasets/camvid
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, DataConfig, option


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """Where to."""

    data_dir: str = option(
        "",
        "folder in which tensorflow-datasets keeps its datasets; by default ~/tensorflow_datasets",
    )


def main(command: Command) -> None:
    """Prepares every split that there is."""
    options, config = command.config(Options), command.config(DataConfig)

    from deeplab_keras.data.tfds.builders import build_tfds

    name, folder, splits = build_tfds(config, options.data_dir)
    print(
        f"{folder}: {name} with {', '.join(f'{split} {count}' for split, count in splits.items())}"
    )


SECTIONS = (Options, DataConfig)
