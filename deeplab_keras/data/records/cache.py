"""Caches of decoded pairs: in memory as they are loaded, or on disk before training starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.data.files.archives import split_member
from deeplab_keras.data.files.pairs import FileSource, in_threads
from deeplab_keras.data.files.record_file import read_record, scan
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing, write_text

FORMAT = 2  # of the files: one record each, whose checksums TensorFlow verifies at each read
HEADER = 8  # height and width, int32 each; followed by the pixels of the image and the label


@dataclasses.dataclass(frozen=True, eq=False)
class _Cache:
    """Base of the caches: the properties of the cached source."""

    source: Source

    @property
    def info(self) -> DatasetInfo:
        return self.source.info

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    def __len__(self) -> int:
        return len(self.source)


@dataclasses.dataclass(frozen=True, eq=False)
class CachedSource(_Cache):
    """A source that keeps the decoded pairs of another source in memory once they are loaded."""

    _pairs: dict[int, tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        default_factory=dict, repr=False
    )

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        index = int(index)
        if index not in self._pairs:
            self._pairs[index] = self.source.load(index)
        return self._pairs[index]

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = tf.numpy_function(self.load, [index], (tf.uint8, tf.uint8))
        return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))


@dataclasses.dataclass(frozen=True, eq=False)
class DiskCachedSource(_Cache):
    """A source that reads decoded pairs from a folder with one file per pair.

    `cache_on_disk` creates it.
    """

    folder: str

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        path = _path(self.folder, int(index))
        try:
            (_, content), *_ = scan(str(path))  # verifies the checksums
            data = np.frombuffer(content, np.uint8)
            height, width = data[:HEADER].view("<i4").tolist()
            if height < 0 or width < 0 or len(data) != HEADER + 4 * height * width:
                raise ValueError("its size does not match its header")
            split = HEADER + 3 * height * width
            return data[HEADER:split].reshape(height, width, 3), data[split:].reshape(height, width)
        except Exception as error:
            reason = str(error).removeprefix(f"{path}: ").partition(";")[0]
            raise UserError(
                f"{path}: cannot be read ({reason}); remove its folder to build the cache again"
            ) from error

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        name = tf.strings.as_string(tf.cast(index, tf.int64), width=8, fill="0")
        data = tf.io.decode_raw(
            read_record(tf.strings.join([f"{self.folder}{os.sep}", name, ".raw"])), tf.uint8
        )
        size = tf.bitcast(tf.reshape(data[:HEADER], (2, 4)), tf.int32)
        split = HEADER + 3 * size[0] * size[1]
        image, label = (
            tf.reshape(data[HEADER:split], tf.concat([size, [3]], 0)),
            tf.reshape(data[split:], size),
        )
        return tf.ensure_shape(image, (None, None, 3)), tf.ensure_shape(label, (None, None))


def _path(folder: str, index: int) -> Path:
    return Path(folder) / f"{index:08d}.raw"


def cache_on_disk(source: Source, cache_dir: str, title: str) -> DiskCachedSource:
    """Decodes every pair of a source into a folder below `cache_dir`; existing pairs are kept.

    The name of the folder is computed from the names of the pairs and the sizes and times of their
    files, so that changed files get another folder.

    Args:
        source: The source to cache.
        cache_dir: The folder of all caches.
        title: The name of the dataset and the split, for the progress line.

    Raises:
        UserError: A pair is broken, the folder cannot be written to, or the disk is too small.
    """
    files = isinstance(source, FileSource)
    kind = (
        [str(source.label_map), str(source.colors)]
        if isinstance(source, FileSource)
        else [repr(source)]
    )
    states = [pair_state(source, i) for i in range(len(source) if files else 0)]
    state = [FORMAT, source.names, source.info.to_dict(), kind, states]
    digest = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
    folder = Path(cache_dir).expanduser().absolute() / f"{source.info.name}-{digest}"
    cached, complete = DiskCachedSource(source, str(folder)), folder / "complete"
    if complete.is_file():
        return cached
    missing = [index for index in range(len(source)) if not _path(cached.folder, index).is_file()]
    _check_room(source, folder, missing)
    progress = Progress(len(source), f"caching {title}", start=len(source) - len(missing))
    for done, (_, error) in enumerate(
        in_threads(lambda index: _write(source, cached.folder, index), missing)
    ):
        if error is not None:
            raise error
        progress.update(len(source) - len(missing) + done + 1)
    write_text(complete, "")
    return cached


def pair_state(source: Source, index: int) -> tuple[int, int]:
    """Returns the size and the modification time of a pair's files; zeros if it has no files."""
    if not isinstance(source, FileSource):
        return 0, 0
    paths = (source.images[index], source.labels[index])
    states = [os.stat(inside[0] if (inside := split_member(path)) else path) for path in paths]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)


def _check_room(source: Source, folder: Path, missing: list[int]) -> None:
    """Raises `UserError` if the disk is too small, as estimated from a few pairs."""
    sample = missing[:: max(len(missing) // 8, 1)]
    if not sample:
        return
    needed = np.mean([source.load(index)[1].size * 4 + HEADER for index in sample]) * len(missing)
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if needed > (free := shutil.disk_usage(above).free):
        raise UserError(
            f"`cache_dir={folder.parent}`: {len(missing)} decoded pairs need about "
            f"{needed / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free; give another folder, "
            "or omit `cache_dir`"
        )


def _write(source: Source, folder: str, index: int) -> None:
    image, label = source.load(index)
    with replacing(_path(folder, index)) as aside, tf.io.TFRecordWriter(str(aside)) as writer:
        writer.write(np.array(label.shape, "<i4").tobytes() + image.tobytes() + label.tobytes())
