"""Measures the peak rate of a device with a large matrix product and a 3x3 convolution."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MATRIX, CHANNELS = 2048, 256
# Factor on the size of the matrix on a GPU. The work of both operations grows with its third power,
# because smaller operations take about as long to launch as to compute.
GPU = 4


def operands(on_gpu: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the operands of both operations, float32 noise.

    Returns:
        A square matrix, images `[count, 64, 64, channels]` and a kernel
        `[3, 3, channels, channels]`.
    """
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
    """Returns the multiply-adds per second of the faster operation.

    Args:
        product: Multiplies the matrix by itself and waits for the result.
        convolution: Convolves the images and waits for the result.
        matrix: Shape of the matrix.
        images: Shape of the images.
        tries: Number of times that each operation runs. The fastest one counts.
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
