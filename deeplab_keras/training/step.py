"""One training step: forward, loss, gradient, update, on one device or as one replica of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

Tensors = list[tf.Tensor]


def sum_over_replicas(value: Any) -> Any:
    """The sum of a tensor over all replicas of the step it is in; outside of a distributed step the tensor itself."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


@keras.saving.register_keras_serializable(package="deeplab_keras")
class TrainedModel(keras.Model):
    """A segmentor with all its outputs, whose `fit` takes our step.

    The losses must be sums over the replicas, as `SegmentationLoss` with `sum_over_replicas` gives
    them. Beside the metrics, a step returns "loss", that of this step over all replicas, and
    "gradient_norm"; of several replicas without clipping that is the norm of their gradients laid
    side by side.
    """

    parts = 1
    clip_norm = 0.0
    ignore_label = 255
    _reset: tuple[int, Any] = (
        -1,
        None,
    )  # number of the metrics' variables, and what sets them back

    def set_step(self, *, parts: int = 1, clip_norm: float = 0.0, ignore_label: int = 255) -> None:
        """How a step is taken.

        Args:
            parts: the batch goes through the network in so many parts, one after another, whose
                gradients are added up.
            clip_norm: largest norm of the gradient over all weights; a larger one is scaled down.
                0: any.
            ignore_label: label of pixels that do not count, by which the parts are weighted.
        """
        self.parts, self.clip_norm, self.ignore_label = parts, clip_norm, ignore_label

    def reset_metrics(self) -> None:
        """Sets this process' metrics back; from outside of the replicas it would be an exchange among all workers."""
        count = len(self.metrics_variables)  # Keras makes them at the first step
        if self._reset[0] != count:
            reset = super().reset_metrics
            self._reset = count, tf.function(lambda: self.distribute_strategy.run(reset))
        self._reset[1]()

    def train_step(self, data: tuple[tf.Tensor, Mapping[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """Updates the weights; a loss or gradient that is no number leaves them as they are, but for the momentum."""
        images, labels = data
        loss, gradients, metrics = self._gradients(images, labels)
        loss = sum_over_replicas(loss)
        norm = self._norm(gradients)
        if self.clip_norm:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)
            gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        if not self._scales_loss:  # a scaled loss overflows now and then, which its optimizer mends
            finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
            gradients = tf.cond(
                finite, lambda: gradients, lambda: [tf.zeros_like(g) for g in gradients]
            )
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        known = tf.zeros_like(norm) if self._scales_loss else norm
        return {**metrics, "loss": loss, "gradient_norm": known}

    @property
    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _gradients(
        self, images: tf.Tensor, labels: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, Tensors, dict[str, Any]]:
        """This replica's share of the loss, of the gradients, and the metrics."""
        sums: Tensors = []
        metrics: dict[str, Any] = {}
        total = tf.zeros((), keras.config.floatx())
        for part, (part_images, part_labels, share) in enumerate(self._split(images, labels)):
            with tf.control_dependencies(sums):  # the part before is through: its memory is free
                part_images = tf.identity(part_images)
            with tf.GradientTape() as tape:
                outputs = self(part_images, training=True)
                loss = share * self.compute_loss(
                    x=part_images, y=part_labels, y_pred=outputs, training=True
                )
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.trainable_variables)
            sums = [a + b for a, b in zip(sums, gradients, strict=True)] if part else gradients
            total += tf.cast(loss, total.dtype)
            metrics = self.compute_metrics(part_images, part_labels, outputs)
        return total, sums, metrics

    def _split(
        self, images: tf.Tensor, labels: Mapping[str, tf.Tensor]
    ) -> list[tuple[tf.Tensor, dict[str, tf.Tensor], Any]]:
        """The parts of a batch, each with its share of the batch's valid pixels over all replicas."""
        if self.parts == 1:
            return [(images, dict(labels), 1.0)]
        split_labels = {name: tf.split(value, self.parts) for name, value in labels.items()}
        valid = [
            tf.reduce_sum(tf.cast(value != self.ignore_label, "float32"))
            for value in split_labels["logits"]
        ]
        valid = sum_over_replicas(tf.stack(valid))
        shares = tf.cast(valid / tf.maximum(tf.reduce_sum(valid), 1.0), keras.config.floatx())
        return [
            (part, {name: parts[index] for name, parts in split_labels.items()}, shares[index])
            for index, part in enumerate(tf.split(images, self.parts))
        ]

    def _norm(self, gradients: Tensors) -> tf.Tensor:
        """Norm of the whole gradient over all weights, in the units of the loss."""
        if self.clip_norm:
            gradients = sum_over_replicas(gradients)
            squares = tf.square(tf.linalg.global_norm(gradients))
        else:
            squares = sum_over_replicas(tf.square(tf.linalg.global_norm(gradients)))
        norm = tf.sqrt(squares)
        return (
            norm / tf.cast(self.optimizer.dynamic_scale, norm.dtype) if self._scales_loss else norm
        )
