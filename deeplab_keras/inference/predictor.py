"""The predictor: from an image to its label map."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from deeplab_keras.config import EvalConfig, UserError, require_instance
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.inference.images import as_batch, as_image, as_labels, open_picture
from deeplab_keras.inference.logits import mean_logits, predict_labels
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.opening import Path, as_network, open_network

if TYPE_CHECKING:
    import keras

    from deeplab_keras.inference.official import Prediction


class _Strategy(Protocol):
    """A way to predict a batch of checked images `[batch, height, width, channels]` in 0..255."""

    def __init__(self, network: Network, config: EvalConfig) -> None: ...

    def labels(
        self, images: np.ndarray, with_confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Labels, int32, and on request their probability, float32, both at the images' size."""

    def probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels, int32, and the probability of each class, float32, both at the images' size."""

    def compare(
        self, images: np.ndarray, labels: np.ndarray, with_confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Predicted and true labels, and on request the confidence, at the size to compare at."""


class _WholeOrSlide:
    """The whole image or sliding windows, resized to the image's size (`inference/logits.py`)."""

    def __init__(self, network: Network, config: EvalConfig) -> None:
        self.network, self.config = network, config

    def labels(
        self, images: np.ndarray, with_confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return predict_labels(self.network, images, self.config, with_confidence=with_confidence)

    def probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = mean_logits(self.network, images, self.config)
        (labels,) = self.network.arithmetic.decide(logits)
        return np.asarray(labels), np.asarray(self.network.arithmetic.softmax(logits))

    def compare(
        self, images: np.ndarray, labels: np.ndarray, with_confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        predicted, confidence = self.labels(images, with_confidence)
        return predicted, labels, confidence


class _Official:
    """As in the official DeepLab scripts (`inference/official.py`)."""

    def __init__(self, network: Network, config: EvalConfig) -> None:
        try:
            from deeplab_keras.inference import official  # imports TensorFlow
        except ModuleNotFoundError as error:
            raise UserError(
                f"`inference='official'`: needs the package {error.name}; pip install tensorflow "
                "keras, or give another `inference`"
            ) from error
        self.network, self.config, self._official = network, config, official

    def labels(
        self, images: np.ndarray, with_confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        prediction = self._official.predict(self.network, images, self.config)
        return self._at(images.shape[1:3], prediction, with_confidence)

    def probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        prediction, size = (
            self._official.predict(self.network, images, self.config),
            images.shape[1:3],
        )
        labels = self._official.restore_labels(prediction, size)
        return labels, self._official.restore_probabilities(prediction, size)

    def compare(
        self, images: np.ndarray, labels: np.ndarray, with_confidence: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        prediction = self._official.predict(self.network, images, self.config)
        size = images.shape[1:3]
        if self.config.eval_short_side:
            size = prediction.size
            labels = self._official.prepare_labels(labels, size)
        predicted, confidence = self._at(size, prediction, with_confidence)
        return predicted, labels, confidence

    def _at(
        self, size: tuple[int, int], prediction: Prediction, with_confidence: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        labels = self._official.restore_labels(prediction, size)
        if not with_confidence:
            return labels, None
        return labels, self._official.restore_probabilities(prediction, size).max(-1)


_STRATEGIES: dict[str, type[_Strategy]] = {
    "whole": _WholeOrSlide,
    "slide": _WholeOrSlide,
    "official": _Official,
}


def _is_image(item: Any) -> bool:
    """Whether an item of a list is an image and not a row of numbers."""
    return isinstance(item, str | os.PathLike | Image.Image) or getattr(item, "ndim", 0) >= 2


class Predictor:
    """Predicts the label map of an image of any size.

    A model of a fixed input size gets the image resized to it. Any other model gets the image at
    its own size, unless the config resizes it.

    Several threads may call one `Predictor` at the same time, whatever the type of its model. Calls
    of a `.tflite` file run one after the other, because its interpreter has a single set of
    tensors; each call already uses all processors. A call that raises an error for its images does
    not affect the calls of other threads.

    Args:
        model: A segmentation model, a `Network`, the name of a model of the zoo, or a path: a
            checkpoint, a workdir, a .keras file, or an exported model, which is a .tflite or .onnx
            file or the folder of a SavedModel, also one that Keras' `model.export` wrote.
        config: Whole image or sliding window, scales, flips, and the resize before the network.
            Default: the whole image, at a single scale.

    Attributes:
        network: The model as a `Network`.
        info: The classes of the model; `None` if it was given as an object without them, such as a
            `keras.Model`.
        config: The config.

    Raises:
        UserError: If the model does not output one score per pixel and class, or it cannot be
            loaded.

    Example:
        >>> model = dk.load_model("runs/demo")
        >>> image = np.zeros((48, 64, 3), "uint8")
        >>> predictor = dk.Predictor(model)
        >>> labels = predictor(image)
        >>> labels.shape, labels.dtype
        ((48, 64), dtype('uint8'))
        >>> [labels.shape for labels in predictor([image, image[:20]])]
        [(48, 64), (20, 64)]
        >>> predictor.probabilities(image).shape
        (48, 64, 10)
        >>> len(dk.Predictor("runs/demo").info.class_names)
        10
        >>> slow = dk.EvalConfig(eval_scales=(0.75, 1.0), add_flipped_images=True)
        >>> dk.Predictor(model, slow)(image).shape
        (48, 64)
    """

    def __init__(
        self, model: keras.Model | Network | Path, config: EvalConfig = EvalConfig()
    ) -> None:
        require_instance(config, EvalConfig, "config")
        self.network: Network
        self.info: DatasetInfo | None
        if isinstance(model, str | os.PathLike):
            self.network, self.info = open_network(model)
        else:
            self.network = as_network(model)
            self.info = getattr(self.network, "info", None)
        self.config = config
        self._strategy: _Strategy = _STRATEGIES[config.inference](self.network, config)
        self._dtype = np.uint8 if self.network.num_classes <= 256 else np.int32

    def __call__(self, image: Any) -> Any:
        """Returns the label map of an image, or the label maps of several images.

        Args:
            image: An array `[height, width]` or `[height, width, channels]` of integers or floats
                in 0..255, with 1 channel (gray), 3 (RGB) or 4 (RGBA), a PIL image, or the path of
                an image file. Several images are an array `[batch, height, width, channels]`, or a
                list of arrays, PIL images and paths, which may differ in size.

        Returns:
            `[height, width]`, uint8, or int32 for more than 256 classes; `[batch, height, width]`
            for a batch, and a list of label maps for a list.

        Raises:
            UserError: If an image has another shape, dtype or range, or cannot be read, or the
                model cannot take it.
        """
        if isinstance(image, list | tuple) and image and all(map(_is_image, image)):
            return [self(item) for item in image]
        if getattr(image, "ndim", 0) == 4:
            return self.predict_batch(image)
        return self._labels(self._opened(image)[None])[0]

    def warm_up(self, sizes: Sequence[Any] = (), *, batch_size: int = 1) -> None:
        """Runs the model once per image size, so that the first real call takes no longer.

        A Keras model is traced and compiled by its first calls, and an exported file allocates its
        memory.

        Args:
            sizes: The (height, width) of the images: one pair or several. Default: the model's
                fixed input size.
            batch_size: The number of images per call.

        Raises:
            UserError: A size or the batch size is not valid, or the model has no fixed input size
                and no size is given.

        Example:
            >>> predictor = dk.Predictor("runs/demo")
            >>> predictor.warm_up([(48, 64), (64, 48)])
        """
        if len(sizes) == 2 and not isinstance(sizes[0], Sequence):
            sizes = [sizes]
        if not len(sizes):
            sizes = [self.network.input_size]
        for size in sizes:
            sides = (batch_size, *size) if isinstance(size, Sequence) else ()
            if len(sides) != 3 or not all(isinstance(n, int | np.integer) and n > 0 for n in sides):
                raise UserError(
                    f"`sizes={sizes}` with `batch_size={batch_size}`: must be pairs (height, "
                    "width) and a number, all at least 1; give the sizes of your images, such as "
                    "[(480, 640)]"
                )
        for height, width in sizes:
            shape = (batch_size, height, width, self.network.channels)
            self.predict_batch(np.zeros(shape, np.uint8))

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Returns the label maps of images of one size.

        Args:
            images: `[batch, height, width, channels]` in 0..255, with the dtypes and channels that
                a single image may have.

        Returns:
            `[batch, height, width]`, uint8, or int32 for more than 256 classes.

        Raises:
            UserError: If the images have another shape, dtype or range, or the model cannot take
                them.
        """
        return self._labels(as_batch(images, self.network.channels))

    def probabilities(self, image: Any) -> np.ndarray:
        """Returns the probability of each class, float32 `[height, width, num_classes]`.

        Args:
            image: A single image, see `__call__`.
        """
        images = self._opened(image)[None]
        return self._strategy.probabilities(images)[1][0]

    def labels_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns label maps and the probability of each class.

        Args:
            images: See `predict_batch`.

        Returns:
            The label maps of `predict_batch`, and float32 `[batch, height, width, num_classes]`.
        """
        images = as_batch(images, self.network.channels)
        labels, probabilities = self._strategy.probabilities(images)
        return self._typed(labels), probabilities

    def labels_and_confidence(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns label maps and the probability of each label.

        Args:
            images: See `predict_batch`.

        Returns:
            The label maps of `predict_batch`, and float32 `[batch, height, width]`.
        """
        images = as_batch(images, self.network.channels)
        labels, confidence = self._strategy.labels(images, with_confidence=True)
        assert confidence is not None
        return self._typed(labels), confidence

    def compare(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns predicted and true label maps at the size at which they are compared.

        This is the labels' own size, except for `inference="official"` with a resize: the official
        eval.py compares at the size of the resized image.

        Args:
            images: See `predict_batch`.
            labels: The true labels, integers `[batch, height, width]`.

        Raises:
            UserError: As `predict_batch`, or the labels have another shape or dtype.
        """
        images = as_batch(images, self.network.channels)
        predicted, labels, _ = self._strategy.compare(images, as_labels(labels, images))
        return self._typed(predicted), labels

    def compare_with_confidence(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what `compare` returns and the probability of each predicted label.

        The probabilities are float32 `[batch, height, width]`.
        """
        images = as_batch(images, self.network.channels)
        predicted, labels, confidence = self._strategy.compare(
            images, as_labels(labels, images), with_confidence=True
        )
        assert confidence is not None
        return self._typed(predicted), labels, confidence

    def _opened(self, image: Any) -> np.ndarray:
        """Returns a single image as network input."""
        if isinstance(image, str | os.PathLike):
            image = open_picture(image)
        return as_image(image, self.network.channels)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._typed(self._strategy.labels(images)[0])

    def _typed(self, labels: np.ndarray) -> np.ndarray:
        return labels.astype(self._dtype, copy=False)
