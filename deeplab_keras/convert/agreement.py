"""Compares the outputs of a foreign graph and the converted model on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import keras
import numpy as np

from deeplab_keras.config import NORMALIZATIONS, ModelConfig, UserError
from deeplab_keras.convert.graphs import IMAGE, ConvolutionGraph
from deeplab_keras.io.foreign import reading
from deeplab_keras.models.layers import resize_bilinear

NUM_IMAGES = 3
EQUAL_LABELS, LOGIT_DIFFERENCE = 0.999, 1e-3
ADVICE = "give `check=False` to convert it without running it"
SIZE = 257  # of the images for a graph that takes any size


class Runnable(Protocol):
    """An open `FrozenGraph` or `TFLiteGraph`."""

    kind: str
    runtime: str
    path: Any
    # Whether the file rounds its weights to 8 bits. Its network has the weights as floats.
    quantized: bool

    @property
    def network(self) -> ConvolutionGraph:
        """The convolutions."""

    @property
    def image(self) -> str:
        """The name of the input, or "" if there is not exactly one input."""

    def run(
        self, tensors: Sequence[str], feed: dict[str, np.ndarray], *, rounded: bool = True
    ) -> list[np.ndarray]:
        """Computes the values of tensors; of a quantized graph, with or without its rounding."""

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Returns a tensor's shape, as far as it is known."""

    def dtype(self, name: str) -> np.dtype:
        """Returns a tensor's type."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of a converted model with its source.

    Attributes:
        size: (height, width) of the images.
        images: Number of images.
        labels: Share of the pixels with the same label, 0..1.
        logits: Largest difference of a class score, relative to the largest score.
        runtime: The software that ran the source.
        normalized: Whether the file takes normalized images. Then it does not show how they are
            normalized.
    """

    size: tuple[int, int]
    images: int
    labels: float
    logits: float
    runtime: str
    normalized: bool

    @property
    def is_sufficient(self) -> bool:
        """Whether both compute the same function."""
        return bool(self.labels >= EQUAL_LABELS and self.logits <= LOGIT_DIFFERENCE)

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{100 * self.labels:.4f} % of the labels are equal, and the logits differ by at most "
            f"{self.logits:.2g} of the largest logit ({self.images} images of {height}x{width}, "
            f"{self.runtime} compared with Keras)"
        )


def compare(
    graph: Runnable,
    model: keras.Model,
    config: ModelConfig,
    size: tuple[int, int],
    *,
    images: Sequence[np.ndarray] = (),
    rounded: bool = False,
) -> Agreement:
    """Runs both networks on the same images.

    Args:
        graph: The source.
        model: The converted model.
        config: Its architecture.
        size: (height, width) of the images; see `image_size`.
        images: uint8 images of this size, `[height, width, 3]`. By default, synthetic ones.
        rounded: Whether a quantized graph rounds, as its file does. Otherwise it computes in
            floats, with the same weights.

    Raises:
        UserError: If the source cannot be run, or preprocesses its images differently from the
            config.
    """
    first = first_tensor(graph)
    equal = total = 0
    difference = largest = 0.0
    images = images or synthetic_images(size)
    for image in images:
        with reading(graph.path, _what(graph), ADVICE):
            theirs = _run(graph, image, first, config, rounded)
        ours = keras.ops.convert_to_numpy(model(image[None].astype(np.float32), training=False))
        if theirs.shape[-1] != ours.shape[-1]:
            raise UserError(
                f"{graph.path}: has scores for {theirs.shape[-1]} classes, but the model has "
                f"{ours.shape[-1]}; give `num_classes={theirs.shape[-1]}`"
            )
        if theirs.shape != ours.shape:
            theirs = keras.ops.convert_to_numpy(resize_bilinear(theirs, size, config.align_corners))
        difference = float(np.maximum(difference, np.abs(theirs - ours).max()))  # NaN stays NaN
        largest = float(np.maximum(largest, np.abs(theirs).max()))
        equal += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
        total += ours[..., 0].size
    relative = difference / largest if largest else difference
    return Agreement(
        size, len(images), equal / total, relative, graph.runtime, first == graph.image
    )


