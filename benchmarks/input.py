"""Images/s of the training input, whole and stage by stage, and of SSSegmentation's own on OpenCV and PyTorch beside it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import peers
from benchmarks.records import Row
from benchmarks.rounds import Spread, in_rounds
from benchmarks.workers import Recipe, all_at_work, process_seconds
from deeplab_keras.config import NORMALIZATIONS, DataConfig, UserError
from deeplab_keras.data import pipeline
from deeplab_keras.data.files.pairs import FileSource
from deeplab_keras.data.registry import open_dataset

# What is switched off for the stages before the ones that are named so.
STRONG = {
    "rotation": 0.0,
    "blur": 0.0,
    "cutout": 0.0,
    "rand_augment": 0,
    "cut_mix": 0.0,
    "mosaic": 0.0,
}
CPU = ", CPU ms"
PACKAGES = {"torch": "torch", "cv2": "opencv-python-headless"}
# what the reference does in its pipeline and we in the network
NORMALISED = "normalise (the model's first layer)"


@dataclasses.dataclass(frozen=True)
class InputResult:
    """Images/s and CPU milliseconds an image: contender -> stage, with all before it -> spread over the rounds."""

    speeds: dict[str, dict[str, Spread]]
    cpu: dict[str, dict[str, Spread]]
    case: str
    rounds: int

    def rows(self) -> list[Row]:
        """Each stage's images/s and CPU time, for `records`."""
        found = []
        for name, stages in self.speeds.items():
            for stage, speed in stages.items():
                subject, cpu = f"{name}: {stage}", self.cpu[name][stage]
                found.append(Row(subject, "speed", "images/s", speed, self.rounds))
                found.append(Row(subject, "CPU an image", "ms", cpu, self.rounds))
        return found

    def ratios(self) -> tuple[float, float] | None:
        """Our images/s over the peer's: each up to the batches that its training gets, and both normalised; None without one."""
        if len(self.speeds) < 2:
            return None
        (*_, whole, normalised), (*_, peer) = (
            list(stages.values()) for stages in self.speeds.values()
        )
        return whole.median / peer.median, normalised.median / peer.median

    def table(self) -> str:
        """What a person reads."""
        lines = [
            "images/s: median (quartiles) of the rounds; CPU: milliseconds of one core an image"
        ]
        for name, stages in self.speeds.items():
            lines += ["", f"{name}"]
            lines += [
                f"  {stage:44}{str(value):32} CPU {self.cpu[name][stage].median:.2f}"
                for stage, value in stages.items()
            ]
        if ratios := self.ratios():
            lines += [
                "",
                f"images/s of ours over the peer's: {ratios[0]:.2f}; with ours normalised too: "
                f"{ratios[1]:.2f}",
            ]
        return "\n".join(lines)


def measure_input(
    config: DataConfig,
    *,
    against: Sequence[str] = (),
    batches: int = 8,
    rounds: int = 5,
    stages: bool = True,
    normalization: str = "imagenet",
    workers: int = 2,
    on_round: Callable[[int], None] = lambda done: None,
) -> InputResult:
    """Times the training input of a dataset, from its files to augmented batches.

    Args:
        config: dataset and augmentation.
        against: "torch" for SSSegmentation's pipeline under PyTorch's DataLoader, on the same
            files.
        batches: timed in each round and stage, after two that are not.
        rounds: in which everything is measured in turn.
        stages: the stages one by one too.
        normalization: of the model that would be trained.
        workers: processes of the DataLoader.
        on_round: gets the number of rounds that are done.

    Raises:
        UserError: a mistake in the config or the data, a peer that is not installed or cannot read
            this dataset.
    """
    source = open_dataset(config, config.train_split)
    pipeline.train_dataset(
        source, config, (0.0, 0.0, 0.0)
    )  # reports mistakes before any process starts
    ours = {"config": config, "normalization": normalization}
    recipes = [Recipe("deeplab_keras", f"{__name__}:make", ours)]
    for peer in against:
        if peer != "torch":
            raise UserError(f"--against={peer}: for --what=input there is torch")
        peers.require(peer, PACKAGES)
        pairs = {
            **_as_reference(source, config),
            "config": config,
            "normalization": NORMALIZATIONS[normalization],
        }
        arguments = {"pairs": pairs, "batch_size": config.train_batch_size, "workers": workers}
        made_by = "benchmarks.peers.torch_input:make"
        recipes.append(
            Recipe(
                "SSSegmentation's OpenCV, torch DataLoader",
                made_by,
                arguments,
                {"OMP_WAIT_POLICY": "PASSIVE"},
            )
        )
    with all_at_work(recipes) as at_work:
        found = in_rounds(
            at_work, rounds, {"batches": batches, "warm_up": 2, "stages": stages}, on_round
        )
    speeds = {
        name: {q: Spread.of(v) for q, v in values.items() if not q.endswith(CPU)}
        for name, values in found.items()
    }
    cpu = {
        name: {q: Spread.of(values[f"{q}{CPU}"]) for q in speeds[name]}
        for name, values in found.items()
    }
    height, width = config.train_crop_size
    what = f"{source.info.name} {config.train_split}, {len(source)} images"
    case = f"{what}, batches of {config.train_batch_size} crops of {height}x{width}"
    return InputResult(speeds, cpu, case, rounds)


