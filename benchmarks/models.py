"""Measures a model in its formats and in other libraries: file size, latency and memory."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks import peers
from benchmarks.peers.plan import describe
from benchmarks.records import Measurement
from benchmarks.rounds import Spread, measure_in_rounds
from benchmarks.workers import Recipe, running
from deeplab_keras import export
from deeplab_keras.checkpoints.folder import LoadedCheckpoint, load_checkpoint, save_checkpoint
from deeplab_keras.config import ModelConfig, UserError, unknown_name
from deeplab_keras.convert.conversion import dataset_info
from deeplab_keras.export.graph import rebuilt
from deeplab_keras.export.images import synthetic_images
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor, check_input_size
from deeplab_keras.zoo.loading import open_checkpoint

KINDS = ("keras", *export.FORMATS)
ONE_IMAGE = (
    "tflite",
    "tflite_float16",
    "tflite_dynamic",
    "tflite_int8",
    "tflite_mixed",
    "onnx",
    "onnxruntime",
    "openvino",
)
# The packages that each peer requires: import name -> name for pip.
PEERS = {
    "torch": {"torch": "torch"},
    "torch_compile": {"torch": "torch"},
    "onnxruntime": {"onnxruntime": "onnxruntime", "tf2onnx": "tf2onnx", "onnx": "onnx"},
    "openvino": {
        "openvino": "openvino",
        "tf2onnx": "tf2onnx",
        "onnx": "onnx",
        "onnxruntime": "onnxruntime",
    },
}
OURS = "benchmarks.runners"


@dataclasses.dataclass(frozen=True)
class Form:
    """A format of the model, or a peer, at one batch size.

    Attributes:
        name: "keras", "saved_model" and so on, or the name of a peer.
        batch_size: Images per call.
        bytes: Size of its file. 0 if it has none.
        latency: Milliseconds per call.
        cpu: CPU milliseconds per call, summed over the cores.
        peak_bytes: Peak memory of its process, including its libraries.
        agreement: Share of the pixels with the same label as Keras. NaN if Keras was not measured.
    """

    name: str
    batch_size: int
    bytes: int
    latency: Spread
    cpu: Spread
    peak_bytes: int
    agreement: float


@dataclasses.dataclass(frozen=True)
class ModelResult:
    """The size, speed and memory of a model in all its formats."""

    case: str
    parameters: int
    multiply_adds: int
    forms: tuple[Form, ...]
    calls: int

    def table(self) -> str:
        """Returns the result as text."""
        lines = [
            self.case,
            f"{self.parameters:,} parameters, {self.multiply_adds / 1e9:.3f} billion "
            "multiply-adds per image",
            "",
            f"{'':28}{'MB':>7}  {'ms per call: median (quartiles)':34}{'images/s':>9}"
            f"{'CPU ms':>9}{'peak MB':>9}{'as Keras':>13}",
        ]
        for form in self.forms:
            size = f"{form.bytes / 1e6:.2f}" if form.bytes else ""
            lines.append(
                f"{self._subject(form):28}{size:>7}  "
                f"{str(form.latency):34}{1000 * form.batch_size / form.latency.median:>9.2f}"
                f"{form.cpu.median:>9.1f}{form.peak_bytes / 1e6:>9.0f}{_share(form.agreement):>13}"
            )
        return "\n".join(lines)

    def rows(self) -> list[Measurement]:
        """Returns the result as rows for `records`."""
        rows = [
            Measurement.single("the model", "parameters", "", self.parameters),
            Measurement.single("the model", "multiply-adds", "", self.multiply_adds),
        ]
        for form in self.forms:
            subject = self._subject(form)
            if form.bytes:
                rows.append(Measurement.single(subject, "file", "MB", form.bytes / 1e6))
            rows += [
                Measurement(subject, "latency", "ms", form.latency, self.calls),
                Measurement(subject, "CPU per call", "ms", form.cpu, self.calls),
                Measurement.single(
                    subject, "images/s", "", 1000 * form.batch_size / form.latency.median
                ),
                Measurement.single(subject, "peak memory", "MB", form.peak_bytes / 1e6),
            ]
            if not math.isnan(form.agreement):
                rows.append(
                    Measurement.single(subject, "agreement with Keras", "%", 100 * form.agreement)
                )
        return rows

    def _subject(self, form: Form) -> str:
        many = len({other.batch_size for other in self.forms}) > 1 or form.batch_size > 1
        return f"{form.name}, batch {form.batch_size}" if many else form.name


def _share(value: float) -> str:
    return "" if math.isnan(value) else export.check.percent(value)


def measure_model(
    model: ModelConfig | str,
    *,
    input_size: tuple[int, int] = (512, 512),
    kinds: Sequence[str] = ("keras", "saved_model", "tflite"),
    against: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    num_threads: int = 2,
    batches: int = 8,
    rounds: int = 5,
    on_round: Callable[[int], None] = lambda done: None,
) -> ModelResult:
    """Measures a model in several formats, in turn, each in its own process.

    All of them get the same images, in the dtype of their input, and return labels.

    Args:
        model: A checkpoint or workdir, or the config of a network that gets random weights.
        input_size: (height, width).
        kinds: Formats, names from `KINDS`.
        against: Peers, names from `PEERS`. They get the same weights and the network with its
            concatenations (`branchwise=False`).
        batch_sizes: Images per call. TFLite and ONNX files, and the peers that run them, are only
            measured with 1.
        num_threads: Number of threads of every runtime.
        batches: Calls per round.
        rounds: Number of rounds in which all contenders take turns.
        on_round: Called with the number of completed rounds.

    Raises:
        UserError: If a format or peer is unknown, if the model does not accept the size, or if a
            peer or package is not installed.
    """
    for flag, names, known in (("kinds", kinds, KINDS), ("against", against, tuple(PEERS))):
        for name in names:
            if name not in known:
                raise unknown_name(f"--{flag}", name, known)
    for peer in against:
        peers.require(peer, PEERS[peer])
    if not kinds and not against:
        raise UserError(f"--kinds is empty; use one or more of {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        checkpoint = _checkpoint(model, pathlib.Path(folder) / "checkpoint")
        check_input_size(checkpoint.config, *input_size)
        fixed = build_segmentor(checkpoint.config, input_size)
        files = _export(checkpoint, pathlib.Path(folder) / "export", kinds, against, input_size)
        plan = []
        if {"torch", "torch_compile"} & set(against):
            plan = describe(
                rebuilt(load_checkpoint(checkpoint.path, input_size), branchwise=False).model
            )
        forms: list[Form] = []
        for batch_size in dict.fromkeys(batch_sizes):
            names = [
                name for name in (*kinds, *against) if batch_size == 1 or name not in ONE_IMAGE
            ]
            recipes = [
                _recipe(name, checkpoint.path, files, plan, input_size, num_threads)
                for name in names
            ]
            images = np.stack(
                synthetic_images(input_size, checkpoint.config.input_channels, batch_size)
            )
            forms += _measure(recipes, images, batches, rounds, files, on_round)
    name = checkpoint.config.name or checkpoint.model.name
    weights = "random weights" if isinstance(model, ModelConfig) else f"weights of {model}"
    case = f"{name}, {input_size[0]}x{input_size[1]}, {num_threads} threads, {weights}"
    return ModelResult(
        case, fixed.count_params(), count_multiply_adds(fixed), tuple(forms), rounds * batches
    )


def _checkpoint(model: ModelConfig | str, folder: pathlib.Path) -> LoadedCheckpoint:
    """Returns the given checkpoint, or creates one with random weights in `folder`."""
    if not isinstance(model, ModelConfig):
        return open_checkpoint(model)
    save_checkpoint(folder, build_segmentor(model), model, dataset_info(model))
    return load_checkpoint(folder)


def _export(
    checkpoint: LoadedCheckpoint,
    folder: pathlib.Path,
    kinds: Sequence[str],
    against: Sequence[str],
    size: tuple[int, int],
) -> dict[str, pathlib.Path]:
    """Exports the model, and returns the file of each kind, and of "peers", which use ONNX."""
    pictures = synthetic_images(
        size, checkpoint.config.input_channels, export.request.MIN_REPRESENTATIVE
    )
    make = functools.partial(
        export.export_model,
        checkpoint,
        input_size=size,
        representative_images=pictures,
        check_images=pictures[:1],
        min_agreement=0.0,
        log=lambda line: None,
    )
    formats, files = [kind for kind in kinds if kind != "keras"], {}
    if formats:
        files = {file.kind: file.path for file in make(folder, formats=formats)}
    if {"onnxruntime", "openvino"} & set(against):
        files["peers"] = make(folder / "peers", formats=["onnx"], keep_concatenations=True)[0].path
    return files


def _recipe(
    name: str,
    checkpoint: pathlib.Path,
    files: Mapping[str, pathlib.Path],
    plan: Sequence[peers.Step],
    size: tuple[int, int],
    threads: int,
) -> Recipe:
    if name in ("torch", "torch_compile"):
        arguments = {"steps": plan, "threads": threads, "compiled": name == "torch_compile"}
        # Freezing folds batch norm, as our exports do.
        environment = {**peers.PASSIVE_WAIT, "TORCHINDUCTOR_FREEZING": "1"}
        return Recipe(name, "benchmarks.peers.torch_model:make", arguments, environment)
    if name == "keras":
        return Recipe(
            name, f"{OURS}:make_keras", {"path": str(checkpoint), "size": size, "threads": threads}
        )
    if name == "saved_model":
        return Recipe(
            name, f"{OURS}:make_saved_model", {"path": str(files[name]), "threads": threads}
        )
    if name.startswith("tflite"):
        return Recipe(name, f"{OURS}:make_tflite", {"path": str(files[name]), "threads": threads})
    arguments = {
        "path": str(files["onnx" if name == "onnx" else "peers"]),
        "runtime": "openvino" if name == "openvino" else "onnxruntime",
        "threads": threads,
    }
    return Recipe(name, "benchmarks.peers.onnx_model:make", arguments, peers.PASSIVE_WAIT)


def _measure(
    recipes: Sequence[Recipe],
    images: np.ndarray,
    batches: int,
    rounds: int,
    files: Mapping[str, pathlib.Path],
    on_round: Callable[[int], None],
) -> Iterator[Form]:
    with running(recipes) as workers:
        for worker in workers:
            worker.measure(images=images, calls=2)  # the first call compiles
        labels = {
            worker.name: worker.measure(images=images, calls=0)["labels"] for worker in workers
        }
        found = measure_in_rounds(workers, rounds, {"images": images, "calls": batches}, on_round)
        peaks = {worker.name: worker.peak_bytes() for worker in workers}
    for name, values in found.items():
        agreement = (
            float(np.mean(labels[name] == labels["keras"])) if "keras" in labels else math.nan
        )
        size = _bytes(files[name]) if name in files else 0
        latency, cpu = Spread.of(values["latency"]), Spread.of(values["CPU per call"])
        yield Form(name, len(images), size, latency, cpu, peaks[name], agreement)


def _bytes(path: pathlib.Path) -> int:
    return sum(
        file.stat().st_size
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
