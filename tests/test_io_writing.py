"""Files are there as a whole or not at all."""

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
def test_a_failure_leaves_what_was_there(tmp_path, error, kind, message):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(kind, match=message), replacing(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_file_in_a_folder_s_place(tmp_path):
    write_text(tmp_path / "file", "")
    with raises_line("metrics.json: cannot be written"):
        write_text(tmp_path / "file" / "metrics.json", "{}")


def test_what_a_killed_process_had_begun_goes_and_nothing_else(tmp_path):
    begun = (
        "import os, sys; from deeplab_keras.io.writing import replacing\n"
        "with replacing(sys.argv[1]) as aside: aside.write_text('half'); os.kill(os.getpid(), 9)"
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


def test_a_folder_is_looked_at_before_the_work_and_not_made(tmp_path):
    write_text(tmp_path / "file", "")
    check_folder(tmp_path / "a" / "b", "output")
    check_folder("a relative one", "output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with raises_line("^--output=.*/file: is a file; give a folder"):
        check_folder(tmp_path / "file", "output")
    with raises_line("^--output=.*/file/a/b: .*/file is a file; give a folder"):
        check_folder(tmp_path / "file" / "a" / "b", "output")


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    def refuse(*arguments, **values):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.mkdir", refuse)  # the tests may run as root, who may do anything
    with raises_line(
        "^--output=.*/a: nothing may be written to .* .Permission denied.; give another folder",
    ):
        check_folder(tmp_path / "a", "output")


@pytest.mark.skipif(not pathlib.Path("/proc/self").is_dir(), reason="no /proc here")
def test_where_even_root_makes_no_folder():
    with raises_line("^--output=/proc/x: nothing may be written to /proc"):
        check_folder("/proc/x", "output")


def test_no_signal_is_sent_on_windows(monkeypatch):
    """There os.kill(process, 0) is Ctrl+C."""
    monkeypatch.setattr(writing, "os", types.SimpleNamespace(name="nt"))
    assert writing._is_alive(1)
