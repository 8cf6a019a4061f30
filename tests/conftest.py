"""What holds for every test: the environment, and the lanes that are not run by default and say so."""

from __future__ import annotations

import collections
import os

import pytest
from contracts import SHARED

# Before anything imports TensorFlow. Two threads, so that parallel runs of the tests do not starve each other.
for name, value in {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "2",
    "OMP_NUM_THREADS": "2",
    "KERAS_BACKEND": "tensorflow",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)

LANES = {"slow": "make slow", "torch": "make torch"}
_deselected: collections.Counter[str] = collections.Counter()
_without_data: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED.is_dir():
        return
    for item in items:
        if item.get_closest_marker("shared"):
            item.add_marker(pytest.mark.skip(reason=f"real data not found: no folder {SHARED}"))
            _without_data.append(item.nodeid)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        _deselected.update(lane for lane in LANES if item.get_closest_marker(lane))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for lane, count in sorted(_deselected.items()):
        terminalreporter.write_line(f"not run: {count} tests of the {lane} lane; run them with: {LANES[lane]}")
    if _without_data:
        terminalreporter.write_line(f"not run: {len(_without_data)} tests on real data; no folder {SHARED}:")
        for nodeid in _without_data:
            terminalreporter.write_line(f"  {nodeid}")
