"""A training step in PyTorch: the same network, from its plan, the same batch, SGD with momentum, cross-entropy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from deeplab_keras.benchmark.peers import Step
from deeplab_keras.benchmark.peers.torch_model import Network

WARM_UP = 2


class Contender:
    """Steps on one batch that lies ready, channels_last, eager."""

    def __init__(self, steps: Sequence[Step], shape: tuple[int, ...], classes: int, ignore_label: int, threads: int) -> None:
        torch.set_num_threads(threads)
        random = np.random.default_rng(0)
        self.network: Any = Network(steps).train().to(memory_format=torch.channels_last)
        self.images = torch.from_numpy(random.uniform(0, 255, shape).astype(np.float32))
        self.labels = torch.from_numpy(random.integers(0, classes, shape[:3]))
        self.ignore_label = ignore_label
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
        self._take(WARM_UP)

    def measure(self, batches: int) -> dict[str, float]:
        """Images/s."""
        return {"bare_speed": batches * len(self.images) / self._take(batches)}

    def _take(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self.network.logits(self.images), self.labels, ignore_index=self.ignore_label)
            loss.backward()
            self.optimizer.step()
            loss.item()
        return time.perf_counter() - start


def make(steps: Sequence[Step], shape: tuple[int, ...], classes: int, ignore_label: int, threads: int) -> Contender:
    """The contender of `benchmark.training`."""
    return Contender(steps, shape, classes, ignore_label, threads)
