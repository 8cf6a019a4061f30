"""Runs a benchmark by its name, for scripts/benchmark.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.records import Measurement
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.io.progress import Progress


class Benchmark(Protocol):
    """The result of a benchmark."""

    @property
    def case(self) -> str:
        """What was measured: the model, the size, the dataset."""
        ...

    def table(self) -> str:
        """Returns the result as text."""
        ...

    def rows(self) -> list[Measurement]:
        """Returns the result as rows for `records`."""
        ...


def measure(
    what: str,
    model: ModelConfig | str,
    data: DataConfig,
    training: TrainConfig,
    evaluation: EvalConfig,
    *,
    against: Sequence[str] = (),
    rounds: int = 5,
    batches: int = 8,
    stages: bool = True,
    input_size: tuple[int, ...] = (512, 512),
    batch_sizes: Sequence[int] = (1,),
    num_threads: int = 2,
    kinds: Sequence[str] = ("keras", "saved_model", "tflite"),
    outputs: Sequence[str] = ("labels",),
) -> Benchmark:
    """Runs a benchmark and shows its progress.

    Args:
        what: "input", "train", "eval" or "model".
        model: A checkpoint or workdir, or the config of a network that gets random weights.
        data: The dataset.
        training: The settings of a training step.
        evaluation: How predictions are computed.
        against: Other libraries to measure.
        rounds: Number of rounds in which all contenders take turns.
        batches: Batches, steps or calls per round.
        stages: Whether to measure each stage of the input pipeline too.
        input_size: (height, width) of the image for a model.
        batch_sizes: Images per call of a model.
        num_threads: Number of threads of every runtime of a model.
        kinds: Formats of a model.
        outputs: What the TFLite and ONNX files of a model return.

    Raises:
        UserError: If an argument is invalid.
    """
    if against and what == "eval":
        raise UserError(
            f"--against={','.join(against)} cannot be combined with --what=eval, only with input, "
            "train and model; leave it out"
        )
    bar = Progress(rounds, "rounds", unit="rounds")
    if what == "input":
        from benchmarks.input import measure_input

        return measure_input(
            data,
            against=against,
            batches=batches,
            rounds=rounds,
            stages=stages,
            on_round=bar.update,
        )
    if what == "train":
        from benchmarks.training import measure_training

        if not isinstance(model, ModelConfig):
            raise UserError(
                f"--checkpoint_dir={model} cannot be combined with --what=train, which uses random "
                "weights; use --model"
            )
        return measure_training(
            model,
            data,
            training,
            against=against,
            batches=batches,
            rounds=rounds,
            on_round=bar.update,
        )
    if what == "eval":
        from benchmarks.evaluating import measure_evaluation

        return measure_evaluation(
            model, data, evaluation, batches=batches, rounds=rounds, on_round=bar.update
        )
    from benchmarks.models import measure_model

    height, width = input_size
    return measure_model(
        model,
        input_size=(height, width),
        kinds=kinds,
        outputs=outputs,
        against=against,
        batch_sizes=batch_sizes,
        num_threads=num_threads,
        batches=batches,
        rounds=rounds,
        on_round=bar.update,
    )
