"""From an image of any size to the label map of its size: whole, by sliding window, at several scales and mirrored."""

from __future__ import annotations

import functools
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplab_keras import official_inference
from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.data.files import DECODE_ERRORS
from deeplab_keras.layers import Normalize, ResizeTo, WindowPooling


class Network:
    """A model as one compiled function, traced once for every batch size and, if the model allows, every image size.

    Args:
        model: from `[batch, height, width, channels]` in 0..255 to logits `[batch, height, width, num_classes]`.

    Attributes:
        name: the model's name.
        input_size: (height, width) for which the model was built, or None for any size.
        channels: channels of the image.
        num_classes: channels of the logits.

    Raises:
        UserError: the model has several outputs.
    """

    def __init__(self, model: keras.Model) -> None:
        if len(model.outputs) != 1:
            raise UserError(f"model {model.name!r} has {len(model.outputs)} outputs; allowed is one: the logits")
        self.name = model.name
        _, height, width, self.channels = model.input_shape
        self.input_size = (height, width) if height and width else None
        self.num_classes = int(model.outputs[0].shape[-1])
        self.model = model
        self._windows = [layer for layer in model.layers if isinstance(layer, WindowPooling)]

        def logits(images: tf.Tensor) -> tf.Tensor:
            (output,) = tf.nest.flatten(model(images, training=False))
            return tf.cast(output, tf.float32)

        signature = [tf.TensorSpec([None, height, width, self.channels], tf.float32)]
        self._compiled = tf.function(logits, input_signature=signature)

    @property
    def pad_value(self) -> tuple[float, ...]:
        """The colour that is 0 to the network: the mean of its normalization."""
        normalize = next((layer for layer in self.model.layers if isinstance(layer, Normalize)), None)
        return normalize.mean if normalize else (0.0,) * self.channels

    @functools.cached_property
    def before_resize(self) -> Network:
        """The same network up to its logits before the last resize."""
        return Network(keras.Model(self.model.input, self.model.get_layer("logits").output))

    @functools.cached_property
    def ends_with_resize(self) -> bool:
        """Whether the model's last step is a half-pixel resize of `before_resize`, which may as well go to another size."""
        layers = {layer.name: layer for layer in self.model.layers}
        resize = layers.get("resized_logits")
        return isinstance(resize, ResizeTo) and not resize.align_corners and resize.input[0] is layers["logits"].output

    @classmethod
    def of(cls, model: keras.Model | Network) -> Network:
        """`model` itself if it is a Network already."""
        return model if isinstance(model, Network) else cls(model)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Logits of images that have the model's input size, float32.

        Raises:
            UserError: the images are too small for the model, or too large for the memory.
        """
        size = "x".join(map(str, images.shape[1:3]))
        for layer in self._windows:
            layer.check_size(*images.shape[1:3])
        try:
            return self._compiled(images)
        except tf.errors.ResourceExhaustedError:
            raise UserError(
                f"{len(images)} images of {size} do not fit into the memory; "
                "lower --eval_batch_size, or give --inference=slide with a smaller --eval_crop_size"
            ) from None
        except tf.errors.InvalidArgumentError as error:
            reason = error.message.splitlines()[0].split("}} ")[-1].strip()
            raise UserError(
                f"the model cannot take an input of {size} ({reason}); give a larger image, or --eval_short_side"
            ) from None


def predict_logits(
    model: keras.Model | Network, images: Any, config: EvalConfig = EvalConfig()
) -> tf.Tensor:
    """Class scores of a batch of images at the images' own size.

    Over several scales or the mirrored image, the mean is that of the probabilities, and its logarithm is returned, so
    that in every case the softmax of the result is the probabilities and its argmax the labels.

    Args:
        model: a model, or a Network for repeated calls: it is compiled only once.
        images: `[batch, height, width, channels]`, uint8 or float32 in 0..255.
        config: how to run the model.

    Returns:
        float32 `[batch, height, width, num_classes]`.

    Raises:
        UserError: `config` does not fit the model, or the model cannot take the images' size.
    """
    network = Network.of(model)
    images = tf.cast(images, tf.float32)
    flips = (False, True) if config.add_flipped_images else (False,)
    passes = [(scale, flip) for scale in config.eval_scales for flip in flips]
    if len(passes) == 1:
        return _one_pass(network, images, *passes[0], config)
    total = sum(tf.nn.softmax(_one_pass(network, images, *one, config)) for one in passes)
    return tf.math.log(tf.maximum(total / len(passes), np.finfo(np.float32).tiny))


def _one_pass(network: Network, images: tf.Tensor, scale: float, flip: bool, config: EvalConfig) -> tf.Tensor:
    """Logits at the images' size from one run of the network, at one scale, mirrored or not."""
    size = tuple(images.shape[1:3])
    run_size = tuple(max(1, round(length * scale)) for length in resized_size(size, config))
    if config.inference == "whole" and network.input_size:
        if config.eval_scales != (1.0,):
            raise UserError(
                f"--eval_scales={','.join(map(str, config.eval_scales))}: the model was built for the input size "
                f"{network.input_size[0]}x{network.input_size[1]} and would see every scale at it; "
                "give --eval_scales=1.0 or --inference=slide, or build the model for any size"
            )
        run_size = network.input_size
    x = _resize(images, run_size)
    if flip:
        x = tf.reverse(x, axis=[2])
    if config.inference == "whole":  # resized once, from the head's own size, as SSSegmentation does it
        direct = run_size != size and network.ends_with_resize
        logits = network.before_resize(x) if direct else network(x)
    else:
        logits = _slide(network, x, config)
    if flip:
        logits = tf.reverse(logits, axis=[2])
    return _resize(logits, size)


