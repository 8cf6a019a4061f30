"""Writes measurements to a CSV file, with the machine and the versions, and a page from it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import io
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rounds import Spread
from deeplab_keras.config import UserError
from deeplab_keras.io.writing import check_folder, write_text

COLUMNS = (
    "date", "what", "case", "subject", "quantity", "unit", "median", "low", "high", "rounds",
    "cpu", "cores", "memory_gb", "python", "packages", "command",
)  # fmt: skip
PACKAGES = (
    "tensorflow", "tensorflow-cpu", "keras", "numpy", "ai-edge-litert", "jax", "torch",
    "opencv-python-headless", "onnxruntime", "openvino", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip
BEGIN = (
    "<!-- What follows is written by scripts/benchmark.py --page from the CSV file beside "
    "this page. -->"
)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One measurement.

    Attributes:
        subject: What was measured, such as a pipeline, a format or a peer.
        quantity: The measured quantity, such as "latency".
        unit: The unit of the value.
        value: The spread over the rounds. Its three values are equal if it was measured once.
        rounds: Number of measurements in the spread.
    """

    subject: str
    quantity: str
    unit: str
    value: Spread
    rounds: int = 1

    @classmethod
    def single(cls, subject: str, quantity: str, unit: str, value: float) -> Measurement:
        """Returns the row of a value that was counted or measured once."""
        return cls(subject, quantity, unit, Spread(value, value, value))


def environment() -> dict[str, str]:
    """Returns the values of the columns that describe the machine and the versions."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    memory = ""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}"
    affinity = getattr(os, "sched_getaffinity", None)
    found = []
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "cpu": cpu,
        "cores": str(len(affinity(0)) if affinity else os.cpu_count()),
        "memory_gb": memory,
        "python": platform.python_version(),
        "packages": ", ".join(found),
    }


def append(
    path: str | os.PathLike[str], what: str, case: str, rows: Sequence[Measurement], command: str
) -> None:
    """Appends measurements to a CSV file, which is created if it does not exist.

    Args:
        path: The file.
        what: The kind of benchmark.
        case: What was measured: the model, the size, the dataset.
        rows: The measurements.
        command: The command that ran the benchmark.

    Raises:
        UserError: If the file has other columns or cannot be written.
    """
    before = read(path) if os.path.exists(path) else []
    common = {"date": now(), "what": what, "case": case, **environment(), "command": command}
    for row in rows:
        value = {name: f"{getattr(row.value, name):.6g}" for name in ("median", "low", "high")}
        before.append(
            {
                **common,
                **value,
                "subject": row.subject,
                "quantity": row.quantity,
                "unit": row.unit,
                "rounds": str(row.rounds),
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(before)
    write_text(path, text.getvalue())


def now() -> str:
    """Returns the value of the column "date", in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")


def check(path: str | os.PathLike[str]) -> None:
    """Checks, before the measurement, that `append` will be able to write to a file.

    Raises:
        UserError: If the file has other columns, or if its folder is not writable.
    """
    if os.path.exists(path):
        read(path)
    check_folder(pathlib.Path(path).absolute().parent, "csv")


def check_page(path: str | os.PathLike[str]) -> str:
    """Checks, before a measurement, that a Markdown page can be read and written.

    Returns:
        Its text; "" if it does not exist.

    Raises:
        UserError: It is not a text file, or its folder is not writable.
    """
    page = pathlib.Path(path)
    check_folder(page.absolute().parent, "page")
    try:
        return page.read_text(encoding="utf-8") if page.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`page={page}`: cannot be read ({getattr(error, 'strerror', None) or error}); give a "
            "Markdown page"
        ) from error


def read(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Returns the rows of a CSV file that `append` wrote.

    Raises:
        UserError: If the file cannot be read or has other columns.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read --csv={os.fspath(path)}: {getattr(error, 'strerror', None) or error}; "
            "check the path and its permissions"
        ) from error
    if columns != COLUMNS:
        raise UserError(
            f"--csv={os.fspath(path)} has other columns; use a new file, or a file that "
            "scripts/benchmark.py wrote"
        )
    return rows


def write_page(path: str | os.PathLike[str], table: str | os.PathLike[str]) -> None:
    """Writes a Markdown page from the rows of a CSV file, with a section per run, newest last.

    The text of the page before the line `BEGIN` is kept.
    """
    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in read(table):
        runs.setdefault((row["what"], row["case"], row["date"], row["command"]), []).append(row)
    write_below(path, "".join(map(section, runs.values())))


def write_below(path: str | os.PathLike[str], text: str) -> None:
    """Writes generated text to a Markdown page, below the text that ends with the line `BEGIN`."""
    start = check_page(path).partition(BEGIN)[0] or "# Benchmarks\n\n"
    write_text(path, f"{start.rstrip()}\n\n{BEGIN}\n{text}")


def section(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the section of a run: machine, versions, command and table.

    The table has a row per subject and a column per quantity.

    Args:
        rows: At least one row, with the columns of a CSV file.
    """
    first = rows[0]
    quantities = list(dict.fromkeys((row["quantity"], row["unit"]) for row in rows))
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    cells = {(row["subject"], row["quantity"]): _cell(row) for row in rows}
    head = [f"{quantity}, {unit}" if unit else quantity for quantity, unit in quantities]
    lines = [f"| | {' | '.join(head)} |", f"|---{'|--:' * len(head)}|"]
    lines += [
        f"| {subject} | "
        f"{' | '.join(cells.get((subject, quantity), '') for quantity, _ in quantities)} |"
        for subject in subjects
    ]
    machine = f"{first['cpu']}, {first['cores']} cores, {first['memory_gb']} GB"
    place = f"{first['date']} UTC, {machine}; Python {first['python']}, {first['packages']}"
    rounds = max(int(row["rounds"]) for row in rows)
    spread = f" Median of {rounds} rounds, with quartiles in parentheses." if rounds > 1 else ""
    table = "\n".join(lines)
    return (
        f"\n## {first['what']}: {first['case']}\n\n{place}.{spread}\n\n"
        f"```bash\n{first['command']}\n```\n\n{table}\n"
    )


def _cell(row: Mapping[str, Any]) -> str:
    if row["low"] == row["high"]:
        return short(row["median"])
    return f"{short(row['median'])} ({short(row['low'])} to {short(row['high'])})"


def short(value: str | float) -> str:
    """Formats a number, or its text, with three significant digits, or as a whole number."""
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
