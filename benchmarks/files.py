"""Measures the TFLite files of many models, for the tables of docs/choosing_a_model.md.

A row is a model at one size. Each row is saved to the CSV file right after its measurement, so an
interrupted command continues with the next row.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from benchmarks.models import checkpoint_of
from benchmarks.records import Measurement, short
from benchmarks.rounds import Spread, measure_in_rounds
from benchmarks.workers import Recipe, running
from deeplab_keras import export
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.source import Source
from deeplab_keras.export.delegates import RULES
from deeplab_keras.export.images import synthetic_images
from deeplab_keras.models.layers import smallest_size
from deeplab_keras.models.multiply_adds import count_multiply_adds, is_auxiliary
from deeplab_keras.models.segmentor import build_segmentor, check_input_size
from deeplab_keras.zoo import registry as zoo
from deeplab_keras.zoo.loading import open_checkpoint

KINDS = {
    "tflite": "float32",
    "tflite_float16": "float16",
    "tflite_dynamic": "dynamic",
    "tflite_int8": "int8",
}
SIZES = ((257, 257), (512, 512))
# Changes to a model of the zoo that are common on phones. Each is one more row per size.
VARIANTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("deeplabv3_mnv2_pascal_train_aug", {"depth_multiplier": 0.35}),
    ("deeplabv3_mnv2_pascal_train_aug", {"depth_multiplier": 0.75}),
    ("deeplabv3_mnv2_pascal_train_aug", {"output_stride": 8}),
    ("deeplabv3_mnv2_pascal_train_aug", {"output_stride": 32}),
    ("deeplabv3plus_mobilenetv2os8_voc", {"output_stride": 16}),
    ("deeplabv3plus_mobilenetv2os8_voc", {"output_stride": 16, "depth_multiplier": 0.5}),
    ("lrasppnet_mobilenetv3los8_voc", {"output_stride": 16, "image_pooling_size": ()}),
    ("lrasppnet_mobilenetv3sos8_voc", {"output_stride": 16, "image_pooling_size": ()}),
    ("lraspp_mobilenet_v3_large", {"depth_multiplier": 0.75}),
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A model at one size.

    Attributes:
        label: Its name, with the changes to the model of the zoo.
        model: Its config, or the path of a checkpoint.
        size: (height, width).
    """

    label: str
    model: ModelConfig | str
    size: tuple[int, int]

    def case(self, threads: int) -> str:
        """Returns what identifies the row in the CSV file."""
        return f"{self.label}, {self.size[0]}x{self.size[1]}, {threads} threads"


def plan(pattern: str = "*", sizes: Sequence[tuple[int, int]] = SIZES) -> list[Entry]:
    """Returns the rows of the tables: the models of the zoo and their `VARIANTS`.

    Models with fewer classes come first, because they are measured in less time. A model whose
    image pooling takes none of the sizes gets a row at the smallest one that it takes.

    Args:
        pattern: A pattern for the names of models, as in `list_models`.
        sizes: The sizes, (height, width).

    Raises:
        UserError: If no model has such a name.
    """
    names = zoo.list_models(pattern)
    if not names:
        raise UserError(f"--models={pattern} matches no model; `scripts/list_models.py` lists them")
    configs = {name: zoo.get_config(name) for name in names}
    for name, changes in VARIANTS:
        if name in configs:
            said = ", ".join(f"{field}={value}" for field, value in changes.items())
            configs[f"{name} ({said})"] = configs[name].replace(**changes)
    order = sorted(configs.items(), key=lambda item: item[1].num_classes > 21)
    smallest = [
        Entry(label, config, smallest_size(config.image_pooling_window, config.output_stride))
        for label, config in order
        if config.image_pooling_window and not any(fits(config, size) for size in sizes)
    ]
    return [
        Entry(label, config, size)
        for size in sizes
        for label, config in order
        if fits(config, size)
    ] + smallest


def trained(path: str, sizes: Sequence[tuple[int, int]]) -> list[Entry]:
    """Returns the rows of a trained model, which replace those with random weights.

    Args:
        path: A checkpoint or workdir.
        sizes: The sizes, (height, width).
    """
    config = open_checkpoint(path).config
    label = config.name or pathlib.Path(path).name
    if config.name in zoo.MODELS:
        usual = zoo.get_config(config.name)
        changes = [
            f"{field}={getattr(config, field)}"
            for field in ("output_stride", "depth_multiplier")
            if getattr(config, field) != getattr(usual, field)
        ]
        label += f" ({', '.join(changes)})" if changes else ""
    return [Entry(label, path, size) for size in sizes if fits(config, size)]


