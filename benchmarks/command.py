r"""Measures what things cost here: the input pipeline, a training step, an evaluation, a model.

All is measured in turn, round after round. --csv keeps the numbers with the machine and the
versions; --page makes a page of that file.

    python scripts/benchmark.py --what=input --dataset=folder --dataset_dir=datasets/mine \
        --against=torch

    python scripts/benchmark.py --what=train --flagfile=configs/synthetic/demo.flags \
        --against=torch,jax

    python scripts/benchmark.py --what=eval --checkpoint_dir=runs/demo

    python scripts/benchmark.py --what=model --model=lrasppnet_mobilenetv3los8_voc --csv=found.csv
"""

from __future__ import annotations

import dataclasses
import shlex

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig, option

KINDS = ("keras", "saved_model", "tflite", "tflite_float16", "tflite_dynamic", "tflite_int8")


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What to measure, and how long."""

    what: str = option("", "what is measured", choices=("", "input", "train", "eval", "model"))
    checkpoint_dir: str = option(
        "", "eval, model: a workdir or a checkpoint; without it random weights of --model"
    )
    against: tuple[str, ...] = option(
        (), "peers: torch, torch_compile, jax, onnxruntime, openvino; not each everywhere"
    )
    rounds: int = option(5, "how often all have their turn")
    batches: int = option(8, "batches a round: training steps, calls of a model")
    stages: bool = option(True, "input: each stage of the pipeline too")
    input_size: tuple[int, ...] = option((512, 512), "model: height,width of the image")
    batch_sizes: tuple[int, ...] = option(
        (1,), "model: images a call; TFLite and ONNX files take one"
    )
    num_threads: int = option(2, "model: threads of every runtime")
    kinds: tuple[str, ...] = option(KINDS, "model: its forms, of these and onnx")
    csv: str = option("", "a file to which a row for every measurement is appended")
    page: str = option("", "a Markdown page, made of --csv")

    def validate(self) -> None:
        """Something to do."""
        if not self.page:
            self._require_given("what", "input, train, eval or model")
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
            not self.page or bool(self.csv), "page", "requires `csv`, from which the page is made"
        )


def main(command: Command) -> None:
    """Measures, prints a table, keeps the rows."""
    options = command.config(Options)

    from benchmarks import records, runs

    if options.what:
        if options.csv:
            records.check(options.csv)  # before the minutes
        here = ("what", "checkpoint_dir", "csv", "page")
        keywords = {name: value for name, value in options.to_dict().items() if name not in here}
        result = runs.measure(
            options.what,
            options.checkpoint_dir or command.model_config(),
            command.data_config(options.checkpoint_dir),
            command.config(TrainConfig),
            command.config(EvalConfig),
            **keywords,
        )
        print(result.table())
        if options.csv:
            text = shlex.join(["python", "scripts/benchmark.py", *command.argv[1:]])
            records.append(options.csv, options.what, result.case, result.rows(), text)
    if options.page:
        records.write_page(options.page, options.csv)
        print(f"written: {options.page}")


SECTIONS = (Options, DataConfig, TrainConfig, EvalConfig, ModelConfig)
