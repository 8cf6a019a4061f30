"""Pictures of all kinds, compared with stored ones.

After an intended change, `PYTHONPATH=. python tests/test_visualization_stored.py` stores them
again. Look at them before you commit them.
"""

from __future__ import annotations

import types

import numpy as np
import pytest
from contracts import ROOT
from PIL import Image

from deeplab_keras.data.info import DatasetInfo, pascal_palette
from deeplab_keras.visualization import (
    classes_in,
    colorize,
    confidence_map,
    confusion_matrix_figure,
    error_map,
    grid,
    legend,
    overlay,
    panel,
    save_png,
)

FOLDER = ROOT / "tests" / "golden" / "pictures"
INFO = DatasetInfo(
    "scene", ("background", "sky", "traffic_light", "car, auto", "tree"), pascal_palette(5)
)
HEIGHT, WIDTH = 48, 64
KINDS = (
    "color",
    "color_blind",
    "overlay",
    "overlay_with_legend",
    "errors",
    "confidence",
    "legend",
    "panel",
    "panel_without_label",
    "confusion_matrix",
)


def draw(kind: str) -> np.ndarray:
    """Draws a scene of which the car's edge and half of the tree are predicted wrongly."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    label = np.where(rows < 20, 1, 0).astype(np.uint8)
    label[28:42, 8:30], label[8:36, 40:44] = 3, 2
    label[(rows - 24) ** 2 + (columns - 54) ** 2 < 64] = 4
    label[:, :2] = 255
    prediction = np.where(label == 255, 1, label)
    prediction[26:28, 8:30], prediction[24:, 46:] = 3, 0
    image = np.stack([label * 40 % 200, 4 * rows, 3 * columns], -1).astype(np.uint8)
    confidence = np.clip(0.3 + columns / WIDTH, 0, 1)
    report = types.SimpleNamespace(
        confusion_matrix=[[50, 2, 0], [8, 30, 2], [0, 0, 0]],
        per_class_iou=dict.fromkeys(("sky", "traffic_light", "car"), 0.5),
        model="model",
        dataset="scene",
        split="val",
        miou=0.7,
    )
    pictures = {
        "color": lambda: colorize(prediction, INFO),
        "color_blind": lambda: colorize(prediction, INFO, "color_blind"),
        "overlay": lambda: overlay(image, prediction, INFO),
        "overlay_with_legend": lambda: grid(
            [overlay(image, prediction, INFO), legend(INFO, classes_in(prediction), 160)]
        ),
        "errors": lambda: error_map(image, label, prediction, INFO),
        "confidence": lambda: confidence_map(confidence),
        "legend": lambda: legend(INFO, [0, 2, 3, 255], 300, palette="color_blind"),
        "panel": lambda: panel(image, label, prediction, INFO, confidence=confidence),
        "panel_without_label": lambda: panel(image, None, prediction, INFO, palette="color_blind"),
        "confusion_matrix": lambda: confusion_matrix_figure(report),
    }
    return pictures[kind]()


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_equals_the_stored_one(kind: str) -> None:
    """Other versions of the font library may move letters slightly, but not areas and colors."""
    drawn = draw(kind)
    stored = np.asarray(Image.open(FOLDER / f"{kind}.png"))
    assert drawn.shape == stored.shape
    difference = np.abs(drawn.astype(int) - stored).max(-1)
    text = kind in (
        "overlay_with_legend",
        "legend",
        "panel",
        "panel_without_label",
        "confusion_matrix",
    )
    assert (difference > 8).mean() <= (0.03 if text else 0)


if __name__ == "__main__":
    for name in KINDS:
        save_png(FOLDER / f"{name}.png", draw(name))
