"""Prediction of huge images in tiles with a margin, of which the center is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deeplab_keras.config import UserError
from deeplab_keras.inference.images import as_image
from deeplab_keras.inference.predictor import Predictor

# Limit of the pixels of a batch of tiles; a larger tile is a batch of one.
TOGETHER = 2_000_000


class Span(NamedTuple):
    """One tile along one side: the range that the network sees, and the range that is kept."""

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
    """Predicts the label map of an image of any size in tiles.

    Needs little more memory than the image and its labels. If the network's receptive field reaches
    at most `overlap` pixels to each side, the labels equal those of the whole image. A network with
    image pooling pools over the tile instead of the image.

    Args:
        predictor: Predicts up to `eval_batch_size` tiles at a time, fewer if they are large. A
            model of a fixed size gets tiles that have this size including the overlap.
        image: An array, see `as_image`, or a PIL image, which is converted tile by tile.
        tile_size: The (height, width) of the part of a tile that is kept.
        overlap: The number of pixels that a tile sees beyond that part on each side.
        on_tile: Called with the number of finished tiles and the number of all tiles.

    Returns:
        `[height, width]`, uint8, or int32 for more than 256 classes.

    Raises:
        UserError: The tile size is not positive, or the predictor raises an error.
    """
    if predictor.network.input_size:
        tile_size = (
            predictor.network.input_size[0] - 2 * overlap,
            predictor.network.input_size[1] - 2 * overlap,
        )
    if min(tile_size) < 1 or overlap < 0:
        raise UserError(
            f"tiles of {tile_size[0]}x{tile_size[1]} with `tile_overlap={overlap}` would be empty; "
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
    """Returns the tiles along a side.

    The network sees the same length of each tile: at the edges of the image, more of its inside.
    """
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
