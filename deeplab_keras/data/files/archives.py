"""Reads files inside .zip and .tar archives, without extracting them.

A file in an archive has a path like any other file,
`datasets/VOC.tar/VOCdevkit/VOC2012/JPEGImages/ID.jpg`, and `read_bytes` accepts both kinds.
Archives are never written to and symbolic links are not followed. An archive with a member whose
path leads out of the archive is refused as a whole.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable
from typing import BinaryIO

from deeplab_keras.config import UserError
from deeplab_keras.data.files.record_file import PATTERN, RecordFile

logger = logging.getLogger(__name__)

SUFFIXES = (".zip", ".tar")
COMPRESSED_TAR = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tbz2", ".txz")
SMALL_ARCHIVE = 128 << 20  # a member may have this many bytes plus four times the archive's size
DEEPEST = 100  # nested folders
LARGEST_FILE = 2**30  # bytes; larger members are not images or masks, but possibly an attack
_MEMBER = re.compile(rf"(.+?\.(?:zip|tar|{PATTERN}))/(.+)", re.IGNORECASE | re.DOTALL)


class Archive:
    """The files of one .zip or .tar by their paths; safe in threads and in forked processes.

    Args:
        path: The path of the archive.

    Raises:
        UserError: The archive cannot be read, is encrypted, or has a member whose path leads out of
            it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.children: dict[str, set[str]] = {"": set()}  # folder -> names of its entries
        self._readers: dict[str, Callable[[int], bytes]] = {}
        self._links: list[str] = []
        self._lock = threading.Lock()
        # JPEG and PNG files hardly compress, so a larger member is a decompression bomb.
        self._largest = 4 * os.path.getsize(path) + SMALL_ARCHIVE
        try:
            (self._index_zip if path.lower().endswith(".zip") else self._index_tar)()
        except UserError:
            raise
        except Exception as error:  # a damaged directory can raise nearly anything
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{path}: cannot be read as an archive ({reason}); download it again: it may be "
                "truncated"
            ) from error
        if self._links:
            logger.warning(
                "%s: %d symbolic links in it are not followed, such as %s; extract the archive if "
                "they lead to images or masks",
                path,
                len(self._links),
                self._links[0],
            )

    def read(self, member: str, limit: int = -1) -> bytes:
        """Reads the first `limit` bytes of a member, or all of them if `limit` is negative.

        Raises:
            OSError: The member does not exist or is damaged.
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
        """Adds a file, or a folder if `read` is None."""
        parts = _parts(name)
        if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
            raise UserError(
                f"{self.path}: the path of its member {name!r} leads out of the archive, so the "
                "archive is not read; download it from the dataset's own page"
            )
        if not parts or parts[0] == "__MACOSX":
            return
        if size > LARGEST_FILE or size > self._largest:
            raise UserError(
                f"{self.path}: its member {name!r} has {size} bytes, too many for an image, so the "
                "archive is not read; download it from the dataset's own page"
            )
        if len(parts) > DEEPEST:
            raise UserError(
                f"{self.path}: its member {name[:80]!r}... is nested {len(parts)} levels deep, so "
                f"the archive is not read; at most {DEEPEST} levels are allowed"
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
            # tarfile does not notice a truncated archive if it ends within a member's header.
            if file.read().strip(b"\0"):
                raise EOFError("its end is missing")
            for member in archive:
                if member.isfile():
                    read = functools.partial(self._read_slice, member.offset_data, member.size)
                    self._add(member.name, member.size, read)
                elif member.isdir():
                    self._add(member.name, 0, None)
                elif member.islnk():  # a hard link: a second name for the same bytes
                    if linked := self._readers.get("/".join(_parts(member.linkname))):
                        self._add(member.name, 0, linked)
                elif member.issym():
                    self._links.append(member.name)

    def _read_slice(self, offset: int, size: int, limit: int) -> bytes:
        wanted = size if limit < 0 else min(limit, size)
        # Opened for each call, so that threads and forks do not share a file position.
        with open(self.path, "rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(wanted)
        if len(data) < wanted:
            raise EOFError("the archive is truncated")
        return data

    def _index_zip(self) -> None:
        self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        with open(self.path, "rb", buffering=0) as file:
            self._index_members(file)

    def _index_members(self, file: BinaryIO) -> None:
        for member in self._zip.infolist():
            if member.flag_bits & 1:
                raise UserError(
                    f"{self.path}: it is encrypted; extract it with its password and give the "
                    "folder instead"
                )
            if member.external_attr >> 16 & 0o170000 == 0o120000:
                self._links.append(member.filename)
                continue
            read = None if member.is_dir() else functools.partial(self._read_zipped, member)
            self._require_name(file, member)
            self._add(_zip_name(member), member.file_size, read)

    def _require_name(self, file: BinaryIO, member: zipfile.ZipInfo) -> None:
        """Compares a member's name with the one in front of its data, as names have no checksum."""
        file.seek(member.header_offset)
        head = file.read(30)
        length = struct.unpack_from("<H", head, 26)[0] if len(head) == 30 else 0
        encoding = "utf-8" if member.flag_bits & 0x800 else "cp437"
        name = file.read(length)
        if not head.startswith(b"PK\x03\x04") or name != member.orig_filename.encode(
            encoding, errors="replace"
        ):
            raise zipfile.BadZipFile(
                f"the name {member.filename!r} in the directory differs from the one in the file"
            )

    def _read_zipped(self, member: zipfile.ZipInfo, limit: int) -> bytes:
        if self._process != os.getpid():  # a fork shares the file position with its parent
            with self._lock:
                self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        with self._zip.open(member) as file:
            return file.read(limit)


def _parts(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Returns a member's name.

    macOS writes names in UTF-8 without the flag for it, so zipfile decodes them as code page 437.
    """
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
    """Returns the archive at a path; it is indexed only once.

    Raises:
        UserError: See `Archive`.
    """
    path = os.fspath(path)
    state = os.stat(path)
    return _cached(path, state.st_mtime_ns, state.st_size)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the path is an archive whose files can be read in place.

    Raises:
        UserError: The path is a compressed tar, which has no random access.
    """
    name = os.fspath(path).lower()
    if name.endswith(COMPRESSED_TAR) and os.path.isfile(path):
        command = f"tar xf {path} -C {os.path.dirname(path) or '.'}"
        raise UserError(
            f"{path}: files in a compressed tar cannot be read in place; extract it with: {command}"
        )
    return name.endswith(SUFFIXES) and os.path.isfile(path)


def opened(path: str) -> Archive | RecordFile:
    """Returns the archive or record file at a path returned by `split_member`."""
    return open_archive(path) if path.lower().endswith(SUFFIXES) else RecordFile(path)


def split_member(path: str) -> tuple[str, str] | None:
    """Splits a path into archive (or record file) and member; None for the path of a plain file."""
    match = _MEMBER.match(path)
    return (match[1], match[2]) if match and os.path.isfile(match[1]) else None


def any_member(paths: Iterable[str]) -> bool:
    """Whether any of the paths leads into an archive or a record file."""
    archives = {match[1] for match in map(_MEMBER.match, paths) if match}
    return any(map(os.path.isfile, archives))


def read_bytes(path: str, limit: int = -1) -> bytes:
    """Reads the first `limit` bytes of a file, or all of them if `limit` is negative.

    The file may be inside an archive or a record file.

    Raises:
        OSError: The file cannot be read.
    """
    if inside := split_member(path):
        archive, member = inside
        return opened(archive).read(member, limit)
    with open(path, "rb") as file:
        return file.read(limit)
