"""The contender of a training benchmark that runs our network on Keras' JAX backend.

It uses our loss and optimizer too, and does not require TensorFlow.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp

from benchmarks import peak
from benchmarks.workers import peak_memory
from deeplab_keras.config import ModelConfig, TrainConfig
from deeplab_keras.models.segmentor import build_segmentor, with_auxiliary_output
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.optimizers import make_optimizer

WARM_UP = 2


class JaxTraining:
    """Takes steps on one batch on the device, with a compiled function from state to state."""

    def __init__(
        self, model: ModelConfig, training: TrainConfig, shape: tuple[int, ...], ignore_label: int
    ) -> None:
        keras.config.set_dtype_policy(training.precision)
        self.network = with_auxiliary_output(build_segmentor(model))
        self.optimizer = make_optimizer(training, 10**6)
        self.optimizer.global_clipnorm = training.clip_gradient_norm or None
        self.optimizer.build(self.network.trainable_variables)
        self.loss = make_loss(
            training.loss,
            ignore_label=ignore_label,
            class_weights=training.label_weights or None,
            label_smoothing=training.label_smoothing,
            hard_example_fraction=training.top_k_percent_pixels,
        )
        self.weights = {"auxiliary_logits": training.auxiliary_loss_weight}
        random = np.random.default_rng(0)
        images, labels = (
            random.uniform(0, 255, shape).astype(np.float32),
            random.integers(0, model.num_classes, shape[:3]),
        )
        self.batch = jax.device_put((images, labels.astype(np.int32)))
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
        device = jax.devices()[0]
        on_gpu = device.platform != "cpu"
        if not batches:
            memory = (device.memory_stats() or {}).get("peak_bytes_in_use", 0) if on_gpu else 0
            name = device.device_kind if on_gpu else "CPU"
            return {"device": name, "device_bytes": memory, "peak_bytes": peak_memory()}
        speed = batches * len(self.batch[0]) / self._take(batches)
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


def make(
    model: ModelConfig, training: TrainConfig, shape: tuple[int, ...], ignore_label: int
) -> JaxTraining:
    """Creates the contender of `training`."""
    return JaxTraining(model, training, shape, ignore_label)
