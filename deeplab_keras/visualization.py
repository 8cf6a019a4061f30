"""Pictures of label maps: colours, overlays, panels with captions and legend, the confusion matrix.

Every picture is a uint8 array `[height, width, 3]`; text is drawn at its final size, so that it stays crisp.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_keras.config import UserError, unknown_name
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.writing import replacing

Colour = tuple[int, int, int]
Array = np.ndarray

PALETTES = ("dataset", "colorblind")
BLACK, WHITE, INK, RIM, WRONG = (0, 0, 0), (255, 255, 255), (32, 33, 36), (160, 160, 160), (255, 64, 32)

# A panel shows an image with its long side in this range: small ones are enlarged by a whole factor, large ones shrunk.
SMALLEST, LARGEST = 400, 640
NAME_LENGTH = 24


# --- Colours ---


def class_colours(info: DatasetInfo, palette: str = "dataset") -> Array:
    """The colour of each class, and of ignored pixels behind them: uint8 `[num_classes + 1, 3]`.

    Ignored pixels are black, or white where black is a class's colour (PASCAL VOC's background).

    Args:
        info: the classes.
        palette: "dataset" for its own colours, "colorblind" for colours that stay apart under colour blindness.
    """
    if palette not in PALETTES:
        raise unknown_name("palette", palette, PALETTES)
    colours = info.palette if palette == "dataset" else colorblind_palette(info.num_classes)
    ignored = WHITE if BLACK in colours else BLACK
    return np.array([*colours, ignored], np.uint8)


# Okabe and Ito's eight, without black.
OKABE_ITO = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
DARKEST = 0.38  # OKLab lightness, black 0 and white 1
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: protanopia, deuteranopia, tritanopia.
COLOUR_BLINDNESS = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
)


@functools.cache
def colorblind_palette(num_classes: int) -> tuple[Colour, ...]:
    """Colours that differ for every eye: Okabe and Ito's seven, then each the one farthest from all before it.

    Far is the distance in OKLab for the eye that sees it smallest: with full colour vision or one of the three kinds of
    colour blindness. They keep away from black and white too, the ignored pixels and the page. Very dark colours are
    left out, because in small areas all of them look black.
    """
    levels = np.arange(0, 256, 15)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    candidates = candidates[_oklab(candidates, np.eye(3))[:, 0] > DARKEST]
    chosen = list(OKABE_ITO[:num_classes])
    distance = _perceived_distance(candidates, np.array([BLACK, WHITE, *OKABE_ITO])).min(1)
    while len(chosen) < num_classes:
        best = candidates[distance.argmax()]
        chosen.append((int(best[0]), int(best[1]), int(best[2])))
        distance = np.minimum(distance, _perceived_distance(candidates, best[None])[:, 0])
    return tuple(chosen)


def _perceived_distance(a: Array, b: Array) -> Array:
    """`[len(a), len(b)]` OKLab distances of RGB colours, each for the kind of vision that sees it smallest."""
    eyes = [np.eye(3), *map(np.array, COLOUR_BLINDNESS)]
    return np.min([np.linalg.norm(_oklab(a, eye)[:, None] - _oklab(b, eye)[None], axis=-1) for eye in eyes], axis=0)


def _oklab(colours: Array, eye: Array) -> Array:
    """OKLab (Ottosson 2020) of sRGB colours 0..255 as an eye sees them that mixes linear RGB by the matrix `eye`."""
    encoded = np.asarray(colours) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(eye).T, 0, 1)
    lms = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
           [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    lab = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
           [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.cbrt(linear @ np.array(lms).T) @ np.array(lab).T


# --- Label maps ---


def _rows(labels: Array, info: DatasetInfo) -> Array:
    """Row of each pixel in `class_colours`: its class, or the last row where it is none."""
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < info.num_classes) & (labels != info.ignore_label)
    return np.where(known, labels, info.num_classes)


def colorize(labels: Array, info: DatasetInfo, palette: str = "dataset") -> Array:
    """A label map `[height, width]` in the classes' colours; what is no class has the colour of ignored pixels."""
    return class_colours(info, palette)[_rows(labels, info)]


