"""The confusion matrix as a figure, and pictures as files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.visualization.colours import Array
from deeplab_keras.visualization.panels import short_name
from deeplab_keras.writing import replacing


def confusion_matrix_figure(report: Any) -> Array:
    """The confusion matrix as a figure, each row in per cent of the label's pixels.

    Args:
        report: an `evaluation.Report`.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "pip install 'deeplab-keras[viz]'"
        raise UserError(f"the confusion-matrix figure needs matplotlib, which is not installed; {hint}") from error
    matrix = np.array(report.confusion_matrix, np.float64)
    count, labelled = len(matrix), matrix.sum(1, keepdims=True)
    share = np.where(labelled > 0, 100 * matrix / np.maximum(labelled, 1), np.nan)
    numbers = count <= 30
    side = max(4.0, (0.5 if numbers else 0.14) * count)
    figure = Figure(figsize=(side + 2.5, side + 2.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.9")  # seen where a class has no labelled pixel
    axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=100)
    names = [short_name(name) for name in report.per_class_iou]
    text = 9 if numbers else 6
    axes.set_xticks(range(count), names, rotation=90, fontsize=text)
    axes.set_yticks(range(count), names, fontsize=text)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    axes.tick_params(length=0)
    about = ", ".join(filter(None, (report.model, report.dataset, report.split)))
    axes.set_title(f"{about}\nmIoU {100 * report.miou:.1f} %, cells in % of the label's pixels".strip(), fontsize=11)
    if numbers:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                ink = "white" if value > 55 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(path: str | os.PathLike[str], array: Array) -> None:
    """Writes a picture `[height, width, 3]` or a label map `[height, width]`, uint8, complete or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with replacing(path) as aside:
        Image.fromarray(np.ascontiguousarray(array)).save(aside, format="PNG")
