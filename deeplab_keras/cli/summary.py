"""The options of every command, and the summary that `--summary=FILE.json` writes."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

from deeplab_keras.config import Config, UserError, option
from deeplab_keras.io.writing import check_file, write_text
from deeplab_keras.version import __version__

_BEGINNING = '{\n  "deeplab_keras": '  # of every summary


@dataclasses.dataclass(frozen=True)
class CommonOptions(Config):
    """The options of every command."""

    quiet: bool = option(
        False, "shows no progress and no log; warnings, errors and results are still printed"
    )
    summary: str = option(
        "",
        "writes a JSON file when the command ends, also after an error: counts, files that failed, "
        "paths written, error, exit status and time",
    )

    def validate(self) -> None:
        self._require(
            not self.summary or self.summary.endswith(".json"),
            "summary",
            "must be the name of a .json file",
        )


class RunSummary:
    """What a command did. The command fills it in while it works.

    Attributes:
        counts: How many of what, such as `{"images": 10}`.
        failures: The name of a file that could not be processed -> the reason.
        written: The files that the command wrote, or their folder where there may be many.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.written: list[str] = []
        self._started = time.monotonic()

    def count(self, **counts: int) -> None:
        """Notes how many of what were processed."""
        self.counts |= {name: int(count) for name, count in counts.items()}

    def wrote(self, *paths: str | os.PathLike[str]) -> None:
        """Notes the paths of results."""
        names = [os.fspath(path) for path in paths]
        self.written = list(dict.fromkeys([*self.written, *names]))

    def save(self, path: str, argv: Sequence[str], status: int, error: str) -> None:
        """Writes the summary as JSON.

        Args:
            path: The file.
            argv: The command line.
            status: The exit status.
            error: The line that the command printed for the error; "" if it succeeded.

        Raises:
            UserError: The file cannot be written.
        """
        values: dict[str, Any] = {
            "deeplab_keras": __version__,
            "command": " ".join([argv[0], *map(shlex.quote, argv[1:])]),
            "working_directory": os.getcwd(),
            "exit_status": status,
            "error": error or None,
            "elapsed_seconds": round(time.monotonic() - self._started, 3),
            "counts": self.counts,
            "failures": self.failures,
            "written": self.written,
        }
        write_text(path, json.dumps(values, indent=2) + "\n")


def check_summary(path: str) -> None:
    """Checks, before the work begins, that a summary can be written to a path.

    Raises:
        UserError: The path is a folder or not writable, or it is a file but not a summary.
    """
    check_file(path, "summary")
    try:
        with pathlib.Path(path).open("rb") as file:
            found = file.read(len(_BEGINNING))
    except FileNotFoundError:
        return
    if found not in (b"", _BEGINNING.encode()):
        raise UserError(
            f"`summary={path}`: exists and is not a summary of a command, so it is not replaced; "
            "give another file"
        )


def summary_path(argv: Sequence[str]) -> str:
    """Returns the value of --summary in a command line that could not be parsed, "" for none."""
    path = ""
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        name, given, value = argument.partition("=")
        if name in ("--summary", "-summary"):
            path = value if given else following
    return path if path.endswith(".json") else ""
