"""What was measured, as rows of a CSV file with the machine and the versions they were measured on, and a page made of them."""

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

from benchmarks.rounds import Spread
from deeplab_keras.config import UserError
from deeplab_keras.io.writing import check_folder, write_text

COLUMNS = (
    "date", "what", "case", "subject", "quantity", "unit", "median", "low", "high", "rounds",
    "cpu", "cores", "memory_gb", "python", "packages", "command",
)  # fmt: skip
PACKAGES = (
    "tensorflow", "tensorflow-cpu", "keras", "numpy", "ai-edge-litert", "jax", "torch", "opencv-python-headless", "onnxruntime",
    "openvino",
)  # fmt: skip
BEGIN = (
    "<!-- What follows is written by scripts/benchmark.py --page from the CSV file beside "
    "this page. -->"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        subject: who was measured: a pipeline, a file's kind, a peer.
        quantity: what of it.
        unit: of the value.
        value: its spread over the rounds; of what is counted, not timed, all three are equal.
        rounds: how many measurements the spread is of.
    """

    subject: str
    quantity: str
    unit: str
    value: Spread
    rounds: int = 1

    @classmethod
    def single(cls, subject: str, quantity: str, unit: str, value: float) -> Row:
        """Of what was counted or measured once."""
        return cls(subject, quantity, unit, Spread(value, value, value))


def environment() -> dict[str, str]:
    """The machine and the versions."""
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
    path: str | os.PathLike[str], what: str, case: str, rows: Sequence[Row], command: str
) -> None:
    """Appends measurements to a CSV file, which is made if need be.

    Args:
        path: the file.
        what: what kind of benchmark it was.
        case: of what: model, size, dataset.
        rows: the measurements.
        command: that made them.

    Raises:
        UserError: the file has other columns, or cannot be written.
    """
    before = read(path) if os.path.exists(path) else []
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    around = {"date": date, "what": what, "case": case, **environment(), "command": command}
    for row in rows:
        value = {name: f"{getattr(row.value, name):.6g}" for name in ("median", "low", "high")}
        before.append(
            {
                **around,
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


def check(path: str | os.PathLike[str]) -> None:
    """Looks, before the work, whether `append` will be able to add to a file.

    Raises:
        UserError: the file has other columns, or its folder may not be written to.
    """
    if os.path.exists(path):
        read(path)
    check_folder(pathlib.Path(path).absolute().parent, "csv")


def read(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a CSV file that `append` wrote.

    Raises:
        UserError: there is no such file, or it is another table.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--csv={os.fspath(path)}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(
            f"--csv={os.fspath(path)}: a table with other columns; give another file, which is made"
        )
    return rows


def write_page(path: str | os.PathLike[str], table: str | os.PathLike[str]) -> None:
    """Writes a Markdown page of the rows of a CSV file: a section a run, the newest last.

    What stands in the page before the line BEGIN, a person's words, stays.
    """
    page = pathlib.Path(path)
    start = (
        page.read_text(encoding="utf-8").partition(BEGIN)[0]
        if page.exists()
        else "# Benchmarks\n\n"
    )
    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in read(table):
        runs.setdefault((row["what"], row["case"], row["date"], row["command"]), []).append(row)
    write_text(page, f"{start.rstrip()}\n\n{BEGIN}\n" + "".join(map(_section, runs.values())))


def _section(rows: Sequence[Mapping[str, str]]) -> str:
    """One run: where it was made, its command, a table with a row a subject and a column a quantity."""
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
    spread = f" Median of {rounds} rounds, in parentheses the quartiles." if rounds > 1 else ""
    table = "\n".join(lines)
    return (
        f"\n## {first['what']}: "
        f"{first['case']}\n\n{place}.{spread}\n\n```bash\n{first['command']}\n```\n\n{table}\n"
    )


def _cell(row: Mapping[str, str]) -> str:
    if row["low"] == row["high"]:
        return _short(row["median"])
    return f"{_short(row['median'])} ({_short(row['low'])} to {_short(row['high'])})"


def _short(value: str) -> str:
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