def _slide(network: Network, images: tf.Tensor, config: EvalConfig) -> tf.Tensor:
    """Mean of the logits of overlapping windows; a model of fixed size gives the window's size."""
    batch, height, width = images.shape[:3]
    window = network.input_size or config.eval_crop_size
    stride = config.eval_stride or tuple(max(1, length * 2 // 3) for length in window)
    if stride[0] > window[0] or stride[1] > window[1]:
        raise UserError(
            f"--eval_stride={stride[0]},{stride[1]} leaves gaps between windows of {window[0]}x{window[1]}; "
            "give at most their size"
        )
    rows, columns = min(window[0], height), min(window[1], width)
    corners = [(y, x) for y in window_starts(height, rows, stride[0]) for x in window_starts(width, columns, stride[1])]
    total = np.zeros((batch, height, width, network.num_classes), np.float32)
    count = np.zeros((height, width, 1), np.float32)
    together = max(1, config.eval_batch_size // batch)
    for first in range(0, len(corners), together):
        group = corners[first : first + together]
        pieces = tf.concat([images[:, y : y + rows, x : x + columns] for y, x in group], axis=0)
        logits = _resize(network(_resize(pieces, network.input_size or (rows, columns))), (rows, columns))
        for (y, x), part in zip(group, np.split(logits.numpy(), len(group)), strict=True):
            total[:, y : y + rows, x : x + columns] += part
            count[y : y + rows, x : x + columns] += 1
    return tf.convert_to_tensor(total / count)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixel of each window along a side; the last window ends at the edge."""
    steps = -(-max(length - window, 0) // stride)
    return [min(step * stride, length - window) for step in range(steps + 1)]


def resized_size(size: tuple[int, ...], config: EvalConfig) -> tuple[int, int]:
    """(height, width) after `--eval_short_side` and `--eval_long_side`: the ratio is kept, both limits are held."""
    height, width = size
    if not config.eval_short_side:
        return height, width
    factor = config.eval_short_side / min(size)
    if config.eval_long_side:
        factor = min(factor, config.eval_long_side / max(size))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _resize(x: tf.Tensor, size: tuple[int, ...]) -> tf.Tensor:
    """Bilinear with half-pixel centres, float32."""
    return x if tuple(x.shape[1:3]) == tuple(size) else tf.image.resize(x, size)


class Predictor:
    """Labels of an image of any size: `labels = Predictor(model)(image)`.

    A model that was built for one size gets the image resized to it, any other the image as it is.

    Args:
        model: a segmentation model, or a Network.
        config: whole image or sliding window, scales, flip, and a resize before the network.
    """

    def __init__(self, model: keras.Model | Network, config: EvalConfig = EvalConfig()) -> None:
        self.network = Network.of(model)
        self.config = config

    def __call__(self, image: Any) -> np.ndarray:
        """Label map of an image.

        Args:
            image: what `as_image` takes: uint8 `[height, width, 3]`, grey, with alpha, a PIL image.

        Returns:
            `[height, width]`, uint8, or int32 for more than 256 classes.

        Raises:
            UserError: the image is none, or the model cannot take it.
        """
        return self.predict_batch(as_image(image, self.network.channels)[None])[0]

    def probabilities(self, image: Any) -> np.ndarray:
        """Probability of each class: float32 `[height, width, num_classes]`; `image` as in a call."""
        images = as_image(image, self.network.channels)[None]
        if self.config.inference == "official":
            prediction = official_inference.predict(self.network, images, self.config)
            return official_inference.restore_probabilities(prediction, images.shape[1:3])[0]
        return tf.nn.softmax(predict_logits(self.network, images, self.config))[0].numpy()

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Label maps `[batch, height, width]` of images of one size, `[batch, height, width, channels]` in 0..255."""
        if self.config.inference == "official":
            prediction = official_inference.predict(self.network, images, self.config)
            return self._typed(official_inference.restore_labels(prediction, images.shape[1:3])).numpy()
        labels = tf.argmax(predict_logits(self.network, images, self.config), axis=-1, output_type=tf.int32)
        return self._typed(labels).numpy()

    def compare(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true label maps where they are compared: at the labels' size, unless the config says other.

        The official eval.py compares at the size that its resize gave the image.
        """
        if self.config.inference == "official" and self.config.eval_short_side:
            prediction = official_inference.predict(self.network, images, self.config)
            height, width = prediction.size
            found = self._typed(prediction.labels[:, :height, :width]).numpy()
            return found, official_inference.prepare_labels(labels, prediction.size)
        return self.predict_batch(images), labels

    def compare_with_confidence(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `compare`, and the probability of each predicted label: float32 `[batch, height, width]`."""
        if self.config.inference == "official":
            prediction, size = official_inference.predict(self.network, images, self.config), labels.shape[1:3]
            if self.config.eval_short_side:
                size = prediction.size
                labels = official_inference.prepare_labels(labels, size)
            found = self._typed(official_inference.restore_labels(prediction, size))
            return found.numpy(), labels, official_inference.restore_probabilities(prediction, size).max(-1)
        found, confidence = _decide(predict_logits(self.network, images, self.config))
        return self._typed(found).numpy(), labels, confidence.numpy()

    def _typed(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.cast(labels, tf.uint8 if self.network.num_classes <= 256 else tf.int32)


@tf.function(reduce_retracing=True)
def _decide(logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The most probable class and its probability."""
    confidence = tf.exp(tf.reduce_max(logits, -1) - tf.reduce_logsumexp(logits, -1))
    return tf.argmax(logits, -1, output_type=tf.int32), confidence


def open_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file of any colour mode as uint8 `[height, width, 3]` RGB, turned upright as its EXIF note says.

    Raises:
        UserError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):  # 16-bit grey, whose high byte counts
                return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError:
        reason = "not an image"
    except DECODE_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{os.fspath(path)}: cannot be read ({reason}); replace it")


def as_image(image: Any, channels: int = 3) -> np.ndarray:
    """An image as the network takes it: `[height, width, channels]`, uint8 or float32, in 0..255.

    Grey becomes RGB, an alpha channel is dropped, a PIL image of 8 bits in any mode becomes RGB.

    Args:
        image: an array `[height, width]` or `[height, width, 1, 3 or 4]` of whole numbers or floats in 0..255, or a PIL
            image.
        channels: what the network wants.

    Raises:
        UserError: another shape, or values outside of 0..255, or floats in 0..1.
    """
    if isinstance(image, Image.Image) and not image.mode.startswith(("I", "F")):  # their values may go beyond 255
        image = image.convert("L" if channels == 1 else "RGB")
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.size == 0:
        raise UserError(f"image of shape {np.shape(image)}; allowed are [height, width] and [height, width, channels]")
    given = array.shape[-1]
    if given == 1 and channels == 3:
        array = np.repeat(array, 3, axis=-1)
    elif given == 4 and channels == 3:
        array = array[..., :3]
    elif given != channels:
        raise UserError(f"image with {given} channels; the model takes {channels}")
    return array if array.dtype == np.uint8 else _checked_values(array)


def _checked_values(array: np.ndarray) -> np.ndarray:
    """Whole numbers as uint8, floats as float32; refuses what is not in 0..255."""
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole and not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"image of dtype {array.dtype}; allowed are uint8, and whole numbers or floats in 0..255")
    low, high = array.min(), array.max()
    values = f"image of dtype {array.dtype} with values {low:g} to {high:g}"
    if not (low >= 0 and high <= 255):
        hint = "; divide 16-bit values by 257" if array.dtype == np.uint16 else ""
        raise UserError(f"{values}; allowed are 0 to 255{hint}")
    if not whole and 0 < high <= 1:
        raise UserError(f"{values}; 0 to 255 is wanted: multiply by 255")
    return array.astype(np.uint8 if whole else np.float32)
