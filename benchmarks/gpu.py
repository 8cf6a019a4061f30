"""The GPU kit: parity, training and inference speed, and memory on the device that JAX uses.

It does not require TensorFlow. The result is a JSON file, which is written again after every part.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from benchmarks import parity, peers, records, training
from benchmarks.batches import TrainingBatch, noise, read_batch
from benchmarks.golden import VOC
from benchmarks.precisions import PRECISIONS
from benchmarks.records import Measurement
from benchmarks.rounds import Spread, measure_in_rounds
from benchmarks.workers import OutOfTime, Recipe, running
from deeplab_keras.config import ModelConfig, OptionError, TrainConfig, UserError
from deeplab_keras.io.writing import check_file, write_text
from deeplab_keras.zoo import registry as zoo

PEERS = ("torch", "torch_compile")
# The share of a part's time after which its contenders must have been created.
CREATION = 0.7
PROBE_SECONDS = 120
CORES = 4  # of each process that compiles at the same time as others
CHANNELS, CLASSES = 3, 21
TITLES = {
    "parity": "differences from the golden values of SSSegmentation",
    "train": "training steps",
    "inference": "images to labels",
}


@dataclasses.dataclass(frozen=True)
class Preset:
    """What the kit measures.

    Attributes:
        networks: Names of models to train and to run.
        options: Changes of their configs.
        systems: The golden systems to compare.
        trained: The golden systems whose training step is compared too.
        size: (height, width) of the images.
        batch_sizes: Images per call at inference. The last one is the batch size of training.
        rounds: Number of rounds in which all contenders take turns.
        batches: Steps or calls per round.
        seconds: The time that a part may take at most.
        precisions: Names from `PRECISIONS`, the most important first.
    """

    networks: tuple[str, ...]
    options: Mapping[str, Any]
    systems: tuple[str, ...]
    trained: tuple[str, ...]
    size: tuple[int, int]
    batch_sizes: tuple[int, ...]
    rounds: int
    batches: int
    seconds: float
    precisions: tuple[str, ...]

    def model(self, network: str) -> ModelConfig:
        """Returns the config of a network, without auxiliary head."""
        return zoo.get_config(network).replace(auxiliary_head=False, **self.options)


PRESETS = {
    "full": Preset(
        networks=(
            "deeplabv3plus_mobilenetv2os8_voc",
            "lrasppnet_mobilenetv3los8_voc",
            "deeplabv3_mobilenetv2os8_voc",
            "pspnet_mobilenetv2os8_voc",
            "fcn_mobilenetv2os8_voc",
        ),
        options={},
        systems=VOC,
        trained=("deeplabv3plus_mobilenetv2os8_voc",),
        size=(512, 512),
        batch_sizes=(1, 16),
        rounds=5,
        batches=10,
        seconds=240,
        precisions=("bfloat16", "tf32", "float32"),
    ),
    "small": Preset(
        networks=("fcn_mobilenetv2os8_voc",),
        options={"depth_multiplier": 0.25, "output_stride": 32, "head_channels": 16},
        systems=("deeplabv3plus_mobilenetv2os8_voc",),
        trained=(),  # on a CPU, JAX takes minutes for it
        size=(64, 64),
        batch_sizes=(1, 2),
        rounds=2,
        batches=1,
        seconds=600,
        precisions=("bfloat16", "float32"),  # a CPU has no TF32
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the kit: "parity", or "train" or "inference" of a network in a precision."""

    kind: str
    network: str = ""
    precision: str = ""

    @property
    def name(self) -> str:
        """Its key in the JSON file."""
        return " ".join(filter(None, (self.kind, self.network, self.precision)))


def parts(preset: Preset) -> list[Part]:
    """Returns the parts in the order in which they run, the most important first."""
    speed = [
        Part(kind, network, precision)
        for precision in preset.precisions
        for kind in ("train", "inference")
        for network in preset.networks
    ]
    return [Part("parity"), *speed]


