"""What the contenders on JAX know about their device."""

from __future__ import annotations

from typing import Any

import jax

from benchmarks.workers import peak_memory


def about() -> dict[str, Any]:
    """Returns the name of the device, and the peak memory of the device and the process."""
    device = jax.devices()[0]
    on_gpu = device.platform != "cpu"
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use", 0) if on_gpu else 0
    name = device.device_kind if on_gpu else "CPU"
    return {"device": name, "device_bytes": memory, "peak_bytes": peak_memory()}


class Probe:
    """Finds the device without starting JAX in the main process, where it would take memory."""

    def measure(self) -> dict[str, Any]:
        """Returns the device, see `about`."""
        return about()
