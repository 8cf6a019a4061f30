"""Measures a training step: images/s, time waiting for input, memory and use of the hardware."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from benchmarks import peers
from benchmarks.batches import TrainingBatch, noise
from benchmarks.precisions import Precision
from benchmarks.records import Measurement
from benchmarks.rounds import Spread, measure_in_rounds
from benchmarks.workers import Recipe, running
from deeplab_keras.config import DataConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.models.segmentor import check_input_size

OURS = "training"  # the contender that takes our training steps on TensorFlow
ROOM = "benchmarks"
PEERS = ("jax", "torch", "torch_compile")
# Forward pass, gradient of the input, gradient of the weights. Each has the same multiply-adds.
PASSES = 3
# The settings of PyTorch's step. With other settings, its step would differ from ours.
TORCH_STEP: dict[str, Any] = {
    "loss": "cross_entropy", "optimizer": "momentum", "label_weights": (), "label_smoothing": 0,
    "top_k_percent_pixels": 1, "clip_gradient_norm": 0, "gradient_accumulation_steps": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """A contender's steps on a batch that is already in memory, and with input.

    Attributes:
        speed: Images/s on a batch that is already in memory.
        device: The name of the GPU, or "CPU".
        peak_bytes: Peak memory of the process, including its libraries.
        device_bytes: Peak GPU memory of its tensors. 0 without a GPU.
        peak_rate: Multiply-adds per second of the fastest matrix product or convolution. 0 if it
            was not measured.
        with_input: Images/s of steps that read their batches from the dataset; `None` if it was not
            measured.
        waiting: Share of the time in which these steps wait for their batches, 0..1.
        operations: Additions and multiplications per image in XLA's program. 0 if not known.
        traffic: Bytes per image that this program reads and writes, as XLA estimates them.
    """

    speed: Spread
    device: str
    peak_bytes: int
    device_bytes: int
    peak_rate: float
    with_input: Spread | None = None
    waiting: float = 0.0
    operations: float = 0.0
    traffic: float = 0.0

    @property
    def where(self) -> str:
        """The device, and the GPU memory in use."""
        memory = f", {self.device_bytes / 1e6:.0f} MB GPU memory" if self.device_bytes else ""
        return f"on {self.device}{memory}"


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The speed and memory of training steps.

    Attributes:
        case: The model, the data and the batch.
        rounds: Number of rounds.
        multiply_adds: Multiply-adds per image, forward and backward, including the auxiliary head.
        steps: The steps of each contender by name. Ours on TensorFlow is `OURS`.
    """

    case: str
    rounds: int
    multiply_adds: int
    steps: dict[str, StepTimes]

    def utilization(self, name: str, speed: Spread) -> float:
        """Returns the multiply-adds per second as a share of the peak of the device."""
        return self.multiply_adds * speed.median / self.steps[name].peak_rate

    def table(self) -> str:
        """Returns the result as text."""
        lines = [self.case, ""]
        for name, steps in self.steps.items():
            prefix = "" if name == OURS else f"{name}, "
            if steps.with_input is not None:
                share = 100 * self.utilization(name, steps.with_input)
                lines += [
                    f"{f'{prefix}training':28s}{steps.with_input} images/s",
                    f"    waiting for input       {100 * steps.waiting:.1f} % of the time",
                    f"    of the peak             {share:.1f} %",
                ]
            title = f"{prefix}steps alone"
            lines.append(f"{title:28s}{steps.speed} images/s, {steps.where}")
            if steps.peak_rate:
                lines.append(
                    f"    of the peak             {100 * self.utilization(name, steps.speed):.1f} "
                    f"% of {steps.peak_rate / 1e9:.1f} billion multiply-adds per second, measured"
                )
            lines.append(f"    peak memory             {steps.peak_bytes / 1e6:.0f} MB")
            if steps.operations:
                lines.append(
                    f"    XLA's estimate          {steps.operations / 1e9:.2f} billion operations "
                    f"and {steps.traffic / 1e9:.2f} GB of memory traffic per image"
                )
        lines.append(
            f"multiply-adds per image     {self.multiply_adds / 1e9:.2f} billion, forward and "
            "backward"
        )
        return "\n".join(lines)

    def rows(self) -> list[Measurement]:
        """Returns the result as rows for `records`."""
        rows: list[Measurement] = []
        for name, steps in self.steps.items():
            subject = f"{name}, {steps.device}"
            if steps.with_input is not None:
                share = 100 * self.utilization(name, steps.with_input)
                rows += [
                    Measurement(subject, "speed", "images/s", steps.with_input, self.rounds),
                    Measurement.single(subject, "waiting for input", "%", 100 * steps.waiting),
                    Measurement.single(subject, "of the peak", "%", share),
                ]
            rows += [
                Measurement(subject, "steps alone", "images/s", steps.speed, self.rounds),
                Measurement.single(subject, "peak memory", "MB", steps.peak_bytes / 1e6),
                Measurement.single(
                    subject, "multiply-adds per image", "billion", self.multiply_adds / 1e9
                ),
            ]
            if steps.peak_rate:
                rows += [
                    Measurement.single(
                        subject, "device's peak", "billion multiply-adds/s", steps.peak_rate / 1e9
                    ),
                    Measurement.single(
                        subject,
                        "steps alone, of the peak",
                        "%",
                        100 * self.utilization(name, steps.speed),
                    ),
                ]
            if steps.operations:
                rows += [
                    Measurement.single(
                        subject, "XLA's operations per image", "billion", steps.operations / 1e9
                    ),
                    Measurement.single(
                        subject, "XLA's memory traffic per image", "GB", steps.traffic / 1e9
                    ),
                ]
            if steps.device_bytes:
                rows.append(
                    Measurement.single(subject, "GPU memory", "MB", steps.device_bytes / 1e6)
                )
        return rows


