"""A training's course as line charts, drawn as SVG: nothing but text, sharp at any size."""

from __future__ import annotations

import csv
import html
import math
import pathlib
from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 220, 58, 12, 28, 26
TICKS = 4
# Chart -> its lines: column of training.csv and name.
CHARTS = {
    "loss": {"loss": "training"},
    "mIoU": {"val_miou": "validation", "train_miou": "training crops"},
    "learning rate": {"learning_rate": "learning rate"},
}
COLOURS = ("#2f7d8c", "#c26b2b")

Points = list[tuple[float, float]]


def read_rows(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a training.csv; a cell that is no number is NaN."""

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


def charts(rows: Sequence[dict[str, float]]) -> str:
    """The charts side by side, as a part of an HTML page; "" for fewer than two rows."""
    if len(rows) < 2:
        return ""
    drawn = []
    for title, lines in CHARTS.items():
        series = {name: _points(rows, column) for column, name in lines.items()}
        shown = {name: points for name, points in series.items() if len(points) > 1}
        if shown:
            drawn.append(_chart(title, shown))
    return f"<div class='charts'>{''.join(drawn)}</div>"


def _points(rows: Sequence[dict[str, float]], column: str) -> Points:
    found = [(row.get("step", math.nan), row.get(column, math.nan)) for row in rows]
    return [(x, y) for x, y in found if math.isfinite(x) and math.isfinite(y)]


def _chart(title: str, series: dict[str, Points]) -> str:
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    low, high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / ((max(xs) - min(xs)) or 1)
        up = (y - low) / ((high - low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [f"<text x='{LEFT}' y='16' class='title'>{html.escape(title)}</text>"]
    for y in y_ticks:
        level = place(xs[0], y)[1]
        parts.append(
            f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{level:.1f}' y2='{level:.1f}' "
            "class='grid'/>"
        )
        parts.append(f"<text x='{LEFT - 6}' y='{level + 4:.1f}' text-anchor='end'>{y:.3g}</text>")
    for x in x_ticks:
        parts.append(
            f"<text x='{place(x, low)[0]:.1f}' y='{HEIGHT - 8}' text-anchor='middle'>{x:.0f}</text>"
        )
    for i, (name, points) in enumerate(series.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        if len(series) > 1:
            where = WIDTH - RIGHT - 110 * (len(series) - 1 - i)
            parts.append(
                f"<text x='{where}' y='16' text-anchor='end' "
                f"style='fill:{colour}'>{html.escape(name)}</text>"
            )
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' "
        f"aria-label='{html.escape(title)}'>{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers between two."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * TICKS >= high - low)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
