"""Runs a foreign graph and the converted model on the same pictures and compares what they say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import numpy as np

from deeplab_keras.config import NORMALIZATIONS, ModelConfig, UserError
from deeplab_keras.convert.graphs import IMAGE, Network
from deeplab_keras.io.foreign import reading
from deeplab_keras.models.layers import resize_bilinear

PICTURES = 3
EQUAL_LABELS, LOGIT_DIFFERENCE = 0.999, 1e-3
ADVICE = "give `no_check` to convert it without running it"
SIZE = 257  # of the pictures for a graph that takes any size


class Runnable(Protocol):
    """An open `FrozenGraph` or `TFLiteGraph`."""

    kind: str
    runtime: str
    path: Any

    @property
    def network(self) -> Network:
        """Its convolutions."""

    @property
    def image(self) -> str:
        """Its input."""

    def run(self, tensors: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Values of tensors."""

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """A tensor's shape, as far as it is known."""

    def dtype(self, name: str) -> np.dtype:
        """A tensor's type."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a converted model agrees with its source.

    Attributes:
        size: (height, width) of the pictures.
        pictures: number of them.
        labels: share of the pixels with the same label.
        logits: largest difference of a class score, relative to the largest score.
        runtime: what ran the source.
        normalized: whether the file takes normalized images, so that the normalization is the
            config's word.
    """

    size: tuple[int, int]
    pictures: int
    labels: float
    logits: float
    runtime: str
    normalized: bool

    @property
    def enough(self) -> bool:
        """Whether the two compute the same."""
        return bool(self.labels >= EQUAL_LABELS and self.logits <= LOGIT_DIFFERENCE)

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{100 * self.labels:.4f} % of the labels are equal and the logits differ by at most "
            f"{self.logits:.2g} of the "
            f"largest one ({self.pictures} pictures of {height}x{width}, {self.runtime} against "
            "Keras)"
        )


def compare(
    graph: Runnable, model: keras.Model, config: ModelConfig, size: tuple[int, int]
) -> Agreement:
    """Runs both on the same pictures.

    Args:
        graph: the source.
        model: the converted model.
        config: the architecture.
        size: (height, width) of the pictures; see `picture_size`.

    Raises:
        UserError: the source cannot be run, or prepares its images in another way than the config
            says.
    """
    first = first_tensor(graph)
    equal = total = 0
    difference = largest = 0.0
    for picture in pictures(size):
        with reading(graph.path, _what(graph), ADVICE):
            theirs = _run(graph, picture, first, config)
        ours = keras.ops.convert_to_numpy(model(picture[None].astype(np.float32), training=False))
        if theirs.shape[-1] != ours.shape[-1]:
            raise UserError(
                f"{graph.path}: has scores for {theirs.shape[-1]} classes, the model for "
                f"{ours.shape[-1]}; "
                f"give `num_classes={theirs.shape[-1]}`"
            )
        if theirs.shape != ours.shape:
            theirs = keras.ops.convert_to_numpy(resize_bilinear(theirs, size, config.align_corners))
        difference = float(np.maximum(difference, np.abs(theirs - ours).max()))  # NaN stays NaN
        largest = float(np.maximum(largest, np.abs(theirs).max()))
        equal, total = (
            equal + int((theirs.argmax(-1) == ours.argmax(-1)).sum()),
            total + ours[..., 0].size,
        )
    relative = difference / largest if largest else difference
    return Agreement(size, PICTURES, equal / total, relative, graph.runtime, first == graph.image)


def first_tensor(graph: Runnable) -> str:
    """The tensor that the first convolution reads.

    Raises:
        UserError: the graph has no such tensor, not one input, or no class scores.
    """
    first = next(
        (
            convolution.source
            for convolution in graph.network.convolutions
            if convolution.reads == {IMAGE}
        ),
        "",
    )
    for what, found in {
        "one input": graph.image,
        "a first convolution": first,
        "class scores": graph.network.logits,
    }.items():
        if not found:
            raise UserError(
                f"{graph.path}: has not {what}, so that the conversion cannot be checked; {ADVICE}"
            )
    return first


def picture_size(graph: Runnable, config: ModelConfig) -> tuple[int, int]:
    """Height and width of the images that the first convolution reads.

    Raises:
        UserError: the graph cannot be run; see `first_tensor`.
    """
    first = first_tensor(graph)
    for name in (first, graph.image):
        shape = graph.static_shape(name)
        if shape is not None and len(shape) == 4 and shape[1] and shape[2]:
            return shape[1], shape[2]
    small = (1, 17, 17, 3)
    with reading(graph.path, _what(graph), ADVICE):
        (value,) = graph.run([first], {graph.image: np.zeros(small, graph.dtype(graph.image))})
    if value.shape[1:3] != small[1:3]:  # it pads smaller images to one size
        return int(value.shape[1]), int(value.shape[2])
    height, width = (
        max(SIZE, (window - 1) * config.output_stride + 1)
        for window in config.image_pooling_window or (1, 1)
    )
    return height, width


def _what(graph: Runnable) -> str:
    return f"a {graph.kind} that {graph.runtime} can run"


def pictures(size: tuple[int, int]) -> list[np.ndarray]:
    """Pictures with detail of every size: uint8 `[height, width, 3]`, always the same."""
    random = np.random.default_rng(20)
    found = []
    for index in range(PICTURES):
        total = np.zeros((*size, 3))
        for octave in range(1, 8):
            coarse = random.standard_normal((2**octave, 2**octave, 3))
            rows, columns = (_enlarge(length, 2**octave) for length in size)
            total += np.einsum("yi,ijc,xj->yxc", rows, coarse, columns, optimize=True) * (
                0.85**octave
            )
        total += 0.2 * index * random.standard_normal(total.shape)
        found.append(np.clip(127.5 + 70 * total, 0, 255).astype(np.uint8))
    return found


def _enlarge(length: int, source: int) -> np.ndarray:
    """`[length, source]` weights of a bilinear resize."""
    return np.maximum(
        0, 1 - np.abs(np.linspace(0, source - 1, length)[:, None] - np.arange(source))
    )


def normalize(picture: np.ndarray, normalization: str) -> np.ndarray:
    """What the network sees of a picture: float32 `[1, height, width, 3]`."""
    mean, std = (np.array(values, np.float32) for values in NORMALIZATIONS[normalization])
    return np.asarray((picture[None].astype(np.float32) - mean) / std)


def _run(graph: Runnable, picture: np.ndarray, first: str, config: ModelConfig) -> np.ndarray:
    """The class scores of the source, `[1, height, width, classes]`."""
    logits, seen = graph.network.logits, normalize(picture, config.normalization)
    if first == graph.image:
        (scores,) = graph.run([logits], {first: seen})
        return np.asarray(scores, np.float32)
    scores, read = graph.run(
        [logits, first], {graph.image: picture[None].astype(graph.dtype(graph.image))}
    )
    if read.shape != seen.shape:
        raise UserError(
            f"{graph.path}: makes {'x'.join(map(str, read.shape[1:3]))} of a picture of "
            f"{'x'.join(map(str, seen.shape[1:3]))} "
            f"before its first convolution, which no model here does; {ADVICE}"
        )
    if not _close(read, seen):
        fitting = next(
            (name for name in NORMALIZATIONS if _close(read, normalize(picture, name))), ""
        )
        advice = (
            f"give `normalization={fitting}`"
            if fitting
            else f"no `normalization` is like that; {ADVICE}"
        )
        raise UserError(
            f"{graph.path}: prepares its images otherwise than "
            f"`normalization={config.normalization}`; {advice}"
        )
    return np.asarray(scores, np.float32)


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