def measure_training(
    model: ModelConfig,
    data: DataConfig,
    training: TrainConfig,
    *,
    batches: int = 8,
    rounds: int = 5,
    against: Sequence[str] = (),
    on_round: Callable[[int], None] = lambda done: None,
) -> TrainingResult:
    """Times the training steps of `dk.train`, including reading the files. Writes nothing.

    If Keras' backend is not TensorFlow, our contender is the one on JAX. Without TensorFlow, its
    batch is noise.

    Args:
        model: The architecture. The dataset's number of classes replaces the one in this config.
        data: The dataset, augmentation, crop size and batch size.
        training: The optimizer, loss, precision, XLA and strategy.
        batches: Number of steps per round, first with their input, then on a batch that is already
            in memory.
        rounds: Number of rounds.
        against: Names from `PEERS`. "jax" is our network, loss and optimizer on Keras' JAX backend.
            "torch" and "torch_compile" are PyTorch's steps on the same network. All of them use the
            same crop size and batch size, and take turns with ours.
        on_round: Called with the number of completed rounds.

    Raises:
        UserError: If a config or the dataset is invalid, or if a peer is not installed.
    """
    check_input_size(model, *data.train_crop_size)
    with_tensorflow = keras.backend.backend() == "tensorflow"
    names = list(against) if with_tensorflow or "jax" in against else ["jax", *against]
    for name in names:
        _check_peer(name, model, training)
    recipes = [_ours(model, data, training)] if with_tensorflow else []
    shared: Mapping[str, Any] = {}
    source = data.dataset
    if names:
        read = data if importlib.util.find_spec("tensorflow") else None
        height, width = data.train_crop_size
        shared = plan(model, (height, width), any(name != "jax" for name in names), read)
        shape = (data.train_batch_size, *data.train_crop_size, model.input_channels)
        batch = noise(shape, shared["classes"], shared["ignore_label"])
        precision = Precision(training.precision)
        recipes += [
            peer_recipe(name, model, training, batch, shared["steps"], precision, read)
            for name in names
        ]
        source = data.dataset if read else batch.source
    with running(recipes) as workers:
        found = measure_in_rounds(workers, rounds, {"batches": batches}, on_round)
        about = {worker.name: worker.measure(batches=0) for worker in workers}
    multiply_adds = int((shared or about[OURS])["multiply_adds"])
    height, width = data.train_crop_size
    case = (
        f"{model.name or f'{model.head}_{model.backbone}'}, {source}, batches of "
        f"{data.train_batch_size} crops of {height}x{width}, "
        f"{training.precision}{', XLA' if training.jit_compile else ''}"
    )
    return result(case, rounds, multiply_adds, found, about)


