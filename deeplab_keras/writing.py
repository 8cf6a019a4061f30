"""Files that are there as a whole or not at all: written under another name, then renamed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from deeplab_keras.config import UserError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A file of another name beside `path` to write to, which gets this name at the block's end, or goes if it failed.

    Folders above are made.

    Raises:
        UserError: the file cannot be written.
    """
    path = pathlib.Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        aside.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written ({reason}); give another path or make room") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def check_folder(path: str | os.PathLike[str], flag: str) -> None:
    """Looks whether a folder is there or can be made, before the work whose results go there; leaves nothing behind.

    Raises:
        UserError: it is a file, lies in one, or may not be written to.
    """
    path = pathlib.Path(path)
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        which = "" if there == path else f"{there} "
        raise UserError(f"--{flag}={path}: {which}is a file; give a folder, which is made if need be")
    try:  # permissions say too little: nobody makes a folder in /proc
        with tempfile.TemporaryDirectory(prefix=".", dir=there):
            pass
    except OSError as error:
        why = f"nothing may be written to {there} ({error.strerror})"
        raise UserError(f"--{flag}={path}: {why}; give another folder, or change its permissions") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file as `replacing` does."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
