"""Progress output of long jobs: a bar on a terminal, plain lines on a pipe.

Also a filter for the messages that TensorFlow's native code writes to stderr.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import TextIO

BAR_WIDTH = 24
# Messages that TensorFlow's libraries write to stderr at any log level: when they are loaded, when
# they convert a model and when they interpret one. TensorFlow's build with GPU libraries reports
# with the last two of the first group that a machine has no GPU, at the level of an error.
NOISE = re.compile(
    "All log messages before absl|oneDNN custom operations|optimized to use available CPU|To "
    "enable the following|Could not find cuda drivers|failed call to cuInit: .*\\(303\\)$|"
    "^fully_quantize: |^INFO: Created TensorFlow Lite"
)


_hidden = False  # whether the process shows no progress


@contextlib.contextmanager
def without_progress() -> Iterator[None]:
    """Context in which no progress is shown, by any thread. Errors still are."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before


def is_hidden() -> bool:
    """Whether no progress is shown, see `without_progress`; for the progress of other packages."""
    return _hidden


class Progress:
    """Shows the progress of a job, its speed and the time left.

    Args:
        total: Number of steps; 0 if it is unknown.
        title: Beginning of the line.
        start: Number of steps done before a resumed job started. Speed and time left are computed
            from the steps after it.
        images_per_step: Number of images per step, used to compute images/s.
        interval: Seconds between two lines on a pipe. A terminal is redrawn ten times per second.
        stream: Where to write; default stderr.
        unit: Unit of the speed, per second.
    """

    def __init__(
        self,
        total: int,
        title: str,
        *,
        start: int = 0,
        images_per_step: int = 1,
        interval: float = 10.0,
        stream: TextIO | None = None,
        unit: str = "images",
    ) -> None:
        self.total = total
        self.title = title
        self.start = start
        self.images_per_step = images_per_step
        self.stream = stream or sys.stderr
        self.unit = unit
        self.on_terminal = self.stream.isatty()
        self.interval = 0.1 if self.on_terminal else interval
        self.started = self.shown = time.monotonic()
        self.paused = 0.0
        self._width = 0

    def update(self, done: int, **values: float) -> None:
        """Shows `done` and the given values if the interval has passed or the job is finished."""
        now = time.monotonic()
        finished = 0 < self.total <= done
        if _hidden or (now - self.shown < self.interval and not finished):
            return
        self.shown = now
        line = self._line(done, max(now - self.started - self.paused, 1e-9), values)
        if self.on_terminal:
            self.stream.write("\r" + line.ljust(self._width) + ("\n" if finished else ""))
            self._width = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def pause(self, seconds: float) -> None:
        """Excludes `seconds`, spent on something else, from the speed."""
        self.paused += seconds

    def write(self, text: str) -> None:
        """Prints a separate line about the progress above the bar."""
        if not _hidden:
            self.write_error(text)

    def write_error(self, text: str) -> None:
        """Prints a separate line above the bar, also where no progress is shown."""
        if self.on_terminal and self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self.stream.write(text + "\n")
        self.stream.flush()

    def _line(self, done: int, seconds: float, values: dict[str, float]) -> str:
        speed = (done - self.start) / seconds
        parts = [f"{self.title} {done}/{self.total}" if self.total else f"{self.title} {done}"]
        if self.on_terminal and self.total:
            filled = BAR_WIDTH * done // max(self.total, 1)
            parts.append("[" + "=" * filled + "." * (BAR_WIDTH - filled) + "]")
        parts += [f"{name} {value:.4g}" for name, value in values.items()]
        parts.append(f"{speed * self.images_per_step:.1f} {self.unit}/s")
        if 0 < self.total <= done:
            parts.append(f"{clock(seconds)} in total")
        elif speed > 0 and self.total:
            parts.append(f"{clock((self.total - done) / speed)} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Formats a duration: 75 -> 1:15, 4000 -> 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# stderr belongs to the whole process: a second, overlapping redirection would outlive the first.
_redirecting = threading.RLock()


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Context that removes `NOISE` from stderr, also where native code writes it.

    Stderr is held back until the end of the block. Only one thread at a time can be inside.
    """
    with _redirecting, tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            lines = held.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not NOISE.search(line))
