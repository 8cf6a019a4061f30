"""Measures the training input pipeline, by stage, compared with SSSegmentation's pipeline."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import peers
from benchmarks.records import Measurement
from benchmarks.rounds import Spread, measure_in_rounds
from benchmarks.workers import Recipe, process_seconds, running
from deeplab_keras.config import NORMALIZATIONS, DataConfig, UserError
from deeplab_keras.data import pipeline
from deeplab_keras.data.files.pairs import FileSource
from deeplab_keras.data.registry import open_dataset

# The options of strong augmentation, turned off.
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
# The reference normalizes in its pipeline, this project in the network.
NORMALIZED = "normalize (the model's first layer)"


@dataclasses.dataclass(frozen=True)
class InputResult:
    """The speed and CPU time of input pipelines, by contender and stage.

    Each stage includes all stages before it.

    Attributes:
        speeds: Images/s.
        cpu: CPU milliseconds per image, summed over the cores.
        case: The dataset and the batches.
        rounds: Number of rounds.
    """

    speeds: dict[str, dict[str, Spread]]
    cpu: dict[str, dict[str, Spread]]
    case: str
    rounds: int

    def rows(self) -> list[Measurement]:
        """Returns the result as rows for `records`."""
        rows = []
        for name, stages in self.speeds.items():
            for stage, speed in stages.items():
                subject, cpu = f"{name}: {stage}", self.cpu[name][stage]
                rows.append(Measurement(subject, "speed", "images/s", speed, self.rounds))
                rows.append(Measurement(subject, "CPU per image", "ms", cpu, self.rounds))
        return rows

    def ratios(self) -> tuple[float, float] | None:
        """Returns our speed divided by the peer's, or `None` without a peer.

        Returns:
            The ratio for the batches that each training gets, and the ratio if our images are
            normalized in the pipeline too.
        """
        if len(self.speeds) < 2:
            return None
        (*_, whole, normalized), (*_, peer) = (
            list(stages.values()) for stages in self.speeds.values()
        )
        return whole.median / peer.median, normalized.median / peer.median

    def table(self) -> str:
        """Returns the result as text."""
        lines = ["images/s: median (quartiles) over the rounds; CPU: CPU milliseconds per image"]
        for name, stages in self.speeds.items():
            lines += ["", f"{name}"]
            lines += [
                f"  {stage:44}{str(value):32} CPU {self.cpu[name][stage].median:.2f}"
                for stage, value in stages.items()
            ]
        if ratios := self.ratios():
            lines += [
                "",
                f"our images/s divided by the peer's: {ratios[0]:.2f}; with normalization: "
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
        config: The dataset and its augmentation.
        against: "torch" for SSSegmentation's pipeline in PyTorch's DataLoader, on the same files.
        batches: Number of timed batches per round and stage. Two batches before them are not timed.
        rounds: Number of rounds in which all contenders take turns.
        stages: Whether to measure each stage too.
        normalization: The normalization of the model.
        workers: Number of processes of the DataLoader.
        on_round: Called with the number of completed rounds.

    Raises:
        UserError: If the config or the dataset is invalid, or if a peer is not installed or cannot
            read the dataset.
    """
    source = open_dataset(config, config.train_split)
    # Reports errors before any process starts.
    pipeline.train_dataset(source, config, (0.0, 0.0, 0.0))
    ours = {"config": config, "normalization": normalization}
    recipes = [Recipe("deeplab_keras", f"{__name__}:make", ours)]
    for peer in against:
        if peer != "torch":
            raise UserError(
                f"--against must be torch with --what=input. Received: --against={peer}"
            )
        peers.require(peer, PACKAGES)
        pairs = {
            **_as_reference(source, config),
            "config": config,
            "normalization": NORMALIZATIONS[normalization],
        }
        arguments = {"pairs": pairs, "batch_size": config.train_batch_size, "workers": workers}
        name = "SSSegmentation's OpenCV, torch DataLoader"
        make_peer = "benchmarks.peers.torch_input:make"
        recipes.append(Recipe(name, make_peer, arguments, peers.PASSIVE_WAIT))
    options = {"batches": batches, "warm_up": 2, "stages": stages}
    with running(recipes) as contenders:
        found = measure_in_rounds(contenders, rounds, options, on_round)
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
    """Returns the arguments of the peer's `Pairs`.

    Raises:
        UserError: If the peer does not support the dataset or the augmentation.
    """
    if not isinstance(source, FileSource) or not all(
        plain for pair in source.plain for plain in pair
    ):
        raise UserError(
            "--against=torch requires JPEG or PNG images, and grayscale PNG masks of class ids. "
            f"Received: --dataset={config.dataset}; use scripts/convert_masks.py to create such "
            "masks"
        )
    if config.preprocessing == "official" or any(
        getattr(config, name) for name in (*STRONG, "scale_factor_step_size")
    ):
        raise UserError(
            "--against=torch cannot be combined with options that SSSegmentation does not have: "
            "--preprocessing=official, --scale_factor_step_size, rotation, blur, cutout, "
            "RandAugment, CutMix and Mosaic; leave them out"
        )
    ignored = source.info.ignore_label
    if source.label_map is None:
        label_map = {ignored: -100}
    else:
        label_map = {old: -100 if new == ignored else new for old, new in source.label_map.items()}
    return {"images": source.images, "labels": source.labels, "label_map": label_map}


class InputContender:
    """Times our pipeline."""

    def __init__(self, config: DataConfig, normalization: str) -> None:
        self.config, self.source = config, open_dataset(config, config.train_split)
        self.mean, self.std = (
            np.array(values, np.float32) for values in NORMALIZATIONS[normalization]
        )
        self.stages = dict(self._stages())

    def measure(self, batches: int, warm_up: int, stages: bool) -> dict[str, float]:
        """Returns the images/s and the CPU milliseconds per image of each stage.

        Each stage includes all stages before it. Without `stages`, measures the last two only.
        """
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
        """Returns the name of each stage, the pipeline up to it, and its images per element."""
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
        def normalize(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (images - self.mean) * (1 / self.std), labels

        stream = pipeline.sample_stream(len(self.source), config.seed, batch)
        loaded = stream.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(
            tf.data.AUTOTUNE
        )
        datasets = {
            name: pipeline.train_dataset(self.source, stage_config, tuple(self.mean))
            for name, stage_config in configs.items()
        }
        normalized = (
            datasets[list(configs)[-1]]
            .map(normalize, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
        )
        batched = [(name, (dataset, batch)) for name, dataset in datasets.items()]
        return [("read and decode", (loaded, 1)), *batched, (NORMALIZED, (normalized, batch))]


def make(config: DataConfig, normalization: str) -> InputContender:
    """Creates the contender of `measure_input`."""
    return InputContender(config, normalization)
