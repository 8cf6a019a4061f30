"""The contender of a training benchmark that takes our training steps on TensorFlow, with input."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from benchmarks import peak
from benchmarks.workers import peak_memory
from deeplab_keras.config import NORMALIZATIONS, DataConfig, ModelConfig, TrainConfig
from deeplab_keras.data import pipeline
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.data.source import Source
from deeplab_keras.models.layers import sum_over_replicas
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.engine_tensorflow import TensorFlowModel, make_strategy
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.optimizers import make_optimizer
from deeplab_keras.training.train import seed_everything

WARM_UP = 3


class TensorFlowTraining:
    """The parts of a training run that its steps need."""

    def __init__(self, model: ModelConfig, data: DataConfig, training: TrainConfig) -> None:
        seed_everything(data.seed, training.deterministic)
        self.data, self.training = data, training
        self.source: Source = open_dataset(data, data.train_split)
        self.config = model.replace(num_classes=self.source.info.num_classes)
        keras.config.set_dtype_policy(training.precision)
        strategy = make_strategy(training.strategy)
        with strategy.scope():
            self.model = build_segmentor(self.config)
            self.trained = self._compiled()
        self.trained.make_train_function()
        self.step = self.trained.train_function
        self.stream = self._stream()
        self.ready = [next(self.stream)]
        if strategy.num_replicas_in_sync == 1:  # copies the batch to the GPU, if there is one
            self.ready = tf.nest.map_structure(tf.identity, self.ready)
        self._repeat(WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Measures one round. With 0 batches, returns what does not change between rounds."""
        if not batches:
            return self._about()
        rate = measured_peak(keras.mixed_precision.global_policy().compute_dtype)
        self._take(1, self.stream)
        seconds, waited = self._take(batches, self.stream)
        bare = self._repeat(batches)
        images = batches * self.data.train_batch_size
        return {
            "speed": images / seconds,
            "bare_speed": images / bare,
            "waiting": waited / seconds,
            "peak_rate": rate,
        }

    def _take(self, count: int, batches: Iterator[Any]) -> tuple[float, float]:
        """Returns the seconds of `count` steps, and the seconds spent waiting for input."""
        waited, start = 0.0, time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            logs = self.step(iter([batch]))
            float(tf.nest.flatten(logs)[0])  # waits for the end of the step
        return time.perf_counter() - start, waited

    def _repeat(self, count: int) -> float:
        """Returns the seconds of `count` steps on the batch in memory, until the last one ends."""
        start = time.perf_counter()
        for _ in range(count):
            logs = self.step(iter(self.ready))
        float(tf.nest.flatten(logs)[0])
        return time.perf_counter() - start

    def _stream(self) -> Iterator[Any]:
        pad_value = NORMALIZATIONS[self.config.normalization][0]
        dataset = pipeline.train_dataset(self.source, self.data, pad_value)
        return iter(make_strategy(self.training.strategy).experimental_distribute_dataset(dataset))

    def _compiled(self) -> TensorFlowModel:
        training, info = self.training, self.source.info
        trained = TensorFlowModel(self.model.input, self.model.output, name=self.model.name)
        trained.set_step(
            parts=training.gradient_accumulation_steps,
            clip_norm=training.clip_gradient_norm,
            ignore_label=info.ignore_label,
        )
        optimizer = make_optimizer(training, 10**6)
        loss = make_loss(
            training.loss,
            ignore_label=info.ignore_label,
            class_weights=training.label_weights or None,
            label_smoothing=training.label_smoothing,
            hard_example_fraction=training.top_k_percent_pixels,
            hard_example_mining_step=training.hard_example_mining_step,
            step=lambda: optimizer.iterations,
            sum_over_replicas=sum_over_replicas,
        )
        trained.compile(optimizer=optimizer, loss=loss, jit_compile=training.jit_compile)
        return trained

    def _about(self) -> dict[str, Any]:
        size = (self.data.train_crop_size[0], self.data.train_crop_size[1])
        arithmetic = count_multiply_adds(
            build_segmentor(self.config, size), auxiliary=self.config.auxiliary_head
        )
        gpus = tf.config.list_physical_devices("GPU")
        memory = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else 0
        device = (
            tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
            if gpus
            else "CPU"
        )
        return {
            "multiply_adds": arithmetic,
            "peak_bytes": peak_memory(),
            "device": device,
            "device_bytes": memory,
        }


def measured_peak(dtype: str) -> float:
    """Returns the multiply-adds per second of a matrix product or a convolution, the faster one."""
    matrix, image, kernel = (
        tf.constant(array, dtype)
        for array in peak.operands(bool(tf.config.list_logical_devices("GPU")))
    )
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    convolution = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(image, kernel, 1, "SAME")))
    return peak.best_rate(
        lambda: product().numpy(), lambda: convolution().numpy(), matrix.shape, image.shape
    )


def make(model: ModelConfig, data: DataConfig, training: TrainConfig) -> TensorFlowTraining:
    """Creates the contender of `measure_training`."""
    return TensorFlowTraining(model, data, training)
