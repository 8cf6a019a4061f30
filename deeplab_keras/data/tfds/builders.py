"""The datasets as builders of tensorflow-datasets, for use with other code that reads them.

Either of these commands prepares `deeplab_camvid` from the files of the dataset:

    python scripts/build_tfds.py --dataset=camvid --dataset_dir=datasets/camvid
    tfds build --imports=deeplab_keras.data.tfds.builders deeplab_camvid \
        --manual_dir=datasets/camvid

`tfds.load("deeplab_camvid")` and `--dataset=tfds:deeplab_camvid` read it. The masks hold class ids,
after the dataset's label map. The metadata has the class names, the colors and the ignore label.
Examples keep the order of the files. Importing this module registers the builders.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from deeplab_keras.config import DataConfig, UserError, unknown_option
from deeplab_keras.data.datasets.ade20k import ADE20K, ADE20K_151
from deeplab_keras.data.datasets.camvid import CAMVID
from deeplab_keras.data.datasets.catalog import FILES, open_files
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES
from deeplab_keras.data.datasets.voc2012 import VOC2012
from deeplab_keras.data.files.archives import read_bytes
from deeplab_keras.data.files.pairs import FileSource
from deeplab_keras.data.files.tree import dataset_tree
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io import progress

INSTRUCTIONS = (
    "The folder, or the archives, as docs/datasets.md of deeplab_keras describes them under {}."
)


class FilesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders: prepares every split whose files exist, pair by pair."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format("the dataset's name")
    DATASET: str  # name of the dataset in this library
    CLASSES: DatasetInfo
    SOURCES: tuple[str, ...] = ("train", "val")  # splits to prepare if their files exist

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.CLASSES.name}: images and masks of class ids, as read by "
            "deeplab_keras.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "segmentation_mask": tfds.features.Image(
                        shape=(None, None, 1), encoding_format="png"
                    ),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "segmentation_mask"),
            metadata=tfds.core.MetadataDict(self.CLASSES.to_dict()),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        config = DataConfig(dataset=self.DATASET, dataset_dir=str(dl_manager.manual_dir))
        found: dict[str, FileSource] = {}
        missing: list[UserError] = []
        for split in self.SOURCES:
            try:
                FILES[self.DATASET](config, split)
            except UserError as error:
                missing.append(error)
                continue
            found[split] = open_files(config, split)
        if not found:
            raise missing[0]
        return {split: self._generate_examples(source) for split, source in found.items()}

    def _generate_examples(self, source: FileSource) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, name in enumerate(source.names):
            image, label = source.load(index)
            encoded = (
                io.BytesIO(read_bytes(source.images[index])) if source.plain[index][0] else image
            )
            yield (
                index,
                {"image": encoded, "segmentation_mask": label[..., None], "file_name": name},
            )


class DeeplabVoc2012(FilesBuilder):
    """PASCAL VOC 2012, 21 classes."""

    DATASET, CLASSES, SOURCES = "voc2012", VOC2012, ("train", "val", "trainaug")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format("PASCAL VOC 2012")


class DeeplabAde20k(FilesBuilder):
    """ADE20K scene parsing, 150 classes; 255 is ignored."""

    DATASET, CLASSES = "ade20k", ADE20K
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format("ADE20k")


class DeeplabAde20k151(FilesBuilder):
    """ADE20K scene parsing, 151 classes; 0 is ignored."""

    DATASET, CLASSES = "ade20k_151", ADE20K_151
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format("ADE20k")


class DeeplabCityscapes(FilesBuilder):
    """Cityscapes, 19 classes."""

    DATASET, CLASSES, SOURCES = "cityscapes", CITYSCAPES, ("train", "val", "train_extra")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format("Cityscapes")


class DeeplabCamvid(FilesBuilder):
    """CamVid, 11 classes."""

    DATASET, CLASSES, SOURCES = "camvid", CAMVID, ("train", "val", "test")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS.format("CamVid")


BUILDERS: dict[str, type[FilesBuilder]] = {
    builder.DATASET: builder
    for builder in (
        DeeplabVoc2012,
        DeeplabAde20k,
        DeeplabAde20k151,
        DeeplabCityscapes,
        DeeplabCamvid,
    )
}


def prepare(builder: tfds.core.DatasetBuilder, **options: Any) -> None:
    """Prepares a dataset, with the progress bars of tensorflow-datasets unless these are hidden.

    Args:
        builder: The builder.
        **options: Arguments of `download_and_prepare`.
    """
    if not progress.is_hidden():
        builder.download_and_prepare(**options)
        return
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(**options)
    finally:
        tfds.enable_progress_bar()


def build_tfds(config: DataConfig, data_dir: str) -> tuple[str, Path, dict[str, int]]:
    """Prepares a dataset for tensorflow-datasets, with the builder `deeplab_NAME` of `BUILDERS`.

    Args:
        config: The config with `dataset` and `dataset_dir`.
        data_dir: The folder in which tensorflow-datasets keeps its datasets.

    Returns:
        The name of the builder, the folder of the prepared dataset, and the number of examples of
        each split.

    Raises:
        UserError: The dataset has no builder, or its files are missing or wrong.
    """
    if config.dataset not in BUILDERS:
        raise unknown_option("dataset", config.dataset, BUILDERS)
    folder = str(dataset_tree(config).on_disk())
    builder = BUILDERS[config.dataset](data_dir=data_dir or None)
    prepare(builder, download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return (
        builder.name,
        Path(builder.data_path),
        {name: split.num_examples for name, split in builder.info.splits.items()},
    )
