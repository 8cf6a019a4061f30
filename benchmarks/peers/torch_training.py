"""A training step in PyTorch: the same network and batch, cross-entropy, SGD with momentum."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from benchmarks.batches import TrainingBatch
from benchmarks.peers import Step, torch_device
from benchmarks.peers.torch_model import TorchNetwork

WARM_UP = 3


class TorchTraining:
    """Takes steps on one batch on the device, eager or compiled, in channels_last.

    The device is the GPU, if PyTorch has one.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        batch: TrainingBatch,
        threads: int,
        precision: str = "float32",
        compiled: bool = False,
        tf32: bool | None = None,
    ) -> None:
        self.device = torch_device.prepare(threads, tf32)
        self.mixed, self.ignore_label = precision == "mixed_bfloat16", batch.ignore_label
        self.network: Any = (
            TorchNetwork(steps).train().to(self.device, memory_format=torch.channels_last)
        )
        self.logits = torch.compile(self.network.logits) if compiled else self.network.logits
        self.images = torch.from_numpy(batch.images).to(self.device)
        self.labels = torch.from_numpy(batch.labels).to(self.device, torch.int64)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4
        )
        self._take(WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Measures one round. With 0 batches, returns what does not change between rounds."""
        if batches:
            return {"bare_speed": batches * len(self.images) / self._take(batches)}
        return torch_device.about(self.device)

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
        torch_device.wait(self.device)
        return time.perf_counter() - start
