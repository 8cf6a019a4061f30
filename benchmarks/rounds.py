"""Measures contenders in turn, round after round, so that other load affects all of them alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.workers import Worker


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles of a measurement."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of at least one value."""
        low, median, high = np.percentile(values, (25, 50, 75))
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


def measure_in_rounds(
    workers: Sequence[Worker],
    rounds: int,
    options: Mapping[str, object],
    on_round: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, list[float]]]:
    """Measures every worker in every round.

    Every second round goes through the workers in reverse order, so that a worker does not always
    follow the same one.

    Args:
        workers: The workers.
        rounds: Number of rounds.
        options: Arguments of `Worker.measure`.
        on_round: Called with the number of completed rounds.

    Returns:
        The values of each quantity by its name, by the name of the worker.
    """
    found: dict[str, dict[str, list[float]]] = {worker.name: {} for worker in workers}
    for number in range(rounds):
        for worker in workers if number % 2 == 0 else reversed(workers):
            for quantity, value in worker.measure(**options).items():
                found[worker.name].setdefault(quantity, []).extend(
                    value if isinstance(value, list) else [value]
                )
        on_round(number + 1)
    return found
