"""The interface of every trained model: from images to class scores.

`KerasNetwork` and `ExportedNetwork` implement it. This module imports neither TensorFlow nor Keras,
so that an exported file runs without them.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from deeplab_keras.config import UserError


class Arithmetic(Protocol):
    """What is computed with class scores and images, for one type of array.

    The modules `arrays` (NumPy) and `tensors` (TensorFlow) have these functions. Scores are float32
    `[batch, height, width, num_classes]`.
    """

    def strip_bytes(self, needed: int) -> int:
        """Returns how many of the `needed` bytes of scores are resized and decided at a time."""

    def resize(self, x: Any, size: tuple[int, ...]) -> Any:
        """Resizes `[batch, height, width, channels]` bilinearly with half-pixel centers to float32.

        If `x` has that size already, it is returned unchanged.
        """

    def resize_rows(self, x: Any, size: tuple[int, int], top: int, bottom: int) -> Any:
        """Returns the rows from `top` to `bottom` of `resize(x, size)`.

        Args:
            x: An array, or an object with a `shape` and a method `rows(top, bottom)`.
            size: The (height, width) of the complete result.
            top: The first row.
            bottom: The row after the last one.
        """

    def as_array(self, x: Any) -> Any:
        """Converts scores to this type of array."""

    def flip(self, x: Any) -> Any:
        """Flips images or scores horizontally."""

    def softmax(self, scores: Any) -> Any:
        """Returns the probability of each class."""

    def log_of_mean(self, parts: list[Any]) -> Any:
        """Returns the logarithm of the mean of the probabilities that several scores stand for."""

    def decide(self, scores: Any, with_confidence: bool = False) -> tuple[Any, ...]:
        """Returns the class with the largest score per pixel, and on request its probability.

        Args:
            scores: The scores.
            with_confidence: Whether to return the probabilities too.

        Returns:
            A tuple of one or two arrays `[batch, height, width]`: the labels, int32, of equal
            scores the first class, and the probabilities, float32.
        """

    def in_parallel(self, function: Callable[[int], Any], items: Iterable[int]) -> list[Any]:
        """Returns the function's result for each item, computed on several processors."""

    def is_finite(self, scores: Any) -> bool:
        """Whether no score is NaN or infinite."""


def too_large(images: Any) -> UserError:
    """Returns the error for a batch of images that does not fit into memory."""
    size = "x".join(map(str, images.shape[1:3]))
    return UserError(
        f"{len(images)} images of {size} do not fit into memory; lower `eval_batch_size`, or give "
        "`inference='slide'` with a smaller `eval_crop_size`"
    )


def not_taken(images: Any, reason: str) -> UserError:
    """Returns the error for images of a size that the model does not take."""
    size = "x".join(map(str, images.shape[1:3]))
    return UserError(
        f"the model cannot take an input of {size} ({reason}); give a larger image, or "
        "`eval_short_side`"
    )


class Network(abc.ABC):
    """A trained model as a function from images to class scores.

    Several threads may call one `Network` at the same time.

    Args:
        name: The model's name.
        input_size: The model's fixed (height, width), or `None` for any size.
        channels: The number of channels of an image.
        num_classes: The number of channels of the scores.

    Attributes:
        name: See the argument.
        input_size: See the argument.
        channels: See the argument.
        num_classes: See the argument.
        arithmetic: The functions for the scores that this network returns.
        letterbox: Whether an image of another size is letterboxed to the input size, instead of
            stretched. Only networks whose images are NumPy arrays can be.
    """

    arithmetic: Arithmetic
    letterbox = False

    def __init__(
        self, name: str, input_size: tuple[int, int] | None, channels: int, num_classes: int
    ) -> None:
        self.name, self.input_size = name, input_size
        self.channels, self.num_classes = channels, num_classes

    @property
    @abc.abstractmethod
    def pad_value(self) -> tuple[float, ...]:
        """The color in 0..255 that the model normalizes to 0."""

    @property
    def before_resize(self) -> Network:
        """The network up to the logits before the last resize.

        This is the network itself if the model does not end like a segmentor.
        """
        return self

    @property
    def ends_with_resize(self) -> bool:
        """Whether the model ends with a half-pixel resize of `before_resize` to the image's size.

        The logits can then be resized to another size directly.
        """
        return False

    def __call__(self, images: Any) -> Any:
        """Returns the float32 logits of images that have the model's input size.

        Raises:
            UserError: The images have another shape, are too small for the model, or do not fit
                into memory, or the logits are NaN or infinite.
        """
        # Checked before the runtime sees the images. A tf.function keeps its lock when it refuses
        # an input: all other threads would wait forever.
        shape = tuple(images.shape)
        if len(shape) != 4 or not self._takes(shape):
            height, width = self.input_size or ("height", "width")
            allowed = f"[batch, {height}, {width}, {self.channels}]"
            raise UserError(f"images of shape {shape}; must be {allowed}")
        logits = self._logits(images)
        if not self.arithmetic.is_finite(logits):  # argmax would return a label for NaN too
            raise UserError(
                f"{self.name}: outputs class scores that are NaN or infinite, so it may be damaged "
                "or have diverged in training; load another checkpoint, or export it again"
            )
        return logits

    def _takes(self, shape: tuple[int, ...]) -> bool:
        return self.input_size in (None, shape[1:3]) and shape[3] == self.channels

    @abc.abstractmethod
    def _logits(self, images: Any) -> Any:
        """Runs the model on images `[batch, height, width, channels]` of its input size."""
