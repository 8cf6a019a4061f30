"""Colors of classes and label maps: palettes, colored maps, overlays, errors and confidence."""

from __future__ import annotations

import functools

import numpy as np

from deeplab_keras.config import unknown_name
from deeplab_keras.data.info import DatasetInfo

Color = tuple[int, int, int]
Array = np.ndarray

PALETTES = ("dataset", "color_blind")
BLACK, WHITE, WRONG = (0, 0, 0), (255, 255, 255), (255, 64, 32)


# --- Colors ---


def class_colors(info: DatasetInfo, palette: str = "dataset") -> Array:
    """Returns the color of each class, followed by the color of ignored pixels.

    Ignored pixels are black, or white if black is the color of a class (PASCAL VOC's background).

    Args:
        info: The classes.
        palette: "dataset" for the dataset's own colors, "color_blind" for a color-blind-safe
            palette.

    Returns:
        uint8 `[num_classes + 1, 3]`.

    Raises:
        UserError: If the palette is unknown.

    Example:
        >>> info = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val").info
        >>> dk.visualization.class_colors(info).shape
        (11, 3)
        >>> dk.visualization.class_colors(info, palette="color_blind")[0].tolist()
        [0, 114, 178]
    """
    if palette == "colour_blind":  # the former spelling
        palette = "color_blind"
    if palette not in PALETTES:
        raise unknown_name("palette", palette, PALETTES)
    colors = info.palette if palette == "dataset" else colorblind_palette(info.num_classes)
    ignored = WHITE if BLACK in colors else BLACK
    return np.array([*colors, ignored], np.uint8)


class_colours = class_colors  # the former name


# Okabe and Ito's eight colors without black.
OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
DARKEST = 0.38  # OKLab lightness, from 0 (black) to 1 (white)
# Simulation of protanopia, deuteranopia and tritanopia on linear RGB: Machado, Oliveira and
# Fernandes 2009, severity 1.
COLOR_BLINDNESS = (
    (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
)
COLOUR_BLINDNESS = COLOR_BLINDNESS  # the former name


@functools.cache
def colorblind_palette(num_classes: int) -> tuple[Color, ...]:
    """Returns a color-blind-safe palette: Okabe and Ito's seven colors, then the most distant ones.

    Each further color has the largest distance to all previous ones and to black and white, which
    are the colors of ignored pixels and of the page. The distance is the smallest OKLab distance
    under full color vision and the three kinds of color blindness. Very dark colors are excluded,
    because they look black in small areas.

    Args:
        num_classes: The number of colors.

    Returns:
        RGB tuples in 0..255.

    Example:
        >>> dk.visualization.colorblind_palette(3)
        ((0, 114, 178), (230, 159, 0), (0, 158, 115))
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
    """Returns the smallest OKLab distance over all kinds of vision, `[len(a), len(b)]`."""
    eyes = [np.eye(3), *map(np.array, COLOR_BLINDNESS)]
    return np.min(
        [np.linalg.norm(_oklab(a, eye)[:, None] - _oklab(b, eye)[None], axis=-1) for eye in eyes],
        axis=0,
    )


def _oklab(colors: Array, eye: Array) -> Array:
    """Converts sRGB colors in 0..255, seen through the matrix `eye`, to OKLab (Ottosson 2020)."""
    encoded = np.asarray(colors) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(eye).T, 0, 1)
    lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.array(lms).T) @ np.array(lab).T


# --- Label maps ---


def rows_of(labels: Array, info: DatasetInfo) -> Array:
    """Returns the row of each pixel in `class_colors`: its class, or the last row for others."""
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < info.num_classes) & (labels != info.ignore_label)
    return np.where(known, labels, info.num_classes)


def _strips(height: int) -> list[slice]:
    """Splits all rows into strips, so that intermediate results of huge images fit into memory."""
    return [slice(top, top + 256) for top in range(0, height, 256)]


def colorize(labels: Array, info: DatasetInfo, palette: str = "dataset") -> Array:
    """Draws a label map in the colors of the classes; other values get the color of ignored pixels.

    Args:
        labels: `[height, width]`, integers.
        info: The classes.
        palette: See `class_colors`.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> image, label = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val").load(0)
        >>> info = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val").info
        >>> dk.visualization.colorize(label, info).shape == image.shape
        True
    """
    colors, picture = class_colors(info, palette), np.empty((*np.shape(labels), 3), np.uint8)
    for strip in _strips(len(picture)):
        picture[strip] = colors[rows_of(labels[strip], info)]
    return picture


def classes_in(labels: Array) -> Array:
    """Returns the values in a label map, in ascending order.

    Args:
        labels: `[height, width]`, integers.

    Example:
        >>> dk.visualization.classes_in(np.array([[3, 0], [255, 3]])).tolist()
        [0, 3, 255]
    """
    return np.unique(np.concatenate([np.unique(labels[strip]) for strip in _strips(len(labels))]))


def overlay(
    image: Array, labels: Array, info: DatasetInfo, alpha: float = 0.5, palette: str = "dataset"
) -> Array:
    """Blends an image with the colors of the classes; ignored pixels show the image.

    Args:
        image: uint8 `[height, width, 3]`.
        labels: `[height, width]`, integers.
        info: The classes.
        alpha: The weight of the color, 0..1.
        palette: See `class_colors`.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
        >>> image, label = source.load(0)
        >>> dk.visualization.overlay(image, label, source.info).shape == image.shape
        True
    """
    colors, picture = class_colors(info, palette), np.empty(np.shape(image), np.uint8)
    for strip in _strips(len(picture)):
        rows = rows_of(labels[strip], info)
        share = np.where(rows < info.num_classes, alpha, 0)[..., None]
        picture[strip] = image[strip] * (1 - share) + colors[rows] * share + 0.5
    return picture


# Cividis, from dark blue to yellow: its lightness increases for every kind of vision.
CIVIDIS = ((0, 32, 77), (66, 78, 108), (124, 123, 120), (188, 175, 111), (255, 234, 70))


def confidence_map(confidence: Array) -> Array:
    """Draws the confidence of each pixel, from dark blue (0) to yellow (1).

    Args:
        confidence: `[height, width]` in 0..1.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> dk.visualization.confidence_map(np.array([[0.0, 1.0]])).tolist()
        [[[0, 32, 77], [255, 234, 70]]]
    """
    stops = np.linspace(0, 1, len(CIVIDIS))
    channels = [np.interp(confidence, stops, [color[c] for color in CIVIDIS]) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def error_map(image: Array, label: Array, prediction: Array, info: DatasetInfo) -> Array:
    """Draws wrong pixels in red and ignored pixels in black on a dark gray image.

    Args:
        image: uint8 `[height, width, 3]`.
        label: The true labels, `[height, width]`.
        prediction: The predicted labels, `[height, width]`.
        info: The classes.

    Returns:
        uint8 `[height, width, 3]`.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
        >>> image, label = source.load(0)
        >>> prediction = dk.Predictor(dk.load_model("runs/demo"))(image)
        >>> dk.visualization.error_map(image, label, prediction, source.info).shape == image.shape
        True
    """
    gray = np.asarray(image, np.float32).mean(-1, keepdims=True) * 0.45 + 30
    picture = np.repeat(gray, 3, axis=-1).astype(np.uint8)
    picture[label != prediction] = WRONG
    picture[rows_of(label, info) == info.num_classes] = BLACK
    return picture
