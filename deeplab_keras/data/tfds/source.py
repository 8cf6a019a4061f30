"""Reads datasets of tensorflow-datasets by name: `--dataset=tfds:oxford_iiit_pet`.

Its prepared datasets are record files, so they are read like all records, with random access and
the same decoders. Its own reading is not used because it has no fixed order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES, LABEL_MAP
from deeplab_keras.data.files.pairs import in_threads
from deeplab_keras.data.files.reading import read_label
from deeplab_keras.data.files.record_file import member_path
from deeplab_keras.data.info import DatasetInfo, info_for_classes, require_ignored_apart
from deeplab_keras.data.records.record_index import RecordIndex, keep, make_index, stem
from deeplab_keras.data.records.tfrecords import RecordSource, source_of

logger = logging.getLogger(__name__)

PREFIX = "tfds:"
IMAGE_KEYS = ("image", "image_left")
MASK_KEYS = ("segmentation_mask", "segmentation_label", "segmentation", "mask", "annotation")
NAME_KEYS = ("file_name", "image/filename", "image_id")
SAME_SPLIT = {"val": ("validation", "valid", "test")}
Classes = tuple[DatasetInfo, Mapping[int, int] | None]
# Classes of datasets whose metadata does not describe the ids in their masks.
KNOWN: dict[str, Classes] = {
    "oxford_iiit_pet": (
        info_for_classes("oxford_iiit_pet", ("pet", "background", "border")),
        {1: 0, 2: 1, 3: 2},
    ),
    "cityscapes": (CITYSCAPES, LABEL_MAP),
}


def open_tfds(config: DataConfig, split: str) -> RecordSource:
    """Opens a split of the dataset `tfds:NAME`.

    NAME may be `NAME/CONFIG:VERSION`, and the split may be `train[:80%]`. `dataset_dir` is the
    data_dir of tensorflow-datasets. A dataset that is not prepared there is prepared first, which
    may download it.

    Raises:
        UserError: The dataset or the split does not exist, cannot be prepared, or has no masks.
    """
    builder = _prepared(config)
    info = builder.info
    if info.file_format.value != "tfrecord":
        raise UserError(
            f"`dataset={config.dataset}`: it was prepared as {info.file_format.value} files; "
            f"prepare it as TFRecord: tfds build {builder.name} --file_format=tfrecord"
        )
    keys = _features(config, info.features)
    parts = _Parts(config, builder, keys)
    index, chosen, kept = parts.of(_instructions(config, info, split))
    classes, label_map = _classes(config, builder, parts)
    part = _pick(index, chosen)
    source = source_of(config, part, parts.files, classes, label_map, keys=keys)
    if not len(index.plain) and len(source) == len(index):
        order = np.argsort(chosen)
        keep(dataclasses.replace(index, plain=np.array(source.plain, bool)[order]), kept)
    return source


def _pick(index: RecordIndex, chosen: np.ndarray) -> RecordIndex:
    names, plain = (
        tuple(index.names[i] for i in chosen),
        index.plain[chosen] if len(index.plain) else index.plain,
    )
    return dataclasses.replace(
        index,
        names=names,
        plain=plain,
        file_of=index.file_of[chosen],
        offsets=index.offsets[chosen],
        sizes=index.sizes[chosen],
    )


def _prepared(config: DataConfig) -> Any:
    import tensorflow_datasets as tfds  # takes seconds to import

    from deeplab_keras.data.tfds import builders as tfds_builders  # registers ours

    name, folder = config.dataset.removeprefix(PREFIX), config.dataset_dir or None
    try:
        builder = tfds.builder(name, data_dir=folder)
    except Exception as error:  # of many kinds, and not documented
        raise UserError(
            f"`dataset={config.dataset}`: tensorflow-datasets does not have this dataset "
            f"({_line(error)}); see https://www.tensorflow.org/datasets/catalog for a list"
        ) from error
    if builder.is_prepared():
        return builder
    logger.info("%s is not prepared in %s yet; preparing it there", name, builder.data_path)
    try:
        tfds_builders.prepare(builder)
    except Exception as error:  # the dataset's own code can raise anything
        advice = (
            f"; if you have its files: tfds build {name} --data_dir={builder.data_dir_root} "
            "--manual_dir=FOLDER"
        )
        if isinstance(builder, tfds_builders.FilesBuilder):
            own = (
                f"`dataset={builder.DATASET}` `dataset_dir='FOLDER'` "
                f"`data_dir={builder.data_dir_root}`"
            )
            advice = f"; if you have its files: `python scripts/build_tfds.py` {own}"
        raise UserError(
            f"`dataset={config.dataset}`: tensorflow-datasets cannot prepare it in "
            f"{builder.data_path} ({_line(error)}){advice}"
        ) from error
    return builder


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _features(config: DataConfig, features: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the names of the image feature and the mask feature."""
    channels = {
        key: value.shape[-1]
        for key, value in features.items()
        if type(value).__name__.endswith("Image")
    }
    masks = [key for key in MASK_KEYS if key in channels] or [
        key for key, count in channels.items() if count == 1
    ]
    images = [key for key in IMAGE_KEYS if key in channels] or [
        key for key, count in channels.items() if count == 3
    ]
    images = [key for key in images if key not in masks[:1]]
    if not masks or not images:
        raise UserError(
            f"`dataset={config.dataset}`: no feature for {'masks' if images else 'images'} found; "
            f"its features: {', '.join(features)}"
        )
    return images[0], masks[0]


