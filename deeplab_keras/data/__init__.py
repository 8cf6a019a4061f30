"""Datasets: files, classes, augmentation and batches.

The names in `__all__` are public, such as `dk.data.open_dataset`. Each is imported at first use,
because importing TensorFlow takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplab_keras.data.check import check_dataset
    from deeplab_keras.data.info import DatasetInfo
    from deeplab_keras.data.pipeline import train_dataset
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.data.source import Source

_MODULES = {
    "DatasetInfo": "info",
    "Source": "source",
    "check_dataset": "check",
    "open_dataset": "registry",
    "train_dataset": "pipeline",
}

__all__ = ["DatasetInfo", "Source", "check_dataset", "open_dataset", "train_dataset"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