def fits(config: ModelConfig, size: tuple[int, int]) -> bool:
    """Returns whether a model takes images of a size."""
    try:
        check_input_size(config, *size)
    except UserError:
        return False
    return True


def measure_row(
    row: Entry,
    *,
    threads: int = 2,
    rounds: int = 5,
    calls: int = 3,
    representative: Source | None = None,
    check: Source | None = None,
    checked: int = 16,
) -> list[Measurement]:
    """Exports a model in all `KINDS` and measures each file in its own process.

    Args:
        row: The model and its size.
        threads: Number of threads of the runtime.
        rounds: Number of rounds in which all files take turns.
        calls: Calls per round.
        representative: For a trained model, images for the ranges of the int8 file.
        check: For a trained model, images on which its files are compared with Keras.
        checked: The number of images of `check` that are compared.

    Returns:
        The measurements. Only those of a trained model have an agreement with Keras.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        checkpoint = checkpoint_of(row.model, pathlib.Path(folder) / "checkpoint")
        config = checkpoint.config
        fixed = build_segmentor(config, row.size)
        trained = check is not None
        pictures = synthetic_images(
            row.size, config.input_channels, export.request.MIN_REPRESENTATIVE
        )
        files = export.export_model(
            checkpoint,
            pathlib.Path(folder) / "export",
            formats=list(KINDS),
            input_size=row.size,
            representative_images=representative if trained else pictures,
            check_images=check if trained else pictures[:1],
            checked=checked,
            min_agreement=0.0,
            threads=threads,
            log=lambda line: None,
        )
        recipes = [
            Recipe(
                file.kind,
                "benchmarks.file_runner:make",
                {"path": str(file.path), "threads": threads},
            )
            for file in files
        ]
        images = np.stack(pictures[:1])
        with running(recipes) as workers:
            for worker in workers:
                worker.measure(images=images, calls=1)
            found = measure_in_rounds(workers, rounds, {"images": images, "calls": calls})
            peaks = {worker.name: worker.peak_bytes() for worker in workers}
    auxiliary = [
        weight
        for layer in fixed.layers
        if is_auxiliary(layer)
        for weight in layer.trainable_weights
    ]
    single = Measurement.single
    rows = [
        single("the model", "parameters", "", _count(fixed.trainable_weights) - _count(auxiliary)),
        single("the model", "multiply-adds", "", count_multiply_adds(fixed)),
        single("the model", "output stride", "", config.output_stride),
        single("the model", "width", "", config.depth_multiplier),
        single("the model", "classes", "", config.num_classes),
    ]
    for file in files:
        rows += [
            single(file.kind, "file", "MB", file.bytes / 1e6),
            Measurement(file.kind, "latency", "ms", Spread.of(found[file.kind]["latency"]), rounds),
            Measurement(
                file.kind, "CPU per call", "ms", Spread.of(found[file.kind]["CPU per call"]), rounds
            ),
            single(file.kind, "peak memory", "MB", peaks[file.kind] / 1e6),
        ]
        for verdict in file.verdicts:
            left = sum(map(len, verdict.stopped_by.values()))
            rows += [
                single(file.kind, f"pieces: {verdict.delegate}", "", verdict.pieces or 0),
                single(file.kind, f"left to the CPU: {verdict.delegate}", "", left),
            ]
        if trained:
            rows += [
                single(file.kind, "agreement with Keras", "%", 100 * file.label_agreement),
                single(file.kind, "images of the agreement", "", file.compared.images),
            ]
    return rows


def _count(weights: Sequence[Any]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


def measure_missing(
    rows: Sequence[Entry],
    known: Sequence[Mapping[str, str]],
    threads: int,
    measure: Callable[[Entry], list[Measurement]],
    save: Callable[[str, list[Measurement]], None],
    again: bool = False,
) -> Iterator[tuple[Entry, bool]]:
    """Measures the rows that a CSV file does not have, and saves each.

    Args:
        rows: The rows of the table.
        known: The rows of the CSV file.
        threads: Number of threads of the runtime.
        measure: Measures a row.
        save: Called with the case and the measurements of a row.
        again: Whether to measure the rows that are known too.

    Yields:
        Each row, and whether it was measured.
    """
    done = {row["case"] for row in known if row["what"] == "files"}
    for row in rows:
        case = row.case(threads)
        if case in done and not again:
            yield row, False
            continue
        save(case, measure(row))
        keras.utils.clear_session()  # the memory of the model's graphs
        yield row, True


# === The page ===


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the tables of the page from the rows of a CSV file, two per size.

    If a case was measured several times, its last measurement counts.
    """
    cases: dict[str, dict[tuple[str, str], str]] = {}
    last: dict[str, Mapping[str, str]] = {}
    for row in rows:
        if row["what"] != "files":
            continue
        if row["case"] not in last or last[row["case"]]["date"] != row["date"]:
            cases[row["case"]] = {}
        last[row["case"]] = row
        cases[row["case"]][row["subject"], row["quantity"]] = row["median"]
    parts = []
    for size in dict.fromkeys(_size(case) for case in cases):
        chosen = {case.rsplit(", ", 2)[0]: cases[case] for case in cases if _size(case) == size}
        chosen = dict(sorted(chosen.items(), key=lambda item: _ms(item[1])))
        dates = sorted({last[case]["date"][:10] for case in cases if _size(case) == size})
        machines = {
            f"{row['cpu']}, {row['cores']} cores, {row['memory_gb']} GB; Python {row['python']}, "
            f"{row['packages']}"
            for row in last.values()
            if _size(row["case"]) == size
        }
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        threads = next(case.rsplit(", ", 1)[1] for case in cases if _size(case) == size)
        place = f"{when}, {threads}. {' '.join(f'{machine}.' for machine in sorted(machines))}"
        parts.append(f"## {size}\n\n{place}\n\n{_sizes(chosen)}\n{_delegates(chosen)}")
    return "\n".join(parts)


