"""An audit for people: pictures of the most doubtful masks, lines for the terminal, a table."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.audit import Audit, AuditedMask, Region
from deeplab_keras.inference import Predictor
from deeplab_keras.visualization import captioned, colorize
from deeplab_keras.visualization.dataset_report import Doubts

PICTURES = 20  # masks in the page
BOXES = 5  # regions of a mask that are marked
LINES = 10  # masks listed in the terminal
SIDE = 480  # long side of a picture
COLOR = (255, 0, 255)


def describe(audit: Audit, predictor: Predictor, source: Source) -> Doubts:
    """Returns the part of the report about a split.

    Args:
        audit: What was found.
        predictor: The model that found it.
        source: The images and masks.
    """
    shown = audit.masks[:PICTURES]
    count = len(audit.masks)
    summary = (
        f"The model contradicts {count} of {audit.images} masks with confidence. The first ones "
        "are the most likely to be wrong."
        if count
        else f"The model does not contradict any of the {audit.images} masks with confidence."
    )
    return Doubts(
        title=f"Doubtful masks of {audit.split}",
        summary=summary,
        figures=[_figure(mask, predictor, source) for mask in shown],
        values=audit.to_dict(),
    )


def _figure(mask: AuditedMask, predictor: Predictor, source: Source) -> dict[str, str]:
    image, label = source.load(mask.index)
    predicted = predictor(image)
    tiles = {
        name: _marked(picture, mask.regions[:BOXES])
        for name, picture in (
            ("image", image),
            ("mask", colorize(label, source.info)),
            ("prediction", colorize(predicted, source.info)),
        )
    }
    data = io.BytesIO()
    Image.fromarray(captioned(tiles)).save(data, "PNG", optimize=True)
    return {
        "caption": f"{mask.name}: {_reasons(mask, source.info, BOXES)}",
        "png": base64.b64encode(data.getvalue()).decode(),
    }


def _marked(picture: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Returns a picture of the size of the page, with a box around each region."""
    height, width = picture.shape[:2]
    factor = SIDE / max(height, width)
    resized = Image.fromarray(picture).resize(
        (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(resized)
    for region in regions:
        left, top, right, bottom = (side * factor for side in region.box)
        draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=COLOR, width=2)
    return np.array(resized)


def _reasons(mask: AuditedMask, info: DatasetInfo, count: int) -> str:
    """Returns the score of a mask, its shift, and its first regions."""
    reasons = [f"score {mask.score:.1f}"]
    if mask.shift:
        right, down = mask.shift
        moves = [
            f"{abs(pixels)} pixels {way}"
            for pixels, way in (
                (right, "to the right" if right > 0 else "to the left"),
                (down, "down" if down > 0 else "up"),
            )
            if pixels
        ]
        reasons.append(f"the mask fits better {' and '.join(moves)}")
    return "; ".join([*reasons, *(_text(region, info) for region in mask.regions[:count])])


def _text(region: Region, info: DatasetInfo) -> str:
    names = info.class_names
    left, top, right, bottom = region.box
    return (
        f"{names[region.label]} in the mask, {names[region.predicted]} predicted: {region.pixels} "
        f"pixels at {left},{top} to {right},{bottom}"
    )


def table(audit: Audit) -> str:
    """Returns the most doubtful masks as lines of text."""
    lines = [
        f"{audit.split}: the model contradicts {len(audit.masks)} of {audit.images} masks with "
        f"confidence{'; the most doubtful are:' if audit.masks else ''}"
    ]
    for mask in audit.masks[:LINES]:
        lines.append(f"  {mask.name}: {_reasons(mask, audit.info, 1)}")
    if len(audit.masks) > LINES:
        lines.append(f"  ... and {len(audit.masks) - LINES} more")
    return "\n".join(lines)


def ranking_csv(ranking: Sequence[tuple[str, float]]) -> str:
    """Returns the result of `rank_unlabeled` as the text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "score"])
    writer.writerows((name, f"{score:.6f}") for name, score in ranking)
    return text.getvalue()
