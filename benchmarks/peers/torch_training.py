"""A training step in PyTorch: the same network and batch, cross-entropy, SGD with momentum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import Step
from benchmarks.peers.torch_model import TorchNetwork
from benchmarks.workers import peak_memory

WARM_UP = 3


class TorchTraining:
    """Takes steps on one batch on the device, eager or compiled, in channels_last.

    The device is the GPU, if PyTorch has one.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        shape: tuple[int, ...],
        classes: int,
        ignore_label: int,
        threads: int,
        precision: str = "float32",
        compiled: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        # Selects the fastest algorithm for these sizes, as XLA's autotuning does.
        torch.backends.cudnn.benchmark = True
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mixed, self.ignore_label = precision == "mixed_bfloat16", ignore_label
        random = np.random.default_rng(0)
        self.network: Any = (
            TorchNetwork(steps).train().to(self.device, memory_format=torch.channels_last)
        )
        self.logits = torch.compile(self.network.logits) if compiled else self.network.logits
        self.images = torch.from_numpy(random.uniform(0, 255, shape).astype(np.float32)).to(
            self.device
        )
        self.labels = torch.from_numpy(random.integers(0, classes, shape[:3])).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4
        )
        self._take(WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Measures one round. With 0 batches, returns what does not change between rounds."""
        if batches:
            return {"bare_speed": batches * len(self.images) / self._take(batches)}
        on_gpu = self.device.type == "cuda"
        name, memory = (
            (torch.cuda.get_device_name(), torch.cuda.max_memory_allocated())
            if on_gpu
            else ("CPU", 0)
        )
        return {"device": name, "device_bytes": memory, "peak_bytes": peak_memory()}

    def _take(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                scores = self.logits(self.images)
            loss = functional.cross_entropy(
                scores.float(), self.labels, ignore_index=self.ignore_label
            )
            loss.backward()
            self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def make(
    steps: Sequence[Step],
    shape: tuple[int, ...],
    classes: int,
    ignore_label: int,
    threads: int,
    precision: str = "float32",
    compiled: bool = False,
) -> TorchTraining:
    """Creates the contender of `benchmarks.training`."""
    return TorchTraining(steps, shape, classes, ignore_label, threads, precision, compiled)
