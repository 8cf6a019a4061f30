"""The index of a split's records: the file and the position of each record.

It is built once by reading all record files, and then saved next to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.data.files.pairs import Look, and_more, in_threads
from deeplab_keras.data.files.record_file import FOOTER, HEADER, feature, parse, scan
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import replacing

logger = logging.getLogger(__name__)

LARGEST_INDEX = 64 << 20  # arrays may have this many bytes plus four times the size of the file


@dataclasses.dataclass(frozen=True, eq=False)
class RecordIndex:
    """The records of a split, in order.

    Attributes:
        files: The names of the record files.
        file_bytes: The size of each file, by which an index of other files is recognized.
        names: The name of each record.
        file_of: The number of each record's file, int32 `[n]`.
        offsets: The byte at which each record begins in its file, int64 `[n]`.
        sizes: The number of bytes of each record, int64 `[n]`.
        plain: bool `[n, 2]`, see `FileSource.plain`; `[0, 2]`: unknown.
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
        """Returns what is known about the headers of the images; None if nothing is known."""
        return {
            i: Look((bool(image), bool(label))) for i, (image, label) in enumerate(self.plain)
        } or None

    def save(self, path: Path) -> None:
        """Writes the index to a file.

        Raises:
            UserError: The file cannot be written.
        """
        values = dataclasses.asdict(self)
        for field in ("files", "names"):
            values[field] = np.frombuffer("\0".join(values[field]).encode(), np.uint8)
        values["file_bytes"] = np.array(self.file_bytes, np.int64)
        with replacing(path) as aside, open(aside, "wb") as file:
            np.savez_compressed(file, **values)

    @classmethod
    def load(cls, path: Path, files: Sequence[Path]) -> RecordIndex | None:
        """Loads the index of the record files; None if there is none or it is for other files."""
        if not path.is_file():
            return None
        try:
            with reading(path, "an index of records", "it is built again"):
                values = _arrays(path, [field.name for field in dataclasses.fields(cls)])
                for field in ("files", "names"):
                    values[field] = tuple(values[field].tobytes().decode().split("\0"))
                values["file_bytes"] = tuple(values["file_bytes"].tolist())
                index = cls(**values)
                index.check()
        except UserError as error:
            logger.warning("%s", error)
            return None
        now = tuple(file.name for file in files), tuple(os.path.getsize(file) for file in files)
        return index if (index.files, index.file_bytes) == now else None

    def check(self) -> None:
        """Raises `ValueError` unless the fields are consistent and the records fill the files.

        TensorFlow allocates memory according to the offsets and sizes.
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
            raise ValueError("a record has no file")
        np.add.at(ends, self.file_of, lengths)
        before = np.cumsum(lengths) - lengths - (np.cumsum(ends) - ends)[self.file_of]
        if ends.tolist() != list(self.file_bytes) or (before != self.offsets).any():
            raise ValueError("its records do not fill the files")


def _arrays(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Reads arrays of an .npz file, verifies their checksums and limits their size."""
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
        raise ValueError("an array's header does not match its data")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)


def make_index(
    files: Sequence[Path],
    keys: Sequence[str],
    name_key: str,
    title: str,
    name_of: Callable[[str], str] | None = None,
) -> RecordIndex:
    """Builds an index by reading the record files completely, and verifies their checksums.

    Args:
        files: The files in order.
        keys: Features that every record must have.
        name_key: The feature with the name of a record. Records without it are named by file and
            number.
        title: The title of the progress line.
        name_of: Converts that name; by default, to the last part of a path without its suffix.

    Raises:
        UserError: A file is damaged, or a record does not have the features.
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
        raise UserError(f"{files[0]}: it has no records{and_more(len(files))}")
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
    """Returns `ADE_train_1` for `ADE20K/images/training/ADE_train_1.jpg`."""
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
    """Returns the names, with a number appended to repeated ones."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return tuple(found)


def keep(index: RecordIndex, path: Path) -> None:
    """Saves an index next to its files if the folder is writable."""
    with contextlib.suppress(UserError):
        index.save(path)
