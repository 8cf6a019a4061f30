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
from deeplab_keras.export.exportable import rebuilt
from deeplab_keras.export.images import synthetic_images
from deeplab_keras.inference.resizing import enlarge, enlarge_labels
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor, check_input_size
from deeplab_keras.zoo.loading import open_checkpoint

KINDS = ("keras", *export.FORMATS)
FILES = tuple(kind for kind in export.FORMATS if kind != "saved_model")
ONE_IMAGE = (*FILES, "onnxruntime", "openvino")
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
# What a file of one image size can return: `--output` and `--output_at` of its export.
OUTPUTS = {
    "labels": ("labels", "image"),
    "logits": ("logits", "image"),
    "head_labels": ("labels", "head"),
    "head_logits": ("logits", "head"),
}


@dataclasses.dataclass(frozen=True)
class Form:
    """A format of the model, or a peer, at one batch size.

    Attributes:
        name: "keras", "saved_model" and so on, or the name of a peer.
        batch_size: Images per call.
        bytes: Size of its file. 0 if it has none.
        output_bytes: Size of what a call returns.
        latency: Milliseconds per call.
        cpu: CPU milliseconds per call, summed over the cores.
        peak_bytes: Peak memory of its process, including its libraries.
        agreement: Share of the pixels with the same label as Keras, after outputs of the head's
            size are enlarged. NaN if Keras was not measured.
    """

    name: str
    batch_size: int
    bytes: int
    output_bytes: int
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
            f"{'CPU ms':>9}{'peak MB':>9}{'output KB':>11}{'as Keras':>13}",
        ]
        for form in self.forms:
            size = f"{form.bytes / 1e6:.2f}" if form.bytes else ""
            lines.append(
                f"{self._subject(form):28}{size:>7}  "
                f"{str(form.latency):34}{1000 * form.batch_size / form.latency.median:>9.2f}"
                f"{form.cpu.median:>9.1f}{form.peak_bytes / 1e6:>9.0f}"
                f"{form.output_bytes / 1e3:>11.1f}{_share(form.agreement):>13}"
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
                Measurement.single(subject, "output", "KB", form.output_bytes / 1e3),
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
    outputs: Sequence[str] = ("labels",),
    batch_sizes: Sequence[int] = (1,),
    num_threads: int = 2,
    batches: int = 8,
    rounds: int = 5,
    on_round: Callable[[int], None] = lambda done: None,
) -> ModelResult:
    """Measures a model in several formats, in turn, each in its own process.

    All of them get the same images, in the dtype of their input, and return labels, except the
    TFLite and ONNX files with another output.

    Args:
        model: A checkpoint or workdir, or the config of a network that gets random weights.
        input_size: (height, width).
        kinds: Formats, names from `KINDS`.
        against: Peers, names from `PEERS`. They get the same weights and the network with its
            concatenations (`branchwise=False`).
        outputs: What TFLite and ONNX files return, names from `OUTPUTS`. They are measured with
            each of them.
        batch_sizes: Images per call. TFLite and ONNX files, and the peers that run them, are only
            measured with 1.
        num_threads: Number of threads of every runtime.
        batches: Calls per round.
        rounds: Number of rounds in which all contenders take turns.
        on_round: Called with the number of completed rounds.

    Raises:
        UserError: If a format, output or peer is unknown, if the model does not accept the size,
            or if a peer or package is not installed.
    """
    for flag, names, known in (
        ("kinds", kinds, KINDS),
        ("outputs", outputs, tuple(OUTPUTS)),
        ("against", against, tuple(PEERS)),
    ):
        for name in names:
            if name not in known:
                raise unknown_name(f"--{flag}", name, known)
    for peer in against:
        peers.require(peer, PEERS[peer])
    if not kinds and not against:
        raise UserError(f"--kinds is empty; use one or more of {', '.join(KINDS)}")
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        checkpoint = checkpoint_of(model, pathlib.Path(folder) / "checkpoint")
        check_input_size(checkpoint.config, *input_size)
        fixed = build_segmentor(checkpoint.config, input_size)
        files = _export(
            checkpoint, pathlib.Path(folder) / "export", kinds, outputs, against, input_size
        )
        plan = []
        if {"torch", "torch_compile"} & set(against):
            plan = describe(
                rebuilt(load_checkpoint(checkpoint.path, input_size), branchwise=False).model
            )
        forms: list[Form] = []
        for batch_size in dict.fromkeys(batch_sizes):
            contenders = [
                (kind, output)
                for kind in (*kinds, *against)
                for output in (outputs if kind in FILES else ("labels",))
                if batch_size == 1 or kind not in ONE_IMAGE
            ]
            recipes = [
                _recipe(kind, output, checkpoint.path, files, plan, input_size, num_threads)
                for kind, output in contenders
            ]
            images = np.stack(
                synthetic_images(input_size, checkpoint.config.input_channels, batch_size)
            )
            found = _measure(recipes, images, batches, rounds, files, on_round)
            forms += _with_agreement(found, input_size, checkpoint.config.align_corners)
    name = checkpoint.config.name or checkpoint.model.name
    weights = "random weights" if isinstance(model, ModelConfig) else f"weights of {model}"
    case = f"{name}, {input_size[0]}x{input_size[1]}, {num_threads} threads, {weights}"
    return ModelResult(
        case, fixed.count_params(), count_multiply_adds(fixed), tuple(forms), rounds * batches
    )


