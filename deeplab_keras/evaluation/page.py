"""An evaluation as a single HTML page: scores, confusions, the best and worst images."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from deeplab_keras.evaluation.curves import charts
from deeplab_keras.evaluation.detail import ImageScore
from deeplab_keras.evaluation.report import Report
from deeplab_keras.visualization.html import render

LARGEST_MATRIX = 60  # classes; a larger matrix is not readable as a table

Picture = tuple[ImageScore, np.ndarray]


def extremes(images: Sequence[ImageScore], count: int) -> tuple[list[ImageScore], list[ImageScore]]:
    """Returns the images with the lowest and the highest mIoU, the most extreme first.

    No image is in both lists.
    """
    ranked = sorted(
        (image for image in images if not math.isnan(image.miou)), key=lambda image: image.miou
    )
    count = min(count, len(ranked) // 2) or min(1, len(ranked))
    return ranked[:count], ranked[: count - 1 : -1][:count]


def html_page(
    report: Report,
    worst: Sequence[Picture] = (),
    best: Sequence[Picture] = (),
    course: Sequence[dict[str, float]] = (),
) -> str:
    """Returns the text of the page.

    Args:
        report: The scores.
        worst: The worst images, each with its panel, uint8 `[height, width, 3]`.
        best: The best images, in the same form.
        course: The rows of the run's training.csv, see `curves.read_rows`.
    """
    classes = report.classes()
    return render(
        "evaluation.html",
        title=f"Evaluation of {report.model or 'a model'}",
        report=report,
        charts=charts(course),
        classes=classes,
        columns=[key for key in classes[0] if key != "class"],
        matrix=_shares(report) if len(classes) <= LARGEST_MATRIX else None,
        pictures={
            "Worst images": [_figure(*picture) for picture in worst],
            "Best images": [_figure(*picture) for picture in best],
        },
    )


def _shares(report: Report) -> dict[str, list[float | None]]:
    """Returns the confusion matrix as shares of each class's pixels, `None` for absent classes."""
    return {
        name: [count / sum(row) if any(row) else None for count in row]
        for name, row in zip(report.per_class_iou, report.confusion_matrix, strict=True)
    }


def _figure(score: ImageScore, picture: np.ndarray) -> dict[str, str]:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", optimize=True)
    accuracy = f"mIoU {100 * score.miou:.2f}, pixel accuracy {100 * score.pixel_accuracy:.2f}"
    return {
        "caption": f"{score.name}: {accuracy}",
        "png": base64.b64encode(data.getvalue()).decode(),
    }
