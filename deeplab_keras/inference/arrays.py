"""NumPy's arithmetic of class scores, for exported files and Keras models on JAX.

See `network.Arithmetic`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from deeplab_keras.inference.resizing import MOST_CLASSES, by_class, resize, resize_rows

__all__ = [
    "as_array",
    "decide",
    "flip",
    "in_parallel",
    "is_finite",
    "log_of_mean",
    "resize",
    "resize_rows",
    "softmax",
    "strip_bytes",
]

MOST_STRIP_BYTES = 1 << 21  # small enough for the processor's cache
LEAST_STRIP_BYTES = 1 << 18  # smaller strips save little memory and take longer
MOST_THREADS = 8


def strip_bytes(needed: int) -> int:
    """See `network.Arithmetic`. Each thread holds about four times as many in memory."""
    return min(max(needed // 64, LEAST_STRIP_BYTES), MOST_STRIP_BYTES)


def as_array(x: Any) -> np.ndarray:
    """See `network.Arithmetic`."""
    return np.asarray(x)


def flip(x: np.ndarray) -> np.ndarray:
    """See `network.Arithmetic`."""
    return x[:, :, ::-1]


def softmax(scores: np.ndarray) -> np.ndarray:
    """See `network.Arithmetic`."""
    result = np.exp(scores - scores.max(-1, keepdims=True))
    result /= result.sum(-1, keepdims=True)
    return result


def log_of_mean(parts: list[np.ndarray]) -> np.ndarray:
    """See `network.Arithmetic`."""
    total = sum(softmax(part) for part in parts)
    return np.log(np.maximum(total / np.float32(len(parts)), np.finfo(np.float32).tiny))


def decide(scores: np.ndarray, with_confidence: bool = False) -> tuple[np.ndarray, ...]:
    """See `network.Arithmetic`."""
    if scores.shape[-1] > MOST_CLASSES:
        labels = scores.argmax(-1)
    else:
        classes = by_class(scores).swapaxes(1, 2)
        best = classes.max(1, keepdims=True)
        # The first class with the best score has the largest number.
        numbers = np.arange(scores.shape[-1], 0, -1, dtype=np.uint8)[:, None, None]
        found = np.equal(classes, best).view(np.uint8)
        found *= numbers
        # At least 1, so that a label is a class even where a resize overflowed to NaN.
        labels = scores.shape[-1] - np.maximum(found.max(1), 1).astype(np.int32)
    labels = labels.astype(np.int32, copy=False)
    if not with_confidence:
        return (labels,)
    return labels, 1 / np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)


def in_parallel(function: Callable[[int], Any], items: Iterable[int]) -> list[Any]:
    """See `network.Arithmetic`. NumPy releases the interpreter's lock in its loops."""
    given = list(items)
    results: list[Any] = [None] * len(given)
    places = iter(range(len(given)))

    def work() -> None:
        for place in places:  # shared by all threads
            results[place] = function(given[place])

    threads = min(os.cpu_count() or 1, MOST_THREADS, len(given))
    if threads < 2:
        work()
        return results
    # The calling thread works too, because it can reuse the memory that the images took.
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
    for other in others:
        other.result()
    return results


def is_finite(scores: np.ndarray) -> bool:
    """See `network.Arithmetic`."""
    with np.errstate(all="ignore"):
        # The sum is faster to compute, but that of finite scores can overflow.
        return bool(np.isfinite(scores.sum()) or np.isfinite(scores).all())
