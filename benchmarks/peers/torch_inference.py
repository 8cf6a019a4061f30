"""Inference in PyTorch on images that are already on the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.peers import Step, torch_device
from benchmarks.peers.torch_model import TorchNetwork

WARM_UP = 3


class TorchInference:
    """Computes labels, eager or compiled, in channels_last, in batches of several sizes."""

    def __init__(
        self,
        steps: Sequence[Step],
        precision: str,
        images: np.ndarray,
        batch_sizes: Sequence[int],
        threads: int,
        compiled: bool,
        tf32: bool | None,
    ) -> None:
        self.device, self.mixed = torch_device.prepare(threads, tf32), precision == "mixed_bfloat16"
        network = TorchNetwork(steps).eval().to(self.device, memory_format=torch.channels_last)
        # Each size is compiled separately, as by JAX.
        self.labels: Any = torch.compile(network, dynamic=False) if compiled else network
        self.batches = {
            size: torch.from_numpy(images[:size]).to(self.device) for size in batch_sizes
        }
        for size in batch_sizes:
            self._take(size, WARM_UP)

    def measure(self, batches: int) -> dict[str, Any]:
        """Returns images/s by batch size. With 0 batches, returns `torch_device.about`."""
        if not batches:
            return torch_device.about(self.device)
        return {
            f"batch {size}": size * batches / self._take(size, batches) for size in self.batches
        }

    @torch.inference_mode()
    def _take(self, size: int, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                self.labels(self.batches[size])
        torch_device.wait(self.device)
        return time.perf_counter() - start
