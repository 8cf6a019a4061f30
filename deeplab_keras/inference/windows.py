"""Sliding-window inference: mean logits of overlapping windows, at once or some rows at a time."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.inference.network import Network


class Windows:
    """The positions of the windows in images of one size.

    Args:
        network: The network; its fixed input size, if it has one, is the window's size.
        size: The (height, width) of the images.
        config: The size and stride of the windows.

    Attributes:
        size: The (height, width) of a window, at most the image's.
        stride: The step to the next window, at most the window's size.
        corners: The first (row, column) of each window, row by row. The last windows end at the
            image's edge.

    Raises:
        UserError: The stride is larger than the window.
    """

    def __init__(self, network: Network, size: tuple[int, int], config: EvalConfig) -> None:
        window = network.input_size or config.eval_crop_size
        self.stride = config.eval_stride or tuple(max(1, length * 2 // 3) for length in window)
        if self.stride[0] > window[0] or self.stride[1] > window[1]:
            raise UserError(
                f"`eval_stride={self.stride[0]},{self.stride[1]}` leaves gaps between windows of "
                f"{window[0]}x{window[1]}; give at most their size"
            )
        self.size = (min(window[0], size[0]), min(window[1], size[1]))
        columns = window_starts(size[1], self.size[1], self.stride[1])
        self.corners = [
            (y, x) for y in window_starts(size[0], self.size[0], self.stride[0]) for x in columns
        ]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns the first pixel of each window along a side; the last ends at the edge."""
    steps = -(-max(length - window, 0) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]


class Seen:
    """The logits of a window; rows are freed when rows further down are requested.

    Args:
        y: The window's first row in the image.
        x: The window's first column in the image.
        logits: `[batch, height, width, num_classes]`, at the window's size or smaller.
    """

    def __init__(self, y: int, x: int, logits: np.ndarray) -> None:
        self.y, self.x, self.shape = y, x, logits.shape
        # Separate copies, so that they can be freed one by one.
        self._rows: list[np.ndarray | None] = [
            logits[:, row].copy() for row in range(logits.shape[1])
        ]

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Returns the rows from `top` to `bottom`; later calls must not start above `top`."""
        self._rows[:top] = [None] * top
        return np.stack([row for row in self._rows[top:bottom] if row is not None], axis=1)


def _run(
    windows: Windows,
    images: Any,
    together: int,
    scores: Callable[[np.ndarray], Any],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields the first row, first column and logits of each window, computed in batches."""
    rows, columns = windows.size
    images = np.asarray(images)
    for first in range(0, len(windows.corners), together):
        group = windows.corners[first : first + together]
        pieces = np.concatenate([images[:, y : y + rows, x : x + columns] for y, x in group])
        logits = np.asarray(scores(pieces))
        for (y, x), part in zip(group, np.split(logits, len(group)), strict=True):
            yield y, x, part


def slide(network: Network, images: Any, config: EvalConfig) -> np.ndarray:
    """Returns the mean of the logits of all windows, at the images' size.

    Args:
        network: See `WindowRows`.
        images: See `WindowRows`.
        config: See `WindowRows`.

    Returns:
        float32 `[batch, height, width, num_classes]`.

    Raises:
        UserError: The stride is larger than the window.
    """
    batch, height, width = images.shape[:3]
    windows = Windows(network, (height, width), config)
    rows, columns = windows.size
    total = np.zeros((batch, height, width, network.num_classes), np.float32)
    count = np.zeros((height, width, 1), np.float32)
    input_size = network.input_size or windows.size
    together, resize = max(1, config.eval_batch_size // batch), network.arithmetic.resize

    def scores(pieces: np.ndarray) -> Any:
        return resize(network(resize(pieces, input_size)), windows.size)

    for y, x, part in _run(windows, images, together, scores):
        total[:, y : y + rows, x : x + columns] += part
        count[y : y + rows, x : x + columns] += 1
    total /= count
    return total


class WindowRows:
    """The result of `slide`, some rows at a time from the top down, never in memory as a whole.

    Keeps the part of each window that later rows need. If the network ends with a resize, these are
    the logits before the resize: for a window of 512 rows a band of the image about 700 rows high,
    at a quarter of the width and height. Adds up in the same order as `slide`; resizing only some
    rows differs in the last digits.

    Args:
        network: The model.
        images: `[batch, height, width, channels]`, uint8 or float32 in 0..255.
        config: The size and stride of the windows, and the batch size.
        mirrored: Whether to flip the rows, because the image is a flipped one.

    Attributes:
        shape: The shape of the complete result: `[batch, height, width, num_classes]`.
        smaller: Whether this needs less memory than the complete result.

    Raises:
        UserError: The stride is larger than the window.
    """

    def __init__(
        self, network: Network, images: Any, config: EvalConfig, mirrored: bool = False
    ) -> None:
        batch, height, width = images.shape[:3]
        self.shape, self.mirrored = (batch, height, width, network.num_classes), mirrored
        self._windows = windows = Windows(network, (height, width), config)
        # A network of a fixed size gets windows that are smaller, at the size of a small image,
        # resized to its input size.
        input_size = network.input_size or windows.size
        before_resize = network.ends_with_resize and input_size == windows.size
        # Rows and columns of windows that cover a pixel.
        rows, columns = (
            length / step for length, step in zip(windows.size, windows.stride, strict=True)
        )
        self.smaller = before_resize or windows.size[0] * (rows + 1) / 2 * columns < height
        together, resize = max(1, config.eval_batch_size // batch), network.arithmetic.resize

        def scores(pieces: np.ndarray) -> Any:
            pieces = resize(pieces, input_size)
            if before_resize:
                return network.before_resize(pieces)
            return resize(network(pieces), windows.size)

        self._resize_rows = network.arithmetic.resize_rows
        self._coming = _run(windows, images, together, scores)
        self._count = 0  # of the windows computed so far
        self._kept: collections.deque[Seen] = collections.deque()

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """Returns the rows from `top` to `bottom`; `top` must not decrease from call to call.

        Returns:
            float32 `[batch, bottom - top, width, num_classes]`.
        """
        (height, width), corners = self._windows.size, self._windows.corners
        while self._count < len(corners) and corners[self._count][0] < bottom:
            self._kept.append(Seen(*next(self._coming)))
            self._count += 1
        while self._kept[0].y + height <= top:
            self._kept.popleft()
        total = np.zeros((self.shape[0], bottom - top, *self.shape[2:]), np.float32)
        count = np.zeros((bottom - top, self.shape[2], 1), np.float32)
        for seen in self._kept:
            first, last = max(top, seen.y), min(bottom, seen.y + height)
            if first < last:
                here = np.s_[first - top : last - top, seen.x : seen.x + width]
                total[:, *here] += self._resize_rows(
                    seen, (height, width), first - seen.y, last - seen.y
                )
                count[here] += 1
        total /= count
        return total[:, :, ::-1] if self.mirrored else total
