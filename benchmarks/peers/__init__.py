"""Other libraries that do the same work, to be measured beside ours; each is imported in its own process alone."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import numpy as np

from deeplab_keras.config import UserError

WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE"
}  # else torch's threads spin, also while others have their turn


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a network, as plain data.

    Attributes:
        name: of its result.
        kind: what it does.
        inputs: the names of what it reads.
        settings: numbers.
        arrays: weights.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def require(peer: str, packages: dict[str, str]) -> None:
    """Raises UserError where a package (import name -> name for pip) that a peer needs is not installed."""
    missing = [pip for name, pip in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--against={peer} needs {' and '.join(missing)}, not installed here: pip install "
            f"{' '.join(missing)}"
        )