def overlay(image: Array, labels: Array, info: DatasetInfo, alpha: float = 0.5, palette: str = "dataset") -> Array:
    """The image with the classes' colours over it; ignored pixels show the image alone.

    Args:
        image: uint8 `[height, width, 3]`.
        labels: `[height, width]`.
        info: the classes.
        alpha: share of the colour, 0..1.
        palette: as for `class_colours`.
    """
    rows = _rows(labels, info)
    share = np.where(rows < info.num_classes, alpha, 0)[..., None]
    return (image * (1 - share) + class_colours(info, palette)[rows] * share + 0.5).astype(np.uint8)


def error_map(image: Array, label: Array, prediction: Array, info: DatasetInfo) -> Array:
    """The image in dim grey, wrong pixels in red, pixels that do not count in black."""
    grey = np.asarray(image, np.float32).mean(-1, keepdims=True) * 0.45 + 30
    picture = np.repeat(grey, 3, axis=-1).astype(np.uint8)
    picture[label != prediction] = WRONG
    picture[_rows(label, info) == info.num_classes] = BLACK
    return picture


# --- Text, legends, panels ---


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]


def _without_accents(text: str) -> str:
    """The text in letters that the font has."""
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


def _short(name: str) -> str:
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
) -> Array:
    """Swatches with the classes' names, in columns.

    Args:
        info: the classes.
        present: ids to list, in any order; the ignore label is listed as "not labelled". Default: all classes.
        width: width of the picture; more, if the longest name needs it.
        text_size: height of the text in pixels; default by the width.
        palette: as for `class_colours`.
    """
    listed = set(range(info.num_classes) if present is None else map(int, present))
    classes = sorted(listed & set(range(info.num_classes)) - {info.ignore_label})
    colours = class_colours(info, palette)
    entries = [(_short(info.class_names[i]), colours[i]) for i in classes]
    if info.ignore_label in listed:
        entries.append(("not labelled", colours[-1]))
    size = text_size or _text_size(width)
    line, swatch, gap = round(1.7 * size), round(1.1 * size), round(0.5 * size)
    column = max((round(_font(size).getlength(name)) for name, _ in entries), default=0) + swatch + 4 * gap
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
    palette: str = "dataset",
    with_legend: bool = True,
) -> Array:
    """Image, label, prediction and errors side by side; without a label image, prediction and overlay.

    Args:
        image: uint8 `[height, width, 3]`; None leaves it out, for photographs that may not be passed on.
        label: `[height, width]`, or None.
        prediction: `[height, width]`.
        info: the classes.
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
        counted = _rows(label, info) < info.num_classes
        wrong = np.mean(label[counted] != prediction[counted]) if counted.any() else 0.0
        present = np.union1d(present, np.where(counted, label, info.ignore_label))
        tiles |= {
            "label": _tile(colorize(label, info, palette), smooth=False),
            "prediction": coloured,
            f"errors: {100 * wrong:.1f} %": _tile(error_map(image, label, prediction, info), smooth=False),
        }
    row = captioned(tiles)
    if not with_legend:
        return row
    return grid([row, legend(info, present, row.shape[1], palette=palette)], gap=_text_size(row.shape[1]) // 3)


def captioned(tiles: dict[str, Array]) -> Array:
    """Pictures of one size side by side, each below its caption."""
    tiles = {_without_accents(caption): tile for caption, tile in tiles.items()}
    height, width = next(iter(tiles.values())).shape[:2]
    gap = max(4, width // 50)
    size = _text_size(len(tiles) * (width + gap) - gap)
    cell = max(width, *(round(_font(size).getlength(caption)) for caption in tiles))  # wider than a very narrow image
    total = len(tiles) * (cell + gap) - gap
    bar = round(1.8 * size)
    picture = Image.new("RGB", (total, bar + height), WHITE)
    draw = ImageDraw.Draw(picture)
    for i, (caption, tile) in enumerate(tiles.items()):
        left = i * (cell + gap)
        draw.text((left + cell / 2, bar / 2), caption, fill=INK, font=_font(size), anchor="mm")
        picture.paste(Image.fromarray(tile), (left + (cell - width) // 2, bar))
    return np.array(picture)


def grid(panels: Sequence[Array], columns: int = 1, gap: int = 16) -> Array:
    """Pictures of any sizes in rows of `columns`, on white."""
    if not panels:
        raise UserError("a grid of no pictures; give at least one")
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [max(row[c].shape[1] for row in rows if c < len(row)) for c in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    canvas = np.full((sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (len(widths) - 1), 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            top, left = sum(heights[:r]) + gap * r, sum(widths[:c]) + gap * c
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


# --- Figures and files ---


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
    names = [_short(name) for name in report.per_class_iou]
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
