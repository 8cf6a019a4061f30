"""Measures an evaluation compared with the forward pass alone, and its confusion matrix."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.records import Measurement
from benchmarks.rounds import Spread
from benchmarks.workers import Recipe, peak_memory, running
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, UserError
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.evaluation.loop import batches, evaluate
from deeplab_keras.evaluation.metrics import count_pixels
from deeplab_keras.inference import resized_size
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.loading import open_checkpoint


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The speed and memory of an evaluation.

    Attributes:
        case: The model and the data.
        speed: Images/s of `evaluate`, from the files to the confusion matrix.
        forward_speed: Images/s of the network alone, on images in memory at its input size.
        matrix_share: Time of the confusion matrix, as a share of the time of the forward pass.
        peak_bytes: Peak memory of the process, including its libraries.
        rounds: Number of rounds.
    """

    case: str
    speed: Spread
    forward_speed: Spread
    matrix_share: Spread
    peak_bytes: int
    rounds: int

    @property
    def ratio(self) -> float:
        """Speed of the evaluation, as a share of the speed of the forward pass alone."""
        return self.speed.median / self.forward_speed.median

    def table(self) -> str:
        """Returns the result as text."""
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

    def rows(self) -> list[Measurement]:
        """Returns the result as rows for `records`."""
        subject = "evaluation"
        return [
            Measurement(subject, "speed", "images/s", self.speed, self.rounds),
            Measurement(subject, "forward pass alone", "images/s", self.forward_speed, self.rounds),
            Measurement.single(subject, "evaluation over forward", "", self.ratio),
            Measurement.single(
                subject, "confusion matrix", "% of the forward pass", 100 * self.matrix_share.median
            ),
            Measurement.single(subject, "peak memory", "MB", self.peak_bytes / 1e6),
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
    """Times `evaluate` on the first images of a split, and the forward pass alone.

    Args:
        model: A checkpoint or workdir, or the config of a network that gets random weights and the
            dataset's classes.
        data: The dataset, of which `eval_split` is used.
        config: How predictions are computed. It must use the whole image at a single scale.
        batches: Number of batches of `eval_batch_size` images per round.
        rounds: Number of rounds.
        on_round: Called with the number of completed rounds.

    Raises:
        UserError: If a config or the dataset is invalid, or if `config` needs more than one forward
            pass per image.
    """
    if config.inference != "whole" or config.eval_scales != (1.0,) or config.add_flipped_images:
        raise UserError(
            "--what=eval requires a single forward pass per image; use --inference=whole and "
            "--eval_scales=1.0, and leave out --add_flipped_images"
        )
    recipe = Recipe(
        "evaluation", f"{__name__}:make", {"model": model, "data": data, "config": config}
    )
    with running([recipe]) as (worker,):
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


class EvaluationContender:
    """Evaluates a model on a split."""

    def __init__(self, model: ModelConfig | str, data: DataConfig, config: EvalConfig) -> None:
        self.source, self.config = open_dataset(data, data.eval_split), config
        info = self.source.info
        if isinstance(model, ModelConfig):
            built = build_segmentor(model.replace(num_classes=info.num_classes))
        else:
            built = open_checkpoint(model).model
        self.network = KerasNetwork(built)
        self.name, self.split = (
            (model.name if isinstance(model, ModelConfig) else "") or built.name,
            data.eval_split,
        )
        self.warm = False

    def measure(self, batches: int) -> dict[str, Any]:
        """Measures one round. With 0 batches, returns what does not change between rounds."""
        if not batches:
            return {"case": self._case(), "peak_bytes": peak_memory()}
        count = min(batches * self.config.eval_batch_size, len(self.source))
        if not self.warm:  # traces every size of batch and image once
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
            f"classes, first image {size}, batches of {self.config.eval_batch_size}"
        )

    def _evaluate(self, count: int) -> float:
        start = time.perf_counter()
        evaluate(self.network, self.source, self.config, progress=False, limit=count)
        return time.perf_counter() - start

    def _forward_and_matrix(self, count: int) -> tuple[float, float]:
        """Returns the seconds of the forward passes and of the confusion matrices."""
        forward = matrix = 0.0
        info, random = self.source.info, np.random.default_rng(0)
        # Loads all batches first, so that no image is read during the measurement.
        loaded = list(batches(self.source, count, self.config.eval_batch_size, info))
        for _, images, labels in loaded:
            size = self.network.input_size or resized_size(images.shape[1:3], self.config)
            ready = tf.cast(
                images if size == images.shape[1:3] else tf.image.resize(images, size), tf.float32
            )
            start = time.perf_counter()
            self.network(ready)[:1, :1, :1, :1].numpy()
            forward += time.perf_counter() - start
            # Random classes are the worst case, because neighboring pixels differ.
            predictions = random.integers(0, info.num_classes, labels.shape, np.uint8)
            start = time.perf_counter()
            count_pixels(labels, predictions, info.num_classes, info.ignore_label)
            matrix += time.perf_counter() - start
        return forward, matrix


def make(model: ModelConfig | str, data: DataConfig, config: EvalConfig) -> EvaluationContender:
    """Creates the contender of `measure_evaluation`."""
    return EvaluationContender(model, data, config)
