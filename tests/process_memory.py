"""The memory of this process, on Linux."""

from __future__ import annotations

import pathlib

STATUS, CLEAR = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def memory(field: str) -> int:
    """Returns a field of /proc/self/status in bytes; 0 on systems without that file.

    VmRSS is the memory in use, and VmHWM its peak.
    """
    if not STATUS.exists():
        return 0
    lines = STATUS.read_text().splitlines()
    kibibytes = next(line for line in lines if line.startswith(field)).split()[1]
    return int(kibibytes) * 1024


def forget_peak() -> None:
    """Sets the peak to the memory in use."""
    if CLEAR.exists():
        CLEAR.write_text("5")
