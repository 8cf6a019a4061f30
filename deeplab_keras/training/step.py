"""The training step: what TensorFlow and JAX have in common. `engine` has the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from deeplab_keras.models.layers import sum_over_replicas
from deeplab_keras.models.segmentor import Segmentor
from deeplab_keras.training.losses import distillation
from deeplab_keras.training.teacher import Teacher

Tensors = list[Any]


class TrainedModel(Segmentor):
    """A segmentor whose training step also clips, accumulates and checks gradients.

    Keras' own step does not return the loss of the step or the gradient norm, cannot weight the
    parts of a batch by their valid pixels, has no teacher, and applies non-finite gradients.

    The replicas' losses must add up to the loss of the step, as those of `SegmentationLoss` with
    `sum_over_replicas` do. Besides the metrics, a step returns "loss", the loss of this step over
    all replicas, and "gradient_norm".

    `TensorFlowModel` and `JaxModel` compute the gradients.
    """

    parts = 1
    clip_norm = 0.0
    ignore_label = 255
    teacher: Teacher | None = None

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """The trainable variables in the order of the optimizer's state in checkpoints."""
        path = self if self._paths is None else self._paths.training
        return path.trainable_variables

    def set_step(
        self,
        *,
        parts: int = 1,
        clip_norm: float = 0.0,
        ignore_label: int = 255,
        teacher: Teacher | None = None,
    ) -> None:
        """Sets the options of a training step.

        Args:
            parts: Number of parts of a batch that go through the network one after another. Their
                gradients are summed, weighted by their valid pixels.
            clip_norm: Largest norm of the gradient over all weights. A larger gradient is scaled
                down to it. 0 turns clipping off.
            ignore_label: Label of the pixels that are not valid.
            teacher: Network whose class probabilities are learned too.
        """
        self.parts, self.clip_norm, self.ignore_label = parts, clip_norm, ignore_label
        self.teacher = teacher

    def sync(self) -> None:
        """Gives the variables their current values during `fit`.

        Callbacks must call it before they read variables or assign to them. On TensorFlow, the
        variables always have their current values.
        """

    def current_values(self, variables: Sequence[keras.Variable]) -> Tensors:
        """Returns the current values of variables of the model during `fit`, without `sync`."""
        return [variable.value for variable in variables]

    @property
    def _scales_loss(self) -> bool:
        return isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)

    def _teacher_logits(self, images: Any) -> Any:
        """Returns the teacher's logits for images, or `None` without a teacher."""
        return None if self.teacher is None else self.teacher.logits(images)

    def _forward(
        self, images: Any, labels: Any, share: Any, teacher_logits: Any
    ) -> tuple[Any, Any, Any]:
        """Returns the scaled loss, the loss and the outputs of a part of a batch.

        Args:
            images: The images of the part.
            labels: Its labels.
            share: The part's share of the valid pixels of the batch.
            teacher_logits: The result of `_teacher_logits` for the images.
        """
        with self.training_step():
            outputs = self(images, training=True)
            loss = share * self._loss(images, labels, outputs, teacher_logits)
            return self.optimizer.scale_loss(loss), loss, outputs

    def _loss(self, images: Any, labels: Any, outputs: Any, teacher_logits: Any) -> Any:
        """Returns the loss of the labels, or its weighted mean with the loss of the teacher.

        The auxiliary outputs learn from the labels only, with the same weight as without a teacher.
        """
        if self.teacher is None:
            return self.compute_loss(x=images, y=labels, y_pred=outputs, training=True)
        several = isinstance(outputs, Mapping)
        logits = outputs["logits"] if several else outputs
        labeled = self.compute_loss(x=images, y=labels, y_pred=logits, training=True)
        taught = distillation(
            labels,
            logits,
            teacher_logits,
            self.teacher.temperature,
            self.ignore_label,
            sum_over_replicas,
        )
        weight = self.teacher.weight
        loss = (1 - weight) * labeled + weight * taught
        return self._with_auxiliary_losses(loss, labels, outputs) if several else loss

    def _shares(self, labels: Any) -> Any:
        """Returns each part's share of the valid pixels of all replicas, `[parts]`."""
        valid = ops.cast(ops.not_equal(labels, self.ignore_label), "float32")
        valid = sum_over_replicas(ops.sum(ops.reshape(valid, (self.parts, -1)), axis=1))
        valid = ops.cast(valid, keras.config.floatx())
        return valid / ops.maximum(ops.sum(valid), 1.0)

    def _checked(self, gradients: Tensors, loss: Any, norm: Any) -> Tensors:
        """Clips gradients, and sets them to zero if the loss or their norm is not finite.

        So only momentum changes the weights in such a step.
        """
        if self.clip_norm:
            factor = self.clip_norm / ops.maximum(norm, self.clip_norm)
            gradients = [gradient * ops.cast(factor, gradient.dtype) for gradient in gradients]
        # A scaled loss may overflow. Its optimizer skips that step.
        if self._scales_loss:
            return gradients
        finite = ops.logical_and(ops.isfinite(loss), ops.isfinite(norm))
        return ops.cond(finite, lambda: gradients, lambda: [ops.zeros_like(g) for g in gradients])

    def _logs(self, metrics: dict[str, Any], loss: Any, norm: Any) -> dict[str, Any]:
        """Returns the result of a step. With loss scaling, the norm is not known."""
        known = ops.zeros_like(norm) if self._scales_loss else norm
        return {**metrics, "loss": loss, "gradient_norm": known}
