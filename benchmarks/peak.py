"""What a machine can do at most: a large matrix product and a 3x3 convolution, the same work for whoever is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MATRIX, CHANNELS = 2048, 256
# times the matrix' side there, and as much more of the convolution's work: else starting the work
# costs as much
GPU = 4


def operands(on_gpu: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A square matrix, images `[count, 64, 64, channels]` and a kernel `[3, 3, channels, channels]`, float32 noise."""
    random, scale = np.random.default_rng(0), GPU if on_gpu else 1
    shapes = ((MATRIX * scale,) * 2, (scale**3, 64, 64, CHANNELS), (3, 3, CHANNELS, CHANNELS))
    matrix, images, kernel = (random.standard_normal(shape, np.float32) for shape in shapes)
    return matrix, images, kernel


def best_rate(
    product: Callable[[], Any],
    convolution: Callable[[], Any],
    matrix: Sequence[int],
    images: Sequence[int],
    tries: int = 3,
) -> float:
    """Multiply-adds a second of the faster one.

    Args:
        product: multiplies the matrix with itself and waits for the end.
        convolution: convolves the images and waits for the end.
        matrix: shape.
        images: shape.
        tries: of each; the best one counts.
    """
    count, height, width, channels = images
    best = 0.0
    for run, multiply_adds in (
        (product, matrix[0] ** 3),
        (convolution, count * height * width * 9 * channels**2),
    ):
        run()
        for _ in range(tries):
            start = time.perf_counter()
            run()
            best = max(best, multiply_adds / (time.perf_counter() - start))
    return best
