"""Output files of an evaluation: metrics.json, tables and a page."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.curves import read_rows
from deeplab_keras.evaluation.detail import Details, ImageScore
from deeplab_keras.evaluation.page import Picture, extremes, html_page
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Predictor, as_image
from deeplab_keras.io.writing import write_text
from deeplab_keras.visualization import panel


def draw_panel(
    predictor: Predictor, image: np.ndarray, label: np.ndarray | None, info: DatasetInfo
) -> np.ndarray:
    """Draws image, label, prediction, errors and confidence, with a legend.

    Args:
        predictor: The model and its config, which also selects the palette.
        image: uint8 `[height, width, 3]`.
        label: `[height, width]`, or `None` for an image without a label.
        info: The classes.

    Returns:
        uint8 `[height, width, 3]`.
    """
    (prediction,), (confidence,) = predictor.labels_and_confidence(
        as_image(image, predictor.network.channels)[None]
    )
    return panel(
        image, label, prediction, info, confidence=confidence, palette=predictor.config.palette
    )


def write_report(
    folder: pathlib.Path,
    report: Report,
    details: Details | None,
    predictor: Predictor,
    source: Source,
    pictures: int = 4,
    training_csv: pathlib.Path | None = None,
) -> list[Picture]:
    """Writes metrics.json, metrics.csv, metrics.md and, with details, report.html.

    Args:
        folder: The output folder; created if it does not exist.
        report: The scores.
        details: The details that `evaluate` collected; `None` for no page.
        predictor: The predictor, for the images of the page.
        source: The images and labels.
        pictures: The number of worst images and of best images.
        training_csv: The training.csv of the run, for the charts of the page.

    Returns:
        The worst images, drawn; empty without details.

    Raises:
        UserError: A file cannot be written.
    """
    report.save(folder / "metrics.json")
    write_text(folder / "metrics.csv", report.to_csv())
    write_text(folder / "metrics.md", report.to_markdown())
    if details is None:
        return []
    index = {name: i for i, name in enumerate(source.names)}

    def draw(scores: Sequence[ImageScore]) -> list[Picture]:
        drawn = []
        for score in scores:
            drawn.append(
                (score, draw_panel(predictor, *source.load(index[score.name]), source.info))
            )
        return drawn

    worst, best = extremes(details.images, pictures)
    course = read_rows(training_csv) if training_csv and training_csv.is_file() else []
    failures = draw(worst)
    write_text(folder / "report.html", html_page(report, failures, draw(best), course))
    return failures
