"""Pictures side by side with captions, and the legend of the classes."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.visualization.colours import (
    WHITE,
    Array,
    class_colours,
    colorize,
    confidence_map,
    error_map,
    overlay,
    rows_of,
)

INK, RIM = (32, 33, 36), (160, 160, 160)

# A panel shows an image with its long side in this range: small ones are enlarged by a whole
# factor, large ones shrunk.
SMALLEST, LARGEST = 400, 640
NAME_LENGTH = 24


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]


def _without_accents(text: str) -> str:
    """The text in letters that the font has."""
    return "".join(
        letter
        for letter in unicodedata.normalize("NFKD", text)
        if not unicodedata.combining(letter)
    )


def short_name(name: str) -> str:
    """ADE20k's names list synonyms, VOC's and Cityscapes' hold underscores."""
    name = _without_accents(name.split(",")[0].strip("_ ").replace("_", " "))
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "…"


def legend(
    info: DatasetInfo,
    present: Iterable[int] | None = None,
    width: int = 800,
    *,
    text_size: int = 0,
    palette: str = "dataset",
    with_confidence: bool = False,
) -> Array:
    """Swatches with the classes' names, in columns.

    Args:
        info: the classes.
        present: ids to list, in any order; the ignore label is listed as "not labelled". Default:
            all classes.
        width: width of the picture; more, if the longest name needs it.
        text_size: height of the text in pixels; default by the width.
        palette: as for `class_colours`.
        with_confidence: lists the scale of `confidence_map` too.
    """
    listed = set(range(info.num_classes) if present is None else map(int, present))
    classes = sorted(listed & set(range(info.num_classes)) - {info.ignore_label})
    colours = class_colours(info, palette)
    entries = [(short_name(info.class_names[i]), colours[i]) for i in classes]
    if info.ignore_label in listed:
        entries.append(("not labelled", colours[-1]))
    if with_confidence:
        entries += zip(("0 % sure", "100 % sure"), confidence_map(np.array([0, 1])), strict=True)
    size = text_size or _text_size(width)
    line, swatch, gap = round(1.7 * size), round(1.1 * size), round(0.5 * size)
    column = (
        max((round(_font(size).getlength(name)) for name, _ in entries), default=0)
        + swatch
        + 4 * gap
    )
    columns = max(1, min(width // column, len(entries)))
    width = max(width, column)
    picture = Image.new("RGB", (width, line * max(1, -(-len(entries) // columns))), WHITE)
    draw = ImageDraw.Draw(picture)
    for i, (name, colour) in enumerate(entries):
        x, y = i % columns * column + gap, i // columns * line
        top = y + (line - swatch) // 2
        draw.rectangle((x, top, x + swatch, top + swatch), fill=tuple(colour.tolist()), outline=RIM)
        draw.text((x + swatch + gap, y + line / 2), name, fill=INK, font=_font(size), anchor="lm")
    return np.array(picture)


def _text_size(width: int) -> int:
    """Text that can still be read when a picture of this width is shown 800 pixels wide."""
    return max(14, round(width / 60))


def _tile(picture: Array, smooth: bool) -> Array:
    """A picture enlarged or reduced into the range of sizes of a panel; label colours are never mixed."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    factor = -(-SMALLEST // longest) if longest < SMALLEST else min(1, LARGEST / longest)
    if factor == 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.array(Image.fromarray(picture).resize(size, method))


def panel(
    image: Array | None,
    label: Array | None,
    prediction: Array,
    info: DatasetInfo,
    *,
    confidence: Array | None = None,
    palette: str = "dataset",
    with_legend: bool = True,
) -> Array:
    """Image, label, prediction and errors side by side; without a label image, prediction and overlay.

    Args:
        image: uint8 `[height, width, 3]`; None leaves it out, for photographs that may not be
            passed on.
        label: `[height, width]`, or None.
        prediction: `[height, width]`.
        info: the classes.
        confidence: probability of the predicted class, `[height, width]` in 0..1: adds the map of
            it.
        palette: as for `class_colours`.
        with_legend: adds the classes that are there below.
    """
    present = np.unique(prediction)
    coloured = _tile(colorize(prediction, info, palette), smooth=False)
    tiles = {} if image is None else {"image": _tile(image, smooth=True)}
    if image is None:
        image = np.full((*prediction.shape, 3), 128, np.uint8)
    if label is None:
        mixed = overlay(image, prediction, info, palette=palette)
        tiles |= {"prediction": coloured, "overlay": _tile(mixed, smooth=True)}
    else:
        counted = rows_of(label, info) < info.num_classes
        wrong = np.mean(label[counted] != prediction[counted]) if counted.any() else 0.0
        present = np.union1d(present, np.where(counted, label, info.ignore_label))
        tiles |= {
            "label": _tile(colorize(label, info, palette), smooth=False),
            "prediction": coloured,
            f"errors: {100 * wrong:.1f} %": _tile(
                error_map(image, label, prediction, info), smooth=False
            ),
        }
    if confidence is not None:
        tiles[f"confidence: {100 * np.mean(confidence):.1f} %"] = _tile(
            confidence_map(confidence), smooth=False
        )
    row = captioned(tiles)
    if not with_legend:
        return row
    below = legend(
        info, present, row.shape[1], palette=palette, with_confidence=confidence is not None
    )
    return grid([row, below], gap=_text_size(row.shape[1]) // 3)


def captioned(tiles: dict[str, Array]) -> Array:
    """Pictures of one size side by side, each below its caption and within a thin rim: white ones end somewhere too."""
    tiles = {_without_accents(caption): tile for caption, tile in tiles.items()}
    height, width = next(iter(tiles.values())).shape[:2]
    gap = max(4, width // 50)
    size = _text_size(len(tiles) * (width + gap) - gap)
    cell = max(
        width, *(round(_font(size).getlength(caption)) for caption in tiles)
    )  # wider than a very narrow image
    total = len(tiles) * (cell + gap) - gap + 2
    bar = round(1.8 * size)
    picture = Image.new("RGB", (total, bar + height + 1), WHITE)
    draw = ImageDraw.Draw(picture)
    for i, (caption, tile) in enumerate(tiles.items()):
        left = i * (cell + gap) + 1
        draw.text((left + cell / 2, bar / 2), caption, fill=INK, font=_font(size), anchor="mm")
        x = left + (cell - width) // 2
        draw.rectangle((x - 1, bar - 1, x + width, bar + height), outline=RIM)
        picture.paste(Image.fromarray(tile), (x, bar))
    return np.array(picture)


def grid(panels: Sequence[Array], columns: int = 1, gap: int = 16) -> Array:
    """Pictures of any sizes in rows of `columns`, on white."""
    if not panels:
        raise UserError("a grid of no pictures; give at least one")
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    canvas = np.full(
        (sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (len(widths) - 1), 3),
        255,
        np.uint8,
    )
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = sum(heights[:r]) + gap * r, sum(widths[:c]) + gap * c
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas
