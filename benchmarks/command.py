r"""Measures the speed and memory of the input pipeline, a training step, an evaluation or a model.

All contenders take turns, round after round. --csv saves the numbers together with the machine and
the versions. --page creates a page from that file.

    python scripts/benchmark.py --what=input --dataset=folder --dataset_dir=datasets/mine \
        --against=torch

    python scripts/benchmark.py --what=train --flagfile=configs/synthetic/demo.flags \
        --against=torch,jax

    python scripts/benchmark.py --what=eval --checkpoint_dir=runs/demo

    python scripts/benchmark.py --what=model --model=lrasppnet_mobilenetv3los8_voc --csv=speed.csv

--what=files measures the TFLite files of all models, and continues where it was interrupted:

    python scripts/benchmark.py --what=files --csv=files.csv --page=files.md

--what=gpu compares all precisions with golden values and with PyTorch in ten minutes, and continues
where it was interrupted. It requires JAX, but not TensorFlow. --what=batch writes crops for it:

    python scripts/benchmark.py --what=batch --dataset=voc2012 --train_batch_size=16 \
        --npz=crops.npz

    python scripts/benchmark.py --what=gpu --json=gpu.json --page=gpu.md
"""

from __future__ import annotations

import dataclasses
import os
import shlex

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig, option

KINDS = ("keras", "saved_model", "tflite", "tflite_float16", "tflite_dynamic", "tflite_int8")

