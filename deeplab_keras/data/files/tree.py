"""The files below --dataset_dir: those of a folder, and those of archives as if extracted there."""

from __future__ import annotations

import codecs
import dataclasses
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.archives import Archive, is_archive, open_archive, read_bytes


@dataclasses.dataclass(frozen=True)
class Tree:
    """A folder, archives, or both combined.

    Paths are relative and use slashes. A file in the folder takes precedence over one of the same
    path in an archive.

    Attributes:
        path: The folder, or the archive.
        archives: Archives whose files are treated like files in the folder.
        inner: The subfolder that paths are relative to; "" for the top.
    """

    path: str
    archives: tuple[Archive, ...] = ()
    inner: str = ""

    def at(self, place: str) -> Tree:
        """Returns the tree of a subfolder."""
        return dataclasses.replace(self, inner=self._inner(place))

    def top(self) -> Tree:
        """Returns the whole tree that this is a subfolder of."""
        return dataclasses.replace(self, inner="")

    def _inner(self, path: str) -> str:
        joined = posixpath.normpath(posixpath.join(self.inner, path))
        return "" if joined == "." else joined

    def on_disk(self, path: str = ".") -> Path:
        """Returns the path of a file or folder, for messages and for `archives.read_bytes`."""
        inner = self._inner(path)
        if self.archives and not os.path.exists(Path(self.path) / inner):
            for archive in self.archives:
                if inner in archive or inner in archive.children:
                    return Path(archive.path) / inner
        return Path(self.path) / inner

    def is_dir(self, path: str) -> bool:
        """Whether the folder exists."""
        inner = self._inner(path)
        return os.path.isdir(Path(self.path) / inner) or any(
            inner in archive.children for archive in self.archives
        )

    def is_file(self, path: str) -> bool:
        """Whether the file exists."""
        inner = self._inner(path)
        return os.path.isfile(Path(self.path) / inner) or any(
            inner in archive for archive in self.archives
        )

    def spelled(self, path: str) -> str:
        """Returns the path in the Unicode form of the existing file; unchanged if none exists."""
        forms = (path, *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
        return next(filter(self.is_file, forms), path)

    def read_text(self, path: str) -> str:
        """Reads a text file; see `decode_text`.

        Raises:
            OSError: The file does not exist or cannot be read.
            UnicodeDecodeError: The file is not text.
        """
        if not self.is_file(path):
            raise FileNotFoundError(2, "No such file or directory", str(self.on_disk(path)))
        return decode_text(read_bytes(str(self.on_disk(path))))

    def folders(self, path: str = ".") -> list[str]:
        """Returns the sorted names of the folders in a folder, without hidden ones."""
        inner = self._inner(path)
        found = {entry.name for entry in _scan(Path(self.path) / inner) if _is_dir(entry)}
        for archive in self.archives:
            names = archive.children.get(inner, ())
            found.update(name for name in names if posixpath.join(inner, name) in archive.children)
        return sorted(name for name in found if not name.startswith("."))

    def files(
        self, path: str = ".", suffixes: Sequence[str] = (), *, deep: bool = False
    ) -> list[str]:
        """Returns the files in a folder, without hidden ones, as paths relative to the folder.

        The paths are sorted by their parts.

        Args:
            path: The folder.
            suffixes: The suffixes of the files to return, in lower case; empty: all files.
            deep: Whether to search subfolders too.
        """
        top = self._inner(path)
        found = set(_walk(str(Path(self.path) / top), deep))
        for archive in self.archives:
            for folder, names in archive.children.items():
                below = deep and (not top or folder.startswith(f"{top}/"))
                if folder == top or below:
                    paths = (posixpath.join(folder, name) for name in names)
                    found.update(
                        posixpath.relpath(path, top or ".") for path in paths if path in archive
                    )
        kept = (name for name in found if not any(part.startswith(".") for part in name.split("/")))
        wanted = tuple(suffixes)
        return sorted(
            (name for name in kept if name.lower().endswith(wanted or "")),
            key=lambda name: name.split("/"),
        )


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _walk(top: str, deep: bool) -> Iterator[str]:
    """Yields the files below a folder, relative to it; follows each link to a folder once."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(top, followlinks=True):
        relative = os.path.relpath(folder, top).replace(os.sep, "/")
        yield from (posixpath.normpath(posixpath.join(relative, name)) for name in names)
        seen.add(os.path.realpath(folder))
        fresh = [
            name for name in subfolders if os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        subfolders[:] = fresh if deep else []


def decode_text(data: bytes) -> str:
    """Decodes UTF-8 with or without a byte order mark, or UTF-16 with one, as Windows writes it.

    Raises:
        UnicodeDecodeError: The data is neither.
    """
    return data.decode(
        "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    )


def same_name(name: str) -> str:
    """Returns a name in Unicode form NFC, for comparisons: macOS writes names in NFD."""
    return unicodedata.normalize("NFC", name)


def dataset_tree(config: DataConfig) -> Tree:
    """Returns the tree of --dataset_dir, which is a folder or an archive.

    Raises:
        UserError: --dataset_dir is not given, or is neither.
    """
    if not config.dataset_dir:
        raise UserError(
            f"`dataset={config.dataset}` requires `dataset_dir='FOLDER'`, the folder of the dataset"
        )
    path = Path(config.dataset_dir).expanduser()
    if path.is_dir():
        return Tree(str(path))
    if is_archive(path):
        return Tree(str(path), (open_archive(path),))
    if path.exists():
        raise UserError(
            f"`dataset_dir={config.dataset_dir}`: this is neither a folder nor a .zip or .tar "
            "archive"
        )
    raise UserError(f"`dataset_dir={config.dataset_dir}`: this folder does not exist")


def with_archives(tree: Tree, patterns: Sequence[str]) -> Tree:
    """Returns the tree combined with the archives in its folder that match one of the patterns.

    Raises:
        UserError: One of the archives cannot be read in place.
    """
    folder = Path(tree.path)
    if not folder.is_dir():
        return tree
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return dataclasses.replace(
        tree, archives=tuple(open_archive(path) for path in paths if is_archive(path))
    )
