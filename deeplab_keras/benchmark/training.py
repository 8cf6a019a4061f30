"""What a training step costs: images/s, the wait for input, memory, and the arithmetic beside what the machine can do at most."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.benchmark import peers
from deeplab_keras.benchmark.multiply_adds import count_multiply_adds
from deeplab_keras.benchmark.peers.plan import describe
from deeplab_keras.benchmark.records import Row
from deeplab_keras.benchmark.rounds import Spread
from deeplab_keras.benchmark.workers import Recipe, all_at_work, peak_memory
from deeplab_keras.config import NORMALIZATIONS, DataConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.data import Source, open_dataset, pipeline
from deeplab_keras.losses import make_loss
from deeplab_keras.optimizers import make_optimizer
from deeplab_keras.segmentor import build_segmentor, check_input_size, check_names, with_auxiliary_output
from deeplab_keras.trainer import make_strategy, seed_everything
from deeplab_keras.trainer.step import TrainedModel, sum_over_replicas

PASSES = 3  # forward, and the gradients of the input and of the weights, each as much arithmetic
WARM_UP = 3
MATRIX, CHANNELS = 2048, 256


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training step costs.

    Attributes:
        case: model, data, batch.
        speed: images/s, input and step together.
        bare_speed: images/s of the steps alone, on a batch that lies ready.
        waiting: share of the time in which the step waits for its batch, 0..1.
        peak_bytes: the most memory the process had, its libraries included.
        device_bytes: likewise of the first GPU; 0: none.
        multiply_adds: of one image, forward and backward, the auxiliary head included.
        peak_rate: multiply-adds a second of the best matrix product or convolution that was tried.
        rounds: how many.
        peers: peer -> images/s of its steps on a batch that lies ready.
    """

    case: str
    speed: Spread
    bare_speed: Spread
    waiting: Spread
    peak_bytes: int
    device_bytes: int
    multiply_adds: int
    peak_rate: float
    rounds: int
    peers: dict[str, Spread] = dataclasses.field(default_factory=dict)

    @property
    def utilisation(self) -> float:
        """The arithmetic done in a second, with its input, over what the machine can do at most."""
        return self.multiply_adds * self.speed.median / self.peak_rate

    @property
    def bare_utilisation(self) -> float:
        """Likewise of the steps alone."""
        return self.multiply_adds * self.bare_speed.median / self.peak_rate

    def table(self) -> str:
        """What a person reads."""
        device = [f"peak memory of the GPU      {self.device_bytes / 1e6:.0f} MB"] * bool(self.device_bytes)
        return "\n".join([
            self.case, "",
            f"training                    {self.speed} images/s",
            f"steps alone                 {self.bare_speed} images/s",
            *(f"{name + ', steps alone':28s}{speed} images/s" for name, speed in self.peers.items()),
            f"waiting for input           {100 * self.waiting.median:.1f} % of the time",
            f"peak memory                 {self.peak_bytes / 1e6:.0f} MB", *device,
            f"multiply-adds an image      {self.multiply_adds / 1e9:.2f} billion, forward and backward",
            f"the machine's peak          {self.peak_rate / 1e9:.1f} billion multiply-adds a second, measured",
            f"of the peak                 {100 * self.utilisation:.1f} %; the steps alone {100 * self.bare_utilisation:.1f} %",
        ])  # fmt: skip

    def rows(self) -> list[Row]:
        """The same for `records`."""
        subject = "training"
        rows = [
            Row(subject, "speed", "images/s", self.speed, self.rounds),
            Row(subject, "steps alone", "images/s", self.bare_speed, self.rounds),
            Row.single(subject, "waiting for input", "%", 100 * self.waiting.median),
            Row.single(subject, "peak memory", "MB", self.peak_bytes / 1e6),
            Row.single(subject, "multiply-adds an image", "billion", self.multiply_adds / 1e9),
            Row.single(subject, "machine's peak", "billion multiply-adds/s", self.peak_rate / 1e9),
            Row.single(subject, "of the peak", "%", 100 * self.utilisation),
            Row.single(subject, "steps alone, of the peak", "%", 100 * self.bare_utilisation),
        ]
        rows += [Row(name, "steps alone", "images/s", speed, self.rounds) for name, speed in self.peers.items()]
        return rows + [Row.single(subject, "GPU memory", "MB", self.device_bytes / 1e6)] * bool(self.device_bytes)


