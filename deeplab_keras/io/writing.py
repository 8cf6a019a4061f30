"""Atomic writes: a file is written under a temporary name and renamed when it is complete."""

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

# Machines and containers that share a folder may use the same process numbers, so temporary names
# include the host. It is hashed because the length of file names is limited.
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
TEMPORARY = re.compile(rf"\.(?P<name>.+)\.{HOST}\.(?P<process>\d{{1,9}})\.tmp", re.DOTALL)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Context that yields a temporary file to write, which replaces `path` if the block succeeds.

    The temporary file is in the same folder; it is deleted if the block fails. Missing parent
    folders are created.

    Raises:
        UserError: If the file cannot be written.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{path}: cannot be written ({reason}); give another path or free some space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_leftovers(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Removes temporary files that killed processes of this machine left next to these paths.

    Args:
        paths: Paths that may have been written with `replacing`.
    """
    names: dict[pathlib.Path, set[str]] = defaultdict(set)
    for path in map(pathlib.Path, paths):
        names[path.parent].add(path.name)
    for folder, wanted in names.items():
        with contextlib.suppress(OSError):  # the folder may not exist yet
            for file in folder.iterdir():
                found = TEMPORARY.fullmatch(file.name)
                if found and found["name"] in wanted and not _is_alive(int(found["process"])):
                    file.unlink()


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # where os.kill(process, 0) sends Ctrl+C
        return True
    try:
        os.kill(process, 0)  # signal 0 only checks whether the process exists
    except OSError as error:
        # Any other error, such as a missing permission, means that the process exists.
        return not isinstance(error, ProcessLookupError)
    return True


def check_folder(path: str | os.PathLike[str], option: str) -> None:
    """Checks, before a long job starts, that its output folder exists or can be created.

    Leaves nothing behind.

    Args:
        path: The folder.
        option: The option that has the path, for the error message.

    Raises:
        UserError: If the path is a file or inside a file, or if the folder is not writable.
    """
    path = pathlib.Path(path)
    reason, advice = _obstacle(path, path)
    if reason:
        raise UserError(f"`{option}={path}`: {reason}; {advice}")


def _obstacle(folder: pathlib.Path, given: pathlib.Path) -> tuple[str, str]:
    """Returns why a folder cannot be created or written to, and what to do; empty if it can.

    Args:
        folder: The folder.
        given: The path in the option, which the message does not repeat.
    """
    existing = next(
        parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent)
    )
    if not existing.exists():
        which = "" if existing == given else f"{existing} "
        return f"{which}is a broken link", "give a folder, which is created if necessary"
    if not existing.is_dir():
        which = "" if existing == given else f"{existing} "
        return f"{which}is a file", "give a folder, which is created if necessary"
    try:  # checking permissions is not enough: no folder can be created in /proc
        with tempfile.TemporaryDirectory(prefix=".", dir=existing):
            return "", ""
    except OSError as error:
        return (
            f"{existing} is not writable ({error.strerror})",
            "give another folder, or change its permissions",
        )


def check_file(path: str | os.PathLike[str], option: str) -> None:
    """Checks, before a long job starts, that a file can be written. Leaves nothing behind.

    Args:
        path: The file, which may exist.
        option: The option that has the path, for the error message.

    Raises:
        UserError: If the path is a folder, or its folder cannot be created or is not writable.
    """
    path = pathlib.Path(path)
    if os.path.lexists(path) and not path.exists():
        raise UserError(f"`{option}={path}`: is a broken link; give another path, or delete it")
    if path.exists() and not path.is_file():
        raise UserError(f"`{option}={path}`: is a folder or a device; give the path of a file")
    reason, advice = _obstacle(path.absolute().parent, path)
    if reason:
        raise UserError(f"`{option}={path}`: {reason}; {advice}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file atomically, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
