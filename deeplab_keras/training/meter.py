"""Measures the time and energy of a run over all of its starts."""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

POWERCAP = pathlib.Path("/sys/class/powercap")  # Linux' interface to RAPL
MOST_WATTS = 500.0  # of a processor: a counter that could have wrapped around twice is not used


class Meter:
    """Wall-clock time and processor energy of a run: compilation, steps and validation.

    Training checkpoints contain the totals. If a process is killed, its work after the last
    checkpoint is not included.

    Attributes:
        starts: Number of starts, including the current one. 0 if an earlier one was not counted.
        seconds: Wall-clock time. NaN if an earlier start was not measured.
        joules: Energy of all processor packages as counted by RAPL, including other programs. NaN
            if it was not readable all the time.
    """

    def __init__(self) -> None:
        self.starts, self.seconds, self.joules = 1, 0.0, 0.0
        self._time, self._counters = time.monotonic(), _read_counters()

    def update(self) -> None:
        """Adds what has passed since the last call.

        The counters of RAPL wrap around within minutes to hours, so every step calls this.
        """
        now, counters = time.monotonic(), _read_counters()
        passed = now - self._time
        self.seconds += passed
        self.joules += _spent(self._counters, counters, passed)
        self._time, self._counters = now, counters

    def state(self) -> dict[str, Any]:
        """Returns the totals as NumPy scalars, to be saved in a checkpoint."""
        self.update()
        return {
            "meter/starts": np.int64(self.starts),
            "meter/seconds": np.float64(self.seconds),
            "meter/joules": np.float64(self.joules),
        }

    def restore(self, state: Mapping[str, np.ndarray], *, finished: bool = False) -> None:
        """Adds the totals of a checkpoint. Checkpoints of older versions have none.

        Args:
            state: The state of the checkpoint.
            finished: Whether no steps are left, so that this start does not count.
        """
        starts = int(state.get("meter/starts", 0))
        self.starts = starts + (not finished) if starts else 0
        self.seconds += float(state.get("meter/seconds", math.nan))
        self.joules += float(state.get("meter/joules", math.nan))


def _read_counters() -> dict[str, tuple[int, int]]:
    """Returns the energy of each processor package and its largest value, in microjoules.

    Empty if there are no counters or they must not be read, as for most users except root.
    """
    found = {}
    try:
        for zone in sorted(POWERCAP.glob("intel-rapl:*")):  # also the zones of AMD's processors
            # Other zones are parts of a package, or contain packages.
            if (zone / "name").read_text().startswith("package"):
                energy, limit = (
                    int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")
                )
                found[zone.name] = energy, limit
    except (OSError, ValueError):
        return {}
    return found


def _spent(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], seconds: float
) -> float:
    """Returns the joules between two readings; NaN if they are not known."""
    if not before or before.keys() != after.keys():
        return math.nan
    total = 0
    for name, (energy, limit) in after.items():
        if seconds * MOST_WATTS * 1e6 > limit:
            return math.nan
        total += (energy - before[name][0]) % (limit + 1)
    return total / 1e6
