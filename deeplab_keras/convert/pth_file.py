"""The two file formats of `torch.save`: zip since PyTorch 1.6, and a stream before.

See docs/reference/pytorch.md#zip-format and docs/reference/pytorch.md#stream-format. A reader opens
the pickle first and the values of the storages later, so that an optimizer's values are not kept in
memory.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Collection
from typing import BinaryIO

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.convert.pth_pickle import AGAIN, MAX_BYTES, STORAGES, Storage, Unpickler

ZIP_START = b"PK\x03\x04"
# A stream's first pickle (the magic number) and second pickle (the version).
STREAM_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
PICKLE_START = b"\x80"
MAX_DIRECTORY = 2 << 20  # bytes of a zip file's table of contents, for about 25,000 storages
CHUNK = 1 << 20
NOT_PYTORCH = "not a PyTorch checkpoint; give a file written by torch.save"
DAMAGED = f"truncated or damaged; {AGAIN}"


class ZipCheckpoint:
    """A checkpoint since PyTorch 1.6.

    Args:
        file: The open file.
        path: Its path, for messages.

    Attributes:
        content: The object in the pickle.
    """

    def __init__(self, file: BinaryIO, path: str | os.PathLike[str]) -> None:
        self._path = path
        _check_directory(file, path)
        try:
            self._archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, RuntimeError) as error:
            raise UserError(f"{path}: {DAMAGED}") from error
        self._members = {info.filename: info for info in self._archive.infolist()}
        self._check_members(os.fstat(file.fileno()).st_size)
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path}: a zip file without data.pkl, {NOT_PYTORCH}")
        self._root = pickles[0].removesuffix("data.pkl")
        order = self._members.get(f"{self._root}byteorder")
        if order is not None and self._read(order, MAX_BYTES) != b"little":
            raise UserError(f"{path}: written on a big-endian machine; save it again on another")
        data = self._read(self._members[pickles[0]], MAX_BYTES)
        self.content = Unpickler(io.BytesIO(data), path).load()

    def values(self, needed: Collection[Storage]) -> dict[str, np.ndarray]:
        """Returns the bytes of storages by key, and compares all members with their checksums.

        Raises:
            UserError: If a storage is missing, or a member does not match its checksum.
        """
        names = {f"{self._root}data/{storage.key}": storage for storage in needed}
        missing = [name for name in names if name not in self._members]
        if missing:
            raise UserError(f"{self._path}: has no {missing[0][:200]!r}; {AGAIN}")
        values = {}
        for name, info in self._members.items():
            storage = names.get(name)
            if storage is None:
                self._copy(info, None)
                continue
            if info.file_size != storage.size * np.dtype(STORAGES[storage.kind]).itemsize:
                raise UserError(
                    f"{self._path}: {name[:200]!r} has another size than stated; {AGAIN}"
                )
            values[storage.key] = np.empty(info.file_size, np.uint8)
            self._copy(info, values[storage.key].data)
        return values

    def _check_members(self, size: int) -> None:
        """Checks that the members are not compressed and not larger than the file."""
        for info in self._members.values():
            if info.compress_type != zipfile.ZIP_STORED:
                raise UserError(
                    f"{self._path}: {info.filename[:200]!r} is compressed, which torch.save never "
                    f"does; {AGAIN}"
                )
        if (
            len(self._members) != len(self._archive.infolist())
            or any(info.file_size != info.compress_size for info in self._members.values())
            or sum(info.file_size for info in self._members.values()) > size
        ):
            raise UserError(f"{self._path}: {DAMAGED}")

    def _read(self, info: zipfile.ZipInfo, limit: int) -> bytes:
        if info.file_size > limit:
            raise UserError(
                f"{self._path}: {info.filename[:200]!r} is larger than {limit >> 20} MiB; {AGAIN}"
            )
        data = bytearray(info.file_size)
        self._copy(info, memoryview(data))
        return bytes(data)

    def _copy(self, info: zipfile.ZipInfo, target: memoryview | None) -> None:
        """Reads a member to its end, where zipfile compares the checksum."""
        place = 0
        try:
            with self._archive.open(info) as stream:
                while chunk := stream.read(CHUNK):
                    if target is not None:
                        target[place : place + len(chunk)] = chunk
                    place += len(chunk)
        except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
            reason = f"{info.filename[:200]!r} does not match its checksum"
            if "CRC" not in str(error):
                reason = "truncated or damaged"
            raise UserError(f"{self._path}: {reason}; {AGAIN}") from error
        if place != info.file_size:
            raise UserError(f"{self._path}: {DAMAGED}")


class StreamCheckpoint:
    """A checkpoint before PyTorch 1.6: pickles, followed by the storages.

    It has no checksums. See `ZipCheckpoint` for the arguments.
    """

    def __init__(self, file: BinaryIO, path: str | os.PathLike[str]) -> None:
        self._file, self._path = file, path
        file.seek(len(STREAM_START))
        unpickler = Unpickler(file, path)
        system = unpickler.load()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UserError(f"{path}: written on a big-endian machine; save it again on another")
        self.content = unpickler.load()
        self._storages = dict(unpickler.storages)
        self._keys = unpickler.load()

    def values(self, needed: Collection[Storage]) -> dict[str, np.ndarray]:
        """Returns the bytes of storages by key.

        Raises:
            UserError: If the file does not end with its last storage.
        """
        keys, storages = self._keys, self._storages
        if (
            not isinstance(keys, list)
            or not all(isinstance(key, str) for key in keys)
            or sorted(keys) != sorted(storages)
        ):
            raise UserError(f"{self._path}: {DAMAGED}")
        wanted = {storage.key for storage in needed}
        size, place = os.fstat(self._file.fileno()).st_size, self._file.tell()
        values = {}
        for key in keys:
            length = storages[key].size * np.dtype(STORAGES[storages[key].kind]).itemsize
            count = self._file.read(8)
            place += 8 + length
            if place > size or count != struct.pack("<q", storages[key].size):
                raise UserError(f"{self._path}: {DAMAGED}")
            if key in wanted:
                values[key] = np.empty(length, np.uint8)
                if self._file.readinto(values[key]) != length:  # type: ignore[attr-defined]
                    raise UserError(f"{self._path}: {DAMAGED}")
            else:
                self._file.seek(place)
        if place != size:
            raise UserError(f"{self._path}: {size - place} bytes after its last tensor; {AGAIN}")
        return values


def open_checkpoint(
    file: BinaryIO, path: str | os.PathLike[str]
) -> ZipCheckpoint | StreamCheckpoint:
    """Returns a reader for an open file.

    Raises:
        UserError: If the file is not a PyTorch checkpoint, or damaged.
        LookupError, TypeError, ValueError: If it is damaged in another way.
    """
    start = file.read(len(STREAM_START))
    if start.startswith(ZIP_START):
        return ZipCheckpoint(file, path)
    if start == STREAM_START:
        return StreamCheckpoint(file, path)
    if STREAM_START.startswith(start):  # also an empty file
        raise UserError(f"{path}: {DAMAGED}")
    if start.startswith(PICKLE_START):
        raise UserError(
            f"{path}: refused, because it is a Python pickle not written by torch.save, which can "
            "run code when it is loaded; give a file written by torch.save"
        )
    raise UserError(f"{path}: {NOT_PYTORCH}")


def _check_directory(file: BinaryIO, path: str | os.PathLike[str]) -> None:
    """Checks the size of a zip file's table of contents, which zipfile reads as a whole."""
    file.seek(0, os.SEEK_END)
    file.seek(-min(98, file.tell()), os.SEEK_END)
    end = file.read()
    if end[-22:-18] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise UserError(f"{path}: {DAMAGED}")
    (size,) = struct.unpack("<I", end[-10:-6])
    if end[-42:-38] == b"PK\x06\x07":  # the 64-bit format
        if end[-98:-94] != b"PK\x06\x06":
            raise UserError(f"{path}: {DAMAGED}")
        (size,) = struct.unpack("<Q", end[-58:-50])
    if size > MAX_DIRECTORY:
        raise UserError(
            f"{path}: its table of contents is larger than {MAX_DIRECTORY >> 20} MiB; {AGAIN}"
        )
