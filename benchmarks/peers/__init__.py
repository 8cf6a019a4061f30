"""Other libraries that do the same work, for comparison. Each is imported in its own process."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import numpy as np

from deeplab_keras.config import UserError

# Without it, torch's threads spin while other contenders are measured.
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}
# torch.compile folds batch norm into the convolutions, as our exports do.
FREEZING = {"TORCHINDUCTOR_FREEZING": "1"}


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation of a network, as plain data.

    Attributes:
        name: The name of its result.
        kind: The kind of operation, such as "conv".
        inputs: The names of its inputs.
        settings: The options of the operation.
        arrays: The weights by name.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def require(peer: str, packages: dict[str, str]) -> None:
    """Raises `UserError` if a package that a peer requires is not installed.

    Args:
        peer: The name of the peer.
        packages: The name of each package for pip, by its import name.
    """
    missing = [pip for name, pip in packages.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--against={peer} requires packages that are not installed: {', '.join(missing)}; "
            f"run: pip install {' '.join(missing)}"
        )
