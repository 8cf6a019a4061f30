"""Inference as in the official vis.py, eval.py and export_model.py, for `--inference=official`.

The image is resized into a range, padded to the crop size at the right and at the bottom with the
mean pixel, and predicted as a whole at one or several scales. Labels are resized to the image's
size by nearest neighbor, probabilities bilinearly, always with aligned corners
(docs/reference/official_deeplab.md#inference, docs/reference/official_deeplab.md#preprocessing). The other modules
of `inference/` are our own inference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.data.augment.official import resize_images, resize_labels, size_in_range
from deeplab_keras.models.layers import scale_dimension


class Network(Protocol):
    """What is needed of `inference.Network`."""

    input_size: tuple[int, int] | None

    @property
    def pad_value(self) -> tuple[float, ...]:
        """The colour that is 0 to the network."""

    @property
    def before_resize(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The same network up to its merged logits."""

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Logits at the size of the images."""


class Prediction(NamedTuple):
    """What the official graph gives for a batch of images of one size, at the padded size.

    Attributes:
        labels: int64 `[batch, height, width]`.
        probabilities: float32 `[batch, height, width, num_classes]`; over several scales the
            softmax of the mean probabilities, as the reference returns it.
        size: height and width within that hold the image.
    """

    labels: tf.Tensor
    probabilities: tf.Tensor
    size: tuple[int, int]


def predict(network: Network, images: Any, config: EvalConfig) -> Prediction:
    """Prepares images `[batch, height, width, channels]` in 0..255 and predicts them.

    Raises:
        UserError: they do not fit into the crop size.
    """
    x, size = prepare(images, config, network.pad_value)
    # The reference ignores --add_flipped_images at one scale; here it is heard.
    if config.eval_scales == (1.0,) and not config.add_flipped_images:
        logits = network(x)
        return Prediction(tf.argmax(logits, -1), tf.nn.softmax(logits), size)
    mean = _mean_probabilities(network, x, config)
    return Prediction(tf.argmax(mean, -1), tf.nn.softmax(mean), size)


def prepare(
    images: Any, config: EvalConfig, pad_value: tuple[float, ...]
) -> tuple[tf.Tensor, tuple[int, int]]:
    """Images resized into the range and padded to the crop size, and the size they have within."""
    size = tuple(images.shape[1:3])
    limits = (config.eval_short_side, config.eval_long_side, config.eval_resize_factor)
    height, width = (int(length) for length in size_in_range(size, *limits))
    if config.eval_short_side:
        images = resize_images(images, (height, width))
    missing = [
        crop - length for crop, length in zip(config.eval_crop_size, (height, width), strict=True)
    ]
    if min(missing) < 0:
        crop = ",".join(map(str, config.eval_crop_size))
        raise UserError(
            f"an image of {height}x{width} does not fit into `eval_crop_size={crop}`; give a "
            "multiple of the output "
            f"stride plus one that is at least {height},{width}, or cap the size with "
            "`eval_short_side` and `eval_long_side`"
        )
    colour = tf.constant(pad_value, tf.float32)
    margins = [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]]
    return tf.pad(tf.cast(images, tf.float32) - colour, margins) + colour, (height, width)


def _mean_probabilities(network: Network, x: tf.Tensor, config: EvalConfig) -> tf.Tensor:
    height, width = x.shape[1:3]
    if network.input_size:
        raise UserError(
            "`inference='official'` at several scales: the model was built for "
            f"{network.input_size[0]}x"
            f"{network.input_size[1]}; build it for any size"
        )
    scores_of = network.before_resize
    natural = tuple(scores_of(x).shape[1:3]) if min(config.eval_scales) < 1 else None
    total, count = 0.0, 0
    for scale in config.eval_scales:
        size = (scale_dimension(height, scale), scale_dimension(width, scale))
        scaled = x if scale == 1 else resize_images(x, size)
        for mirrored in (False, True) if config.add_flipped_images else (False,):
            scores = scores_of(tf.reverse(scaled, [2]) if mirrored else scaled)
            if scale < 1:  # the reference never leaves scores smaller than those of scale 1
                scores = resize_images(scores, natural)
            if mirrored:
                scores = tf.reverse(scores, [2])
            total, count = total + tf.nn.softmax(resize_images(scores, (height, width))), count + 1
    return total / count


def restore_labels(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    """Labels at the image's own size: int32 `[batch, height, width]`."""
    height, width = prediction.size
    labels = tf.cast(prediction.labels[:, :height, :width], tf.int32)
    return resize_labels(labels, size).numpy()


def restore_probabilities(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    """Probabilities at the image's own size: float32 `[batch, height, width, num_classes]`."""
    height, width = prediction.size
    return resize_images(prediction.probabilities[:, :height, :width], size).numpy()


def prepare_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels `[batch, height, width]` at the size within the padded image: where eval.py compares them."""
    return resize_labels(tf.cast(labels, tf.int32), size).numpy()
