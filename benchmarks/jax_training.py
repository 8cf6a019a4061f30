"""The contender of a training benchmark that runs our network on Keras' JAX backend.

It uses our loss and optimizer too, and does not require TensorFlow.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import keras
from jax import numpy as jnp

from benchmarks import jax_device, peak
from benchmarks.batches import TrainingBatch
from deeplab_keras.config import ModelConfig, TrainConfig
from deeplab_keras.models.segmentor import build_segmentor, with_auxiliary_output
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.optimizers import make_optimizer

WARM_UP = 2


class JaxTraining:
    """Takes steps on one batch on the device, with a compiled function from state to state."""

    def __init__(self, model: ModelConfig, training: TrainConfig, batch: TrainingBatch) -> None:
        keras.config.set_dtype_policy(training.precision)
        self.network = with_auxiliary_output(build_segmentor(model))
        self.optimizer = make_optimizer(training, 10**6)
        self.optimizer.global_clipnorm = training.clip_gradient_norm or None
        self.optimizer.build(self.network.trainable_variables)
        self.loss = make_loss(
            training.loss,
            ignore_label=batch.ignore_label,
            class_weights=training.label_weights or None,
            label_smoothing=training.label_smoothing,
            hard_example_fraction=training.top_k_percent_pixels,
        )
        self.weights = {"auxiliary_logits": training.auxiliary_loss_weight}
        self.batch = jax.device_put((batch.images, batch.labels))
        groups = (
            self.network.trainable_variables,
            self.network.non_trainable_variables,
            self.optimizer.variables,
        )
        self.state: Any = [[variable.value for variable in group] for group in groups]
        self.losses: list[float] = []
        self.step = jax.jit(self._step, donate_argnums=0)
        self._take(WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Measures one round. With 0 batches, returns what does not change between rounds."""
        if not batches:
            return jax_device.about()
        speed = batches * len(self.batch[0]) / self._take(batches)
        on_gpu = jax.devices()[0].platform != "cpu"
        return {
            "bare_speed": speed,
            "peak_rate": measured_peak(keras.mixed_precision.global_policy().compute_dtype, on_gpu),
        }

    def _take(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.state, loss = self.step(self.state, *self.batch)
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - start
        self.losses.append(float(loss))
        return seconds

    def _step(self, state: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        trainable, others, optimizer = state

        def objective(trainable: Any) -> tuple[Any, Any]:
            outputs, changed = self.network.stateless_call(trainable, others, images, training=True)
            losses = [
                self.weights.get(name, 1.0) * self.loss(labels, logits)
                for name, logits in outputs.items()
            ]
            return sum(losses[1:], losses[0]), changed

        (loss, others), gradients = jax.value_and_grad(objective, has_aux=True)(trainable)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        return [trainable, others, optimizer], loss


def measured_peak(dtype: str, on_gpu: bool) -> float:
    """Returns the multiply-adds per second of a matrix product or a convolution, the faster one."""
    matrix, image, kernel = (jnp.asarray(array, dtype) for array in peak.operands(on_gpu))
    product = jax.jit(lambda matrix: matrix @ matrix)
    layout = ("NHWC", "HWIO", "NHWC")
    convolution = jax.jit(
        lambda image, kernel: jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=layout
        )
    )
    return peak.best_rate(
        lambda: product(matrix).block_until_ready(),
        lambda: convolution(image, kernel).block_until_ready(),
        matrix.shape,
        image.shape,
    )
