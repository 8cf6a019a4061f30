"""Where each record of a split lies in its files: found once by reading them all, then kept beside them in a small file."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from deeplab_keras.config import UserError
from deeplab_keras.data.files.pairs import Look, and_more, in_threads
from deeplab_keras.data.files.record_file import FOOTER, HEADER, feature, parse, scan
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing

LARGEST_INDEX = 64 << 20  # bytes of an index's arrays, apart from four times its file


@dataclasses.dataclass(frozen=True, eq=False)
class RecordIndex:
    """The records of a split, in order.

    Attributes:
        files: the record files' names.
        file_bytes: how long each is; another length means that the index is of other files.
        names: a name for each record.
        file_of: for each record the number of its file, int32 `[n]`.
        offsets: where it begins there, int64 `[n]`.
        sizes: how many bytes it has, int64 `[n]`.
        plain: bool `[n, 2]`, see `FileSource.plain`; `[0, 2]`: not known.
    """

    files: tuple[str, ...]
    file_bytes: tuple[int, ...]
    names: tuple[str, ...]
    file_of: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    plain: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def looks(self) -> dict[int, Look] | None:
        """What is known of the pictures' headers."""
        return {
            i: Look((bool(image), bool(label))) for i, (image, label) in enumerate(self.plain)
        } or None

    def save(self, path: Path) -> None:
        """Writes the index to a file.

        Raises:
            UserError: it cannot be written.
        """
        values = dataclasses.asdict(self)
        for field in ("files", "names"):
            values[field] = np.frombuffer("\0".join(values[field]).encode(), np.uint8)
        values["file_bytes"] = np.array(self.file_bytes, np.int64)
        with replacing(path) as aside, open(aside, "wb") as file:
            np.savez_compressed(file, **values)

    @classmethod
    def load(cls, path: Path, files: Sequence[Path]) -> RecordIndex | None:
        """The index that was saved for these record files; None if there is none or it is of others."""
        if not path.is_file():
            return None
        try:
            with reading(path, "an index of records", "it is made again"):
                values = _arrays(path, [field.name for field in dataclasses.fields(cls)])
                for field in ("files", "names"):
                    values[field] = tuple(values[field].tobytes().decode().split("\0"))
                values["file_bytes"] = tuple(values["file_bytes"].tolist())
                index = cls(**values)
                index.check()
        except UserError as error:
            logging.warning("%s", error)
            return None
        now = tuple(file.name for file in files), tuple(os.path.getsize(file) for file in files)
        return index if (index.files, index.file_bytes) == now else None

    def check(self) -> None:
        """Raises ValueError unless the records fill the files, one after the other, and every field agrees with that.

        The offsets and sizes are what TensorFlow takes memory by.
        """
        count = len(self.names)
        shapes = [array.shape for array in (self.file_of, self.offsets, self.sizes)]
        kinds = [array.dtype.kind for array in (self.file_of, self.offsets, self.sizes, self.plain)]
        if (
            shapes != [(count,)] * 3
            or kinds != list("iiib")
            or self.plain.shape not in ((0, 2), (count, 2))
        ):
            raise ValueError("its fields have different lengths")
        if len(self.file_bytes) != len(self.files) or not count:
            raise ValueError("it names no files or no records")
        if self.sizes.min() < 1 or self.sizes.max() > max(self.file_bytes):
            raise ValueError("a record is larger than its file")
        lengths = self.sizes.astype(np.int64) + HEADER + FOOTER
        ends = np.zeros(len(self.files), np.int64)
        if (
            self.file_of.min() < 0
            or self.file_of.max() >= len(self.files)
            or (np.diff(self.file_of) < 0).any()
        ):
            raise ValueError("a record is in no file")
        np.add.at(ends, self.file_of, lengths)
        before = np.cumsum(lengths) - lengths - (np.cumsum(ends) - ends)[self.file_of]
        if ends.tolist() != list(self.file_bytes) or (before != self.offsets).any():
            raise ValueError("its records do not fill the files")


def _arrays(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Arrays of an .npz file, each read to its end so that its checksum counts, and none larger than its file allows."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.getinfo(f"{name}.npy") for name in names}
        if (
            sum(member.file_size for member in members.values())
            > LARGEST_INDEX + 4 * path.stat().st_size
        ):
            raise ValueError("its arrays are too large")
        return {name: _array(archive.read(member)) for name, member in members.items()}


def _array(data: bytes) -> np.ndarray:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject or fortran or len(data) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array's header does not fit its data")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def make_index(
    files: Sequence[Path],
    keys: Sequence[str],
    name_key: str,
    title: str,
    name_of: Callable[[str], str] | None = None,
) -> RecordIndex:
    """Reads record files from end to end, their checksums verified, and notes where each record lies.

    Args:
        files: the files in order.
        keys: features that every record must have.
        name_key: the feature that names a record; one without it is called by file and number.
        title: of the progress line.
        name_of: what becomes of that name; by default the last part of a path, without its suffix.

    Raises:
        UserError: a file is damaged, or a record has not got the features; names the file.
    """
    progress = Progress(len(files), title, unit="files")

    def read(path: Path) -> list[tuple[str, int, int]]:
        return [
            (_name(data, path, i, keys, name_key, name_of or stem), offset, len(data))
            for i, (offset, data) in enumerate(scan(str(path)))
        ]

    found: list[tuple[str, int, int, int]] = []
    for number, (entries, error) in enumerate(in_threads(read, files)):
        if entries is None:
            raise error or UserError(f"{files[number]}: cannot be read")
        found += [(*entry, number) for entry in entries]
        progress.update(number + 1)
    if not found:
        raise UserError(f"{files[0]}: there is no record in it{and_more(len(files))}")
    names, offsets, sizes, file = zip(*found, strict=True)
    lengths = tuple(os.path.getsize(path) for path in files)
    arrays = (
        np.array(file, np.int32),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.zeros((0, 2), bool),
    )
    return RecordIndex(tuple(path.name for path in files), lengths, _distinct(names), *arrays)


def stem(name: str) -> str:
    """`ADE20K/images/training/ADE_train_1.jpg` -> `ADE_train_1`."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.name


def _name(
    data: bytes,
    path: Path,
    number: int,
    keys: Sequence[str],
    name_key: str,
    name_of: Callable[[str], str],
) -> str:
    example: tf.train.Example = parse(data, str(path))
    for key in keys:
        if feature(example, key) is None:
            there = ", ".join(sorted(example.features.feature)) or "none"
            raise UserError(
                f"{path}: its record {number} has no feature {key!r}; its features: {there}"
            )
    name = (feature(example, name_key) or b"").decode(errors="replace").replace("\0", "")
    return name_of(name) or f"{path.name}_{number:06d}"


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number after those that were there before."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(found)


def keep(index: RecordIndex, path: Path) -> None:
    """Saves an index beside its files, where that is possible."""
    with contextlib.suppress(UserError):
        index.save(path)
