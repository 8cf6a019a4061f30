"""Training on TensorFlow, see `engine.Engine`."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import TrainConfig
from deeplab_keras.models.layers import PACKAGE, sum_over_replicas
from deeplab_keras.training.step import Tensors, TrainedModel

OUT_OF_MEMORY = tf.errors.ResourceExhaustedError
ALWAYS_COMPILED = False


def check(training: TrainConfig) -> None:
    """See `engine.Engine`."""


def make_strategy(name: str) -> tf.distribute.Strategy:
    """See `engine.Engine`."""
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if name == "none" or (name == "auto" and len(devices) == 1):
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def fit_scope(strategy: tf.distribute.Strategy) -> contextlib.AbstractContextManager[None]:
    """See `engine.Engine`."""
    return contextlib.nullcontext()


def compiled(
    function: Callable[[Any], Any], variables: Sequence[keras.Variable]
) -> Callable[[Any], Any]:
    """See `engine.Engine`."""
    return tf.function(function, autograph=False, reduce_retracing=True)


def copies(values: Tensors) -> Tensors:
    """See `engine.Engine`."""
    return [tf.Variable(value, trainable=False, name="average") for value in values]


def average(values: Tensors, averages: Tensors, momentum: float) -> Tensors:
    """See `engine.Engine`."""
    _average(values, averages, tf.constant(momentum))
    return averages


@tf.function
def _average(values: list[tf.Tensor], averages: list[tf.Variable], momentum: tf.Tensor) -> None:
    for value, average in zip(values, averages, strict=True):
        share = tf.cast(momentum, average.dtype)
        average.assign(share * average + (1 - share) * value)


def read_counts(variable: keras.Variable) -> np.ndarray:
    """See `engine.Engine`."""
    return sum(part.numpy() for part in _replicas(variable))


def write_counts(variable: keras.Variable, counts: np.ndarray) -> None:
    """See `engine.Engine`."""
    # The sum over all replicas counts, and the others start with 0.
    _replicas(variable)[0].assign(counts)


def _replicas(variable: keras.Variable) -> Sequence[tf.Variable]:
    """Returns the variable's copy on each replica of this process."""
    return getattr(variable.value, "values", None) or [variable.value]


def start_profiler(folder: pathlib.Path) -> None:
    """See `engine.Engine`."""
    tf.profiler.experimental.start(str(folder))


def stop_profiler() -> None:
    """See `engine.Engine`."""
    tf.profiler.experimental.stop()


@keras.saving.register_keras_serializable(PACKAGE)
class TensorFlowModel(TrainedModel):
    """A `TrainedModel` on TensorFlow, which computes a step on each replica.

    With several replicas and without clipping, "gradient_norm" is the norm of the concatenated
    gradients of all replicas.
    """

    # Number of metric variables, and the compiled function that resets them.
    _reset: tuple[int, Any] = (-1, None)

    def reset_metrics(self) -> None:
        """Resets the metrics of this process.

        The reset runs in the replica context, because elsewhere it would wait for all workers.
        """
        count = len(self.metrics_variables)  # Keras creates them in the first step
        if self._reset[0] != count:
            reset = super().reset_metrics
            self._reset = count, tf.function(lambda: self.distribute_strategy.run(reset))
        self._reset[1]()

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Updates the weights and returns the metrics, the loss and the gradient norm."""
        loss, gradients, metrics = self._gradients(*data)
        loss = sum_over_replicas(loss)
        norm = self._norm(gradients)
        gradients = self._checked(gradients, loss, norm)
        self.optimizer.apply_gradients(zip(gradients, self.trained_variables, strict=True))
        return self._logs(metrics, loss, norm)

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor
    ) -> tuple[tf.Tensor, Tensors, dict[str, Any]]:
        """Returns this replica's share of the loss and of the gradients, and its metrics."""
        sums: Tensors = []
        metrics: dict[str, Any] = {}
        total = tf.zeros((), keras.config.floatx())
        for part, (part_images, part_labels, share) in enumerate(self._split(images, labels)):
            with tf.control_dependencies(sums):  # starts after the previous part, to reuse memory
                part_images = tf.identity(part_images)
            # Outside the tape, which would keep the teacher's features in memory.
            teacher_logits = self._teacher_logits(part_images)
            with tf.GradientTape() as tape:
                scaled, loss, outputs = self._forward(
                    part_images, part_labels, share, teacher_logits
                )
            gradients = tape.gradient(scaled, self.trained_variables)
            sums = [a + b for a, b in zip(sums, gradients, strict=True)] if part else gradients
            total += tf.cast(loss, total.dtype)
            metrics = self.compute_metrics(part_images, part_labels, outputs)
        return total, sums, metrics

    def _split(
        self, images: tf.Tensor, labels: tf.Tensor
    ) -> list[tuple[tf.Tensor, tf.Tensor, Any]]:
        """Splits a batch into parts, each with its share of the valid pixels of all replicas."""
        if self.parts == 1:
            return [(images, labels, 1.0)]
        shares = tf.unstack(self._shares(labels))
        parts = tf.split(images, self.parts), tf.split(labels, self.parts), shares
        return list(zip(*parts, strict=True))

    def _norm(self, gradients: Tensors) -> tf.Tensor:
        """Returns the norm of the gradient over all weights, without the loss scale."""
        if self.clip_norm:
            gradients = sum_over_replicas(gradients)
            squares = tf.square(tf.linalg.global_norm(gradients))
        else:
            squares = sum_over_replicas(tf.square(tf.linalg.global_norm(gradients)))
        norm = tf.sqrt(squares)
        return (
            norm / tf.cast(self.optimizer.dynamic_scale, norm.dtype) if self._scales_loss else norm
        )


Model = TensorFlowModel
