"""What the contenders in PyTorch know about their device."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.workers import peak_memory


def prepare(threads: int, tf32: bool | None = None) -> torch.device:
    """Sets PyTorch's options, and returns the GPU, or the CPU if it sees no GPU.

    Args:
        threads: Number of threads on the CPU.
        tf32: See `Precision`.
    """
    torch.set_num_threads(threads)
    # Selects the fastest algorithm for these sizes, as XLA's autotuning does.
    torch.backends.cudnn.benchmark = True
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Waits until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def about(device: torch.device) -> dict[str, Any]:
    """Returns the name of the device, and the peak memory of the device and the process."""
    on_gpu = device.type == "cuda"
    name, memory = (
        (torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()) if on_gpu else ("CPU", 0)
    )
    about = {"device": name, "device_bytes": memory, "peak_bytes": peak_memory()}
    return about | {"cudnn": torch.backends.cudnn.version()}
