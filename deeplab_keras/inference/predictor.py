"""The predictor: an image in, its label map out."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig
from deeplab_keras.inference import official as official_inference
from deeplab_keras.inference.exported import Path, open_exported
from deeplab_keras.inference.images import as_batch, as_image
from deeplab_keras.inference.logits import mean_logits, predict_labels
from deeplab_keras.inference.network import Network


class Predictor:
    """Labels of an image of any size: `labels = Predictor(model)(image)`.

    A model that was built for one size gets the image resized to it, any other the image as it is.

    Thread safety: one `Predictor` may be called from several threads at the same time, whatever it
    was made from. Calls of a `.tflite` file run one after the other, since its interpreter computes
    in one set of tensors; each of them already uses all processors. A call with images that are
    refused does not affect the calls of other threads.

    Args:
        model: a segmentation model, a Network, or the path of an exported model: a .tflite or .onnx
            file, or the folder of a SavedModel.
        config: whole image or sliding window, scales, flip, and a resize before the network.
    """

    def __init__(
        self, model: keras.Model | Network | Path, config: EvalConfig = EvalConfig()
    ) -> None:
        self.network = (
            open_exported(model) if isinstance(model, str | os.PathLike) else Network.of(model)
        )
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
        return self._labels(as_image(image, self.network.channels)[None])[0]

    def probabilities(self, image: Any) -> np.ndarray:
        """Probability of each class: float32 `[height, width, num_classes]`; `image` as in a call."""
        return self._labels_and_probabilities(as_image(image, self.network.channels)[None])[1][0]

    def labels_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label maps as `predict_batch` gives them, and the probabilities: float32 `[batch, height, width, num_classes]`."""
        return self._labels_and_probabilities(as_batch(images, self.network.channels))

    def _labels_and_probabilities(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.config.inference == "official":
            prediction = official_inference.predict(self.network, images, self.config)
            size = images.shape[1:3]
            labels = self._typed(official_inference.restore_labels(prediction, size))
            return labels.numpy(), official_inference.restore_probabilities(prediction, size)
        logits = mean_logits(self.network, images, self.config)
        return self._typed(tf.argmax(logits, -1, output_type=tf.int32)).numpy(), tf.nn.softmax(
            logits
        ).numpy()

    def labels_and_confidence(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label maps as `predict_batch` gives them, and the probability of each label: float32 `[batch, height, width]`."""
        images = as_batch(images, self.network.channels)
        if self.config.inference == "official":
            labels, probabilities = self._labels_and_probabilities(images)
            return labels, probabilities.max(-1)
        found, confidence = predict_labels(self.network, images, self.config, with_confidence=True)
        assert confidence is not None
        return self._typed(found).numpy(), confidence

    def predict_batch(self, images: np.ndarray) -> np.ndarray:
        """Label maps of images of one size.

        Args:
            images: `[batch, height, width, channels]` in 0..255, with the types and channels that a
                single image may have.

        Returns:
            `[batch, height, width]`, uint8, or int32 for more than 256 classes.

        Raises:
            UserError: another shape or type, values outside of 0..255, or the model cannot take the
                images.
        """
        return self._labels(as_batch(images, self.network.channels))

    def _labels(self, images: np.ndarray) -> np.ndarray:
        if self.config.inference == "official":
            prediction = official_inference.predict(self.network, images, self.config)
            return self._typed(
                official_inference.restore_labels(prediction, images.shape[1:3])
            ).numpy()
        return self._typed(predict_labels(self.network, images, self.config)[0]).numpy()

    def compare(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true label maps where they are compared: at the labels' size, unless the config says other.

        The official eval.py compares at the size that its resize gave the image.
        """
        images = as_batch(images, self.network.channels)
        if self.config.inference == "official" and self.config.eval_short_side:
            prediction = official_inference.predict(self.network, images, self.config)
            height, width = prediction.size
            found = self._typed(prediction.labels[:, :height, :width]).numpy()
            return found, official_inference.prepare_labels(labels, prediction.size)
        return self._labels(images), labels

    def compare_with_confidence(
        self, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `compare`, and the probability of each predicted label: float32 `[batch, height, width]`."""
        images = as_batch(images, self.network.channels)
        if self.config.inference == "official":
            prediction, size = (
                official_inference.predict(self.network, images, self.config),
                labels.shape[1:3],
            )
            if self.config.eval_short_side:
                size = prediction.size
                labels = official_inference.prepare_labels(labels, size)
            found = self._typed(official_inference.restore_labels(prediction, size))
            return (
                found.numpy(),
                labels,
                official_inference.restore_probabilities(prediction, size).max(-1),
            )
        predicted, confidence = self.labels_and_confidence(images)
        return predicted, labels, confidence

    def _typed(self, labels: tf.Tensor) -> tf.Tensor:
        return tf.cast(labels, tf.uint8 if self.network.num_classes <= 256 else tf.int32)
