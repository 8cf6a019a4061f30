"""Inference as in the official vis.py, eval.py and export_model.py, for `inference="official"`.

The image is resized into a range, padded to the crop size at the right and the bottom with the mean
pixel, and predicted as a whole at one or several scales. Labels are resized to the image's size by
nearest neighbor and probabilities bilinearly, both with aligned corners
(docs/reference/official_deeplab.md#inference,
docs/reference/official_deeplab.md#preprocessing).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.data.augment.official import resize_images, resize_labels, size_in_range
from deeplab_keras.inference.network import Network
from deeplab_keras.models.layers import scale_dimension


class Prediction(NamedTuple):
    """The outputs of the official graph for a batch of images of one size, at the padded size.

    Attributes:
        labels: int64 `[batch, height, width]`.
        probabilities: float32 `[batch, height, width, num_classes]`. With several scales the
            softmax of the mean probabilities, as in the reference.
        size: The (height, width) of the image inside the padding.
    """

    labels: tf.Tensor
    probabilities: tf.Tensor
    size: tuple[int, int]


def predict(network: Network, images: Any, config: EvalConfig) -> Prediction:
    """Prepares and predicts images `[batch, height, width, channels]` in 0..255.

    Raises:
        UserError: The images do not fit into the crop size.
    """
    x, size = prepare(images, config, network.pad_value)
    # The reference ignores --add_flipped_images at a single scale. Here it takes effect.
    if config.eval_scales == (1.0,) and not config.add_flipped_images:
        logits = network(x)
        return Prediction(tf.argmax(logits, -1), tf.nn.softmax(logits), size)
    mean = _mean_probabilities(network, x, config)
    return Prediction(tf.argmax(mean, -1), tf.nn.softmax(mean), size)


def prepare(
    images: Any, config: EvalConfig, pad_value: tuple[float, ...]
) -> tuple[tf.Tensor, tuple[int, int]]:
    """Resizes images into the range and pads them to the crop size.

    Returns:
        The padded images, and the (height, width) of the image inside the padding.
    """
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
            f"multiple of the output stride plus one that is at least {height},{width}, or limit "
            "the size with `eval_short_side` and `eval_long_side`"
        )
    color = tf.constant(pad_value, tf.float32)
    margins = [[0, 0], [0, missing[0]], [0, missing[1]], [0, 0]]
    return tf.pad(tf.cast(images, tf.float32) - color, margins) + color, (height, width)


def _mean_probabilities(network: Network, x: tf.Tensor, config: EvalConfig) -> tf.Tensor:
    height, width = x.shape[1:3]
    if network.input_size:
        raise UserError(
            "`inference='official'` with several scales or flips: the model has the fixed input "
            f"size {network.input_size[0]}x{network.input_size[1]}; build it for any size"
        )
    scores_of = network.before_resize
    natural = tuple(scores_of(x).shape[1:3]) if min(config.eval_scales) < 1 else None
    total, count = 0.0, 0
    for scale in config.eval_scales:
        size = (scale_dimension(height, scale), scale_dimension(width, scale))
        scaled = x if scale == 1 else resize_images(x, size)
        for mirrored in (False, True) if config.add_flipped_images else (False,):
            scores = scores_of(tf.reverse(scaled, [2]) if mirrored else scaled)
            if scale < 1:  # as in the reference, scores are at least as large as at scale 1
                scores = resize_images(scores, natural)
            if mirrored:
                scores = tf.reverse(scores, [2])
            total, count = total + tf.nn.softmax(resize_images(scores, (height, width))), count + 1
    return total / count


def restore_labels(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    """Returns the labels at the image's own size: int32 `[batch, height, width]`."""
    height, width = prediction.size
    labels = tf.cast(prediction.labels[:, :height, :width], tf.int32)
    return resize_labels(labels, size).numpy()


def restore_probabilities(prediction: Prediction, size: tuple[int, int]) -> np.ndarray:
    """Returns the probabilities at the image's own size: float32 `[..., num_classes]`."""
    height, width = prediction.size
    return resize_images(prediction.probabilities[:, :height, :width], size).numpy()


def prepare_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels `[batch, height, width]` to the size at which eval.py compares them."""
    return resize_labels(tf.cast(labels, tf.int32), size).numpy()