def measure_gpu(
    path: str,
    *,
    preset: str = "full",
    seconds: float = 570,
    npz: str = "",
    against: Sequence[str] = PEERS,
    command: str = "",
    page: str = "",
) -> dict[str, Any]:
    """Runs the parts that a JSON file does not have yet, until the time is over.

    Args:
        path: The JSON file. If it exists, its machine, versions, preset and batch must be the same.
        preset: A name from `PRESETS`. A CPU requires "small".
        seconds: The time for all parts.
        npz: A file of `benchmarks.batches.write_batch`. The default is noise.
        against: Names from `PEERS`.
        command: The command, for the page.
        page: A Markdown page to write from the JSON file.

    Returns:
        The contents of the JSON file.

    Raises:
        UserError: Before the parts run, if Keras' backend, the device, the batch, a peer or the
            file is not suitable. After them, if a parity check has failed or did not run.
    """
    start = time.monotonic()
    if keras.backend.backend() != "jax":
        raise UserError(
            "--what=gpu requires Keras' JAX backend. Received: backend "
            f"{keras.backend.backend()}; set KERAS_BACKEND=jax"
        )
    if unknown := [name for name in against if name not in PEERS]:
        raise OptionError("against", ",".join(unknown), f"must be {' or '.join(PEERS)}")
    check_file(path, "json")
    setting = PRESETS[preset]
    shape = (setting.batch_sizes[-1], *setting.size, CHANNELS)
    batch = read_batch(npz, shape) if npz else noise(shape, CLASSES)
    probe = Recipe("JAX", "benchmarks.jax_device:Probe", {}, PRECISIONS["float32"].jax_environment)
    with running([probe], start + PROBE_SECONDS) as (worker,):
        device = worker.measure()["device"]
    if device == "CPU" and preset != "small":
        raise UserError(
            f"`preset={preset}` requires a GPU, but JAX only finds a CPU; install 'jax[cuda12]', "
            "or give `preset=small`, which runs small networks on the CPU"
        )
    report = _opened(path, {
        "preset": preset,
        "batch": batch.source,
        "shape": list(shape),
        "against": list(against),
        "device": device,
        **_card(),
        **records.environment(),
    }, parts(setting))  # fmt: skip
    report |= {"date": records.now(), "command": command}
    kit = Kit(setting, batch, against)
    if device == "CPU":
        print("no GPU: small networks on the CPU; their speed says nothing about a GPU", flush=True)
    _write(path, page, report)
    for part in parts(setting):
        entry = report["parts"][part.name]
        if entry["status"] == "done":
            continue
        left = seconds - (time.monotonic() - start)
        if left > 0:
            report["parts"][part.name] = entry = kit.run(part, min(left, setting.seconds))
        print(f"{part.name}: {_line(entry)}", flush=True)
        _write(path, page, report)
    checked = report["parts"]["parity"]
    if checked["status"] != "done":
        raise UserError(f"parity failed: {checked.get('error', 'not run')}; see {path}")
    return report


