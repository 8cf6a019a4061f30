"""Weights that no network computes with: NaN, infinities, negative variances."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from deeplab_keras.config import UserError

# Keras and TensorFlow; PyTorch.
VARIANCE = re.compile(r"(moving_variance|running_var)(:0)?$")


def check_values(
    tensors: Mapping[str, np.ndarray], origin: str | os.PathLike[str], next_step: str
) -> None:
    """Refuses weights that are not finite and variances below zero.

    Args:
        tensors: arrays by name; a name that ends in `moving_variance` or `running_var` is a
            variance. Arrays that are not floating point are skipped.
        origin: the file or folder, named in the message.
        next_step: what the user can do about it.

    Raises:
        UserError: with the first such tensor and the number of its bad values.
    """
    for name, value in tensors.items():
        value = np.asarray(value)
        if not np.issubdtype(value.dtype, np.floating):
            continue
        bad = value.size - int(np.isfinite(value).sum())
        if bad:
            raise UserError(
                f"{origin}: {bad} of {value.size} values of {name} are NaN or infinite; {next_step}"
            )
        if VARIANCE.search(name) and value.size and value.min() < 0:
            raise UserError(
                f"{origin}: {name} has a negative variance ({value.min():.3g}); {next_step}"
            )
