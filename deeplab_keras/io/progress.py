"""What a person sees while a job runs: a bar on a terminal, plain lines on a pipe, and no noise between them."""

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
# What TensorFlow's libraries write to stderr whatever the log level: when they are loaded,
# converting, interpreting.
NOISE = re.compile(
    "All log messages before absl|oneDNN custom operations|optimized to use available CPU|To "
    "enable the following|"
    "^fully_quantize: |^INFO: Created TensorFlow Lite"
)


class Progress:
    """Shows how far a job is, how fast it goes and how long it will take.

    Args:
        total: number of steps; 0: nobody knows.
        title: what the line starts with.
        start: steps that were done before (of a resumed job); speed and time left count from here.
        images_per_step: for images/s.
        interval: seconds between two lines on a pipe; a terminal is redrawn ten times a second.
        stream: where to write; default stderr.
        unit: what is counted in the speed.
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
        self.total, self.title, self.start, self.images_per_step = (
            total,
            title,
            start,
            images_per_step,
        )
        self.stream, self.unit = stream or sys.stderr, unit
        self.on_terminal = self.stream.isatty()
        self.interval = 0.1 if self.on_terminal else interval
        self.started = self.shown = time.monotonic()
        self.paused = 0.0
        self._width = 0

    def update(self, done: int, **values: float) -> None:
        """Shows `done` of `total` steps and the given values, if it is time to, or the job is done."""
        now = time.monotonic()
        finished = 0 < self.total <= done
        if now - self.shown < self.interval and not finished:
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
        """Leaves `seconds`, spent on something else, out of the speed."""
        self.paused += seconds

    def write(self, text: str) -> None:
        """Prints a line of its own, above the bar."""
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
            parts.append(f"{clock(seconds)} in all")
        elif speed > 0 and self.total:
            parts.append(f"{clock((self.total - done) / speed)} left")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """75 -> 1:15; 4000 -> 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_redirecting = (
    threading.RLock()
)  # stderr belongs to the whole process: a second redirection would outlive the first


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Within the block what native code writes to stderr is held back, and written without `NOISE` at its end.

    One thread at a time.
    """
    with _redirecting:
        yield from _without_noise()


def _without_noise() -> Iterator[None]:
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
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
