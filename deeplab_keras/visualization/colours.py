"""Label maps in colours: palettes, the map itself, over its image, its errors."""

from __future__ import annotations

import functools

import numpy as np

from deeplab_keras.config import unknown_name
from deeplab_keras.data.info import DatasetInfo

Colour = tuple[int, int, int]
Array = np.ndarray

PALETTES = ("dataset", "colour_blind")
BLACK, WHITE, WRONG = (0, 0, 0), (255, 255, 255), (255, 64, 32)


# --- Colours ---


def class_colours(info: DatasetInfo, palette: str = "dataset") -> Array:
    """The colour of each class, and of ignored pixels behind them: uint8 `[num_classes + 1, 3]`.

    Ignored pixels are black, or white where black is a class's colour (PASCAL VOC's background).

    Args:
        info: the classes.
        palette: "dataset" for its own colours, "colour_blind" for colours that stay apart under
            colour blindness.
    """
    if palette not in PALETTES:
        raise unknown_name("palette", palette, PALETTES)
    colours = info.palette if palette == "dataset" else colorblind_palette(info.num_classes)
    ignored = WHITE if BLACK in colours else BLACK
    return np.array([*colours, ignored], np.uint8)


# Okabe and Ito's eight, without black.
OKABE_ITO = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
DARKEST = 0.38  # OKLab lightness, black 0 and white 1
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB: protanopia, deuteranopia,
# tritanopia.
COLOUR_BLINDNESS = (
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


@functools.cache
def colorblind_palette(num_classes: int) -> tuple[Colour, ...]:
    """Colours that differ for every eye: Okabe and Ito's seven, then each the one farthest from all before it.

    Far is the distance in OKLab for the eye that sees it smallest: with full colour vision or one
    of the three kinds of colour blindness. They keep away from black and white too, the ignored
    pixels and the page. Very dark colours are left out, because in small areas all of them look
    black.
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
    return np.min(
        [np.linalg.norm(_oklab(a, eye)[:, None] - _oklab(b, eye)[None], axis=-1) for eye in eyes],
        axis=0,
    )


def _oklab(colours: Array, eye: Array) -> Array:
    """OKLab (Ottosson 2020) of sRGB colours 0..255 as an eye sees them that mixes linear RGB by the matrix `eye`."""
    encoded = np.asarray(colours) / 255
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
    """Row of each pixel in `class_colours`: its class, or the last row where it is none."""
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < info.num_classes) & (labels != info.ignore_label)
    return np.where(known, labels, info.num_classes)


def _strips(height: int) -> list[slice]:
    """All rows, some at a time: what is reckoned of a huge image then fits into the memory."""
    return [slice(top, top + 256) for top in range(0, height, 256)]


def colorize(labels: Array, info: DatasetInfo, palette: str = "dataset") -> Array:
    """A label map `[height, width]` in the classes' colours; what is no class has the colour of ignored pixels."""
    colours, picture = class_colours(info, palette), np.empty((*np.shape(labels), 3), np.uint8)
    for strip in _strips(len(picture)):
        picture[strip] = colours[rows_of(labels[strip], info)]
    return picture


def classes_in(labels: Array) -> Array:
    """The ids in a label map, in rising order."""
    return np.unique(np.concatenate([np.unique(labels[strip]) for strip in _strips(len(labels))]))


def overlay(
    image: Array, labels: Array, info: DatasetInfo, alpha: float = 0.5, palette: str = "dataset"
) -> Array:
    """The image with the classes' colours over it; ignored pixels show the image alone.

    Args:
        image: uint8 `[height, width, 3]`.
        labels: `[height, width]`.
        info: the classes.
        alpha: share of the colour, 0..1.
        palette: as for `class_colours`.
    """
    colours, picture = class_colours(info, palette), np.empty(np.shape(image), np.uint8)
    for strip in _strips(len(picture)):
        rows = rows_of(labels[strip], info)
        share = np.where(rows < info.num_classes, alpha, 0)[..., None]
        picture[strip] = image[strip] * (1 - share) + colours[rows] * share + 0.5
    return picture


# Cividis: one order of lightness for every eye, from dark blue to yellow.
CIVIDIS = ((0, 32, 77), (66, 78, 108), (124, 123, 120), (188, 175, 111), (255, 234, 70))


def confidence_map(confidence: Array) -> Array:
    """How sure the network is of each pixel, `[height, width]` in 0..1: from dark blue (0) to yellow (1)."""
    stops = np.linspace(0, 1, len(CIVIDIS))
    channels = [np.interp(confidence, stops, [colour[c] for colour in CIVIDIS]) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


def error_map(image: Array, label: Array, prediction: Array, info: DatasetInfo) -> Array:
    """The image in dim grey, wrong pixels in red, pixels that do not count in black."""
    grey = np.asarray(image, np.float32).mean(-1, keepdims=True) * 0.45 + 30
    picture = np.repeat(grey, 3, axis=-1).astype(np.uint8)
    picture[label != prediction] = WRONG
    picture[rows_of(label, info) == info.num_classes] = BLACK
    return picture
