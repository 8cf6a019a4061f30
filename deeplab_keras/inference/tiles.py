"""Huge images in tiles: each is predicted with its surroundings, and its middle is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.inference.images import as_image
from deeplab_keras.inference.predictor import Predictor

TOGETHER = (
    2_000_000  # pixels of the tiles that go through the network at a time, unless one has more
)


class Span(NamedTuple):
    """Along one side: what the network sees, and the part of it whose labels are kept."""

    start: int
    end: int
    kept_start: int
    kept_end: int


def predict_tiles(
    predictor: Predictor,
    image: Any,
    tile_size: tuple[int, int] = (1024, 1024),
    overlap: int = 128,
    *,
    on_tile: Callable[[int, int], None] = lambda done, count: None,
) -> np.ndarray:
    """The label map of an image of any size in little more memory than image and labels take.

    A pixel has the label that the whole image would give it where what the network sees of its
    surroundings is at most `overlap` wide; a network that looks at all of the image (image pooling)
    decides by the tile instead.

    Args:
        predictor: runs on one tile after the other, of small ones `eval_batch_size` at a time. A
            model of a fixed size gets tiles that have this size together with their overlap.
        image: an array as `as_image` takes it, or a PIL image, of which only a tile at a time
            becomes an array.
        tile_size: height and width of the part that is kept.
        overlap: pixels that a tile sees to all sides beyond it.
        on_tile: gets the number of tiles that are done and that of all.

    Returns:
        `[height, width]`, uint8, or int32 for more than 256 classes.

    Raises:
        UserError: the tile is not larger than nothing, or what the predictor raises.
    """
    if predictor.network.input_size:
        tile_size = (
            predictor.network.input_size[0] - 2 * overlap,
            predictor.network.input_size[1] - 2 * overlap,
        )
    if min(tile_size) < 1 or overlap < 0:
        raise UserError(
            f"tiles of {tile_size[0]}x{tile_size[1]} with `tile_overlap={overlap}`: nothing of a "
            "tile would be left; "
            "give a larger `tile_size` or a smaller `tile_overlap`"
        )
    width, height = image.size if isinstance(image, Image.Image) else np.shape(image)[1::-1]
    boxes = [
        (y, x)
        for y in spans(height, tile_size[0], overlap)
        for x in spans(width, tile_size[1], overlap)
    ]
    labels = np.zeros(
        (height, width), np.uint8 if predictor.network.num_classes <= 256 else np.int32
    )
    done = 0
    together = max(1, TOGETHER // ((tile_size[0] + 2 * overlap) * (tile_size[1] + 2 * overlap)))
    for group in _groups(boxes, min(predictor.config.eval_batch_size, together)):
        pieces = np.stack([_crop(image, y, x, predictor.network.channels) for y, x in group])
        for (y, x), found in zip(group, predictor.predict_batch(pieces), strict=True):
            kept = found[
                y.kept_start - y.start : y.kept_end - y.start,
                x.kept_start - x.start : x.kept_end - x.start,
            ]
            labels[y.kept_start : y.kept_end, x.kept_start : x.kept_end] = kept
        done += len(group)
        on_tile(done, len(boxes))
    return labels


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """The tiles along a side. All see equally much: at the edges, where nothing lies beyond, more of the inside."""
    seen = min(tile + 2 * overlap, length)
    starts = [min(max(first - overlap, 0), length - seen) for first in range(0, length, tile)]
    return [
        Span(start, start + seen, first, min(first + tile, length))
        for start, first in zip(starts, range(0, length, tile), strict=True)
    ]


def _groups(boxes: list[tuple[Span, Span]], batch_size: int) -> Iterator[list[tuple[Span, Span]]]:
    for first in range(0, len(boxes), batch_size):
        yield boxes[first : first + batch_size]


def _crop(image: Any, rows: Span, columns: Span, channels: int) -> np.ndarray:
    if isinstance(image, Image.Image):
        return as_image(image.crop((columns.start, rows.start, columns.end, rows.end)), channels)
    return as_image(image[rows.start : rows.end, columns.start : columns.end], channels)
