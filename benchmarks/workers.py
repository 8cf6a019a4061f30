"""Contenders, each in a process of its own: none's memory, threads or libraries are another's, and one works at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from deeplab_keras.config import UserError


class Contender(Protocol):
    """What a worker runs: made once, then asked for measurements."""

    def measure(self, **options: Any) -> dict[str, Any]:
        """Does some work and says what it took."""
        ...


class ImageContender:
    """Times a function from uint8 images `[batch, height, width, 3]` to labels `[batch, height, width]`."""

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self.run = run

    def measure(self, images: np.ndarray, calls: int) -> dict[str, Any]:
        """Milliseconds of each call, CPU time of a call, and with no calls the labels."""
        if not calls:
            return {"labels": np.array(self.run(images))}
        times, before = [], process_seconds()
        for _ in range(calls):
            start = time.perf_counter()
            self.run(images)
            times.append(1000 * (time.perf_counter() - start))
        return {"latency": times, "CPU a call": 1000 * (process_seconds() - before) / calls}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a contender is made.

    Attributes:
        name: in the tables.
        make: "module:function", which makes it in the worker's process.
        arguments: of that function; what can be pickled.
        environment: variables that are set before the process starts.
    """

    name: str
    make: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Worker:
    """A contender's process, which does nothing until it is asked.

    Raises:
        UserError: the contender cannot be made; its own line where it has one.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, recipe.make, dict(recipe.arguments))
        )
        with _environment(recipe.environment):
            self._process.start()
        theirs.close()
        self._answer()

    def measure(self, **options: Any) -> dict[str, Any]:
        """What the contender's `measure` returns."""
        self._pipe.send(options)
        return self._answer()

    def peak_bytes(self) -> int:
        """The most memory that the process, its libraries included, had resident so far."""
        self._pipe.send(None)
        return int(self._answer()["peak_bytes"])

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _answer(self) -> dict[str, Any]:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"{self.name}: its process ended with status {self._process.exitcode}; memory may "
                "have run out: "
                "give a smaller size or batch"
            ) from None
        if kind == "error":
            self.close()
            raise UserError(value)
        return value


@contextlib.contextmanager
def all_at_work(recipes: Sequence[Recipe]) -> Iterator[list[Worker]]:
    """Workers of all these contenders; their processes end with the block."""
    workers: list[Worker] = []
    try:
        for recipe in recipes:
            workers.append(Worker(recipe))
        yield workers
    finally:
        for worker in workers:
            worker.close()


def peak_memory() -> int:
    """Bytes that this process has had resident at most, its libraries included."""
    with contextlib.suppress(
        OSError, StopIteration, ValueError
    ):  # ru_maxrss counts what was there before the exec, too
        status = pathlib.Path("/proc/self/status").read_text()
        return (
            int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
            * 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def process_seconds(others: Sequence[int] = ()) -> float:
    """CPU time that this process has used, and other processes of these numbers where the system tells it."""
    total = time.process_time()
    for number in others:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, make: str, arguments: dict[str, Any]) -> None:
    """The worker's process: makes the contender, then answers until the pipe is closed."""
    from deeplab_keras.io.progress import without_noise

    module, function = make.split(":")
    try:
        with without_noise():
            contender = getattr(importlib.import_module(module), function)(**arguments)
        pipe.send(("made", {}))
        while True:
            options = pipe.recv()
            pipe.send(
                (
                    "done",
                    {"peak_bytes": peak_memory()}
                    if options is None
                    else contender.measure(**options),
                )
            )
    except (EOFError, BrokenPipeError):  # whoever asked has gone
        return
    except UserError as error:
        pipe.send(("error", str(error)))
    except Exception as error:  # of another library: its first line, for the reader of a table
        lines = str(error).splitlines() or [""]
        pipe.send(("error", f"{make.rpartition(':')[2]}: {type(error).__name__}: {lines[0]}"))
