"""One benchmark by its name, as scripts/benchmark.py asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.records import Row
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.io.progress import Progress


class Result(Protocol):
    """What every benchmark gives."""

    @property
    def case(self) -> str:
        """Of what: model, size, dataset."""
        ...

    def table(self) -> str:
        """What a person reads."""
        ...

    def rows(self) -> list[Row]:
        """What is kept."""
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
) -> Result:
    """Measures an "input" pipeline, a "train" step, an "eval" or a "model", and shows how far it is.

    Args:
        what: which of these.
        model: a checkpoint or workdir, or the config of a network that gets random weights.
        data: the dataset.
        training: how a step is taken.
        evaluation: how the model is run.
        against: peers.
        rounds: how often all have their turn.
        batches: batches, steps or calls a round.
        stages: each stage of the input pipeline too.
        input_size: (height, width) of a model's image.
        batch_sizes: images a call of a model.
        num_threads: of every runtime of a model.
        kinds: forms of a model.

    Raises:
        UserError: a mistake in any of these.
    """
    if against and what == "eval":
        raise UserError(
            f"--against={','.join(against)}: peers take part in --what=input, train and model; "
            "leave it out"
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
                f"--checkpoint_dir={model}: --what=train takes fresh weights; name the network by "
                "--model"
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
        against=against,
        batch_sizes=batch_sizes,
        num_threads=num_threads,
        batches=batches,
        rounds=rounds,
        on_round=bar.update,
    )
