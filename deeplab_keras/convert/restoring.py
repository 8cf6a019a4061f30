"""Restores batch norm that was folded into the convolutions.

A folded batch norm is converted to one with a mean of 0 and a variance near 1. It computes the
same, but training would normalize with statistics that its features never had.
`restore_batch_norm` measures the statistics on images, as a training step with all images in one
batch would, and changes gamma and beta so that each layer computes the same as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert import pictures
from deeplab_keras.convert.pictures import Images
from deeplab_keras.io.progress import Progress
from deeplab_keras.models.layers import resize_bilinear, smallest_size
from deeplab_keras.models.segmentor import pad_value

OPTION = "restore_batch_norm"
LARGEST_SIDE = 2049  # the official size of Cityscapes images
# A channel with less variance than this share of epsilon is constant on the images: epsilon instead
# of the variance would determine gamma.
CONSTANT = 1e-3
CHECKED = 4  # images whose labels are compared before and after
EQUAL_LABELS, LOGIT_DIFFERENCE = 0.9999, 1e-4


@dataclasses.dataclass(frozen=True)
class Restored:
    """The result of `restore_batch_norm`.

    Attributes:
        layers: The number of layers with new statistics.
        kept: The number of layers that had statistics before, which they keep.
        images: The number of images.
        constant: The number of channels that are constant on the images and keep their variance.
        channels: The number of all channels of the layers with new statistics.
        labels: Share of the pixels with the same label before and after, 0..1.
        logits: Largest difference of a class score before and after, relative to the largest score.
    """

    layers: int
    kept: int
    images: int
    constant: int
    channels: int
    labels: float
    logits: float

    def __str__(self) -> str:
        text = (
            f"The statistics of {self.layers} folded batch norm layers were measured on "
            f"{self.images} images. Gamma and beta changed with them: {100 * self.labels:.4f} % of "
            f"the labels are equal before and after, and the logits differ by at most "
            f"{self.logits:.2g} of the largest logit."
        )
        if self.constant:
            text += (
                f" {self.constant} of {self.channels} channels are constant on the images and keep "
                "their variance."
            )
        if self.kept:
            text += f" {self.kept} layers had statistics, which are unchanged."
        return text


def restore_batch_norm(
    model: keras.Model,
    config: ModelConfig,
    images: Images,
    *,
    origin: str,
    loaded: Collection[str] | None = None,
) -> Restored:
    """Measures the statistics of folded batch norm layers, and changes the layers in place.

    Each image is used as a whole, at its own size. If its longer side exceeds `LARGEST_SIDE`, it is
    reduced. If it is smaller than the network's image pooling window, it is padded at the right and
    at the bottom with the network's `pad_value`, as the official evaluation does. A layer is
    measured over all positions of all images. Its variance is unbiased, as in training.

    Args:
        model: The segmentor.
        config: Its architecture.
        images: A folder of images (searched recursively), or uint8 images
            `[height, width, channels]`. Of more than `pictures.MAX_IMAGES`, evenly spaced ones are
            used.
        origin: The source of the weights, for error messages.
        loaded: Names of the layers with weights of the source; `None` for all layers.

    Raises:
        UserError: If there are too few images, one cannot be read, no batch norm is folded, or the
            layers would not compute the same.
    """
    found = pictures.find_for_statistics(images)
    layers = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and (loaded is None or layer.name in loaded)
    ]
    folded = [layer for layer in layers if is_folded(layer)]
    if not folded:
        raise UserError(
            f"{origin}: none of its {len(layers)} batch norm layers is folded, so they have the "
            "statistics of its training; omit `restore_batch_norm`"
        )
    moments, before = _measure(model, config, folded, found)
    constant = sum(_rewrite(layer, moments[layer.name]) for layer in folded)
    labels, logits = _compare(model, config, found, before)
    restored = Restored(
        layers=len(folded),
        kept=len(layers) - len(folded),
        images=len(found),
        constant=constant,
        channels=sum(moments[layer.name].mean.size for layer in folded),
        labels=labels,
        logits=logits,
    )
    if not (labels >= EQUAL_LABELS and logits <= LOGIT_DIFFERENCE):  # also for NaN
        raise UserError(
            f"{origin}: its batch norm cannot be restored in float32. {restored} Required are "
            f"{EQUAL_LABELS:.2%} and {LOGIT_DIFFERENCE:g}; omit `restore_batch_norm`"
        )
    return restored


def is_folded(layer: keras.layers.BatchNormalization) -> bool:
    """Whether a layer has the trivial statistics of a folded one: mean 0 and one variance."""
    mean, variance = map(ops.convert_to_numpy, (layer.moving_mean, layer.moving_variance))
    return not mean.any() and bool((variance == variance.flat[0]).all())


@dataclasses.dataclass
class Moments:
    """Mean and variance of a layer's input, accumulated image by image in float64.

    Attributes:
        count: The number of positions.
        mean: The mean of each channel, `[channels]`.
        squares: The sum of the squared differences from the mean, `[channels]`.
    """

    count: float
    mean: np.ndarray
    squares: np.ndarray

    def add(self, other: Moments) -> None:
        """Adds the positions of another image (Chan et al. 1979)."""
        count, step = self.count + other.count, other.mean - self.mean
        self.squares = self.squares + other.squares + step**2 * (self.count * other.count / count)
        self.mean = self.mean + step * (other.count / count)
        self.count = count

    @property
    def variance(self) -> np.ndarray:
        """The unbiased variance of each channel, `[channels]`."""
        return self.squares / max(self.count - 1, 1)


def _measure(
    model: keras.Model,
    config: ModelConfig,
    layers: Sequence[keras.layers.BatchNormalization],
    images: Sequence[Any],
) -> tuple[dict[str, Moments], list[np.ndarray]]:
    """Runs the network once per image.

    Returns:
        The moments by name of the layer, and the class scores of the first `CHECKED` images.
    """
    names = {layer.name for layer in layers}
    inputs = [  # more than one per layer in an image pyramid
        (node.operation.name, node.input_tensors[0])
        for nodes in model._nodes_by_depth.values()
        for node in nodes
        if not node.is_input and node.operation.name in names
    ]
    outputs = [_moments(tensor) for _, tensor in inputs]
    measuring = keras.Model(model.inputs, [outputs, model.outputs[0]])
    moments: dict[str, Moments] = {}
    scores: list[np.ndarray] = []
    progress = Progress(len(images), "batch norm")
    for done, image in enumerate(_prepared(model, config, images), 1):
        found, logits = measuring.predict_on_batch(image)
        for (name, _), values in zip(inputs, found, strict=True):
            own = Moments(*values)
            if name in moments:
                moments[name].add(own)
            else:
                moments[name] = own
        if len(scores) < CHECKED:
            scores.append(logits)
        progress.update(done)
    return moments, scores


def _moments(x: Any) -> tuple[Any, Any, Any]:
    """Returns the number of positions, their mean, and their squared differences from it."""
    x, axes = ops.cast(x, "float64"), (0, 1, 2)
    mean = ops.mean(x, axis=axes)
    return ops.sum(ops.ones_like(x[..., 0])), mean, ops.sum(ops.square(x - mean), axis=axes)


def _prepared(
    model: keras.Model, config: ModelConfig, images: Sequence[Any]
) -> Iterator[np.ndarray]:
    """Yields the images at the size for the network, float32 `[1, height, width, channels]`."""
    smallest = smallest_size(config.image_pooling_window, config.output_stride)
    color = np.array(pad_value(model), np.float32)
    for image in images:
        pixels = pictures.pixels_of(image, OPTION, config.input_channels)
        batch = pixels[None].astype(np.float32)
        reduced = LARGEST_SIDE / max(batch.shape[1:3])
        if reduced < 1:
            size = tuple(max(1, round(side * reduced)) for side in batch.shape[1:3])
            batch = ops.convert_to_numpy(resize_bilinear(batch, size, config.align_corners))
        missing = [max(0, low - side) for low, side in zip(smallest, batch.shape[1:3], strict=True)]
        if any(missing):
            margins = [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)]
            batch = np.pad(batch - color, margins) + color
        yield batch


def _rewrite(layer: keras.layers.BatchNormalization, moments: Moments) -> int:
    """Gives a layer new statistics, without changing what it computes.

    Returns:
        The number of channels that keep their variance, because they are constant on the images.
    """
    gamma, beta, old_mean, old_variance = (
        ops.convert_to_numpy(variable).astype(np.float64)
        for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    )
    constant = moments.variance < CONSTANT * layer.epsilon
    # Rounded first, so that gamma and beta fit the stored values.
    mean = moments.mean.astype(np.float32).astype(np.float64)
    variance = np.where(constant, old_variance, moments.variance).astype(np.float32)
    scale = gamma / np.sqrt(old_variance + layer.epsilon)
    layer.gamma.assign(scale * np.sqrt(variance.astype(np.float64) + layer.epsilon))
    layer.beta.assign(beta + scale * (mean - old_mean))
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)
    return int(constant.sum())


def _compare(
    model: keras.Model, config: ModelConfig, images: Sequence[Any], before: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Returns the share of equal labels, and the largest relative difference of the scores."""
    equal = total = 0
    difference = largest = 0.0
    for image, old in zip(_prepared(model, config, images[: len(before)]), before, strict=True):
        new = model.predict_on_batch(image)
        equal += int((new.argmax(-1) == old.argmax(-1)).sum())
        total += old[..., 0].size
        difference = float(np.maximum(difference, np.abs(new - old).max()))  # NaN stays NaN
        largest = float(np.maximum(largest, np.abs(old).max()))
    return equal / total, difference / largest if largest else difference
