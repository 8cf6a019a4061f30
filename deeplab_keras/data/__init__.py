"""Datasets: their files, classes, augmentation and batches. `open_dataset` opens each of them by its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplab_keras.data.datasets import DATASETS, FILES, open_dataset, open_files
    from deeplab_keras.data.files import FileSource
    from deeplab_keras.data.source import Source

__all__ = ["DATASETS", "FILES", "FileSource", "Source", "open_dataset", "open_files"]


def __getattr__(name: str) -> Any:
    """Imported when first used: `data.info`, which checkpoints read, needs no TensorFlow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.datasets"), name)