def measure_training(
    model: ModelConfig, data: DataConfig, training: TrainConfig, *, batches: int = 8, rounds: int = 5,
    against: Sequence[str] = (), on_round: Callable[[int], None] = lambda done: None,
) -> TrainingResult:
    """Times training steps as `trainer.train` takes them, from the files on; nothing is written.

    Args:
        model: the architecture; its number of classes becomes the dataset's.
        data: dataset, augmentation, crop and batch.
        training: optimizer, loss, precision, XLA, strategy.
        batches: steps a round, with their input and then on a batch that lies ready.
        rounds: how many.
        against: "torch" for PyTorch's steps on the same network, crop and batch, in turn with ours.
        on_round: gets the number of rounds that are done.

    Raises:
        UserError: a mistake in the configs or the data, or a peer that is not installed.
    """
    check_names(model)
    check_input_size(model, *data.train_crop_size)
    recipes = [Recipe("training", f"{__name__}:make", {"model": model, "data": data, "training": training})]
    recipes += [_peer(name, model, data, training) for name in against]
    with all_at_work(recipes) as (worker, *others):
        found: dict[str, list[float]] = {}
        speeds: dict[str, list[float]] = {name: [] for name in against}
        for number in range(rounds):
            for name, value in worker.measure(batches=batches).items():
                found.setdefault(name, []).append(value)
            for name, other in zip(against, others, strict=True):
                speeds[name].append(other.measure(batches=batches)["bare_speed"])
            on_round(number + 1)
        about = worker.measure(batches=0)
    height, width = data.train_crop_size
    case = (
        f"{about['name']}, {data.dataset}, batches of {data.train_batch_size} crops of {height}x{width}, {training.precision}"
        f"{', XLA' * training.jit_compile}"
    )
    return TrainingResult(
        case, Spread.of(found["speed"]), Spread.of(found["bare_speed"]), Spread.of(found["waiting"]), int(about["peak_bytes"]),
        int(about["device_bytes"]), int(about["multiply_adds"]), max(found["peak_rate"]), rounds,
        {name: Spread.of(values) for name, values in speeds.items()},
    )  # fmt: skip


def _peer(name: str, model: ModelConfig, data: DataConfig, training: TrainConfig) -> Recipe:
    """PyTorch, on the plan of the network for the crop's size."""
    if name != "torch":
        raise UserError(f"--against={name}: for --what=train there is torch")
    peers.require(name, {"torch": "torch"})
    if (training.loss, training.precision, training.gradient_accumulation_steps) != ("cross_entropy", "float32", 1):
        raise UserError(
            "--against=torch: its steps have --loss=cross_entropy, --precision=float32 and --gradient_accumulation_steps=1; "
            "give these, or leave it out"
        )
    info = open_dataset(data, data.train_split).info
    network = build_segmentor(
        model.replace(num_classes=info.num_classes, auxiliary_head=False), (data.train_crop_size[0], data.train_crop_size[1])
    )
    shape = (data.train_batch_size, *data.train_crop_size, model.input_channels)
    arguments = {
        "steps": describe(network), "shape": shape, "classes": info.num_classes, "ignore_label": info.ignore_label,
        "threads": os.cpu_count() or 1,
    }  # fmt: skip
    return Recipe(name, "deeplab_keras.benchmark.peers.torch_training:make", arguments, peers.WAITING)


