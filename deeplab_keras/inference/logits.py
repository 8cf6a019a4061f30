"""Logits of a batch of images: whole or by sliding window, at several scales, with flips."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.inference.exported import ExportedNetwork
from deeplab_keras.inference.images import as_batch
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.opening import as_network
from deeplab_keras.inference.resizing import letterbox_size, pad_to
from deeplab_keras.inference.windows import WindowRows, slide

if TYPE_CHECKING:
    import keras

STRIP_BYTES = 1 << 28  # of logits at the image's size that are in memory at a time
SUM_BYTES = 1 << 26  # the same for sliding windows, whose own logits are in memory too


def predict_logits(
    model: keras.Model | Network, images: Any, config: EvalConfig = EvalConfig()
) -> Any:
    """Returns the logits of a batch of images at the images' own size.

    With several scales or flips, the result is the logarithm of the mean probabilities. In all
    cases its softmax are the probabilities and its argmax are the labels.

    Args:
        model: A model, or a `Network` for repeated calls, which is compiled only once.
        images: `[batch, height, width, channels]`, uint8 or float32 in 0..255.
        config: How to run the model.

    Returns:
        float32 `[batch, height, width, num_classes]`: a `tf.Tensor` for a Keras model on
        TensorFlow, else a NumPy array.

    Raises:
        UserError: The images have another shape, dtype or range, `config` does not suit the model,
            or the model cannot take the images' size.
    """
    network = as_network(model)
    return mean_logits(network, as_batch(images, network.channels), config)


def mean_logits(network: Network, images: Any, config: EvalConfig) -> Any:
    """Returns what `predict_logits` returns, for images that `as_batch` has checked."""
    parts = _passes(network, images, config, in_strips=False)
    resize = network.arithmetic.resize
    mean = _mean(network, [resize(part, images.shape[1:3]) for part in parts])
    return network.arithmetic.as_array(mean)


def predict_labels(
    network: Network, images: Any, config: EvalConfig, *, with_confidence: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the most probable class of each pixel at the images' own size, and its probability.

    If the logits take more than `STRIP_BYTES`, they are resized, or windows are summed, strip by
    strip, so that they are never in memory as a whole.

    Args:
        network: The model.
        images: Images that `as_batch` has checked.
        config: How to run the model.
        with_confidence: Whether to return the probabilities too.

    Returns:
        The labels, int32, and the probabilities, float32 or `None`, both `[batch, height, width]`.

    Raises:
        UserError: See `predict_logits`.
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
    # Windows are summed at the image's size, so one image at a time needs less memory.
    if config.inference == "slide" and len(images) > 1 and needed > STRIP_BYTES:
        single = [
            predict_labels(network, image[None], config, with_confidence=with_confidence)
            for image in images
        ]
        every_label, every_confidence = zip(*single, strict=True)
        confidences = np.concatenate(every_confidence) if with_confidence else None
        return np.concatenate(every_label), confidences
    parts = _passes(network, images, config, in_strips=True)
    batch, height, width = images.shape[:3]
    by_rows = [part for part in parts if isinstance(part, WindowRows)]
    arithmetic = network.arithmetic
    limit = STRIP_BYTES if by_rows else min(STRIP_BYTES, arithmetic.strip_bytes(needed))
    rows = limit // _bytes_of_logits(batch, (1, width), network)
    rows = max(1, min([rows, *(_rows_of_windows(part, height) for part in by_rows)]))

    def strip(top: int) -> tuple[Any, ...]:
        bottom = min(top + rows, height)
        scores = [arithmetic.resize_rows(part, (height, width), top, bottom) for part in parts]
        return arithmetic.decide(_mean(network, scores), with_confidence)

    tops = range(0, height, rows)
    # Rows of windows are computed from the top down.
    found = [strip(top) for top in tops] if by_rows else arithmetic.in_parallel(strip, tops)
    labels, *confidence = (
        np.concatenate([np.asarray(strip) for strip in strips], axis=1)
        for strips in zip(*found, strict=True)
    )
    return labels, confidence[0] if confidence else None


def _is_plain(config: EvalConfig, size: tuple[int, ...]) -> bool:
    """Whether the network runs once, on the unmodified image."""
    once = (
        config.inference == "whole"
        and config.eval_scales == (1.0,)
        and not config.add_flipped_images
    )
    return once and resized_size(size, config) == size


def _mean(network: Network, parts: list[Any]) -> Any:
    """Returns the logits of a single pass, or the log of the mean probabilities of several."""
    return parts[0] if len(parts) == 1 else network.arithmetic.log_of_mean(parts)


def _passes(network: Network, images: Any, config: EvalConfig, in_strips: bool) -> list[Any]:
    """Runs the network at every scale, with and without a flip.

    The logits are arrays of the network's arithmetic. With `in_strips`, large logits of sliding
    windows are `WindowRows`.
    """
    flips = (False, True) if config.add_flipped_images else (False,)
    return [
        _one_pass(network, images, scale, flip, config, in_strips)
        for scale in config.eval_scales
        for flip in flips
    ]


def _one_pass(
    network: Network, images: Any, scale: float, flip: bool, config: EvalConfig, in_strips: bool
) -> Any:
    """Returns the logits of one pass at one scale, flipped or not, at the network's output size."""
    size = tuple(images.shape[1:3])
    run_size = tuple(max(1, round(length * scale)) for length in resized_size(size, config))
    if config.inference == "whole" and network.input_size:
        if config.eval_scales != (1.0,):
            raise UserError(
                f"`eval_scales={','.join(map(str, config.eval_scales))}`: the model has the fixed "
                f"input size {network.input_size[0]}x{network.input_size[1]}, to which all scales "
                "would be resized; give `eval_scales=1.0` or `inference='slide'`, or build the "
                "model for any size"
            )
        run_size = network.input_size
    # The part of the network's input that shows the image.
    shown = run_size
    if config.inference == "whole" and network.letterbox:
        shown = letterbox_size(size, run_size)
    x = network.arithmetic.resize(images, shown)
    if flip:
        x = network.arithmetic.flip(x)
    if config.inference == "whole":
        # Resized once, from the head's output size, as in SSSegmentation.
        if shown != run_size:
            x = pad_to(x, run_size, network.pad_value)
        other_size = (
            run_size != size or _bytes_of_logits(len(images), run_size, network) > STRIP_BYTES
        )
        directly = other_size and network.ends_with_resize and shown == run_size
        logits = network.before_resize(x) if directly else network(x)
        if shown != run_size:
            logits = logits[:, : shown[0], : shown[1]]
        return network.arithmetic.flip(logits) if flip else logits
    if in_strips and _bytes_of_logits(len(images), run_size, network) > STRIP_BYTES:
        rows = WindowRows(network, x, config, mirrored=flip)
        if rows.smaller:
            return rows
    logits = slide(network, x, config)  # a NumPy array, whose flip is a view
    return logits[:, :, ::-1] if flip else logits


def _rows_of_windows(scores: WindowRows, height: int) -> int:
    """Returns how many rows of an image of this height need `SUM_BYTES` for the sums of windows.

    At scale 2, one row of the image takes two rows of sums, each twice as long.
    """
    return SUM_BYTES * height // (4 * math.prod(scores.shape))


def _bytes_of_logits(batch: int, size: tuple[int, ...], network: Network) -> int:
    return 4 * batch * math.prod(size) * network.num_classes


def resized_size(size: tuple[int, ...], config: EvalConfig) -> tuple[int, int]:
    """Returns the (height, width) after the resize by `eval_short_side` and `eval_long_side`.

    The aspect ratio is kept, and the sides meet both limits.
    """
    height, width = size
    if not config.eval_short_side:
        return height, width
    factor = config.eval_short_side / min(size)
    if config.eval_long_side:
        factor = min(factor, config.eval_long_side / max(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