class Kit:
    """Runs the parts.

    Args:
        preset: What to measure.
        batch: The batch of all contenders.
        against: Names from `PEERS`.
    """

    def __init__(self, preset: Preset, batch: TrainingBatch, against: Sequence[str]) -> None:
        self.preset, self.batch = preset, batch
        self.peers: list[str] = []
        self.missing: dict[str, str] = {}
        for name in against:
            try:
                peers.require(name, {"torch": "torch"})
                self.peers.append(name)
            except UserError as error:
                self.missing[name] = str(error)
        self.plan = functools.cache(self._plan)

    def run(self, part: Part, seconds: float) -> dict[str, Any]:
        """Runs a part in at most some seconds, and returns its entry for the JSON file."""
        start, run = time.monotonic(), getattr(self, f"_{part.kind}")
        entry: dict[str, Any] = {"status": "done", "rows": [], "errors": {}}
        try:
            run(part, entry, start, seconds)
        except UserError as error:
            # The end of the time for all parts says nothing about this part.
            cut = isinstance(error, OutOfTime) and seconds < self.preset.seconds
            entry |= {"status": "not run" if cut else "failed", "error": str(error)}
        return entry | {"seconds": round(time.monotonic() - start, 1)}

    def _parity(self, part: Part, entry: dict[str, Any], start: float, seconds: float) -> None:
        """Compares in all precisions, at the same time on a machine with many cores."""
        recipes = [
            Recipe(name, "benchmarks.parity:Parity", {"policy": precision.policy},
                   precision.jax_environment)
            for name, precision in PRECISIONS.items()
            if name in self.preset.precisions
        ]  # fmt: skip
        entry["bounds"], problems = parity.BOUNDS, []
        together = max(1, (os.cpu_count() or 1) // CORES)
        for first in range(0, len(recipes), together):
            with running(recipes[first : first + together], start + seconds) as workers:
                for system in self.preset.systems:
                    for worker in workers:
                        worker.ask(system=system, train=system in self.preset.trained)
                    for worker in workers:
                        found, subject = worker.answer(), f"{system}, {worker.name}"
                        failures = parity.failures(found, worker.name)
                        problems += [f"{subject}: {failure}" for failure in failures]
                        entry["rows"] += [
                            _row(Measurement.single(subject, name, "", value))
                            for name, value in found.items()
                        ]
        if problems:
            raise UserError("; ".join(problems))

    def _train(self, part: Part, entry: dict[str, Any], start: float, seconds: float) -> None:
        model, precision = self.preset.model(part.network), PRECISIONS[part.precision]
        step = TrainConfig(**training.TORCH_STEP)
        recipes = [
            training.peer_recipe(
                name, model, step, self.batch, self.plan(part.network)["steps"], precision
            )
            for name in ("jax", *self.peers)
        ]
        found, about = self._rounds(recipes, entry, start, seconds)
        multiply_adds = self.plan(part.network)["multiply_adds"]
        result = training.result(part.name, self.preset.rounds, multiply_adds, found, about)
        _add(entry, part, result.rows())

    def _inference(self, part: Part, entry: dict[str, Any], start: float, seconds: float) -> None:
        precision = PRECISIONS[part.precision]
        images = self.batch.images.round().astype("uint8")
        common = {"precision": precision.policy, "images": images,
                  "batch_sizes": self.preset.batch_sizes}  # fmt: skip
        model = self.preset.model(part.network).replace(num_classes=self.batch.classes)
        recipes = [
            Recipe("jax", "benchmarks.jax_inference:JaxInference", {"model": model, **common},
                   precision.jax_environment)
        ]  # fmt: skip
        for name in self.peers:
            own = {
                "steps": self.plan(part.network)["steps"],
                "threads": os.cpu_count() or 1,
                "compiled": name == "torch_compile",
                "tf32": precision.tf32,
            }
            recipes.append(
                Recipe(
                    name,
                    "benchmarks.peers.torch_inference:TorchInference",
                    common | own,
                    peers.PASSIVE_WAIT | peers.FREEZING,
                )
            )
        found, about = self._rounds(recipes, entry, start, seconds)
        for name, quantities in found.items():
            subject, memory = f"{name}, {about[name]['device']}", about[name]["device_bytes"]
            rows = [
                Measurement(subject, quantity, "images/s", Spread.of(speeds), self.preset.rounds)
                for quantity, speeds in quantities.items()
            ]
            peak = about[name]["peak_bytes"] / 1e6
            rows.append(Measurement.single(subject, "peak memory", "MB", peak))
            if memory:
                rows.append(Measurement.single(subject, "GPU memory", "MB", memory / 1e6))
            _add(entry, part, rows)

    def _rounds(
        self, recipes: Sequence[Recipe], entry: dict[str, Any], start: float, seconds: float
    ) -> tuple[dict[str, dict[str, list[float]]], dict[str, dict[str, Any]]]:
        """Measures the contenders in rounds; peers that cannot be created are left out."""
        failed: dict[str, UserError] = {}
        with running(recipes, start + CREATION * seconds, failed) as workers:
            entry["errors"] = self.missing | {name: str(error) for name, error in failed.items()}
            if "jax" in failed:
                raise failed["jax"]
            for worker in workers:
                worker.deadline = start + seconds
            found = measure_in_rounds(workers, self.preset.rounds, {"batches": self.preset.batches})
            entry["about"] = {worker.name: worker.measure(batches=0) for worker in workers}
            return found, entry["about"]

    def _plan(self, network: str) -> dict[str, Any]:
        model = self.preset.model(network).replace(num_classes=self.batch.classes)
        return training.plan(model, self.preset.size)


def _add(entry: dict[str, Any], part: Part, rows: Sequence[Measurement]) -> None:
    for row in rows:
        subject = f"{part.network}, {part.precision}: {row.subject}"
        entry["rows"].append(_row(dataclasses.replace(row, subject=subject)))


def _row(measurement: Measurement) -> dict[str, Any]:
    """Returns a measurement for the JSON file, which has no numbers that are not finite."""
    value = {
        name: number if math.isfinite(number) else str(number)
        for name, number in dataclasses.asdict(measurement.value).items()
    }
    columns = ("subject", "quantity", "unit", "rounds")
    return {**{name: getattr(measurement, name) for name in columns}, **value}


def _card() -> dict[str, str]:
    """Returns the name and driver of the first card, empty without nvidia-smi."""
    if not shutil.which("nvidia-smi"):
        return {"card": "", "driver": ""}
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    name, _, driver = (done.stdout.splitlines() or [""])[0].partition(", ")
    return {"card": name, "driver": driver}


def _opened(path: str, setting: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Returns the contents of a JSON file, or of a new one in which no part was run."""
    new = {"setting": setting, "precisions": {name: dataclasses.asdict(precision)
           for name, precision in PRECISIONS.items()},
           "parts": {part.name: {"status": "not run"} for part in parts}}  # fmt: skip
    if not os.path.exists(path):
        return new
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        known, entries = report["setting"], report["parts"]
        unknown = [name for name in entries if name not in new["parts"]]
        if not all(isinstance(entries[name]["status"], str) for name in new["parts"]) or unknown:
            raise ValueError
    except OSError as error:
        raise UserError(f"`json={path}`: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"`json={path}`: was not written by --what=gpu; give another path"
        ) from error
    if changed := [name for name in setting if known.get(name) != setting[name]]:
        name = changed[0]
        raise UserError(
            f"`json={path}`: was measured with another {name}, {known.get(name)!r}. Received: "
            f"{setting[name]!r}; give another path"
        )
    return report


def _line(entry: Mapping[str, Any]) -> str:
    """Returns the line about a part that is printed."""
    if entry["status"] != "done":
        return f"{entry['status']}{': ' + entry['error'] if 'error' in entry else ''}"
    speeds = [
        f"{row['subject'].rpartition(': ')[2]}, {row['quantity']} {row['median']:.4g}"
        for row in entry["rows"]
        if row["unit"] == "images/s"
    ]
    failed = [f"{name} failed: {error}" for name, error in entry["errors"].items()]
    return "; ".join([f"{entry['seconds']:.0f} s", *speeds, *failed])


def _write(path: str, page: str, report: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(report, indent=1) + "\n")
    if not page:
        return
    setting, sections = report["setting"], []
    for kind, title in TITLES.items():
        entries = {name: e for name, e in report["parts"].items() if name.split()[0] == kind}
        size = "x".join(map(str, setting["shape"][1:3]))
        case = f"{title}, {setting['card'] or setting['device']}"
        if kind != "parity":
            case += f", {setting['batch']}, {size}, batches of {setting['shape'][0]}"
        common = {**setting, "date": report["date"], "command": report["command"],
                  "what": "gpu", "case": case}  # fmt: skip
        rows = [{**common, **row} for entry in entries.values() for row in entry.get("rows", ())]
        sections.append(records.section(rows) if rows else f"\n## gpu: {case}\n")
        left = [
            f"* {name}: {_line(e)}\n"
            for name, e in entries.items()
            if e["status"] != "done" or e["errors"]
        ]
        sections += ["\n", *left] if left else []
    records.write_below(page, "".join(sections))