def first_tensor(graph: Runnable) -> str:
    """Returns the input of the first convolution.

    Raises:
        UserError: If the tensor does not exist, or the graph does not have exactly one input and
            class scores.
    """
    first = next(
        (
            convolution.source
            for convolution in graph.network.convolutions
            if convolution.reads == {IMAGE}
        ),
        "",
    )
    for problem, found in {
        "does not have exactly one input": graph.image,
        "has no convolution of the image": first,
        "has no class scores": graph.network.logits,
    }.items():
        if not found:
            raise UserError(
                f"{graph.path}: {problem}, so the conversion cannot be checked; {ADVICE}"
            )
    return first


def image_size(graph: Runnable, config: ModelConfig) -> tuple[int, int]:
    """Returns height and width of the images that the first convolution reads.

    Raises:
        UserError: If the graph cannot be run; see `first_tensor`.
    """
    first = first_tensor(graph)
    for name in (first, graph.image):
        shape = graph.static_shape(name)
        if shape is not None and len(shape) == 4 and shape[1] and shape[2]:
            return shape[1], shape[2]
    small = (1, 17, 17, 3)
    with reading(graph.path, _what(graph), ADVICE):
        (value,) = graph.run([first], {graph.image: np.zeros(small, graph.dtype(graph.image))})
    if value.shape[1:3] != small[1:3]:  # the graph pads smaller images to a fixed size
        return int(value.shape[1]), int(value.shape[2])
    height, width = (
        max(SIZE, (window - 1) * config.output_stride + 1)
        for window in config.image_pooling_window or (1, 1)
    )
    return height, width


def _what(graph: Runnable) -> str:
    return f"a {graph.kind} that {graph.runtime} can run"


def synthetic_images(size: tuple[int, int]) -> list[np.ndarray]:
    """Returns images with details of every size: uint8 `[height, width, 3]`, always the same."""
    random = np.random.default_rng(20)
    images = []
    for index in range(NUM_IMAGES):
        total = np.zeros((*size, 3))
        for octave in range(1, 8):
            coarse = random.standard_normal((2**octave, 2**octave, 3))
            rows, columns = (_enlarge(length, 2**octave) for length in size)
            total += np.einsum("yi,ijc,xj->yxc", rows, coarse, columns, optimize=True) * (
                0.85**octave
            )
        total += 0.2 * index * random.standard_normal(total.shape)
        images.append(np.clip(127.5 + 70 * total, 0, 255).astype(np.uint8))
    return images


def _enlarge(length: int, source: int) -> np.ndarray:
    """Returns the weights of a bilinear resize, `[length, source]`."""
    return np.maximum(
        0, 1 - np.abs(np.linspace(0, source - 1, length)[:, None] - np.arange(source))
    )


def normalize(image: np.ndarray, normalization: str) -> np.ndarray:
    """Returns a normalized image, float32 `[1, height, width, 3]`."""
    mean, std = (np.array(values, np.float32) for values in NORMALIZATIONS[normalization])
    return np.asarray((image[None].astype(np.float32) - mean) / std)


def _run(
    graph: Runnable, image: np.ndarray, first: str, config: ModelConfig, rounded: bool
) -> np.ndarray:
    """Returns the class scores of the source, `[1, height, width, classes]`."""
    logits, expected = graph.network.logits, normalize(image, config.normalization)
    if first == graph.image:
        (scores,) = graph.run([logits], {first: expected}, rounded=rounded)
        return np.asarray(scores, np.float32)
    scores, normalized = graph.run(
        [logits, first],
        {graph.image: image[None].astype(graph.dtype(graph.image))},
        rounded=rounded,
    )
    if normalized.shape != expected.shape:
        raise UserError(
            f"{graph.path}: resizes images of {'x'.join(map(str, expected.shape[1:3]))} to "
            f"{'x'.join(map(str, normalized.shape[1:3]))} before its first convolution, which no "
            f"model here does; {ADVICE}"
        )
    if not _close(normalized, expected):
        fitting = next(
            (name for name in NORMALIZATIONS if _close(normalized, normalize(image, name))), ""
        )
        advice = (
            f"give `normalization={fitting}`" if fitting else f"no `normalization` fits; {ADVICE}"
        )
        raise UserError(
            f"{graph.path}: does not normalize images with "
            f"`normalization={config.normalization}`; {advice}"
        )
    return np.asarray(scores, np.float32)


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
