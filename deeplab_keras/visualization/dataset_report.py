"""The report of a dataset check: an HTML page, a contact sheet, and text for the terminal."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.data.check.findings import DatasetCheck, SplitCheck
from deeplab_keras.data.check.text import flag_of, summary
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.io.writing import write_text
from deeplab_keras.visualization import captioned, class_colors, colorize, grid, legend, save_png
from deeplab_keras.visualization.html import render

SAMPLES, SIDE = 12, 320  # pairs in the contact sheet, and the long side of a picture in it
SHOWN = 20  # problems of each kind and image sizes listed in the page; report.json lists all
STRANGE = (255, 0, 255)  # the color of ids that are not classes

__all__ = [
    "Doubts",
    "choose_samples",
    "contact_sheet",
    "flag_of",
    "page",
    "summary",
    "write_report",
]


@dataclasses.dataclass(frozen=True)
class Doubts:
    """What a model found in the masks of a split, for the report.

    Attributes:
        title: The heading.
        summary: A sentence about what was found.
        figures: Pictures of masks, each a caption and a PNG in base64.
        values: Everything that was found, as JSON values.
    """

    title: str
    summary: str
    figures: Sequence[Mapping[str, str]]
    values: Mapping[str, Any]


def write_report(check: DatasetCheck, folder: str, doubts: Sequence[Doubts] = ()) -> pathlib.Path:
    """Writes report.html, report.json and contact_sheet.png, and returns the path of report.html.

    Args:
        check: The findings.
        folder: The output folder; created if it does not exist.
        doubts: What a model found in the masks of each split.

    Raises:
        UserError: A file cannot be written.
    """
    path = pathlib.Path(folder)
    if (sheet := contact_sheet(check.splits[0], check.info)) is not None:
        save_png(path / "contact_sheet.png", sheet)
    found = check.to_dict()
    if doubts:
        found["audit"] = [part.values for part in doubts]
    write_text(path / "report.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    write_text(path / "report.html", page(check, sheet is not None, doubts))
    return path / "report.html"


# --- The contact sheet ---


def choose_samples(split: SplitCheck, count: int) -> list[int]:
    """Chooses pairs that show as many classes as possible, then evenly spaced ones.

    Returns:
        Indices into `split.scans`.
    """
    classes = np.array(
        [
            np.bincount(split.class_of_id[scan.ids > 0].clip(0), minlength=256) > 0
            for scan in split.scans
        ]
    )
    chosen: list[int] = []
    seen = np.zeros(256, bool)
    while len(chosen) < min(count, len(split.scans)):
        gain = (classes & ~seen).sum(1)
        best = int(gain.argmax())
        if not gain[best]:
            break
        chosen.append(best)
        seen |= classes[best]
    spread = np.linspace(0, len(split.scans) - 1, count).astype(int).tolist() if split.scans else []
    rest = [index for index in spread if index not in chosen]
    return sorted([*chosen, *dict.fromkeys(rest)][:count])


def contact_sheet(split: SplitCheck, info: DatasetInfo, count: int = SAMPLES) -> np.ndarray | None:
    """Draws images next to their labels, with a legend; returns `None` if no pair can be read.

    Ids that are not classes get magenta stripes.
    """
    cells, present = [], set()
    for place in choose_samples(split, count):
        scan = split.scans[place]
        try:
            image, ids = split.load(scan.index)
        except UserError:  # the file has changed since the scan
            continue
        labels = split.class_of_id[ids]
        present |= {int(label) for label in np.unique(labels) if label >= 0}
        colored = (0.25 * image + 0.75 * colorize(labels, info) + 0.5).astype(np.uint8)
        colored[(labels < 0) & _stripes(*labels.shape)] = STRANGE
        share = (labels == info.ignore_label).mean()
        name = scan.name if len(scan.name) <= 40 else f"…{scan.name[-39:]}"
        cells.append(
            captioned(
                {name: _thumbnail(image, True), f"{share:.0%} ignored": _thumbnail(colored, False)}
            )
        )
    if not cells:
        return None
    sheet = grid(cells, columns=2, gap=SIDE // 10)
    return grid([sheet, legend(info, present, sheet.shape[1])], gap=SIDE // 10)


def _stripes(height: int, width: int) -> np.ndarray:
    """Returns diagonal stripes, equally wide on every thumbnail: bool `[height, width]`."""
    step = max(1, round(6 * max(height, width) / SIDE))
    return (np.arange(height)[:, None] + np.arange(width)) // step % 2 == 0


def _thumbnail(picture: np.ndarray, smooth: bool) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = Image.Resampling.LANCZOS if smooth and factor < 1 else Image.Resampling.NEAREST
    return np.array(Image.fromarray(picture).resize(size, method))


# --- The page ---


def page(check: DatasetCheck, with_sheet: bool = True, doubts: Sequence[Doubts] = ()) -> str:
    """Returns the report as an HTML page."""
    shares = [split.pixels / max(split.total, 1) for split in check.splits]
    colors = [*check.info.palette, class_colors(check.info)[-1].tolist()]
    return render(
        "dataset.html",
        title=f"{check.config.dataset} in {check.config.dataset_dir or 'memory'}",
        check=check,
        with_sheet=with_sheet,
        doubts=doubts,
        shown=SHOWN,
        colors=["#" + bytes(color).hex() for color in colors],
        widest=max((float(share.max()) for share in shares), default=0) or 1,
        weights={name: flag_of(weights) for name, weights in check.label_weights().items()},
    )
