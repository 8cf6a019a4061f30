"""Line charts of a training run, drawn as SVG by the page of an evaluation."""

from __future__ import annotations

import csv
import dataclasses
import math
import pathlib
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 220, 58, 508, 28, 194
TICKS = 4
# Chart -> its lines: column of training.csv -> name.
CHARTS = {
    "loss": {"loss": "training"},
    "mIoU": {"val_miou": "validation", "train_miou": "training crops"},
    "learning rate": {"learning_rate": "learning rate"},
}
COLORS = ("#2f7d8c", "#c26b2b")

Points = list[tuple[float, float]]
Ticks = list[tuple[float, str]]


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart: its name, color and points in pixels."""

    name: str
    color: str
    points: Points


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart, laid out in pixels.

    Attributes:
        title: The heading.
        lines: The lines.
        x_ticks: The positions and texts of the labels below the chart.
        y_ticks: The same for the labels on the left, which also have grid lines.
    """

    title: str
    lines: list[Line]
    x_ticks: Ticks
    y_ticks: Ticks
    width, height, left, right = WIDTH, HEIGHT, LEFT, RIGHT


def read_rows(path: pathlib.Path) -> list[dict[str, float]]:
    """Reads a training.csv. A cell that is not a number becomes NaN."""

    def number(text: str | None) -> float:
        try:
            return float(text or "nan")
        except ValueError:
            return math.nan

    with open(path, newline="", encoding="utf-8") as file:
        return [
            {key: number(value) for key, value in row.items() if key}
            for row in csv.DictReader(file)
        ]


def charts(rows: Sequence[dict[str, float]]) -> list[Chart]:
    """Lays out the charts of a training run, without lines of fewer than two points."""
    drawn = []
    for title, lines in CHARTS.items():
        series = {name: _points(rows, column) for column, name in lines.items()}
        series = {name: points for name, points in series.items() if len(points) > 1}
        if series:
            drawn.append(_chart(title, series))
    return drawn


def _points(rows: Sequence[dict[str, float]], column: str) -> Points:
    found = [(row.get("step", math.nan), row.get(column, math.nan)) for row in rows]
    return [(x, y) for x, y in found if math.isfinite(x) and math.isfinite(y)]


def _chart(title: str, series: dict[str, Points]) -> Chart:
    xs, ys = zip(*(point for points in series.values() for point in points), strict=True)
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    low, high = min(*ys, *y_ticks), max(*ys, *y_ticks)

    def across(x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - min(xs)) / ((max(xs) - min(xs)) or 1), 1)

    def down(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (y - low) / ((high - low) or 1), 1)

    return Chart(
        title,
        [
            Line(name, color, [(across(x), down(y)) for x, y in points])
            for color, (name, points) in zip(COLORS, series.items(), strict=False)
        ],
        [(across(x), f"{x:.0f}") for x in x_ticks],
        [(down(y), f"{y:.3g}") for y in y_ticks],
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns a few round numbers between `low` and `high`."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * TICKS >= high - low)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