# The options that are arguments of `runs.measure` under the same names.
KEYWORDS = (
    "against", "rounds", "batches", "stages", "input_size", "batch_sizes", "num_threads", "kinds",
    "outputs",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions(Config):
    """What to measure, and for how long."""

    what: str = option(
        "",
        "what to measure; batch: write a batch for gpu",
        choices=("", "input", "train", "eval", "model", "files", "gpu", "batch"),
    )
    checkpoint_dir: str = option(
        "", "eval, model, files: a workdir or a checkpoint; default: random weights"
    )
    against: tuple[str, ...] = option(
        (),
        "other libraries to measure: torch, torch_compile, jax, onnxruntime, openvino; depends on "
        "--what",
    )
    rounds: int = option(5, "number of rounds in which all contenders take turns")
    batches: int = option(8, "batches per round: training steps, or calls of a model")
    stages: bool = option(True, "input: also measures each stage of the pipeline")
    models: str = option("*", "files: a pattern for the names of models")
    input_size: tuple[int, ...] = option(
        (512, 512), "model, files: height,width of the image; files: default: all sizes of the page"
    )
    batch_sizes: tuple[int, ...] = option(
        (1,), "model: images per call; TFLite and ONNX files are measured with 1 only"
    )
    num_threads: int = option(2, "model, files: number of threads of every runtime")
    kinds: tuple[str, ...] = option(KINDS, "model: its formats, these and onnx")
    outputs: tuple[str, ...] = option(
        ("labels",),
        "model: what TFLite and ONNX files return: labels, logits, head_labels, head_logits (of "
        "the size of the head's class scores); a measurement for each",
    )
    csv: str = option("", "a file to which a row per measurement is appended")
    page: str = option("", "a Markdown page that is created from --csv or --json")
    json: str = option("", "gpu: the file with the results")
    preset: str = option(
        "full", "gpu: full, or small networks, also on a CPU", choices=("full", "small")
    )
    seconds: float = option(570, "gpu: the time for all parts")
    npz: str = option("", "batch: the file to write; gpu: this file instead of noise")

    def validate(self) -> None:
        if not self.page:
            self._require_given("what", "input, train, eval, model, files, gpu or batch")
        if self.what == "gpu":
            self._require_given("json", "the file with the results")
        if self.what == "batch":
            self._require_given("npz", "the file to write")
        self._require(self.seconds > 0, "seconds", "must be above 0")
        for field in ("rounds", "batches", "num_threads"):
            self._require(getattr(self, field) >= 1, field, "must be at least 1")
        self._require(
            len(self.input_size) == 2 and min(self.input_size) >= 1,
            "input_size",
            "must be two whole numbers of at least 1, the height and the width",
        )
        self._require(
            bool(self.batch_sizes) and min(self.batch_sizes) >= 1,
            "batch_sizes",
            "must be whole numbers of at least 1",
        )
        self._require(
            not self.page or bool(self.csv) or self.what == "gpu",
            "page",
            "requires `csv`, from which the page is created",
        )
        self._require(
            self.what != "files" or bool(self.csv),
            "what",
            "requires `csv`, to which each measured model is added",
        )


def main(command: Command) -> None:
    """Measures, prints a table and saves the rows."""
    options = command.config(BenchmarkOptions)
    training, evaluation = command.config(TrainConfig), command.config(EvalConfig)
    if options.what == "gpu":
        os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND") or "jax"
    load_keras()

    from benchmarks import records, runs

    if options.page:
        records.check_page(options.page)  # before the measurement, which takes minutes
    if options.what == "gpu":
        _measure_gpu(command, options)
    elif options.what == "batch":
        _write_batch(command, options)
    elif options.what == "files":
        _measure_files(command, options)
    elif options.what:
        if options.csv:
            records.check(options.csv)
        keywords = {name: value for name, value in options.to_dict().items() if name in KEYWORDS}
        result = runs.measure(
            options.what,
            options.checkpoint_dir or command.model_config(),
            command.data_config(options.checkpoint_dir),
            training,
            evaluation,
            **keywords,
        )
        print(result.table())
        if options.csv:
            text = _text(command)
            records.append(options.csv, options.what, result.case, result.rows(), text)
            command.summary.wrote(options.csv)
    if options.page and options.csv:
        _write_page(options)
        command.summary.wrote(options.page)
        print(f"wrote {options.page}")


def _write_page(options: BenchmarkOptions) -> None:
    from benchmarks import files, records

    rows = records.read(options.csv)
    if any(row["what"] == "files" for row in rows):
        records.write_below(options.page, files.tables(rows))
    else:
        records.write_page(options.page, options.csv)


def _text(command: Command) -> str:
    return shlex.join(["python", "scripts/benchmark.py", *command.argv[1:]])


def _measure_gpu(command: Command, options: BenchmarkOptions) -> None:
    from benchmarks import gpu

    given = command.given(BenchmarkOptions)
    for path in filter(None, (options.json, options.page)):
        command.summary.wrote(path)
    gpu.measure_gpu(
        options.json,
        preset=options.preset,
        seconds=options.seconds,
        npz=options.npz,
        against=options.against if "against" in given else gpu.PEERS,
        command=_text(command),
        page=options.page,
    )


def _write_batch(command: Command, options: BenchmarkOptions) -> None:
    from benchmarks import batches

    data = command.data_config("")
    batch = batches.write_batch(options.npz, command.model_config(), data)
    command.summary.wrote(options.npz)
    print(f"wrote {options.npz}: {batch.source}, images {batch.images.shape}")


def _measure_files(command: Command, options: BenchmarkOptions) -> None:
    """Measures the rows that the CSV file does not have, or the row of a trained model."""
    from benchmarks import files, records
    from deeplab_keras.data.registry import open_dataset

    records.check(options.csv)
    size = (options.input_size[0], options.input_size[1])
    sizes = [size] if "input_size" in command.given(BenchmarkOptions) else files.SIZES
    representative = check = None
    if options.checkpoint_dir:
        data = command.data_config(options.checkpoint_dir)
        representative = open_dataset(data, data.train_split)
        check = open_dataset(data, data.eval_split)
        rows = files.trained(options.checkpoint_dir, sizes)
    else:
        rows = files.plan(options.models, sizes)
    text = _text(command)
    known = records.read(options.csv) if os.path.exists(options.csv) else []
    measured = 0
    for number, (row, new) in enumerate(
        files.measure_missing(
            rows,
            known,
            options.num_threads,
            lambda row: files.measure_row(
                row,
                threads=options.num_threads,
                rounds=options.rounds,
                calls=options.batches,
                representative=representative,
                check=check,
            ),
            lambda case, found: records.append(options.csv, "files", case, found, text),
            again=check is not None,
        ),
        start=1,
    ):
        measured += new
        what = "measured" if new else f"in {options.csv}"
        print(f"{number} of {len(rows)}: {row.case(options.num_threads)}: {what}", flush=True)
    command.summary.count(measured=measured)
    command.summary.wrote(options.csv)


SECTIONS = (BenchmarkOptions, DataConfig, TrainConfig, EvalConfig, ModelConfig)