def _size(case: str) -> str:
    return case.rsplit(", ", 2)[1]


def _ms(found: Mapping[tuple[str, str], str]) -> float:
    return float(found["tflite", "CPU per call"])


def _sizes(chosen: Mapping[str, Mapping[tuple[str, str], str]]) -> str:
    """Returns the table of size, speed and memory, the fastest model first."""
    head = ["model", "width", "stride", "parameters, million", "multiply-adds, billion"]
    head += [f"{name}, MB" for name in KINDS.values()] + [
        f"{name}, CPU ms" for name in KINDS.values()
    ]
    head += ["int8 agreement, %", "float32, peak MB", "int8, peak MB"]
    lines = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    for label, found in chosen.items():
        cells = [
            f"`{label}`",
            short(found["the model", "width"]),
            short(found["the model", "output stride"]),
            f"{float(found['the model', 'parameters']) / 1e6:.2f}",
            f"{float(found['the model', 'multiply-adds']) / 1e9:.2f}",
            *(short(found[kind, "file"]) for kind in KINDS),
            *(short(found[kind, "CPU per call"]) for kind in KINDS),
            _agreement(found),
            *(short(found[kind, "peak memory"]) for kind in ("tflite", "tflite_int8")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _agreement(found: Mapping[tuple[str, str], str]) -> str:
    value = found.get(("tflite_int8", "agreement with Keras"))
    return f"{float(value):.2f}" if value else "-"


def _delegates(chosen: Mapping[str, Mapping[tuple[str, str], str]]) -> str:
    """Returns the table of pieces per delegate: float32 and int8 file, and the dynamic one."""
    names = ["XNNPACK (CPU)", *(rule.delegate for rule in RULES)]
    head = ["pieces: float32 / dynamic / int8", "XNNPACK, measured", *names[1:]]
    lines = [f"| {' | '.join(head)} |", f"|---{'|--:' * (len(head) - 1)}|"]
    for label, found in chosen.items():
        cells = [
            " / ".join(
                _pieces(found, kind, name) for kind in ("tflite", "tflite_dynamic", "tflite_int8")
            )
            for name in names
        ]
        lines.append(f"| `{label}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _pieces(found: Mapping[tuple[str, str], str], kind: str, delegate: str) -> str:
    """Returns the number of pieces, with the operators that are left to the CPU, as in "2 (1)"."""
    pieces, left = (
        int(float(found[kind, f"{what}: {delegate}"])) for what in ("pieces", "left to the CPU")
    )
    if not pieces:
        return "-"
    return f"{pieces} ({left})" if left else str(pieces)
