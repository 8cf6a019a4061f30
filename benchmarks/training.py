"""What a training step costs: images/s, the wait for input, memory, and the arithmetic beside what the machine can do at most."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from benchmarks import peers
from benchmarks.records import Row
from benchmarks.rounds import Spread, in_rounds
from benchmarks.workers import Recipe, all_at_work
from deeplab_keras.config import DataConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.models.segmentor import check_input_size

OURS = "training"  # the contender that is our trainer's step, on TensorFlow
ROOM = "benchmarks"
PEERS = ("jax", "torch", "torch_compile")
PASSES = 3  # forward, and the gradients of the input and of the weights, each as much arithmetic
# What PyTorch's step is; any other setting would be another step than ours.
TORCH_STEP: dict[str, Any] = {
    "loss": "cross_entropy", "optimizer": "momentum", "label_weights": (), "label_smoothing": 0, "top_k_percent_pixels": 1,
    "clip_gradient_norm": 0, "gradient_accumulation_steps": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Steps:
    """A contender's steps on a batch that lies ready.

    Attributes:
        speed: images/s.
        device: where they were taken: a GPU's name, or CPU.
        peak_bytes: the most memory the process had, its libraries included.
        device_bytes: the most of the GPU's memory that its tensors had; 0: no GPU.
        peak_rate: multiply-adds a second of the best matrix product or convolution that was tried;
            0: none was.
    """

    speed: Spread
    device: str
    peak_bytes: int
    device_bytes: int
    peak_rate: float

    @property
    def where(self) -> str:
        """The device, and its memory if it has its own."""
        memory = f", {self.device_bytes / 1e6:.0f} MB of it" if self.device_bytes else ""
        return f"on {self.device}{memory}"


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training step costs.

    Attributes:
        case: model, data, batch.
        rounds: how many.
        multiply_adds: of one image, forward and backward, the auxiliary head included.
        steps: contender -> its steps; ours on TensorFlow is OURS.
        speed: images/s of ours, input and step together; None where there is no TensorFlow.
        waiting: share of the time in which our step waits for its batch, 0..1.
    """

    case: str
    rounds: int
    multiply_adds: int
    steps: dict[str, Steps]
    speed: Spread | None = None
    waiting: float = 0.0

    def utilisation(self, name: str, speed: Spread) -> float:
        """The arithmetic done in a second over what the contender's device can do at most."""
        return self.multiply_adds * speed.median / self.steps[name].peak_rate

    def table(self) -> str:
        """What a person reads."""
        lines = [self.case, ""]
        if self.speed is not None:
            lines += [
                f"training                    {self.speed} images/s",
                f"waiting for input           {100 * self.waiting:.1f} % of the time",
                f"of the peak                 {100 * self.utilisation(OURS, self.speed):.1f} %",
            ]
        for name, steps in self.steps.items():
            title = "steps alone" if name == OURS else f"{name}, steps alone"
            lines.append(f"{title:28s}{steps.speed} images/s, {steps.where}")
            if steps.peak_rate:
                lines.append(
                    f"    of the peak             {100 * self.utilisation(name, steps.speed):.1f} "
                    "% of "
                    f"{steps.peak_rate / 1e9:.1f} billion multiply-adds a second, measured"
                )
            lines.append(f"    peak memory             {steps.peak_bytes / 1e6:.0f} MB")
        return "\n".join(
            [
                *lines,
                f"multiply-adds an image      {self.multiply_adds / 1e9:.2f} billion, forward and "
                "backward",
            ]
        )

    def rows(self) -> list[Row]:
        """The same for `records`."""
        rows: list[Row] = []
        for name, steps in self.steps.items():
            subject = f"{name}, {steps.device}"
            if name == OURS and self.speed is not None:
                rows += [
                    Row(subject, "speed", "images/s", self.speed, self.rounds),
                    Row.single(subject, "waiting for input", "%", 100 * self.waiting),
                    Row.single(
                        subject, "of the peak", "%", 100 * self.utilisation(OURS, self.speed)
                    ),
                ]
            rows += [
                Row(subject, "steps alone", "images/s", steps.speed, self.rounds),
                Row.single(subject, "peak memory", "MB", steps.peak_bytes / 1e6),
                Row.single(subject, "multiply-adds an image", "billion", self.multiply_adds / 1e9),
            ]
            if steps.peak_rate:
                rows += [
                    Row.single(
                        subject, "device's peak", "billion multiply-adds/s", steps.peak_rate / 1e9
                    ),
                    Row.single(
                        subject,
                        "steps alone, of the peak",
                        "%",
                        100 * self.utilisation(name, steps.speed),
                    ),
                ]
            if steps.device_bytes:
                rows.append(Row.single(subject, "GPU memory", "MB", steps.device_bytes / 1e6))
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
    """Times training steps as `training.train` takes them, from the files on; nothing is written.

    Where Keras' backend is another than TensorFlow, our contender is the one on JAX, and no
    TensorFlow is needed.

    Args:
        model: the architecture; its number of classes becomes the dataset's.
        data: dataset, augmentation, crop and batch.
        training: optimizer, loss, precision, XLA, strategy.
        batches: steps a round, with their input and then on a batch that lies ready.
        rounds: how many.
        against: of PEERS: "jax" for our own network, loss and optimizer on Keras' JAX backend,
            "torch" and "torch_compile" for PyTorch's steps on the same network; each takes the same
            crop and batch, in turn with ours.
        on_round: gets the number of rounds that are done.

    Raises:
        UserError: a mistake in the configs or the data, or a peer that is not installed.
    """
    check_input_size(model, *data.train_crop_size)
    with_tensorflow = keras.backend.backend() == "tensorflow"
    names = list(against) if with_tensorflow or "jax" in against else ["jax", *against]
    for name in names:
        _check_peer(name, model, training)
    shared = _shared(model, data, any(name != "jax" for name in names)) if names else {}
    recipes = [_ours(model, data, training)] if with_tensorflow else []
    recipes += [_peer(name, shared, model, data, training) for name in names]
    with all_at_work(recipes) as workers:
        found = in_rounds(workers, rounds, {"batches": batches}, on_round)
        about = {worker.name: worker.measure(batches=0) for worker in workers}
    return _result(model, data, training, rounds, found, about, shared)


