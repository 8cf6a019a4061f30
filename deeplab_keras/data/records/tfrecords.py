"""Reads datasets from sharded TFRecord files with the official DeepLab's features.

The files of a split are named `SPLIT-00000-of-00004.tfrecord`. They were written by
build_tfrecords or by the official tools. An index has the position of each record, so records allow
random access like files. build_tfrecords also writes `SPLIT.manifest.json`, which describes the
records, and `SPLIT.index.npz`. Records without a manifest are read under the name of their dataset,
and indexed when they are first opened.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.datasets.ade20k import ADE20K, ADE20K_151, LABEL_MAP
from deeplab_keras.data.datasets.camvid import CAMVID
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES
from deeplab_keras.data.datasets.classes_file import read_classes
from deeplab_keras.data.datasets.voc2012 import VOC2012
from deeplab_keras.data.files.pairs import FileSource, Pairs, open_pairs
from deeplab_keras.data.files.reading import BrokenFileError
from deeplab_keras.data.files.record_file import (
    FOOTER,
    HEADER,
    IMAGE,
    LABEL,
    NAME,
    member_path,
    read_record,
)
from deeplab_keras.data.files.tree import Tree
from deeplab_keras.data.info import DatasetInfo, info_for_classes, require_ignored_apart
from deeplab_keras.data.records.record_index import RecordIndex, keep, make_index

FORMAT = 1  # of the manifest
CLASSES_FILE = "classes.txt"
# Dataset name -> classes of the masks in the official tools' records, and classes to return.
OFFICIAL: dict[str, tuple[DatasetInfo, DatasetInfo]] = {
    "voc2012": (VOC2012, VOC2012),
    "pascal_voc_seg": (VOC2012, VOC2012),
    "ade20k": (ADE20K_151, ADE20K),
    "ade20k_151": (ADE20K_151, ADE20K_151),
    "cityscapes": (CITYSCAPES, CITYSCAPES),
    "camvid": (CAMVID, CAMVID),
}
# Different names of the same split.
SAME_SPLIT = (
    {"trainaug", "train_aug"},
    {"train", "train_fine"},
    {"val", "val_fine"},
    {"trainval", "trainval_fine"},
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.tfrecords?)?")


@dataclasses.dataclass(frozen=True, eq=False)
class RecordSource(FileSource):
    """Records as a source; its paths are those of `record_file.member_path`.

    Attributes:
        files: The paths of the record files.
        file_of: The number of each pair's file, int32 `[n]`.
        offsets: The byte at which each pair's record begins in its file, int64 `[n]`.
        sizes: The number of bytes of each record, int64 `[n]`.
        keys: The names of the features with the image file and the mask file.
    """

    files: tuple[str, ...] = ()
    file_of: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    offsets: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    sizes: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    keys: tuple[str, str] = (IMAGE, LABEL)

    def tf_readers(
        self, index: tf.Tensor
    ) -> tuple[Callable[[], tf.Tensor], Callable[[], tf.Tensor]]:
        features = {key: tf.io.FixedLenFeature([], tf.string) for key in self.keys}
        parsed = tf.io.parse_single_example(self.tf_record(index), features)
        image, label = (functools.partial(parsed.__getitem__, key) for key in self.keys)
        return image, label

    def tf_where(self, index: tf.Tensor) -> tf.Tensor:
        return tf.strings.join(
            [
                tf.gather(list(self.files), tf.gather(self.file_of, index)),
                tf.strings.as_string(tf.gather(self.offsets, index)),
            ],
            "/",
        )

    def tf_record(self, index: tf.Tensor) -> tf.Tensor:
        """Reads a record inside a tf.data graph and verifies its checksums."""
        size = tf.gather(self.sizes, index) + HEADER + FOOTER
        return read_record(
            tf.gather(list(self.files), tf.gather(self.file_of, index)),
            tf.gather(self.offsets, index),
            buffer_size=size,  # one read of exactly the record
        )

    def take(self, chosen: Iterable[int]) -> RecordSource:
        kept = list(chosen)
        arrays = {name: getattr(self, name)[kept] for name in ("file_of", "offsets", "sizes")}
        return dataclasses.replace(
            super().take(kept), plain=tuple(self.plain[i] for i in kept), **arrays
        )

    def load_ids(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        try:
            self.tf_record(tf.constant(index))
        except tf.errors.OpError as error:
            where = (
                f"{self.files[self.file_of[index]]}: the record {self.names[index]!r} at byte "
                f"{self.offsets[index]}"
            )
            raise BrokenFileError(
                f"{where} is damaged; build or download the file again, or skip such records with "
                "`skip_broken_files`"
            ) from error
        return super().load_ids(index)


def find_records(folder: Path, split: str) -> tuple[str, list[Path]]:
    """Returns the split's name in the file names, and its record files in order.

    Raises:
        UserError: Some of the files are missing.
    """
    if not folder.is_dir():
        return split, []
    splits = shards_in(folder)
    names = next((names for names in SAME_SPLIT if split in names), {split})
    chosen = next((name for name in (split, *sorted(names)) if name in splits), split)
    shards = splits.get(chosen, {})
    for total, files in shards.items():
        missing = sorted({*range(total)} - files.keys())
        if missing or len(shards) > 1:
            totals = " and ".join(f"of {number}" for number in sorted(shards))
            problem = (
                f"number {missing[0]} of {total} is missing"
                if len(shards) == 1
                else f"there are files {totals}"
            )
            raise UserError(
                f"{folder}/{chosen}-*.tfrecord: {problem}; build or download the records again"
            )
        return chosen, [files[number] for number in range(total)]
    return split, []


def shards_in(folder: Path) -> dict[str, dict[int, dict[int, Path]]]:
    """Returns the record files in a folder: split -> total number of files -> number -> path."""
    found: dict[str, dict[int, dict[int, Path]]] = {}
    for path in sorted(folder.iterdir()):
        if (match := _SHARD.fullmatch(path.name)) and not path.name.startswith("."):
            found.setdefault(match[1], {}).setdefault(int(match[3]), {})[int(match[2])] = path
    return found


def has_records(config: DataConfig, split: str) -> bool:
    """Whether `dataset_dir` has record files of a split, or only record files (of other splits)."""
    folder = Path(config.dataset_dir or "").expanduser()
    if not config.dataset_dir or not folder.is_dir():
        return False
    return (
        bool(find_records(folder, split)[1])
        or bool(shards_in(folder))
        and all(map(_of_records, os.listdir(folder)))
    )


def _of_records(name: str) -> bool:
    return (
        bool(_SHARD.fullmatch(name))
        or name.startswith(".")
        or name.endswith((".manifest.json", ".index.npz", CLASSES_FILE))
    )


def open_records(config: DataConfig, split: str) -> RecordSource:
    """Opens a split of the records in `dataset_dir`.

    Raises:
        UserError: There are no records, some are missing or damaged, or their classes are unknown.
    """
    if not config.dataset_dir:
        raise UserError(
            f"`dataset={config.dataset}` requires `dataset_dir='FOLDER'`, the folder of the record "
            "files"
        )
    folder = Path(config.dataset_dir).expanduser()
    split, files = find_records(folder, split)
    if not files:
        there = ", ".join(sorted(shards_in(folder))) if folder.is_dir() else ""
        raise UserError(
            f"`dataset_dir={config.dataset_dir}`: it has no files {split}-00000-of-NNNNN.tfrecord; "
            f"available splits: {there or 'none'}; `scripts/build_tfrecords.py` builds records"
        )
    manifest = read_manifest(folder, split, files)
    info, label_map = _classes(config, folder, manifest)
    kept = folder / f"{split}.index.npz"
    index = RecordIndex.load(kept, files) or make_index(
        files, (IMAGE, LABEL), NAME, f"reading {folder.name}/{split}", str if manifest else None
    )
    source = source_of(config, index, files, info, label_map, verified=manifest is not None)
    if not len(index.plain) and len(source) == len(index):
        keep(dataclasses.replace(index, plain=np.array(source.plain, bool)), kept)
    return source


def source_of(
    config: DataConfig,
    index: RecordIndex,
    files: list[Path],
    info: DatasetInfo,
    label_map: Mapping[int, int] | None,
    *,
    verified: bool = False,
    keys: tuple[str, str] = (IMAGE, LABEL),
) -> RecordSource:
    """Returns a source of the records in an index.

    Args:
        config: The config, which says whether broken images are skipped.
        index: The index of the records.
        files: The record files.
        info: The classes.
        label_map: Id in the masks -> class id or ignore label; `None`: The masks already hold class
            ids.
        verified: Whether the records were checked when they were built and are all plain (see
            `FileSource`).
        keys: The names of the features with the image file and the mask file.

    Raises:
        UserError: See `files.pairs.open_pairs`, which checks the records unless they are verified.
    """
    paths = [str(path) for path in files]
    places = list(zip(index.file_of.tolist(), index.offsets.tolist(), index.names, strict=True))
    images, labels = (
        tuple(member_path(paths[file], offset, name, key) for file, offset, name in places)
        for key in keys
    )
    pairs = Pairs(info, index.names, images, labels, label_map)
    chosen = np.arange(len(index))
    if verified:
        checked = FileSource(
            info,
            index.names,
            images,
            labels,
            label_map,
            plain=((True, True),) * len(index),
            checked=True,
        )
    else:
        checked = open_pairs(config, pairs, index.looks())
        if len(checked) < len(index):
            number_of = {image: number for number, image in enumerate(images)}
            chosen = np.array([number_of[image] for image in checked.images])
    fields = {field.name: getattr(checked, field.name) for field in dataclasses.fields(FileSource)}
    arrays = {name: getattr(index, name)[chosen] for name in ("file_of", "offsets", "sizes")}
    return RecordSource(**fields, files=tuple(paths), **arrays, keys=keys)


def manifest_path(folder: Path, split: str) -> Path:
    """Returns the path of a split's manifest.

    The name does not match the pattern `SPLIT-*`, by which the official reader finds records.
    """
    return folder / f"{split}.manifest.json"


def read_manifest(folder: Path, split: str, files: list[Path]) -> dict[str, Any] | None:
    """Reads the manifest that build_tfrecords writes; None for records of other tools.

    Raises:
        UserError: The file is not a manifest, or is for other record files.
    """
    path = manifest_path(folder, split)
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        shards = {shard["file"]: shard["bytes"] for shard in manifest["shards"]}
        DatasetInfo.from_dict(manifest["dataset"])
        known = manifest["format"]
    except FileNotFoundError:
        return None
    except UserError as error:
        raise UserError(f"{path}: {error.text}; build the records again") from error
    except Exception as error:  # including RecursionError
        raise UserError(
            f"{path}: cannot be read as a manifest ({error}); build the records again"
        ) from error
    if known != FORMAT:
        raise UserError(
            f"{path}: its format is {known}, but this version reads format {FORMAT}; build the "
            "records again"
        )
    for file in files:
        if shards.get(file.name) != file.stat().st_size:
            expected = f"{shards[file.name]} bytes" if file.name in shards else "no such file"
            raise UserError(
                f"{file}: it has {file.stat().st_size} bytes, but the manifest says {expected}; "
                "build or copy it again"
            )
    return manifest


def _classes(
    config: DataConfig, folder: Path, manifest: dict[str, Any] | None
) -> tuple[DatasetInfo, Mapping[int, int] | None]:
    """Returns the classes, and the label map from the ids in the records to them."""
    if manifest is not None:
        held = DatasetInfo.from_dict(manifest["dataset"])
        wanted = OFFICIAL[config.dataset][1] if config.dataset in OFFICIAL else held
    elif config.dataset in OFFICIAL:
        held, wanted = OFFICIAL[config.dataset]
    elif (folder / CLASSES_FILE).is_file():
        classes = read_classes(Tree(str(folder)), CLASSES_FILE)
        require_ignored_apart(folder / CLASSES_FILE, classes.names, config.ignore_label)
        held = wanted = info_for_classes(
            folder.resolve().name, classes.names, classes.palette, config.ignore_label
        )
    else:
        raise UserError(
            f"`dataset_dir={config.dataset_dir}`: the classes of records without a manifest are "
            f"unknown; give the dataset's name (`dataset={', '.join(OFFICIAL)}`) or add a "
            f"{CLASSES_FILE} with one name per line"
        )
    if (held.class_names, held.ignore_label) == (wanted.class_names, wanted.ignore_label):
        return held if config.dataset not in OFFICIAL else wanted, None
    if (held.class_names, wanted) == (ADE20K_151.class_names, ADE20K):
        return wanted, LABEL_MAP
    if (held.class_names, wanted) == (ADE20K.class_names, ADE20K_151):
        return wanted, {label: other for other, label in LABEL_MAP.items()}
    raise UserError(
        f"`dataset={config.dataset}`: the records in {config.dataset_dir} hold the "
        f"{held.num_classes} classes of {held.name!r}; `dataset='tfrecord'` reads these classes"
    )
