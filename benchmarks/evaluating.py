"""What an evaluation costs beside the bare forward pass, and what its confusion matrix costs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.records import Row
from benchmarks.rounds import Spread
from benchmarks.workers import Recipe, all_at_work, peak_memory
from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, UserError
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.evaluation.loop import batches, evaluate
from deeplab_keras.evaluation.metrics import count_pixels
from deeplab_keras.inference import Network, resized_size
from deeplab_keras.models.segmentor import build_segmentor


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation costs.

    Attributes:
        case: model and data.
        speed: images/s of `evaluate`, from the files to the confusion matrix.
        forward_speed: images/s of the network alone, on images that lie ready at its input's size.
        matrix_share: time of the confusion matrix of an image over that of its forward pass.
        peak_bytes: the most memory the process had, its libraries included.
        rounds: how many.
    """

    case: str
    speed: Spread
    forward_speed: Spread
    matrix_share: Spread
    peak_bytes: int
    rounds: int

    @property
    def ratio(self) -> float:
        """Images/s of the evaluation over those of the bare forward pass."""
        return self.speed.median / self.forward_speed.median

    def table(self) -> str:
        """What a person reads."""
        return "\n".join(
            [
                self.case,
                "",
                f"evaluation                  {self.speed} images/s",
                f"forward pass alone          {self.forward_speed} images/s",
                f"evaluation over forward     {self.ratio:.3f}",
                f"confusion matrix            {100 * self.matrix_share.median:.2f} % of the "
                "forward pass",
                f"peak memory                 {self.peak_bytes / 1e6:.0f} MB",
            ]
        )

    def rows(self) -> list[Row]:
        """The same for `records`."""
        subject = "evaluation"
        return [
            Row(subject, "speed", "images/s", self.speed, self.rounds),
            Row(subject, "forward pass alone", "images/s", self.forward_speed, self.rounds),
            Row.single(subject, "evaluation over forward", "", self.ratio),
            Row.single(
                subject, "confusion matrix", "% of the forward pass", 100 * self.matrix_share.median
            ),
            Row.single(subject, "peak memory", "MB", self.peak_bytes / 1e6),
        ]


def measure_evaluation(
    model: ModelConfig | str,
    data: DataConfig,
    config: EvalConfig = EvalConfig(),
    *,
    batches: int = 8,
    rounds: int = 5,
    on_round: Callable[[int], None] = lambda done: None,
) -> EvaluationResult:
    """Times `evaluate` on the first images of a split beside the bare forward pass.

    Args:
        model: a checkpoint or workdir, or the config of a network that gets random weights and the
            dataset's classes.
        data: the dataset; its `eval_split`.
        config: how the model is run: the whole image, at one scale.
        batches: so many batches of `eval_batch_size` images a round.
        rounds: how many.
        on_round: gets the number of rounds that are done.

    Raises:
        UserError: a mistake in the configs or the data, or a way of inference that has no single
            forward pass.
    """
    if config.inference != "whole" or config.eval_scales != (1.0,) or config.add_flipped_images:
        raise UserError(
            "--what=eval compares with one forward pass an image: give --inference=whole, "
            "--eval_scales=1.0 and no "
            "--add_flipped_images"
        )
    recipe = Recipe(
        "evaluation", f"{__name__}:make", {"model": model, "data": data, "config": config}
    )
    with all_at_work([recipe]) as (worker,):
        found: dict[str, list[float]] = {}
        for number in range(rounds):
            for name, value in worker.measure(batches=batches).items():
                found.setdefault(name, []).append(value)
            on_round(number + 1)
        about = worker.measure(batches=0)
    spreads = {name: Spread.of(values) for name, values in found.items()}
    return EvaluationResult(
        about["case"],
        spreads["speed"],
        spreads["forward_speed"],
        spreads["matrix_share"],
        about["peak_bytes"],
        rounds,
    )


class Contender:
    """A model on a split."""

    def __init__(self, model: ModelConfig | str, data: DataConfig, config: EvalConfig) -> None:
        self.source, self.config = open_dataset(data, data.eval_split), config
        info = self.source.info
        if isinstance(model, ModelConfig):
            built = build_segmentor(model.replace(num_classes=info.num_classes))
        else:
            built = load_checkpoint(model).model
        self.network = Network(built)
        self.name, self.split = (
            (model.name if isinstance(model, ModelConfig) else "") or built.name,
            data.eval_split,
        )
        self.warm = False

    def measure(self, batches: int) -> dict[str, Any]:
        """A round; with no batches, what does not change between rounds."""
        if not batches:
            return {"case": self._case(), "peak_bytes": peak_memory()}
        count = min(batches * self.config.eval_batch_size, len(self.source))
        if not self.warm:  # every size of batch and image is traced once
            self._evaluate(count)
            self._forward_and_matrix(count)
            self.warm = True
        seconds = self._evaluate(count)
        forward, matrix = self._forward_and_matrix(count)
        return {
            "speed": count / seconds,
            "forward_speed": count / forward,
            "matrix_share": matrix / forward,
        }

    def _case(self) -> str:
        size = "x".join(map(str, self.source.load(0)[1].shape))
        return (
            f"{self.name}, {self.source.info.name} {self.split}, {self.source.info.num_classes} "
            f"classes, the first image {size}, "
            f"batches of {self.config.eval_batch_size}"
        )

    def _evaluate(self, count: int) -> float:
        start = time.perf_counter()
        evaluate(self.network, self.source, self.config, progress=False, limit=count)
        return time.perf_counter() - start

    def _forward_and_matrix(self, count: int) -> tuple[float, float]:
        """Seconds of the forward passes of the same batches, and of their confusion matrices."""
        forward = matrix = 0.0
        info, random = self.source.info, np.random.default_rng(0)
        loaded = list(
            batches(self.source, count, self.config.eval_batch_size, info)
        )  # so that none is read meanwhile
        for _, images, labels in loaded:
            size = self.network.input_size or resized_size(images.shape[1:3], self.config)
            ready = tf.cast(
                images if size == images.shape[1:3] else tf.image.resize(images, size), tf.float32
            )
            start = time.perf_counter()
            self.network(ready)[:1, :1, :1, :1].numpy()
            forward += time.perf_counter() - start
            predictions = random.integers(
                0, info.num_classes, labels.shape, np.uint8
            )  # no neighbours alike: the worst case
            start = time.perf_counter()
            count_pixels(labels, predictions, info.num_classes, info.ignore_label)
            matrix += time.perf_counter() - start
        return forward, matrix


def make(model: ModelConfig | str, data: DataConfig, config: EvalConfig) -> Contender:
    """The contender of `measure_evaluation`."""
    return Contender(model, data, config)
