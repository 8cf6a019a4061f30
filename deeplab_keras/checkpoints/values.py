"""Check for unusable weights: NaN, infinities and negative variances."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from deeplab_keras.config import UserError

# The names of Keras and TensorFlow, and of PyTorch.
VARIANCE = re.compile(r"(moving_variance|running_var)(:0)?$")


def check_values(
    tensors: Mapping[str, np.ndarray], origin: str | os.PathLike[str], next_step: str
) -> None:
    """Checks that weights are finite and variances are not negative.

    Args:
        tensors: Arrays by name. A name that ends in `moving_variance` or `running_var` is a
            variance. Arrays that are not floating point are skipped.
        origin: The file or folder of the weights. The message names it.
        next_step: What the user can do about it.

    Raises:
        UserError: If a tensor has such values. The message names the first one and the number of
            its bad values.
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