def _ours(model: ModelConfig, data: DataConfig, training: TrainConfig) -> Recipe:
    arguments = {"model": model, "data": data, "training": training}
    return Recipe(
        OURS, f"{ROOM}.tensorflow_training:make", arguments, {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    )


def _check_peer(name: str, model: ModelConfig, training: TrainConfig) -> None:
    """Raises UserError for a peer that there is not, that is not installed, or whose step is another than the one asked for."""
    if name not in PEERS:
        raise UserError(f"--against={name}: for --what=train there is {', '.join(PEERS)}")
    gpu = shutil.which("nvidia-smi")
    peers.require(
        name, {"jax": "'jax[cuda12]'" if gpu else "jax"} if name == "jax" else {"torch": "torch"}
    )
    wanted = {"gradient_accumulation_steps": 1} if name == "jax" else TORCH_STEP
    other = [
        f"--{field}={'' if value == () else value}"
        for field, value in wanted.items()
        if getattr(training, field) != value
    ]
    if training.precision == "mixed_float16":
        other.append("--precision=float32 or mixed_bfloat16")
    if name != "jax" and model.auxiliary_head:
        other.append("--auxiliary_head=false")
    if other:
        raise UserError(
            f"--against={name}: its steps have {', '.join(other)}; give these, or leave it out"
        )


def _shared(model: ModelConfig, data: DataConfig, with_steps: bool) -> dict[str, Any]:
    """What `training_plan` finds."""
    from benchmarks.training_plan import NO_GPU

    recipe = Recipe(
        "the network",
        f"{ROOM}.training_plan:make",
        {"model": model, "data": data, "with_steps": with_steps},
        NO_GPU,
    )
    with all_at_work([recipe]) as (worker,):
        return worker.measure()


def _peer(
    name: str,
    shared: Mapping[str, Any],
    model: ModelConfig,
    data: DataConfig,
    training: TrainConfig,
) -> Recipe:
    shape = (data.train_batch_size, *data.train_crop_size, model.input_channels)
    arguments: dict[str, Any] = {"shape": shape, "ignore_label": shared["ignore_label"]}
    if name == "jax":
        arguments |= {"model": model.replace(num_classes=shared["classes"]), "training": training}
        environment = {
            "KERAS_BACKEND": "jax",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }  # no more memory than it needs
        return Recipe(name, f"{ROOM}.jax_training:make", arguments, environment)
    arguments |= {
        "steps": shared["steps"],
        "classes": shared["classes"],
        "threads": os.cpu_count() or 1,
        "precision": training.precision,
        "compiled": name == "torch_compile",
    }
    return Recipe(name, f"{ROOM}.peers.torch_training:make", arguments, peers.WAITING)


def _result(
    model: ModelConfig,
    data: DataConfig,
    training: TrainConfig,
    rounds: int,
    found: Mapping[str, Mapping[str, list[float]]],
    about: Mapping[str, Mapping[str, Any]],
    shared: Mapping[str, Any],
) -> TrainingResult:
    height, width = data.train_crop_size
    of = data.dataset if OURS in found else f"noise of {shared['classes']} classes"
    case = (
        f"{model.name or f'{model.head}_{model.backbone}'}, {of}, batches of "
        f"{data.train_batch_size} crops of {height}x{width}, "
        f"{training.precision}{', XLA' if training.jit_compile else ''}"
    )
    steps = {
        name: Steps(
            Spread.of(values["bare_speed"]),
            about[name]["device"],
            int(about[name]["peak_bytes"]),
            int(about[name]["device_bytes"]),
            max(values.get("peak_rate", [0.0])),
        )
        for name, values in found.items()
    }
    multiply_adds = PASSES * int((shared or about[OURS])["multiply_adds"])
    if OURS not in found:
        return TrainingResult(case, rounds, multiply_adds, steps)
    ours = found[OURS]
    return TrainingResult(
        case,
        rounds,
        multiply_adds,
        steps,
        Spread.of(ours["speed"]),
        Spread.of(ours["waiting"]).median,
    )
