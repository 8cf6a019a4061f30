"""The training step: forward pass, loss, gradients and update, on each replica."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from deeplab_keras.models.layers import PACKAGE, sum_over_replicas
from deeplab_keras.models.segmentor import Segmentor

Tensors = list[tf.Tensor]


@keras.saving.register_keras_serializable(PACKAGE)
class TrainedModel(Segmentor):
    """A segmentor whose training step also clips, accumulates and checks gradients.

    Keras' own step does not return the loss of the step or the gradient norm, cannot weight the
    parts of a batch by their valid pixels, and applies non-finite gradients.

    The replicas' losses must add up to the loss of the step, as those of `SegmentationLoss` with
    `sum_over_replicas` do. Besides the metrics, a step returns "loss", the loss of this step over
    all replicas, and "gradient_norm". With several replicas and without clipping, "gradient_norm"
    is the norm of the concatenated gradients of all replicas.
    """

    parts = 1
    clip_norm = 0.0
    ignore_label = 255
    # Number of metric variables, and the compiled function that resets them.
    _reset: tuple[int, Any] = (-1, None)

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """The trainable variables in the order of the optimizer's state in checkpoints."""
        path = self if self._paths is None else self._paths.training
        return path.trainable_variables

    def set_step(self, *, parts: int = 1, clip_norm: float = 0.0, ignore_label: int = 255) -> None:
        """Sets the options of a training step.

        Args:
            parts: Number of parts of a batch that go through the network one after another. Their
                gradients are summed, weighted by their valid pixels.
            clip_norm: Largest norm of the gradient over all weights. A larger gradient is scaled
                down to it. 0 turns clipping off.
            ignore_label: Label of the pixels that are not valid.
        """
        self.parts, self.clip_norm, self.ignore_label = parts, clip_norm, ignore_label

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
        """Updates the weights and returns the metrics, the loss and the gradient norm.

        Non-finite gradients are set to zero, so only momentum changes the weights in such a step.
        """
        images, labels = data
        loss, gradients, metrics = self._gradients(images, labels)
        loss = sum_over_replicas(loss)
        norm = self._norm(gradients)
        if self.clip_norm:
            factor = self.clip_norm / tf.maximum(norm, self.clip_norm)
            gradients = [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]
        # A scaled loss may overflow. Its optimizer skips that step.
        if not self._scales_loss:
            finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
            gradients = tf.cond(
                finite, lambda: gradients, lambda: [tf.zeros_like(g) for g in gradients]
            )
        self.optimizer.apply_gradients(zip(gradients, self.trained_variables, strict=True))
        known = tf.zeros_like(norm) if self._scales_loss else norm
        return {**metrics, "loss": loss, "gradient_norm": known}

    @property
    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

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
            with tf.GradientTape() as tape, self.training_step():
                outputs = self(part_images, training=True)
                loss = share * self.compute_loss(
                    x=part_images, y=part_labels, y_pred=outputs, training=True
                )
                scaled = self.optimizer.scale_loss(loss)
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
        label_parts = tf.split(labels, self.parts)
        valid = [
            tf.reduce_sum(tf.cast(part != self.ignore_label, "float32")) for part in label_parts
        ]
        valid = sum_over_replicas(tf.stack(valid))
        shares = tf.cast(valid / tf.maximum(tf.reduce_sum(valid), 1.0), keras.config.floatx())
        image_parts = tf.split(images, self.parts)
        return [
            (image_parts[index], label_parts[index], shares[index]) for index in range(self.parts)
        ]

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
