"""A model in every form that it can be run in: its size, latency, memory, and other libraries on the same weights beside it."""

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
from benchmarks.records import Row
from benchmarks.rounds import Spread, in_rounds
from benchmarks.workers import Recipe, all_at_work
from deeplab_keras import export
from deeplab_keras.checkpoints.folder import LoadedCheckpoint, load_checkpoint, save_checkpoint
from deeplab_keras.config import ModelConfig, UserError, unknown_name
from deeplab_keras.convert.conversion import dataset_info
from deeplab_keras.export.graph import rebuilt
from deeplab_keras.export.images import made_images
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor, check_input_size

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
# Peer -> what it needs; import name -> name for pip.
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
    """One form of the model on one batch size.

    Attributes:
        name: keras, saved_model, ..., or a peer.
        batch_size: images a call.
        bytes: of its file; 0: it has none.
        latency: milliseconds a call.
        cpu: milliseconds of one core a call.
        peak_bytes: the most memory its process had, its libraries included.
        agreement: share of the pixels whose label is Keras' own; NaN where Keras took no part.
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
    """What a model costs in all its forms."""

    case: str
    parameters: int
    multiply_adds: int
    forms: tuple[Form, ...]
    calls: int

    def table(self) -> str:
        """What a person reads."""
        lines = [
            self.case,
            f"{self.parameters:,} parameters, {self.multiply_adds / 1e9:.3f} billion "
            "multiply-adds an image",
            "",
            f"{'':28}{'MB':>7}  "
            f"{'ms a call: median (quartiles)':34}{'images/s':>9}{'CPU ms':>9}{'peak MB':>9}{'as Keras':>13}",
        ]
        for form in self.forms:
            size = f"{form.bytes / 1e6:.2f}" if form.bytes else ""
            lines.append(
                f"{self._subject(form):28}{size:>7}  "
                f"{str(form.latency):34}{1000 * form.batch_size / form.latency.median:>9.2f}"
                f"{form.cpu.median:>9.1f}{form.peak_bytes / 1e6:>9.0f}{_share(form.agreement):>13}"
            )
        return "\n".join(lines)

    def rows(self) -> list[Row]:
        """The same for `records`."""
        found = [
            Row.single("the model", "parameters", "", self.parameters),
            Row.single("the model", "multiply-adds", "", self.multiply_adds),
        ]
        for form in self.forms:
            subject = self._subject(form)
            if form.bytes:
                found.append(Row.single(subject, "file", "MB", form.bytes / 1e6))
            found += [
                Row(subject, "latency", "ms", form.latency, self.calls),
                Row(subject, "CPU a call", "ms", form.cpu, self.calls),
                Row.single(subject, "images/s", "", 1000 * form.batch_size / form.latency.median),
                Row.single(subject, "peak memory", "MB", form.peak_bytes / 1e6),
            ]
            if not math.isnan(form.agreement):
                found.append(Row.single(subject, "labels as Keras", "%", 100 * form.agreement))
        return found

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
    """Measures a model in several forms, all in turn, each in a process of its own.

    Every form gets the same images, as its file takes them, and gives labels.

    Args:
        model: a checkpoint or workdir, or the config of a network that gets random weights.
        input_size: (height, width).
        kinds: out of KINDS.
        against: out of PEERS; they get the same weights, and the network as it is drawn
            (`branchwise=False`).
        batch_sizes: images a call; TFLite and ONNX files, and what runs them, take one.
        num_threads: of every runtime.
        batches: calls a round.
        rounds: in which all have their turn.
        on_round: gets the number of rounds that are done.

    Raises:
        UserError: an unknown kind or peer, a size that the model cannot take, a peer or a package
            that is not installed.
    """
    for flag, names, known in (("kinds", kinds, KINDS), ("against", against, tuple(PEERS))):
        for name in names:
            if name not in known:
                raise unknown_name(f"--{flag}", name, known)
    for peer in against:
        peers.require(peer, PEERS[peer])
    if not kinds and not against:
        raise UserError(f"--kinds is empty; give one or more of {', '.join(KINDS)}")
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
            images = np.stack(made_images(input_size, checkpoint.config.input_channels, batch_size))
            forms += _measure(recipes, images, batches, rounds, files, on_round)
    name = checkpoint.config.name or checkpoint.model.name
    weights = "random weights" if isinstance(model, ModelConfig) else f"weights of {model}"
    case = f"{name}, {input_size[0]}x{input_size[1]}, {num_threads} threads, {weights}"
    return ModelResult(
        case, fixed.count_params(), count_multiply_adds(fixed), tuple(forms), rounds * batches
    )


def _checkpoint(model: ModelConfig | str, folder: pathlib.Path) -> LoadedCheckpoint:
    """The checkpoint that was given, or one of random weights in `folder`."""
    if not isinstance(model, ModelConfig):
        return load_checkpoint(model)
    save_checkpoint(folder, build_segmentor(model), model, dataset_info(model))
    return load_checkpoint(folder)


def _export(
    checkpoint: LoadedCheckpoint,
    folder: pathlib.Path,
    kinds: Sequence[str],
    against: Sequence[str],
    size: tuple[int, int],
) -> dict[str, pathlib.Path]:
    """Kind, or "peers" for the ONNX file that they read -> its file."""
    pictures = made_images(
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
        made_by = "benchmarks.peers.torch_model:make"
        compiled = name == "torch_compile"
        environment = {
            **peers.WAITING,
            "TORCHINDUCTOR_FREEZING": "1",
        }  # folds batch norm, as our exports do
        return Recipe(
            name, made_by, {"steps": plan, "threads": threads, "compiled": compiled}, environment
        )
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
    made_by = "benchmarks.peers.onnx_model:make"
    file = files["onnx" if name == "onnx" else "peers"]
    runtime = "openvino" if name == "openvino" else "onnxruntime"
    return Recipe(
        name, made_by, {"path": str(file), "runtime": runtime, "threads": threads}, peers.WAITING
    )


def _measure(
    recipes: Sequence[Recipe],
    images: np.ndarray,
    batches: int,
    rounds: int,
    files: Mapping[str, pathlib.Path],
    on_round: Callable[[int], None],
) -> Iterator[Form]:
    with all_at_work(recipes) as workers:
        for worker in workers:
            worker.measure(images=images, calls=2)  # the first call compiles
        labels = {
            worker.name: worker.measure(images=images, calls=0)["labels"] for worker in workers
        }
        found = in_rounds(workers, rounds, {"images": images, "calls": batches}, on_round)
        peaks = {worker.name: worker.peak_bytes() for worker in workers}
    for name, values in found.items():
        agreement = (
            float(np.mean(labels[name] == labels["keras"])) if "keras" in labels else math.nan
        )
        size = _bytes(files[name]) if name in files else 0
        latency, cpu = Spread.of(values["latency"]), Spread.of(values["CPU a call"])
        yield Form(name, len(images), size, latency, cpu, peaks[name], agreement)


def _bytes(path: pathlib.Path) -> int:
    return sum(
        file.stat().st_size
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
