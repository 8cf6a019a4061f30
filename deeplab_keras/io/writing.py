"""Files that are there as a whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import socket
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

from deeplab_keras.config import UserError

# Machines and containers that share a folder may have the same process numbers; names of files may
# not be long.
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
ASIDE = re.compile(rf"\.(?P<name>.+)\.{HOST}\.(?P<process>\d{{1,9}})\.tmp", re.DOTALL)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A file of another name beside `path` to write to, which gets this name at the block's end, or goes if it failed.

    Folders above are made.

    Raises:
        UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    aside = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be written ({reason}); give another path or make room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def remove_leftovers(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Removes what processes of this machine that were killed had begun to write to these paths with `replacing`."""
    names: dict[pathlib.Path, set[str]] = defaultdict(set)
    for path in map(pathlib.Path, paths):
        names[path.parent].add(path.name)
    for folder, wanted in names.items():
        with contextlib.suppress(OSError):  # a folder that is not there yet
            for file in folder.iterdir():
                found = ASIDE.fullmatch(file.name)
                if found and found["name"] in wanted and not _is_alive(int(found["process"])):
                    file.unlink()


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where os.kill(process, 0) sends Ctrl+C
        return True
    try:
        os.kill(process, 0)  # sends nothing
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # another user's lives
    return True


def check_folder(path: str | os.PathLike[str], flag: str) -> None:
    """Looks whether a folder is there or can be made, before the work whose results go there; leaves nothing behind.

    Raises:
        UserError: it is a file, lies in one, or may not be written to.
    """
    path = pathlib.Path(path)
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        which = "" if there == path else f"{there} "
        raise UserError(
            f"`{flag}={path}`: {which}is a file; give a folder, which is made if need be"
        )
    try:  # permissions say too little: nobody makes a folder in /proc
        with tempfile.TemporaryDirectory(prefix=".", dir=there):
            pass
    except OSError as error:
        why = f"nothing may be written to {there} ({error.strerror})"
        raise UserError(
            f"`{flag}={path}`: {why}; give another folder, or change its permissions"
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as `replacing` does."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
