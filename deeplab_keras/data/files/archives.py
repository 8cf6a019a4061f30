"""Datasets in the archives that they are had as: files are read where they stand in a .zip or .tar, nothing is extracted.

A file in an archive has a path like any other,
`datasets/VOC.tar/VOCdevkit/VOC2012/JPEGImages/ID.jpg`; `read_bytes` takes both kinds. Nothing in an
archive is ever written, symbolic links are not followed, and one whose members climb out of it is
refused as a whole.
"""

from __future__ import annotations

import functools
import os
import re
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable

from absl import logging

from deeplab_keras.config import UserError
from deeplab_keras.data.files.record_file import PATTERN, RecordFile

SUFFIXES = (".zip", ".tar")
COMPRESSED_TAR = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tbz2", ".txz")
SMALL_ARCHIVE = 128 << 20  # bytes that a member may have in the smallest archive
DEEPEST = 100  # folders
LARGEST_FILE = (
    2**30
)  # no image or mask is larger; a member that claims to be is a trap or no dataset
_MEMBER = re.compile(rf"(.+?\.(?:zip|tar|{PATTERN}))/(.+)", re.IGNORECASE | re.DOTALL)


class Archive:
    """The files of one .zip or .tar by their paths in it; safe in threads and in forked processes.

    Args:
        path: the archive.

    Raises:
        UserError: it cannot be read, is encrypted, or a member's path leads out of it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.children: dict[str, set[str]] = {"": set()}  # folder -> the names in it
        self._readers: dict[str, Callable[[int], bytes]] = {}
        self._links: list[str] = []
        self._lock = threading.Lock()
        # Neither a JPEG nor a PNG can be packed so much, so a larger member would fill the memory
        # with nothing.
        self._largest = 4 * os.path.getsize(path) + SMALL_ARCHIVE
        try:
            (self._index_zip if path.lower().endswith(".zip") else self._index_tar)()
        except UserError:
            raise
        except Exception as error:  # whatever a damaged directory makes of the two readers
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{path}: cannot be read as an archive ({reason}); download it again: it may be "
                "cut off"
            ) from error
        if self._links:
            logging.warning(
                "%s: %d symbolic links in it are not followed, as %s; extract it if they lead to "
                "images or masks",
                path,
                len(self._links),
                self._links[0],
            )

    def read(self, member: str, limit: int = -1) -> bytes:
        """A member's first `limit` bytes, or all of them.

        Raises:
            OSError: there is no such member, or it is damaged.
        """
        if member not in self._readers:
            raise FileNotFoundError(2, "no such file in the archive", f"{self.path}/{member}")
        try:
            return self._readers[member](limit)
        except Exception as error:
            raise OSError(f"damaged in the archive: {error}") from error

    def __contains__(self, member: str) -> bool:
        return member in self._readers

    def _add(self, name: str, size: int, read: Callable[[int], bytes] | None) -> None:
        """Enters a file, or a folder where `read` is None."""
        parts = _parts(name)
        if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
            raise UserError(
                f"{self.path}: its member {name!r} leads out of the archive, as no dataset's own "
                "archive does; "
                "nothing of it is read: download it from the dataset's page"
            )
        if not parts or parts[0] == "__MACOSX":
            return
        if size > LARGEST_FILE or size > self._largest:
            raise UserError(
                f"{self.path}: its member {name!r} has {size} bytes; no image has, so nothing of "
                "it is read"
            )
        if len(parts) > DEEPEST:
            raise UserError(
                f"{self.path}: its member {name[:80]!r}... lies in {len(parts)} folders; nothing "
                "of it is read"
            )
        for depth, part in enumerate(parts[:-1] if read else parts):
            self.children.setdefault("/".join(parts[:depth]), set()).add(part)
            self.children.setdefault("/".join(parts[: depth + 1]), set())
        if read:
            self.children.setdefault("/".join(parts[:-1]), set()).add(parts[-1])
            self._readers["/".join(parts)] = read

    def _index_tar(self) -> None:
        with tarfile.open(self.path, "r:") as archive, open(self.path, "rb") as file:
            file.seek(-min(tarfile.BLOCKSIZE, os.path.getsize(self.path)), os.SEEK_END)
            if file.read().strip(b"\0"):
                raise EOFError(
                    "its end is missing"
                )  # which tarfile does not notice where a member's head is cut
            for member in archive:
                if member.isfile():
                    read = functools.partial(self._read_slice, member.offset_data, member.size)
                    self._add(member.name, member.size, read)
                elif member.isdir():
                    self._add(member.name, 0, None)
                elif member.islnk() and (
                    read_other := self._readers.get("/".join(_parts(member.linkname)))
                ):
                    self._add(
                        member.name, 0, read_other
                    )  # a second name of the same bytes, as tar writes hard links
                elif member.issym():
                    self._links.append(member.name)

    def _read_slice(self, offset: int, size: int, limit: int) -> bytes:
        wanted = size if limit < 0 else min(limit, size)
        with open(
            self.path, "rb", buffering=0
        ) as file:  # of its own, so that threads and forks share no position
            data = os.pread(file.fileno(), wanted, offset)
        if len(data) < wanted:
            raise EOFError("the archive ends before it")
        return data

    def _index_zip(self) -> None:
        self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        with open(self.path, "rb", buffering=0) as file:
            self._index_members(file.fileno())

    def _index_members(self, file: int) -> None:
        for member in self._zip.infolist():
            if member.flag_bits & 1:
                raise UserError(
                    f"{self.path}: it is encrypted; extract it with its password and name the "
                    "folder"
                )
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                self._links.append(member.filename)
                continue
            read = None if member.is_dir() else functools.partial(self._read_zipped, member)
            self._require_name(file, member)
            self._add(_zip_name(member), member.file_size, read)

    def _require_name(self, file: int, member: zipfile.ZipInfo) -> None:
        """Compares a member's name with the one in front of its data: names have no checksum."""
        head = os.pread(file, 30, member.header_offset)
        length = struct.unpack_from("<H", head, 26)[0] if len(head) == 30 else 0
        encoding = "utf-8" if member.flag_bits & 0x800 else "cp437"
        name = os.pread(file, length, member.header_offset + 30)
        if not head.startswith(b"PK\x03\x04") or name != member.orig_filename.encode(
            encoding, errors="replace"
        ):
            raise zipfile.BadZipFile(
                f"the directory and the file differ in the name {member.filename!r}"
            )

    def _read_zipped(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        if self._process != os.getpid():  # a fork shares the file's position with its parent
            with self._lock:
                self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        with self._zip.open(member) as file:
            return file.read(limit)


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name; macOS writes UTF-8 and does not say so, which zipfile takes for the DOS code page 437."""
    if member.flag_bits & 0x800 or member.filename.isascii():
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename


@functools.lru_cache(maxsize=32)
def _cached(path: str, changed: int, size: int) -> Archive:
    return Archive(path)


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """The archive at a path, indexed once.

    Raises:
        UserError: see Archive.
    """
    path = os.fspath(path)
    state = os.stat(path)
    return _cached(path, state.st_mtime_ns, state.st_size)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of an archive whose files can be read in place.

    Raises:
        UserError: it is a compressed tar, in which no file can be found without unpacking all
            before it.
    """
    name = os.fspath(path).lower()
    if name.endswith(COMPRESSED_TAR) and os.path.isfile(path):
        command = f"tar xf {path} -C {os.path.dirname(path) or '.'}"
        raise UserError(
            f"{path}: files in a compressed tar cannot be read in place; extract it: {command}"
        )
    return name.endswith(SUFFIXES) and os.path.isfile(path)


def opened(path: str) -> Archive | RecordFile:
    """The archive or the record file of a path that `split_member` gave."""
    return open_archive(path) if path.lower().endswith(SUFFIXES) else RecordFile(path)


def split_member(path: str) -> tuple[str, str] | None:
    """Archive (or record file) and member of a path that leads into one; None for a file's own path."""
    match = _MEMBER.match(path)
    return (match[1], match[2]) if match and os.path.isfile(match[1]) else None


def any_member(paths: Iterable[str]) -> bool:
    """Whether one of the paths leads into an archive."""
    archives = {match[1] for match in map(_MEMBER.match, paths) if match}
    return any(map(os.path.isfile, archives))


def read_bytes(path: str, limit: int = -1) -> bytes:
    """The first `limit` bytes of a file, or all of them, wherever it lies.

    Raises:
        OSError: it cannot be read.
    """
    if inside := split_member(path):
        archive, member = inside
        return opened(archive).read(member, limit)
    with open(path, "rb") as file:
        return file.read(limit)