def _ours(model: ModelConfig, data: DataConfig, training: TrainConfig) -> Recipe:
    arguments = {"model": model, "data": data, "training": training}
    return Recipe(
        OURS, f"{ROOM}.tensorflow_training:make", arguments, {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    )


def _check_peer(name: str, model: ModelConfig, training: TrainConfig) -> None:
    """Raises `UserError` if a peer is unknown or not installed, or does not support the step."""
    if name not in PEERS:
        raise UserError(
            f"--against must be one of {', '.join(PEERS)} with --what=train. Received: "
            f"--against={name}"
        )
    gpu = shutil.which("nvidia-smi")
    peers.require(
        name, {"jax": "'jax[cuda12]'" if gpu else "jax"} if name == "jax" else {"torch": "torch"}
    )
    if name == "jax":
        return
    required = [
        f"--{field}={'' if value == () else value}"
        for field, value in TORCH_STEP.items()
        if getattr(training, field) != value
    ]
    if training.precision == "mixed_float16":
        required.append("--precision=float32 or mixed_bfloat16")
    if model.auxiliary_head:
        required.append("--auxiliary_head=false")
    if required:
        raise UserError(
            f"--against={name} requires {', '.join(required)}; set these flags, or leave out {name}"
        )


def plan(
    model: ModelConfig,
    size: tuple[int, int],
    with_steps: bool = True,
    data: DataConfig | None = None,
) -> dict[str, Any]:
    """Returns what the contenders share, from `training_plan`, which runs in its own process.

    Args:
        model: The network. The dataset's number of classes replaces the one in this config.
        size: (height, width) of the crops.
        with_steps: Whether PyTorch's contenders need the network.
        data: The dataset, if there is one. It requires TensorFlow.
    """
    from benchmarks.training_plan import NO_GPU

    recipe = Recipe(
        "the network",
        f"{ROOM}.training_plan:TrainingPlan",
        {"model": model, "size": size, "with_steps": with_steps, "data": data},
        NO_GPU,
    )
    with running([recipe]) as (worker,):
        return worker.measure()


def peer_recipe(
    name: str,
    model: ModelConfig,
    training: TrainConfig,
    batch: TrainingBatch,
    steps: Sequence[peers.Step],
    precision: Precision,
    data: DataConfig | None = None,
) -> Recipe:
    """Returns the recipe of a contender that trains on a given batch.

    Args:
        name: A name from `PEERS`.
        model: The network on JAX. The batch's number of classes replaces the one in this config.
        training: The loss, optimizer and precision.
        batch: The batch.
        steps: The network for PyTorch.
        precision: The precision.
        data: The dataset of the steps with input, on JAX; `None` for no such steps.
    """
    if name == "jax":
        arguments = {
            "model": model.replace(num_classes=batch.classes),
            "training": training.replace(precision=precision.policy),
            "batch": batch,
            "data": data,
        }
        return Recipe(
            name, f"{ROOM}.jax_training:JaxTraining", arguments, precision.jax_environment
        )
    arguments = {
        "steps": steps,
        "batch": batch,
        "threads": os.cpu_count() or 1,
        "precision": precision.policy,
        "compiled": name == "torch_compile",
        "tf32": precision.tf32,
    }
    return Recipe(name, f"{ROOM}.peers.torch_training:TorchTraining", arguments, peers.PASSIVE_WAIT)


def result(
    case: str,
    rounds: int,
    multiply_adds: int,
    found: Mapping[str, Mapping[str, list[float]]],
    about: Mapping[str, Mapping[str, Any]],
) -> TrainingResult:
    """Returns the result of the rounds.

    Args:
        case: See `TrainingResult`.
        rounds: See `TrainingResult`.
        multiply_adds: Multiply-adds of the forward pass of an image.
        found: The result of `measure_in_rounds`.
        about: What each contender returned for 0 batches, by name.
    """
    steps = {
        name: StepTimes(
            Spread.of(values["bare_speed"]),
            about[name]["device"],
            int(about[name]["peak_bytes"]),
            int(about[name]["device_bytes"]),
            max(values.get("peak_rate", [0.0])),
            Spread.of(values["speed"]) if "speed" in values else None,
            Spread.of(values["waiting"]).median if "waiting" in values else 0.0,
            float(about[name].get("operations", 0)),
            float(about[name].get("traffic", 0)),
        )
        for name, values in found.items()
    }
    return TrainingResult(case, rounds, PASSES * multiply_adds, steps)
