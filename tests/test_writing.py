"""Files are there as a whole or not at all."""

from __future__ import annotations

import errno
import pathlib

import pytest

from deeplab_keras.config import UserError
from deeplab_keras.writing import check_folder, replacing, write_text


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei \N{LATIN SMALL LETTER SHARP S}")
    assert path.read_text(encoding="utf-8") == "zwei \N{LATIN SMALL LETTER SHARP S}" and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("error, kind, message", [
    (OSError(errno.ENOSPC, "No space left on device"), UserError, "a.txt: cannot be written .No space left on device."),
    (ValueError("no"), ValueError, "no"),
])
def test_a_failure_leaves_what_was_there(tmp_path, error, kind, message):
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(kind, match=message), replacing(path) as aside:
        aside.write_text("half")
        raise error
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_a_file_in_a_folder_s_place(tmp_path):
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="metrics.json: cannot be written"):
        write_text(tmp_path / "file" / "metrics.json", "{}")


def test_a_folder_is_looked_at_before_the_work_and_not_made(tmp_path):
    write_text(tmp_path / "file", "")
    check_folder(tmp_path / "a" / "b", "output")
    check_folder("a relative one", "output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="^--output=.*/file: is a file; give a folder"):
        check_folder(tmp_path / "file", "output")
    with pytest.raises(UserError, match="^--output=.*/file/a/b: .*/file is a file; give a folder"):
        check_folder(tmp_path / "file" / "a" / "b", "output")


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    def refuse(*arguments, **values):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.mkdir", refuse)  # the tests may run as root, who may do anything
    with pytest.raises(UserError, match="^--output=.*/a: nothing may be written to .* .Permission denied.; give another folder"):
        check_folder(tmp_path / "a", "output")


@pytest.mark.skipif(not pathlib.Path("/proc/self").is_dir(), reason="no /proc here")
def test_where_even_root_makes_no_folder():
    with pytest.raises(UserError, match="^--output=/proc/x: nothing may be written to /proc"):
        check_folder("/proc/x", "output")
