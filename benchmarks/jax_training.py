"""Measures the training steps of `dk.train` on Keras' JAX backend.

It requires TensorFlow only to read batches of a dataset.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import jax
import keras
from jax import numpy as jnp

from benchmarks import jax_device, peak
from benchmarks.batches import TrainingBatch
from deeplab_keras.config import NORMALIZATIONS, DataConfig, ModelConfig, TrainConfig
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.engine_jax import JaxModel
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.optimizers import make_optimizer

WARM_UP = 2


class JaxTraining:
    """Takes training steps with a compiled function from state to state.

    Args:
        model: The architecture.
        training: The optimizer, loss and precision.
        batch: The batch of the steps that read no input.
        data: The dataset for the steps that read their batches; `None` for no such steps.
    """

    def __init__(
        self,
        model: ModelConfig,
        training: TrainConfig,
        batch: TrainingBatch,
        data: DataConfig | None,
    ) -> None:
        keras.config.set_dtype_policy(training.precision)
        self.trained = _compiled(model, training, batch.ignore_label)
        self.batch = jax.device_put((batch.images, batch.labels))
        self.stream = _stream(model, data) if data else None
        groups = (
            self.trained.trainable_variables,
            self.trained.non_trainable_variables,
            self.trained.optimizer.variables,
            self.trained.metrics_variables,
        )
        self.state: Any = tuple([variable.value for variable in group] for group in groups)
        self.losses: list[float] = []
        step = jax.jit(self.trained.train_step, donate_argnums=0)
        self.step = step.lower(self.state, self.batch).compile()
        self._repeat(WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Measures one round. With 0 batches, returns what does not change between rounds."""
        if not batches:
            return {**jax_device.about(), **self._costs()}
        images, found = batches * len(self.batch[0]), {}
        if self.stream is not None:
            seconds, waited = self._take(batches, self.stream)
            found = {"speed": images / seconds, "waiting": waited / seconds}
        on_gpu = jax.devices()[0].platform != "cpu"
        return {
            **found,
            "bare_speed": images / self._repeat(batches),
            "peak_rate": measured_peak(keras.mixed_precision.global_policy().compute_dtype, on_gpu),
        }

    def _costs(self) -> dict[str, float]:
        """Returns XLA's estimates for the compiled step, per image."""
        costs = self.step.cost_analysis() or {}
        names = {"operations": "flops", "traffic": "bytes accessed"}
        return {key: costs.get(name, 0) / len(self.batch[0]) for key, name in names.items()}

    def _take(self, count: int, batches: Iterator[Any]) -> tuple[float, float]:
        """Returns the seconds of `count` steps, and the seconds spent waiting for input.

        As in `fit` on a GPU, a batch is copied to the device while the previous step runs.
        """
        ready = jax.device_put(next(batches))
        waited, start = 0.0, time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            following = jax.device_put(next(batches))
            waited += time.perf_counter() - before
            logs, self.state = self.step(self.state, ready)
            ready = following
            self.losses.append(float(logs["loss"]))  # waits for the end of the step
        return time.perf_counter() - start, waited

    def _repeat(self, count: int) -> float:
        """Returns the seconds of `count` steps on the batch in memory, until the last one ends."""
        start = time.perf_counter()
        for _ in range(count):
            logs, self.state = self.step(self.state, self.batch)
        self.losses.append(float(logs["loss"]))
        return time.perf_counter() - start


def _compiled(model: ModelConfig, training: TrainConfig, ignore_label: int) -> JaxModel:
    network = build_segmentor(model)
    trained = JaxModel(network.input, network.output, name=network.name)
    trained.set_step(
        parts=training.gradient_accumulation_steps,
        clip_norm=training.clip_gradient_norm,
        ignore_label=ignore_label,
    )
    if model.auxiliary_head:
        trained.auxiliary_loss_weights["auxiliary_logits"] = training.auxiliary_loss_weight
    optimizer = make_optimizer(training, 10**6)
    loss = make_loss(
        training.loss,
        ignore_label=ignore_label,
        class_weights=training.label_weights or None,
        label_smoothing=training.label_smoothing,
        hard_example_fraction=training.top_k_percent_pixels,
        hard_example_mining_step=training.hard_example_mining_step,
        step=lambda: optimizer.iterations,
    )
    trained.compile(optimizer=optimizer, loss=loss, jit_compile=True)
    trained.optimizer.build(trained.trained_variables)
    return trained


def _stream(model: ModelConfig, data: DataConfig) -> Iterator[Any]:
    from deeplab_keras.data import pipeline
    from deeplab_keras.data.registry import open_dataset

    pad_value = NORMALIZATIONS[model.normalization][0]
    source = open_dataset(data, data.train_split)
    return pipeline.train_dataset(source, data, pad_value).as_numpy_iterator()


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