class Contender:
    """A training, as far as one is needed to take its steps."""

    def __init__(self, model: ModelConfig, data: DataConfig, training: TrainConfig) -> None:
        seed_everything(data.seed, training.deterministic)
        self.data, self.training = data, training
        self.source: Source = open_dataset(data, data.train_split)
        self.config = model.replace(num_classes=self.source.info.num_classes)
        keras.config.set_dtype_policy(training.precision)
        with make_strategy(training.strategy).scope():
            self.model = build_segmentor(self.config)
            self.trained = self._compiled()
        self.trained.make_train_function()
        self.step = self.trained.train_function
        self.stream = self._stream()
        self.ready = [next(self.stream)]
        self._take(WARM_UP, iter(lambda: self.ready[0], None))

    def measure(self, batches: int) -> dict[str, Any]:
        """A round; with no batches, what does not change between rounds."""
        if not batches:
            return self._about()
        peak = measured_peak(keras.mixed_precision.global_policy().compute_dtype)
        self._take(1, self.stream)
        seconds, waited = self._take(batches, self.stream)
        bare, _ = self._take(batches, iter(lambda: self.ready[0], None))
        images = batches * self.data.train_batch_size
        return {"speed": images / seconds, "bare_speed": images / bare, "waiting": waited / seconds, "peak_rate": peak}

    def _take(self, count: int, batches: Iterator[Any]) -> tuple[float, float]:
        """Seconds of so many steps, and those of them that went by until their batches came."""
        waited, start = 0.0, time.perf_counter()
        for _ in range(count):
            before = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - before
            logs = self.step(iter([batch]))
            float(tf.nest.flatten(logs)[0])  # which waits for the step's end
        return time.perf_counter() - start, waited

    def _stream(self) -> Iterator[Any]:
        pad_value = NORMALIZATIONS[self.config.normalization][0]
        dataset = pipeline.train_dataset(self.source, self.data, pad_value)
        dataset = dataset.map(lambda images, labels: (images, {name: labels for name in self.trained.output}))
        return iter(make_strategy(self.training.strategy).experimental_distribute_dataset(dataset))

    def _compiled(self) -> TrainedModel:
        view = with_auxiliary_output(self.model, self.config.align_corners)
        trained, training, info = TrainedModel(view.input, view.output, name=view.name), self.training, self.source.info
        trained.set_step(
            parts=training.gradient_accumulation_steps, clip_norm=training.clip_gradient_norm, ignore_label=info.ignore_label
        )
        optimizer = make_optimizer(training, 10**6)
        losses = {
            name: make_loss(
                training.loss, ignore_label=info.ignore_label, class_weights=training.label_weights or None,
                label_smoothing=training.label_smoothing, hard_example_fraction=training.top_k_percent_pixels,
                hard_example_mining_step=training.hard_example_mining_step, step=lambda: optimizer.iterations,
                sum_over_replicas=sum_over_replicas,
            )
            for name in trained.output
        }  # fmt: skip
        trained.compile(optimizer=optimizer, loss=losses, jit_compile=training.jit_compile)
        return trained

    def _about(self) -> dict[str, Any]:
        size = (self.data.train_crop_size[0], self.data.train_crop_size[1])
        arithmetic = PASSES * count_multiply_adds(build_segmentor(self.config, size), auxiliary=self.config.auxiliary_head)
        devices = tf.config.list_logical_devices("GPU")
        memory = tf.config.experimental.get_memory_info("GPU:0")["peak"] if devices else 0
        name = self.config.name or self.model.name
        return {"name": name, "multiply_adds": arithmetic, "peak_bytes": peak_memory(), "device_bytes": memory}


def measured_peak(dtype: str = "float32", tries: int = 3) -> float:
    """Multiply-adds a second of a large matrix product or a 3x3 convolution, whichever is faster, all cores working."""
    random = np.random.default_rng(0)
    matrix = tf.constant(random.standard_normal((MATRIX, MATRIX)), dtype)
    image = tf.constant(random.standard_normal((1, 64, 64, CHANNELS)), dtype)
    kernel = tf.constant(random.standard_normal((3, 3, CHANNELS, CHANNELS)), dtype)
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(matrix, matrix)))
    convolution = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(image, kernel, 1, "SAME")))
    work = {product: MATRIX**3, convolution: 64 * 64 * 9 * CHANNELS**2}
    best = 0.0
    for function, multiply_adds in work.items():
        function().numpy()
        for _ in range(tries):
            start = time.perf_counter()
            function().numpy()
            best = max(best, multiply_adds / (time.perf_counter() - start))
    return best


def make(model: ModelConfig, data: DataConfig, training: TrainConfig) -> Contender:
    """The contender of `measure_training`."""
    return Contender(model, data, training)
