"""Helpers of several test files: paths of real data, and inputs on which a wrong network fails."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest

from deeplab_keras import cli as flags
from deeplab_keras.cli.fields import flag_writer
from deeplab_keras.config import Config, UserError, render_options
from deeplab_keras.config.commands import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Real photos and weights, which are not part of the repository. Tests that read them are marked
# `@pytest.mark.shared`; conftest.py lists them as not run if the folder does not exist.
SHARED = ROOT.parent / "shared"

# Path of Chromium; if it is None, tests marked `package("chromium")` are listed as not run.
BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns uniform float32 noise in [0, 255], so that every weight of a network matters."""
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


def ramp(*shape: int) -> np.ndarray:
    """Returns a float32 ramp `[batch, height, width, channels]` in [0, 255].

    It increases to the right and to the bottom, and differs between channels.
    """
    _, height, width, channels = shape
    rows, columns, depth = np.ogrid[0 : 1 : height * 1j, 0 : 1 : width * 1j, 0 : 1 : channels * 1j]
    image = 255 * (0.5 * rows + 0.3 * columns + 0.2 * depth)
    return np.broadcast_to(image, shape).astype(np.float32)


def label_blocks(
    *shape: int, classes: int, seed: int = 0, ignore_label: int | None = 255, block: int = 8
) -> np.ndarray:
    """Returns int32 labels `[batch, height, width]` in blocks, of which about 10 % are ignored."""
    batch, height, width = shape
    random = np.random.default_rng(seed)
    grid = random.integers(0, classes, (batch, -(-height // block), -(-width // block)))
    if ignore_label is not None:
        grid[random.random(grid.shape) < 0.1] = ignore_label
    return np.repeat(np.repeat(grid, block, 1), block, 2)[:, :height, :width].astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Script:
    """A script that tests call in their own process."""

    path: str
    doc: str
    main: Callable[[flags.Command], int | None]
    sections: tuple[type[Config], ...]

    def __call__(self, *arguments: str) -> int:
        """Runs the script with these flags, and returns the exit status."""
        return flags.call([self.path, *arguments], self.doc, self.main, *self.sections)

    def parse(self, *arguments: str) -> flags.Command:
        """Parses the flags without running the script."""
        return flags.Command([self.path, *arguments], *self.sections)


@contextlib.contextmanager
def holding(lock: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts another process that holds a file lock until the context ends."""
    code = (
        "import filelock, sys; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print(1, flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        try:
            assert process.stdout and process.stdout.readline() == b"1\n"
            yield process
        finally:
            process.kill()


def as_command_line(said: BaseException | str) -> str:
    """Returns an error, or a message with options in backticks, as the command line shows it."""
    text = said.text if isinstance(said, UserError) else str(said)
    return render_options(text, flag_writer())


@contextlib.contextmanager
def raises_line(message: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Expects a UserError whose text on the command line matches `message`."""
    with pytest.raises(UserError) as error:
        yield error
    assert re.search(message, as_command_line(error.value)), as_command_line(error.value)


# Measurements in checkpoints, which differ between otherwise equal runs.
MEASURED = ("row/images_per_second", "meter/starts", "meter/seconds", "meter/joules")
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


def script(name: str) -> Script:
    """Returns the script `scripts/<name>`."""
    with mock.patch.object(flags, "run") as run, mock.patch("deeplab_keras.cli.script.run", run):
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    doc, main, *sections = run.call_args.args
    return Script(f"scripts/{name}", doc, main, tuple(sections))


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Returns the script and the arguments of each command in a text.

    These are `python scripts/NAME.py ...` and `deeplab-keras NAME ...`. Environment variables
    before a command are dropped.
    """
    lines = [
        re.sub(r"^(\w+=\S+ +)+", "", line.strip())
        for line in text.replace("\\\n", " ").splitlines()
    ]
    calls = [
        shlex.split(line, comments=True)
        for line in lines
        if line.startswith(("python scripts/", "deeplab-keras "))
    ]
    return [
        (f"{COMMANDS[call[1]]}.py" if call[1] in COMMANDS else pathlib.Path(call[1]).name, call[2:])
        for call in calls
    ]
