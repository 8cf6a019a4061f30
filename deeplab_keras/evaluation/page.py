"""The evaluation as one HTML page that needs nothing beside it: scores, confusions, the best and the worst images."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from deeplab_keras.evaluation.detail import ImageScore
from deeplab_keras.evaluation.report import Report

LARGEST_MATRIX = 60  # classes; a larger one is not readable as a table
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2733; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.about { color: #5a6875; margin-top: .2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e3e8ec }
td:first-child, th:first-child { text-align: left }
.totals { display: flex; flex-wrap: wrap; gap: .8rem }
.totals div { background: #f1f4f6; border-radius: 6px; padding: .6rem 1rem }
.totals b { display: block; font-size: 1.4rem }
.bar { background: #2f7d8c; height: .7rem; display: inline-block; vertical-align: middle }
.matrix { overflow-x: auto }
.matrix td, .matrix th { padding: .15rem .3rem; font-size: 12px; border: 1px solid #fff; min-width: 2rem }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left }
.charts { display: flex; flex-wrap: wrap; gap: 1rem }
.charts svg { width: 520px; max-width: 100%; font: 11px system-ui, sans-serif }
.charts text { fill: #5a6875 }
.charts .title { font-size: 14px; font-weight: 600; fill: #1c2733 } .charts .grid { stroke: #e3e8ec }
figure { margin: 0 0 1.2rem } figure img { max-width: 100%; height: auto } figcaption { color: #5a6875; font-size: 13px }
"""

Picture = tuple[ImageScore, np.ndarray]


def extremes(images: Sequence[ImageScore], count: int) -> tuple[list[ImageScore], list[ImageScore]]:
    """The images with the lowest and the highest mIoU, the extreme one first, none of them in both lists."""
    ranked = sorted(
        (image for image in images if not math.isnan(image.miou)), key=lambda image: image.miou
    )
    count = min(count, len(ranked) // 2) or min(1, len(ranked))
    return ranked[:count], ranked[: count - 1 : -1][:count]


def html_page(
    report: Report, worst: Sequence[Picture] = (), best: Sequence[Picture] = (), course: str = ""
) -> str:
    """The page's text.

    Args:
        report: the scores.
        worst: the worst images with a panel each, uint8 `[height, width, 3]`.
        best: the best ones.
        course: the training's charts, see `curves`.
    """
    title = f"Evaluation of {report.model or 'a model'}"
    totals = "".join(
        f"<div>{html.escape(name)}<b>{_percent(value)}</b></div>"
        for name, value in report.totals().items()
    )
    parts = [
        "<!doctype html><html lang='en'><head><meta "
        f"charset='utf-8'><title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1><p "
        f"class='about'>{html.escape(report.about())}</p>",
        f"<div class='totals'>{totals}</div>",
        f"<h2>Training</h2>{course}" if course else "",
        "<h2>Classes</h2>",
        _classes(report),
        "<h2>Largest confusions</h2>",
        _confusions(report),
        "<h2>Confusion matrix</h2>",
        _matrix(report),
    ]
    for heading, pictures in (("Worst images", worst), ("Best images", best)):
        if pictures:
            parts += [
                f"<h2>{heading}</h2>",
                *(_figure(score, picture) for score, picture in pictures),
            ]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _classes(report: Report) -> str:
    rows = report.classes()
    names = {"iou": "IoU", "boundary_iou": "boundary IoU", "pixels": "share of pixels"}
    keys = [key for key in rows[0] if key != "class"]
    head = "".join(f"<th>{names.get(key, key)}</th>" for key in keys)
    body = ""
    for row in rows:
        bar = (
            "<td style='text-align:left'><span class='bar' "
            f"style='width:{8 * (row['iou'] or 0):.2f}rem'></span></td>"
        )
        cells = "".join(f"<td>{_percent(row[key])}</td>" for key in keys)
        body += f"<tr><td>{html.escape(row['class'])}</td>{cells}{bar}</tr>\n"
    return (
        "<table><thead><tr><th>class, in "
        f"%</th>{head}<th></th></tr></thead><tbody>{body}</tbody></table>"
    )


def _confusions(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(label)}</td><td>{html.escape(prediction)}</td><td>{_percent(share)}</td><td>{_percent(all_)}</td></tr>\n"
        for label, prediction, share, all_ in report.confusions()
    )
    head = (
        "<th>label</th><th>taken for</th><th>% of the label's pixels</th><th>% of all pixels</th>"
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _matrix(report: Report) -> str:
    names = [html.escape(name) for name in report.per_class_iou]
    if len(names) > LARGEST_MATRIX:
        return (
            f"<p>{len(names)} classes are too many for a table; metrics.json holds the counts.</p>"
        )
    counts = np.array(report.confusion_matrix, np.float64)
    labelled = counts.sum(1, keepdims=True)
    share = np.where(labelled > 0, 100 * counts / np.maximum(labelled, 1), np.nan)
    body = ""
    for name, row in zip(names, share, strict=True):
        body += f"<tr><th>{name}</th>{''.join(map(_cell, row))}</tr>\n"
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        "<p class='about'>Rows: label; columns: prediction; % of the label's pixels.</p><div "
        "class='matrix'><table>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(share: float) -> str:
    if math.isnan(share):
        return "<td style='background:#eee'></td>"
    ink = "#fff" if share > 55 else "#1c2733"
    return (
        "<td "
        f"style='background:rgba(47,125,140,{share / 100:.3f});color:{ink}'>{f'{share:.0f}' if share >= 0.5 else ''}</td>"
    )


def _figure(score: ImageScore, picture: np.ndarray) -> str:
    caption = (
        f"{score.name}: mIoU {_percent(score.miou)}, pixel accuracy "
        f"{_percent(score.pixel_accuracy)}"
    )
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", optimize=True)
    source = base64.b64encode(data.getvalue()).decode()
    image = f"<img alt='{html.escape(caption)}' src='data:image/png;base64,{source}'>"
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