def checkpoint_of(model: ModelConfig | str, folder: pathlib.Path) -> LoadedCheckpoint:
    """Returns the given checkpoint, or creates one with random weights in `folder`."""
    if not isinstance(model, ModelConfig):
        return open_checkpoint(model)
    save_checkpoint(folder, build_segmentor(model), model, dataset_info(model))
    return load_checkpoint(folder)


def _export(
    checkpoint: LoadedCheckpoint,
    folder: pathlib.Path,
    kinds: Sequence[str],
    outputs: Sequence[str],
    against: Sequence[str],
    size: tuple[int, int],
) -> dict[str, pathlib.Path]:
    """Exports the model, and returns the file of each contender, and of "peers", for ONNX."""
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
    files = {}
    for name in dict.fromkeys((*outputs, "labels")):
        output, output_at = OUTPUTS[name]
        formats = [kind for kind in kinds if kind in FILES and name in outputs]
        formats += [kind for kind in kinds if kind == "saved_model" and name == "labels"]
        if formats:
            for file in make(folder / name, formats=formats, output=output, output_at=output_at):
                files[_name(file.kind, name)] = file.path
    if {"onnxruntime", "openvino"} & set(against):
        files["peers"] = make(folder / "peers", formats=["onnx"], keep_concatenations=True)[0].path
    return files


def _name(kind: str, output: str) -> str:
    return kind if output == "labels" else f"{kind}, {output}"


def _recipe(
    kind: str,
    output: str,
    checkpoint: pathlib.Path,
    files: Mapping[str, pathlib.Path],
    plan: Sequence[peers.Step],
    size: tuple[int, int],
    threads: int,
) -> Recipe:
    name, returned = _name(kind, output), OUTPUTS[output][0]
    if kind in ("torch", "torch_compile"):
        arguments = {"steps": plan, "threads": threads, "compiled": kind == "torch_compile"}
        environment = peers.PASSIVE_WAIT | peers.FREEZING
        return Recipe(name, "benchmarks.peers.torch_model:make", arguments, environment)
    if kind == "keras":
        return Recipe(
            name, f"{OURS}:make_keras", {"path": str(checkpoint), "size": size, "threads": threads}
        )
    if kind == "saved_model":
        return Recipe(
            name, f"{OURS}:make_saved_model", {"path": str(files[name]), "threads": threads}
        )
    arguments = {
        "path": str(files[name if kind in FILES else "peers"]),
        "threads": threads,
        "output": returned,
    }
    if kind.startswith("tflite"):
        return Recipe(name, f"{OURS}:make_tflite", arguments)
    arguments["runtime"] = "openvino" if kind == "openvino" else "onnxruntime"
    return Recipe(name, "benchmarks.peers.onnx_model:make", arguments, peers.PASSIVE_WAIT)


def _measure(
    recipes: Sequence[Recipe],
    images: np.ndarray,
    batches: int,
    rounds: int,
    files: Mapping[str, pathlib.Path],
    on_round: Callable[[int], None],
) -> Iterator[tuple[Form, np.ndarray]]:
    """Yields the measurements of each contender, and what it returned."""
    with running(recipes) as workers:
        for worker in workers:
            worker.measure(images=images, calls=2)  # the first call compiles
        returned = {
            worker.name: worker.measure(images=images, calls=0)["output"] for worker in workers
        }
        found = measure_in_rounds(workers, rounds, {"images": images, "calls": batches}, on_round)
        peaks = {worker.name: worker.peak_bytes() for worker in workers}
    for name, values in found.items():
        yield (
            Form(
                name=name,
                batch_size=len(images),
                bytes=_bytes(files[name]) if name in files else 0,
                output_bytes=returned[name].nbytes,
                latency=Spread.of(values["latency"]),
                cpu=Spread.of(values["CPU per call"]),
                peak_bytes=peaks[name],
                agreement=math.nan,
            ),
            returned[name],
        )


def _with_agreement(
    found: Iterator[tuple[Form, np.ndarray]], size: tuple[int, int], align_corners: bool
) -> list[Form]:
    forms = [(form, as_labels(output, size, align_corners)) for form, output in found]
    expected = [labels for form, labels in forms if form.name == "keras"]
    return [
        dataclasses.replace(form, agreement=float(np.mean(labels == expected[0])))
        if expected
        else form
        for form, labels in forms
    ]


def as_labels(output: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Returns labels of the image's size from labels or class scores, which may be smaller."""
    if output.ndim == 3:
        return enlarge_labels(output, size, align_corners)
    return enlarge(output, size, align_corners).argmax(-1)


def _bytes(path: pathlib.Path) -> int:
    return sum(
        file.stat().st_size
        for file in ([path] if path.is_file() else path.rglob("*"))
        if file.is_file()
    )
