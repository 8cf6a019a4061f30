"""Panels of pictures with captions, and the legend of the classes."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.visualization.colors import (
    WHITE,
    Array,
    class_colors,
    colorize,
    confidence_map,
    error_map,
    overlay,
    rows_of,
)

INK, RIM = (32, 33, 36), (160, 160, 160)

# Range of an image's long side in a panel. Smaller images are enlarged by an integer factor, larger
# ones are reduced.
SMALLEST, LARGEST = 400, 640
NAME_LENGTH = 24


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]


def _without_accents(text: str) -> str:
    """Replaces accented letters, which the font lacks."""
    return "".join(
        letter
        for letter in unicodedata.normalize("NFKD", text)
        if not unicodedata.combining(letter)
    )


def short_name(name: str) -> str:
    """Shortens a class name: without ADE20k's synonyms, and without underscores."""
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
    """Draws a legend: the colors and names of the classes, in columns.

    Args:
        info: The classes.
        present: The ids to list, in any order. The ignore label is listed as "not labeled".
            Default: all classes.
        width: The width of the picture, which is larger if the longest name needs it.
        text_size: The height of the text in pixels. Default: depends on the width.
        palette: See `class_colors`.
        with_confidence: Whether to list the two ends of the scale of `confidence_map`.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> info = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val").info
        >>> dk.visualization.legend(info, width=800).shape[1]
        800
    """
    listed = set(range(info.num_classes) if present is None else map(int, present))
    classes = sorted(listed & set(range(info.num_classes)) - {info.ignore_label})
    colors = class_colors(info, palette)
    entries = [(short_name(info.class_names[i]), colors[i]) for i in classes]
    if info.ignore_label in listed:
        entries.append(("not labeled", colors[-1]))
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
    for i, (name, color) in enumerate(entries):
        x, y = i % columns * column + gap, i // columns * line
        top = y + (line - swatch) // 2
        draw.rectangle((x, top, x + swatch, top + swatch), fill=tuple(color.tolist()), outline=RIM)
        draw.text((x + swatch + gap, y + line / 2), name, fill=INK, font=_font(size), anchor="lm")
    return np.array(picture)


def _text_size(width: int) -> int:
    """Returns a text size that is readable if a picture of this width is shown 800 pixels wide."""
    return max(14, round(width / 60))


def _tile(picture: Array, smooth: bool) -> Array:
    """Resizes a picture into the range of sizes of a panel; label colors are never mixed."""
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
    """Draws image, label, prediction and errors side by side.

    Without a label, draws image, prediction and overlay.

    Args:
        image: uint8 `[height, width, 3]`, or `None` to omit it, for photos that must not be shared.
        label: The true labels, `[height, width]`, or `None`.
        prediction: The predicted labels, `[height, width]`.
        info: The classes.
        confidence: The probability of the predicted class, `[height, width]` in 0..1. Adds a
            confidence map.
        palette: See `class_colors`.
        with_legend: Whether to add a legend of the classes in the panel.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
        >>> image, label = source.load(0)
        >>> prediction = dk.Predictor(dk.load_model("runs/demo"))(image)
        >>> picture = dk.visualization.panel(image, label, prediction, source.info)
        >>> dk.visualization.save_png("panel.png", picture)
    """
    present = np.unique(prediction)
    colored = _tile(colorize(prediction, info, palette), smooth=False)
    tiles = {} if image is None else {"image": _tile(image, smooth=True)}
    if image is None:
        image = np.full((*prediction.shape, 3), 128, np.uint8)
    if label is None:
        mixed = overlay(image, prediction, info, palette=palette)
        tiles |= {"prediction": colored, "overlay": _tile(mixed, smooth=True)}
    else:
        counted = rows_of(label, info) < info.num_classes
        wrong = np.mean(label[counted] != prediction[counted]) if counted.any() else 0.0
        present = np.union1d(present, np.where(counted, label, info.ignore_label))
        tiles |= {
            "label": _tile(colorize(label, info, palette), smooth=False),
            "prediction": colored,
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
    """Draws pictures of one size side by side, each with a caption above it and a thin border.

    Args:
        tiles: Pictures by caption, uint8 `[height, width, 3]`.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> black, white = np.zeros((90, 120, 3), "uint8"), np.full((90, 120, 3), 255, "uint8")
        >>> row = dk.visualization.captioned({"before": black, "after": white})
        >>> row.shape[0] > 90 and row.shape[1] > 240
        True
    """
    tiles = {_without_accents(caption): tile for caption, tile in tiles.items()}
    height, width = next(iter(tiles.values())).shape[:2]
    gap = max(4, width // 50)
    size = _text_size(len(tiles) * (width + gap) - gap)
    # A caption can be wider than a very narrow picture.
    cell = max(width, *(round(_font(size).getlength(caption)) for caption in tiles))
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
    """Draws pictures of any sizes in rows, on white.

    Args:
        panels: The pictures, uint8 `[height, width, 3]`.
        columns: The number of pictures per row.
        gap: The distance between pictures in pixels.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        UserError: If there are no pictures.

    Example:
        >>> pictures = [np.zeros((10, 20, 3), "uint8")] * 4
        >>> dk.visualization.grid(pictures, columns=2, gap=4).shape
        (24, 44, 3)
    """
    if not panels:
        raise UserError("a grid without pictures; give at least one")
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
