"""The contender of an inference benchmark that runs our network on Keras' JAX backend."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp

from benchmarks import jax_device
from deeplab_keras.config import ModelConfig
from deeplab_keras.models.segmentor import build_segmentor

WARM_UP = 2


class JaxInference:
    """Computes labels of images that are already on the device, in batches of several sizes."""

    def __init__(
        self, model: ModelConfig, precision: str, images: np.ndarray, batch_sizes: Sequence[int]
    ) -> None:
        keras.config.set_dtype_policy(precision)
        network = build_segmentor(model, images.shape[1:3])
        groups = network.trainable_variables, network.non_trainable_variables
        self.weights = [[variable.value for variable in group] for group in groups]
        self.batches = {size: jax.device_put(images[:size]) for size in batch_sizes}

        @jax.jit
        def labels(weights: Any, images: Any) -> Any:
            logits, _ = network.stateless_call(*weights, jnp.float32(images), training=False)
            return jnp.argmax(logits, -1)

        self.labels = labels
        for size in batch_sizes:
            self._take(size, WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Returns images/s by batch size. With 0 batches, returns `jax_device.about`."""
        if not batches:
            return jax_device.about()
        return {
            f"batch {size}": size * batches / self._take(size, batches) for size in self.batches
        }

    def _take(self, size: int, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            labels = self.labels(self.weights, self.batches[size])
        labels.block_until_ready()
        return time.perf_counter() - start
