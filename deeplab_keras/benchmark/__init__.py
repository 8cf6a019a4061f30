"""What a network, its input, its training and its evaluation cost.

A module each for what scripts/benchmark.py measures: `input`, `training`, `evaluating`, `models`. Whoever is measured works
in a process of its own (`workers`), all in turn (`rounds`), and what was found becomes rows of a table (`records`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplab_keras.benchmark.multiply_adds import count_multiply_adds, is_auxiliary

__all__ = ["count_multiply_adds", "is_auxiliary"]


def __getattr__(name: str) -> Any:
    """Imported when first used: a process that measures another library does without Keras."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.multiply_adds"), name)