def _instructions(config: DataConfig, info: Any, split: str) -> list[Any]:
    """Returns the parts of record files that make up a split."""
    others = (name for name in SAME_SPLIT.get(split, ()) if name in info.splits)
    name = split if split in info.splits else next(others, split)
    try:
        return list(info.splits[name].file_instructions)
    except ValueError as error:
        raise UserError(
            f"`train_split` or `eval_split={split}`: the dataset {config.dataset} has the splits "
            f"{', '.join(info.splits)}; slices are written as train[:80%] or train[80%:]"
        ) from error


class _Parts:
    """The record files of a prepared dataset, which are indexed when needed."""

    def __init__(self, config: DataConfig, builder: Any, keys: tuple[str, str]) -> None:
        self.config, self.builder, self.keys = config, builder, keys
        self.files: list[Path] = []
        features = builder.info.features
        self.name_key = next((key for key in NAME_KEYS if key in features), NAME_KEYS[0])

    def of(self, instructions: list[Any]) -> tuple[RecordIndex, np.ndarray, Path]:
        """Applies the file instructions of a split.

        Returns:
            The index of the files, the chosen records, and the path at which the index is saved.
        """
        self.files = files = list(dict.fromkeys(Path(part.filename) for part in instructions))
        digest = hashlib.sha256("\0".join(path.name for path in files).encode()).hexdigest()[:8]
        kept = files[0].parent / f"deeplab_keras-{digest}.index.npz"
        index = RecordIndex.load(kept, files)
        if index is None:
            index = make_index(
                files, self.keys, self.name_key, f"reading {self.config.dataset}", _plain_name
            )
            keep(index, kept)
        starts = np.searchsorted(index.file_of, np.arange(len(files) + 1))
        chosen = []
        for part in instructions:
            number = files.index(Path(part.filename))
            first = starts[number] + part.skip
            chosen.append(
                np.arange(first, first + part.take if part.take >= 0 else starts[number + 1])
            )
        return index, np.concatenate(chosen), kept

    def masks(self) -> list[str]:
        """Returns the paths of the masks of all splits."""
        paths = []
        for split in self.builder.info.splits.values():
            index, _, _ = self.of(list(split.file_instructions))
            places = zip(index.file_of, index.offsets, index.names, strict=True)
            paths += [
                member_path(str(self.files[file]), offset, name, self.keys[1])
                for file, offset, name in places
            ]
        return paths


def _plain_name(name: str) -> str:
    """Returns a name without an image suffix and without parts that lead out of a folder."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join([*parts[:-1], stem(parts[-1])]) if parts else ""


def _classes(config: DataConfig, builder: Any, parts: _Parts) -> Classes:
    """Returns the classes and the label map.

    They come from the dataset's metadata, from `KNOWN`, or are inferred from the masks.
    """
    metadata, feature = builder.info.metadata or {}, builder.info.features[parts.keys[1]]
    if "class_names" in metadata and "palette" in metadata:
        return DatasetInfo.from_dict(metadata), None
    if builder.name in KNOWN:
        return KNOWN[builder.name]
    if names := getattr(feature, "names", None):
        require_ignored_apart(f"`dataset={config.dataset}`", names, config.ignore_label)
        return info_for_classes(builder.name, tuple(names), ignore_label=config.ignore_label), None
    return _infer_classes(config, builder.name, list(parts.files), parts), None


def _infer_classes(config: DataConfig, name: str, files: list[Path], parts: _Parts) -> DatasetInfo:
    paths = parts.masks()
    parts.files = files
    logger.info(
        "%s does not list its classes: reading %d masks to infer them",
        config.dataset,
        len(paths),
    )
    present = np.zeros(256, bool)
    for ids, error in in_threads(lambda path: np.unique(read_label(path)), paths):
        if ids is None:
            raise error or UserError(f"`dataset={config.dataset}`: a mask cannot be read")
        present[ids] = True
    present[config.ignore_label] = False
    count = int(np.flatnonzero(present).max(initial=-1)) + 1
    if count < 2:
        raise UserError(
            f"`dataset={config.dataset}`: its masks hold no id besides 0 and the ignore label "
            f"{config.ignore_label}, so they are not label maps; use another dataset"
        )
    return info_for_classes(
        name, [f"class_{i}" for i in range(count)], ignore_label=config.ignore_label
    )
