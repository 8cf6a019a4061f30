"""Golden values of SSSegmentation, and the rules that draw their weights, images and labels.

The tests and the parity check of `benchmarks.gpu` read them from tests/golden.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "tests/golden/sssegmentation"
VOC = tuple(
    f"{system}_voc"
    for system in (
        "fcn_mobilenetv2os8",
        "pspnet_mobilenetv2os8",
        "deeplabv3_mobilenetv2os8",
        "deeplabv3plus_mobilenetv2os8",
        "lrasppnet_mobilenetv3sos8",
        "lrasppnet_mobilenetv3los8",
    )
)


@dataclasses.dataclass(frozen=True)
class Golden:
    """The reference's outputs for one system."""

    name: str
    tensors: dict[str, tuple[list[int], str, float]]
    train_step: dict[str, Any]
    train_step_float64: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def outputs(self) -> Iterator[tuple[str, int, int, int, np.ndarray]]:
        """Returns kind, height, width, sampling step and values of each array.

        Kinds are logits, final, argmax and aux.
        """
        for key, values in self.arrays.items():
            if not key.startswith("step_"):
                kind, size = key.split("_")
                height, width = map(int, size.split("x"))
                yield kind, height, width, int(self.arrays[f"step_{key}"]), values

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the images of `outputs`."""
        return list(dict.fromkeys((height, width) for _, height, width, _, _ in self.outputs()))

    @property
    def train_size(self) -> tuple[int, int]:
        """(height, width) of the images of the training step."""
        return (389, 453) if "mobilenetv3" in self.name else (129, 193)


def golden(name: str) -> Golden:
    """Returns the golden values of a system, a name from `VOC`."""
    values = json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return Golden(
        name, values["tensors"], values["train_step"], values["train_step_float64"], arrays
    )


def draw(name: str, shape: list[int], kind: str, scale: float) -> np.ndarray:
    """Returns the tensor of this name; its values depend only on name and shape."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if kind in ("bn_gamma", "bn_variance"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    return (scale * random.standard_normal(shape)).astype(np.float32)


def weights(values: Golden, num_classes: int = 21) -> dict[str, np.ndarray]:
    """Returns the state_dict without counters, with classifiers for `num_classes` classes."""
    drawn = {}
    for name, (shape, kind, scale) in values.tensors.items():
        classes = [num_classes] if shape[0] == 21 else shape[:1]
        drawn[name] = draw(name, classes + shape[1:], kind, scale)
    return drawn


def images(height: int, width: int, seed: int = 7, count: int = 1) -> np.ndarray:
    """Returns uint8 RGB images `[count, height, width, 3]`: noisy blocks of 32 pixels."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, (height + 31) // 32, (width + 31) // 32, 3)).astype(
        np.float32
    )
    blocks = blocks.repeat(32, 1).repeat(32, 2)[:, :height, :width]
    return np.clip(blocks + random.normal(0, 15, blocks.shape), 0, 255).astype(np.uint8)


def labels(
    height: int, width: int, num_classes: int = 21, seed: int = 3, count: int = 2
) -> np.ndarray:
    """Returns int32 labels `[count, height, width]`: blocks of 16 pixels, some ignored (255)."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, num_classes, (count, (height + 15) // 16, (width + 15) // 16))
    blocks[random.uniform(size=blocks.shape) < 0.15] = 255
    return blocks.repeat(16, 1).repeat(16, 2)[:, :height, :width].astype(np.int32)


def differences(
    found: dict[str, float], expected: dict[str, float], floor: float = 1e-6
) -> tuple[float, float]:
    """Returns the largest and median relative difference of two dicts of norms above a floor."""
    relative = [
        max(abs(found[name] - value) - floor, 0) / value for name, value in expected.items()
    ]
    return float(f"{max(relative):.1e}"), float(f"{np.median(relative):.1e}")
