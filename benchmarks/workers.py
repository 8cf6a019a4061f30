"""Runs each contender in its own process, with its own memory, threads and libraries.

Only one of them works at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
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


class OutOfTime(UserError):
    """A worker has not answered before its deadline."""


class Contender(Protocol):
    """What a worker runs. It is created once and then measured repeatedly."""

    def measure(self, **options: Any) -> dict[str, Any]:
        """Does some work and returns its measurements by name."""
        ...


class ImageContender:
    """Times a function from images to labels or class scores.

    Args:
        run: Takes uint8 images `[batch, height, width, 3]`, and returns labels
            `[batch, height, width]` or class scores `[batch, height, width, classes]`.
    """

    def __init__(self, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self.run = run

    def measure(self, images: np.ndarray, calls: int) -> dict[str, Any]:
        """Returns the latency of each call and the CPU time per call, in ms; the output if 0."""
        if not calls:
            return {"output": np.array(self.run(images))}
        times, before = [], process_seconds()
        for _ in range(calls):
            start = time.perf_counter()
            self.run(images)
            times.append(1000 * (time.perf_counter() - start))
        return {"latency": times, "CPU per call": 1000 * (process_seconds() - before) / calls}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to create a contender.

    Attributes:
        name: Its name in tables.
        make: "module:function" that creates it in the worker's process.
        arguments: The arguments of that function, which must be picklable.
        environment: Environment variables that are set before the process starts.
    """

    name: str
    make: str
    arguments: Mapping[str, Any]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Worker:
    """The process of a contender, which waits for requests.

    Args:
        recipe: How to create the contender.
        deadline: See the attribute.

    Attributes:
        deadline: The time of `time.monotonic()` at which the process is ended if it has not
            answered.

    Raises:
        UserError: If the contender cannot be created. A `UserError` of the contender is passed on.
        OutOfTime: If it is not created before the deadline.
    """

    def __init__(self, recipe: Recipe, deadline: float = math.inf) -> None:
        self.name, self.deadline = recipe.name, deadline
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, recipe.make, dict(recipe.arguments))
        )
        with _environment(recipe.environment):
            self._process.start()
        theirs.close()
        self.answer()

    def measure(self, **options: Any) -> dict[str, Any]:
        """Returns the result of the contender's `measure`."""
        self.ask(**options)
        return self.answer()

    def ask(self, **options: Any) -> None:
        """Starts the contender's `measure`. `answer` returns its result."""
        self._pipe.send(options)

    def peak_bytes(self) -> int:
        """Returns the peak resident memory of the process so far, including its libraries."""
        self._pipe.send(None)
        return int(self.answer()["peak_bytes"])

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        self._process.join(max(0.0, min(10.0, self.deadline - time.monotonic())))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()  # until its memory is free

    def answer(self) -> dict[str, Any]:
        """Waits for the result of the last request."""
        left = None if self.deadline == math.inf else max(0.0, self.deadline - time.monotonic())
        if not self._pipe.poll(left):
            self._process.kill()
            raise OutOfTime("was stopped because its time was over")
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"{self.name}: the process ended with status {self._process.exitcode}, perhaps "
                "because it ran out of memory; use a smaller image size or batch size"
            ) from None
        if kind == "error":
            self.close()
            raise UserError(value)
        return value


@contextlib.contextmanager
def running(
    recipes: Sequence[Recipe],
    deadline: float = math.inf,
    failed: dict[str, UserError] | None = None,
) -> Iterator[list[Worker]]:
    """Context with the workers of some contenders, whose processes end with the block.

    Args:
        recipes: How to create the contenders.
        deadline: See `Worker`.
        failed: If given, contenders that cannot be created are left out, and their errors are
            added here by name.

    Raises:
        UserError: If a contender cannot be created and `failed` is not given.
    """
    workers: list[Worker] = []
    try:
        for recipe in recipes:
            try:
                workers.append(Worker(recipe, deadline))
            except UserError as error:
                if failed is None:
                    raise
                failed[recipe.name] = error
        yield workers
    finally:
        for worker in workers:
            worker.close()


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes, including its libraries."""
    # On Linux not from ru_maxrss, which includes the memory before the exec.
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def process_seconds(others: Sequence[int] = ()) -> float:
    """Returns the CPU seconds used so far by this process and others.

    Args:
        others: The ids of other processes. They only count if the system has /proc.
    """
    total = time.process_time()
    for process_id in others:
        with contextlib.suppress(OSError):
            fields = pathlib.Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
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
    """Runs in the worker's process: creates the contender, then answers until the pipe closes."""
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
    except (EOFError, BrokenPipeError):  # the other process has closed the pipe
        return
    except UserError as error:
        pipe.send(("error", str(error)))
    except Exception as error:  # from another library: its first line is enough
        lines = str(error).splitlines() or [""]
        pipe.send(("error", f"{make.rpartition(':')[2]}: {type(error).__name__}: {lines[0]}"))