def _as_reference(source: Any, config: DataConfig) -> dict[str, Any]:
    """The arguments of the peer's `Pairs`.

    Raises:
        UserError: what the peer cannot do.
    """
    if not isinstance(source, FileSource) or not all(
        plain for pair in source.plain for plain in pair
    ):
        raise UserError(
            "--against=torch reads JPEG or PNG images and grey PNG masks of ids, and "
            f"--dataset={config.dataset} has others; "
            "convert_masks makes such masks"
        )
    if config.preprocessing == "official" or any(
        getattr(config, name) for name in (*STRONG, "scale_factor_step_size")
    ):
        raise UserError(
            "--against=torch does what SSSegmentation does: no --preprocessing=official, "
            "--scale_factor_step_size, rotation, "
            "blur, cutout, RandAugment, CutMix or Mosaic; leave these out"
        )
    ignored = source.info.ignore_label
    if source.label_map is None:
        label_map = {ignored: -100}
    else:
        label_map = {
            found: -100 if wanted == ignored else wanted
            for found, wanted in source.label_map.items()
        }
    return {"images": source.images, "labels": source.labels, "label_map": label_map}


class Contender:
    """Times our pipeline."""

    def __init__(self, config: DataConfig, normalization: str) -> None:
        self.config, self.source = config, open_dataset(config, config.train_split)
        self.mean, self.std = (
            np.array(values, np.float32) for values in NORMALIZATIONS[normalization]
        )
        self.stages = dict(self._stages())

    def measure(self, batches: int, warm_up: int, stages: bool) -> dict[str, float]:
        """Images/s, and milliseconds of CPU time an image, of each stage with all before it, or of the last two."""
        found: dict[str, float] = {}
        for name in list(self.stages)[0 if stages else -2 :]:
            dataset, images = self.stages[name]
            stream = iter(dataset)
            for _ in range(warm_up * self.config.train_batch_size // images):
                next(stream)
            count = batches * self.config.train_batch_size
            start, before = time.perf_counter(), process_seconds()
            for _ in range(count // images):
                next(stream)
            seconds, used = time.perf_counter() - start, process_seconds() - before
            del stream
            found |= {name: count / seconds, f"{name}{CPU}": 1000 * used / count}
        return found

    def _stages(self) -> list[tuple[str, tuple[tf.data.Dataset, int]]]:
        """Name -> the pipeline up to there, and how many images one of its elements holds."""
        config, batch = self.config, self.config.train_batch_size
        plain = config.replace(
            random_flip=False, photometric_distortion=False, data_service=None, **STRONG
        )
        configs = {"scale, crop, pad, batch": plain}
        if config.random_flip:
            configs["flip"] = plain = plain.replace(random_flip=True)
        if config.photometric_distortion:
            configs["photometric"] = plain = plain.replace(photometric_distortion=True)
        if config != plain:
            configs["strong augmentation" if not config.data_service else "data service"] = config

        @pipeline.plain_graph
        def load(position: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return self.source.tf_load(index)

        @pipeline.plain_graph
        def normalise(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (images - self.mean) * (1 / self.std), labels

        stream = pipeline.sample_stream(len(self.source), config.seed, batch)
        loaded = stream.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(
            tf.data.AUTOTUNE
        )
        datasets = {
            name: pipeline.train_dataset(self.source, done, tuple(self.mean))
            for name, done in configs.items()
        }
        normalised = (
            datasets[list(configs)[-1]]
            .map(normalise, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
        )
        batched = [(name, (dataset, batch)) for name, dataset in datasets.items()]
        return [("read and decode", (loaded, 1)), *batched, (NORMALISED, (normalised, batch))]


def make(config: DataConfig, normalization: str) -> Contender:
    """The contender of `measure_input`."""
    return Contender(config, normalization)
