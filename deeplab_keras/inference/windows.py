"""Overlapping windows over an image, their logits averaged: all of it at once, or some rows at a time."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.resizing import resize, resize_rows


class Windows:
    """Where the windows lie in images of a size.

    Args:
        network: one of a fixed size gives the window's size.
        size: height and width of the images.
        config: size and step of the window.

    Attributes:
        size: height and width of a window, at most the image's.
        stride: step to the next one, at most the window.
        corners: first row and column of each, row by row; the last ones end at the image's edge.

    Raises:
        UserError: the stride is larger than the window.
    """

    def __init__(self, network: Network, size: tuple[int, int], config: EvalConfig) -> None:
        window = network.input_size or config.eval_crop_size
        self.stride = config.eval_stride or tuple(max(1, length * 2 // 3) for length in window)
        if self.stride[0] > window[0] or self.stride[1] > window[1]:
            raise UserError(
                f"`eval_stride={self.stride[0]},{self.stride[1]}` leaves gaps between windows of "
                f"{window[0]}x{window[1]}; "
                "give at most their size"
            )
        self.size = (min(window[0], size[0]), min(window[1], size[1]))
        columns = window_starts(size[1], self.size[1], self.stride[1])
        self.corners = [
            (y, x) for y in window_starts(size[0], self.size[0], self.stride[0]) for x in columns
        ]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along a side; the last window ends at the edge."""
    steps = -(-max(length - window, 0) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]


class Seen:
    """Logits of a window that went through the network; rows go as soon as others below them were asked for.

    Args:
        y: the window's first row in the image.
        x: its first column.
        logits: `[batch, height, width, num_classes]`, at the window's size or smaller.
    """

    def __init__(self, y: int, x: int, logits: np.ndarray) -> None:
        self.y, self.x, self.shape = y, x, logits.shape
        self._rows: list[np.ndarray | None] = [
            logits[:, row].copy() for row in range(logits.shape[1])
        ]  # freed one by one

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """The rows from `top` to `bottom`; none above `top` may be asked for later."""
        self._rows[:top] = [None] * top
        return np.stack([row for row in self._rows[top:bottom] if row is not None], axis=1)


def _run(
    windows: Windows,
    images: tf.Tensor,
    input_size: tuple[int, int],
    together: int,
    scores: Callable[[tf.Tensor], tf.Tensor],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """First row, first column and logits of the windows in order; so many go through the network at a time."""
    rows, columns = windows.size
    for first in range(0, len(windows.corners), together):
        group = windows.corners[first : first + together]
        pieces = tf.cast(
            tf.concat([images[:, y : y + rows, x : x + columns] for y, x in group], axis=0),
            tf.float32,
        )
        logits = scores(resize(pieces, input_size)).numpy()
        for (y, x), part in zip(group, np.split(logits, len(group)), strict=True):
            yield y, x, part


def slide(network: Network, images: tf.Tensor, config: EvalConfig) -> np.ndarray:
    """Mean of the logits of all windows at the images' size: float32 `[batch, height, width, num_classes]`.

    The arguments are those of `WindowRows`.

    Raises:
        UserError: the stride is larger than the window.
    """
    batch, height, width = images.shape[:3]
    windows = Windows(network, (height, width), config)
    rows, columns = windows.size
    total = np.zeros((batch, height, width, network.num_classes), np.float32)
    count = np.zeros((height, width, 1), np.float32)
    input_size, together = (
        network.input_size or windows.size,
        max(1, config.eval_batch_size // batch),
    )
    for y, x, part in _run(
        windows, images, input_size, together, lambda pieces: resize(network(pieces), windows.size)
    ):
        total[:, y : y + rows, x : x + columns] += part
        count[y : y + rows, x : x + columns] += 1
    total /= count
    return total


class WindowRows:
    """What `slide` gives, some rows at a time from the top down, so that it never lies in memory as a whole.

    Kept is of each window what later rows can ask for, and of a network that ends with a resize the
    logits as they are before
    it: for a window of 512 rows a band of the image that is about 700 rows high, at a quarter of
        the width and height.
    Sums are those of `slide` in the same order; the resize of some rows alone rounds otherwise in
    the last digits.

    Args:
        network: a model.
        images: `[batch, height, width, channels]`, uint8 or float32 in 0..255.
        config: size and step of the window, windows that go together.
        mirrored: the rows are given mirrored, as of a mirrored image.

    Attributes:
        shape: of the whole: `[batch, height, width, num_classes]`.
        smaller: whether less is kept than the whole.

    Raises:
        UserError: the stride is larger than the window.
    """

    def __init__(
        self, network: Network, images: tf.Tensor, config: EvalConfig, mirrored: bool = False
    ) -> None:
        batch, height, width = images.shape[:3]
        self.shape, self.mirrored = (batch, height, width, network.num_classes), mirrored
        self._windows = windows = Windows(network, (height, width), config)
        input_size = (
            network.input_size or windows.size
        )  # one of fixed size gets what is lower or narrower resized to it
        before_resize = network.ends_with_resize and input_size == windows.size
        rows, columns = (
            length / step for length, step in zip(windows.size, windows.stride, strict=True)
        )  # of windows a pixel
        self.smaller = before_resize or windows.size[0] * (rows + 1) / 2 * columns < height
        together = max(1, config.eval_batch_size // batch)

        def scores(pieces: tf.Tensor) -> tf.Tensor:
            return (
                network.before_resize(pieces)
                if before_resize
                else resize(network(pieces), windows.size)
            )

        self._coming = _run(windows, images, input_size, together, scores)
        self._count = 0  # of those that came
        self._kept: collections.deque[Seen] = collections.deque()

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """The rows from `top` to `bottom`; `top` must not lie above that of an earlier call.

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
                total[:, *here] += resize_rows(seen, (height, width), first - seen.y, last - seen.y)
                count[here] += 1
        total /= count
        return total[:, :, ::-1] if self.mirrored else total
