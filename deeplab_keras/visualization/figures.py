"""The figure of a confusion matrix, and PNG files."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.io.writing import replacing
from deeplab_keras.visualization.colors import Array
from deeplab_keras.visualization.panels import short_name

PNG_HEAD = 33  # bytes of a PNG file before its pixel data: the signature and the header


def confusion_matrix_figure(report: Any) -> Array:
    """Draws a confusion matrix, each row in percent of the label's pixels.

    Args:
        report: A `dk.Report`.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        UserError: If matplotlib is not installed.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
        >>> report = dk.evaluate(dk.load_model("runs/demo"), source, limit=4, progress=False)
        >>> figure = dk.visualization.confusion_matrix_figure(report)
        >>> figure.dtype, figure.ndim
        (dtype('uint8'), 3)
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = "pip install matplotlib"
        raise UserError(
            f"the confusion-matrix figure needs matplotlib, which is not installed; {hint}"
        ) from error
    matrix = np.array(report.confusion_matrix, np.float64)
    count, labeled = len(matrix), matrix.sum(1, keepdims=True)
    share = np.where(labeled > 0, 100 * matrix / np.maximum(labeled, 1), np.nan)
    numbers = count <= 30
    side = max(4.0, (0.5 if numbers else 0.14) * count)
    figure = Figure(figsize=(side + 2.5, side + 2.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("0.9")  # visible for classes without labeled pixels
    axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=100)
    names = [short_name(name) for name in report.per_class_iou]
    text = 9 if numbers else 6
    axes.set_xticks(range(count), names, rotation=90, fontsize=text)
    axes.set_yticks(range(count), names, fontsize=text)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    axes.tick_params(length=0)
    about = ", ".join(filter(None, (report.model, report.dataset, report.split)))
    axes.set_title(
        f"{about}\nmIoU {100 * report.miou:.1f} %, cells in % of the label's pixels".strip(),
        fontsize=11,
    )
    if numbers:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.5:
                ink = "white" if value > 55 else "black"
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink
                )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save_png(path: str | os.PathLike[str], array: Array) -> None:
    """Writes a PNG file atomically.

    Args:
        path: The path of the file; missing folders are created.
        array: A picture `[height, width, 3]` or a label map `[height, width]`, uint8.

    Raises:
        UserError: If the file cannot be written.

    Example:
        >>> labels = dk.Predictor(dk.load_model("runs/demo"))(np.zeros((40, 60, 3), "uint8"))
        >>> dk.visualization.save_png("labels.png", labels)
    """
    with replacing(path) as aside:
        Image.fromarray(np.ascontiguousarray(array)).save(aside, format="PNG")


def save_png_strips(path: str | os.PathLike[str], strips: Iterable[Array]) -> None:
    """Writes a PNG file from strips of rows, so that huge pictures need little memory.

    Args:
        path: The path of the file.
        strips: At least one strip, `[rows, width, 3]` or `[rows, width]`, uint8, from the top down.

    Raises:
        UserError: If the file cannot be written.

    Example:
        >>> strips = (np.full((256, 1000), row, "uint8") for row in range(4))
        >>> dk.visualization.save_png_strips("tall.png", strips)
    """

    def part(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(3)  # twice as fast as level 6 for a 10 % larger file
    height = 0
    shape: tuple[int, ...] = (0,)
    above = np.zeros(0, np.uint8)
    with replacing(path) as aside, open(aside, "wb") as file:
        file.seek(PNG_HEAD)
        for strip in strips:
            rows = np.ascontiguousarray(strip).reshape(len(strip), -1)
            shape = strip.shape[1:]
            # PNG's filter 2: the difference of a row to the row above it.
            filtered = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)
            filtered[0, 1:] = rows[0] - above if height else rows[0]
            filtered[1:, 1:] = rows[1:] - rows[:-1]
            height, above = height + len(rows), rows[-1].copy()
            file.write(part(b"IDAT", packer.compress(filtered.tobytes())))
        file.write(part(b"IDAT", packer.flush()) + part(b"IEND", b""))
        file.seek(0)
        gray_or_rgb = 2 if len(shape) == 2 else 0
        head = part(b"IHDR", struct.pack(">IIBBBBB", shape[0], height, 8, gray_or_rgb, 0, 0, 0))
        file.write(b"\x89PNG\r\n\x1a\n" + head)
