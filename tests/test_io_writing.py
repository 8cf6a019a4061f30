"""Atomic file writes."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import types

import pytest
from contracts import raises_line

from deeplab_keras.config import UserError
from deeplab_keras.io import writing
from deeplab_keras.io.writing import HOST, check_folder, remove_leftovers, replacing, write_text


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei \N{LATIN SMALL LETTER SHARP S}")
    assert (
        path.read_text(encoding="utf-8") == "zwei \N{LATIN SMALL LETTER SHARP S}"
        and len(list(path.parent.iterdir())) == 1
    )


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            UserError,
            "a.txt: cannot be written .No space left on device.",
        ),
        (ValueError("no"), ValueError, "no"),
    ],
)
def test_a_failed_write_keeps_the_old_file(tmp_path, error, kind, message):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(kind, match=message), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_writing_below_a_file_is_an_error(tmp_path):
    write_text(tmp_path / "file", "")
    with raises_line("metrics.json: cannot be written"):
        write_text(tmp_path / "file" / "metrics.json", "{}")


def test_only_leftovers_of_killed_processes_are_removed(tmp_path):
    begun = (
        "import os, sys; from deeplab_keras.io.writing import replacing\n"
        "with replacing(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    for name in ("a b.png", "other.png"):
        assert (
            subprocess.run([sys.executable, "-c", begun, tmp_path / name], check=False).returncode
            == -9
        )
    left, other = sorted(tmp_path.iterdir())
    dead, living = left.name.split(".")[-2], os.getpid()
    kept = (
        f".a b.png.{HOST}.{living}.tmp",
        f".a b.png.elsewhere.{dead}.tmp",
        f".a b.png.{HOST}.tmp",
        "a b.png",
        other.name,
    )
    for name in kept:
        (tmp_path / name).touch()
    remove_leftovers([tmp_path / "a b.png", tmp_path / "not there" / "a.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_check_folder_creates_nothing(tmp_path):
    write_text(tmp_path / "file", "")
    check_folder(tmp_path / "a" / "b", "output")
    check_folder("a relative one", "output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with raises_line("^--output=.*/file: is a file; give a folder"):
        check_folder(tmp_path / "file", "output")
    with raises_line("^--output=.*/file/a/b: .*/file is a file; give a folder"):
        check_folder(tmp_path / "file" / "a" / "b", "output")


def test_check_folder_refuses_a_folder_without_write_permission(tmp_path, monkeypatch):
    def refuse(*arguments, **values):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.mkdir", refuse)  # permissions do not stop tests that run as root
    with raises_line(
        "^--output=.*/a: .* is not writable .Permission denied.; give another folder",
    ):
        check_folder(tmp_path / "a", "output")


@pytest.mark.skipif(not pathlib.Path("/proc/self").is_dir(), reason="no /proc here")
def test_check_folder_refuses_a_folder_that_even_root_cannot_create():
    with raises_line("^--output=/proc/x: /proc is not writable"):
        check_folder("/proc/x", "output")


def test_no_signal_is_sent_on_windows(monkeypatch):
    """On Windows, os.kill(process, 0) sends Ctrl+C."""
    monkeypatch.setattr(writing, "os", types.SimpleNamespace(name="nt"))
    assert writing._is_alive(1)
