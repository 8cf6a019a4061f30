"""SSSegmentation's training input with OpenCV, in PyTorch's DataLoader.

It makes the same OpenCV and NumPy calls in the same order, with NumPy's global generator, and does
not require SSSegmentation itself. Images are BGR until they are normalized. See
docs/reference/sssegmentation.md#training-input.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.workers import process_seconds
from deeplab_keras.config import DataConfig

IGNORED = -100
STAGES = ("read and decode", "scale, crop, pad, batch", "flip", "photometric", "normalize")
Sample = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass
class TorchPairs(torch.utils.data.Dataset):
    """The reference's training samples.

    A sample is an image `[3, height, width]` and a label `[height, width]`, both float32.

    Args:
        images: Paths of the images.
        labels: Paths of the masks, grayscale PNGs of class ids.
        label_map: Class by id in the masks, or -100 for pixels to ignore. Other ids stay the same.
        config: The crop size, the scales and the augmentation.
        normalization: Mean and standard deviation of RGB.
        stage: Number of stages to apply, from `STAGES`.
    """

    images: tuple[str, ...]
    labels: tuple[str, ...]
    label_map: Mapping[int, int]
    config: DataConfig
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    stage: int = len(STAGES)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image: Any = cv2.imread(self.images[index])
        mask: Any = cv2.imread(self.labels[index], cv2.IMREAD_GRAYSCALE)
        label = mask.astype(np.float32)
        for old, new in self.label_map.items():
            label[label == old] = new
        if self.stage == 1:  # images of different sizes cannot be batched
            return torch.zeros(1), torch.zeros(1)
        image, label = crop(*scale(image, label, self.config), self.config)
        if self.stage > 2 and self.config.random_flip and np.random.rand() <= 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        if self.stage > 3 and self.config.photometric_distortion:
            image = distort(image)
        if self.stage > 4:
            image = normalize(np.ascontiguousarray(image), *self.normalization)
        return pad(image, label, self.config.train_crop_size)


def scale(image: np.ndarray, label: np.ndarray, config: DataConfig) -> Sample:
    """Resizes to a random size and keeps the aspect ratio."""
    factor = (
        np.random.random_sample() * (config.max_scale_factor - config.min_scale_factor)
        + config.min_scale_factor
    )
    sides = image.shape[:2]
    ratio = int((config.min_resize_value or min(sides)) * factor) / min(sides)
    if config.max_resize_value:
        ratio = min(int(config.max_resize_value * factor) / max(sides), ratio)
    size = int(sides[1] * ratio + 0.5), int(sides[0] * ratio + 0.5)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), cv2.resize(
        label, size, interpolation=cv2.INTER_NEAREST
    )


def crop(image: np.ndarray, label: np.ndarray, config: DataConfig) -> Sample:
    """Returns the first of ten random crops with several classes, none with too large a share."""
    height, width = (
        min(side, length) for side, length in zip(config.train_crop_size, label.shape, strict=True)
    )
    for _ in range(10):
        # The reference copies the whole image and label for each crop.
        cut_image, cut_label = image.copy(), label.copy()
        top, left = (
            np.random.randint(0, label.shape[0] - height + 1),
            np.random.randint(0, label.shape[1] - width + 1),
        )
        cut_image, cut_label = (
            whole[top : top + height, left : left + width] for whole in (cut_image, cut_label)
        )
        classes, counts = np.unique(cut_label, return_counts=True)
        counts = counts[classes != IGNORED]
        if len(counts) > 1 and counts.max() / counts.sum() < config.crop_max_category_share:
            break
    return (cut_image, cut_label) if len(counts) else (image, label)


def distort(image: np.ndarray) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2."""
    if np.random.randint(2):
        image = _convert(image, beta=np.random.uniform(-32, 32))
    contrast_first = np.random.randint(2)
    if contrast_first and np.random.randint(2):
        image = _convert(image, alpha=np.random.uniform(0.5, 1.5))
    if np.random.randint(2):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        image[..., 1] = _convert(image[..., 1], alpha=np.random.uniform(0.5, 1.5))
        image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB)
    if np.random.randint(2):
        image = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        image[..., 0] = (image[..., 0].astype(int) + np.random.randint(-18, 18)) % 180
        image = cv2.cvtColor(image, cv2.COLOR_HSV2RGB)
    if not contrast_first and np.random.randint(2):
        image = _convert(image, alpha=np.random.uniform(0.5, 1.5))
    return image


def _convert(image: np.ndarray, alpha: float = 1, beta: float = 0) -> np.ndarray:
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def normalize(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Converts uint8 BGR to normalized float32 RGB."""
    image = image.astype(np.float32)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    cv2.subtract(image, np.array([mean], np.float64), image)
    cv2.multiply(image, 1 / np.array([std], np.float64), image)
    return image


def pad(
    image: np.ndarray, label: np.ndarray, size: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads to `size`, the image with 0 and the label with -100."""
    tensors = (
        torch.from_numpy(image.transpose((2, 0, 1)).astype(np.float32)),
        torch.from_numpy(label.astype(np.float32)),
    )
    top, left = ((side - length) // 2 for side, length in zip(size, label.shape, strict=True))
    margins = (left, size[1] - label.shape[1] - left, top, size[0] - label.shape[0] - top)
    padded = [
        torch.nn.functional.pad(x, margins, value=value)
        for x, value in zip(tensors, (0.0, IGNORED), strict=True)
    ]
    return padded[0], padded[1]


class TorchInput:
    """Times the DataLoader."""

    def __init__(self, pairs: dict[str, Any], batch_size: int, workers: int) -> None:
        self.pairs, self.batch_size, self.workers = pairs, batch_size, workers

    def measure(self, batches: int, warm_up: int, stages: bool) -> dict[str, float]:
        """Returns the images/s and the CPU milliseconds per image of each stage.

        Each stage includes all stages before it. Without `stages`, measures the last one only.
        """
        found: dict[str, float] = {}
        for stage in range(1 if stages else len(STAGES), len(STAGES) + 1):
            speed, seconds = self._time(stage, batches, warm_up)
            found |= {STAGES[stage - 1]: speed, f"{STAGES[stage - 1]}, CPU ms": 1000 * seconds}
        return found

    def _time(self, stage: int, batches: int, warm_up: int) -> tuple[float, float]:
        data = TorchPairs(**self.pairs, stage=stage)
        # Enough images that no worker runs out of them before the measurement ends.
        images = (batches + warm_up + 2 * self.workers + 1) * self.batch_size
        order = torch.utils.data.RandomSampler(data, replacement=True, num_samples=images)
        loader = torch.utils.data.DataLoader(
            data,
            self.batch_size,
            sampler=order,
            num_workers=self.workers,
            drop_last=True,
            worker_init_fn=_seed,
        )
        stream = iter(loader)
        for _ in range(warm_up):
            next(stream)
        processes = [process.pid for process in getattr(stream, "_workers", [])]
        start, before = time.perf_counter(), process_seconds(processes)
        for _ in range(batches):
            next(stream)
        seconds, used = time.perf_counter() - start, process_seconds(processes) - before
        del stream
        return batches * self.batch_size / seconds, used / (batches * self.batch_size)


def _seed(worker: int) -> None:
    np.random.seed(torch.initial_seed() % 2**32)


def make(pairs: dict[str, Any], batch_size: int, workers: int) -> TorchInput:
    """Creates the contender of `benchmarks.input`."""
    return TorchInput(pairs, batch_size, workers)
