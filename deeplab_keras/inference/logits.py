"""Class scores of a batch of images: whole or by sliding window, at several scales and mirrored."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.inference.decide import decide
from deeplab_keras.inference.exported import ExportedNetwork
from deeplab_keras.inference.images import as_batch
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.resizing import resize, resize_rows
from deeplab_keras.inference.windows import WindowRows, slide

STRIP_BYTES = 1 << 28  # of scores at the image's size that are in memory at a time
SUM_BYTES = 1 << 26  # the same where windows are summed up, whose logits are in memory too


def predict_logits(
    model: keras.Model | Network, images: Any, config: EvalConfig = EvalConfig()
) -> tf.Tensor:
    """Class scores of a batch of images at the images' own size.

    Over several scales or the mirrored image, the mean is that of the probabilities, and its
    logarithm is returned, so that in every case the softmax of the result is the probabilities and
    its argmax the labels.

    Args:
        model: a model, or a Network for repeated calls: it is compiled only once.
        images: `[batch, height, width, channels]`, uint8 or float32 in 0..255.
        config: how to run the model.

    Returns:
        float32 `[batch, height, width, num_classes]`.

    Raises:
        UserError: the images have another shape or type, or values outside of 0..255; `config` does
            not fit the model, or the model cannot take the images' size.
    """
    network = Network.of(model)
    return mean_logits(network, as_batch(images, network.channels), config)


def mean_logits(network: Network, images: Any, config: EvalConfig) -> tf.Tensor:
    """As `predict_logits`, for images that `as_batch` has checked."""
    parts = _passes(network, images, config, in_strips=False)
    return tf.convert_to_tensor(_mean([resize(part, images.shape[1:3]) for part in parts]))


def predict_labels(
    network: Network, images: Any, config: EvalConfig, *, with_confidence: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """The most probable class of each pixel at the images' own size, and its probability if that is wanted.

    Of large images, or many classes, the scores are enlarged and windows are added up strip by
    strip, so that they never lie in memory as a whole: beyond `STRIP_BYTES` of scores.

    Args:
        network: a model.
        images: as `predict_logits` takes them.
        config: how to run the model.
        with_confidence: whether the probability is wanted.

    Returns:
        int32 and float32 `[batch, height, width]`.

    Raises:
        UserError: see `predict_logits`.
    """
    if (
        isinstance(network, ExportedNetwork)
        and not with_confidence
        and _is_plain(config, tuple(images.shape[1:3]))
    ):
        own = network.own_labels(images)
        if own is not None:
            return own, None
    needed = _bytes_of_logits(len(images), images.shape[1:3], network)
    if (
        config.inference == "slide" and len(images) > 1 and needed > STRIP_BYTES
    ):  # windows are added up at the image's size
        single = [
            predict_labels(network, image[None], config, with_confidence=with_confidence)
            for image in images
        ]
        every_label, every_confidence = zip(*single, strict=True)
        return np.concatenate(every_label), np.concatenate(
            every_confidence
        ) if with_confidence else None
    parts = _passes(network, images, config, in_strips=True)
    (batch, height, width), found = images.shape[:3], []
    row = _bytes_of_logits(batch, (1, width), network)
    rows = min(
        [
            STRIP_BYTES // row,
            *(_rows_of_windows(part, height) for part in parts if isinstance(part, WindowRows)),
        ]
    )
    rows = max(1, rows)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        scores = _mean([resize_rows(part, (height, width), top, bottom) for part in parts])
        found.append(decide(scores, with_confidence))
    labels, *confidence = (
        np.concatenate([strip.numpy() for strip in strips], axis=1)
        for strips in zip(*found, strict=True)
    )
    return labels, confidence[0] if confidence else None


def _is_plain(config: EvalConfig, size: tuple[int, ...]) -> bool:
    """Whether an image goes through the network once, as it is."""
    once = (
        config.inference == "whole"
        and config.eval_scales == (1.0,)
        and not config.add_flipped_images
    )
    return once and resized_size(size, config) == size


def _mean(parts: list[tf.Tensor | np.ndarray]) -> tf.Tensor | np.ndarray:
    """The logits themselves if there is one pass, else the logarithm of the mean probabilities."""
    if len(parts) == 1:
        return parts[0]
    total = sum(tf.nn.softmax(part) for part in parts)
    return tf.math.log(tf.maximum(total / len(parts), np.finfo(np.float32).tiny))


Scores: TypeAlias = tf.Tensor | np.ndarray | WindowRows


def _passes(network: Network, images: Any, config: EvalConfig, in_strips: bool) -> list[Scores]:
    """Logits of every scale, mirrored and not, each at its own size; large ones of windows come by rows where `in_strips`."""
    flips = (False, True) if config.add_flipped_images else (False,)
    return [
        _one_pass(network, images, scale, flip, config, in_strips)
        for scale in config.eval_scales
        for flip in flips
    ]


def _one_pass(
    network: Network, images: Any, scale: float, flip: bool, config: EvalConfig, in_strips: bool
) -> Scores:
    """Logits from one run of the network, at one scale, mirrored or not, at the size in which they come."""
    size = tuple(images.shape[1:3])
    run_size = tuple(max(1, round(length * scale)) for length in resized_size(size, config))
    if config.inference == "whole" and network.input_size:
        if config.eval_scales != (1.0,):
            raise UserError(
                f"`eval_scales={','.join(map(str, config.eval_scales))}`: the model was built for "
                "the input size "
                f"{network.input_size[0]}x{network.input_size[1]} and would see every scale at it; "
                "give `eval_scales=1.0` or `inference='slide'`, or build the model for any size"
            )
        run_size = network.input_size
    x = resize(images, run_size)
    if flip:
        x = tf.reverse(x, axis=[2])
    if (
        config.inference == "whole"
    ):  # resized once, from the head's own size, as SSSegmentation does it
        x = tf.cast(x, tf.float32)
        other_size = (
            run_size != size or _bytes_of_logits(len(images), run_size, network) > STRIP_BYTES
        )
        logits = network.before_resize(x) if other_size and network.ends_with_resize else network(x)
        return tf.reverse(logits, axis=[2]) if flip else logits
    if in_strips and _bytes_of_logits(len(images), run_size, network) > STRIP_BYTES:
        rows = WindowRows(network, x, config, mirrored=flip)
        if rows.smaller:
            return rows
    logits = slide(network, x, config)  # in NumPy, where mirroring copies nothing
    return logits[:, :, ::-1] if flip else logits


def _rows_of_windows(scores: WindowRows, height: int) -> int:
    """Rows of an image of this height that take `SUM_BYTES` of windows; at scale 2 each takes two rows, twice as long."""
    return SUM_BYTES * height // (4 * math.prod(scores.shape))


def _bytes_of_logits(batch: int, size: tuple[int, ...], network: Network) -> int:
    return 4 * batch * math.prod(size) * network.num_classes


def resized_size(size: tuple[int, ...], config: EvalConfig) -> tuple[int, int]:
    """(height, width) after `--eval_short_side` and `--eval_long_side`: the ratio is kept, both limits are held."""
    height, width = size
    if not config.eval_short_side:
        return height, width
    factor = config.eval_short_side / min(size)
    if config.eval_long_side:
        factor = min(factor, config.eval_long_side / max(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
