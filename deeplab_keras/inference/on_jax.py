"""A Keras model as one function compiled by JAX, for `KerasNetwork`.

The scores are computed with NumPy from the logits, as for exported files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp

from deeplab_keras.config import UserError
from deeplab_keras.inference import arrays as ARITHMETIC
from deeplab_keras.inference.network import not_taken, too_large

__all__ = ["ARITHMETIC", "as_input", "compiled", "explaining"]


@contextlib.contextmanager
def explaining(images: Any) -> Iterator[None]:
    """Context that turns JAX's errors about the size of images into one line.

    Raises:
        UserError: The images are too small for the model, or do not fit into memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise too_large(images) from None
    except (TypeError, ValueError) as error:  # shapes are checked when the function is traced
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0].strip()
        raise not_taken(images, reason) from None


def compiled(model: keras.Model) -> Callable[[Any], np.ndarray]:
    """Returns a function from images `[batch, height, width, channels]` to float32 logits.

    A batch is filled up to the next power of two, because each size is compiled separately.
    """

    @jax.jit
    def logits(trainable: list[Any], others: list[Any], images: Any) -> Any:
        output, _ = model.stateless_call(trainable, others, images, training=False)
        (output,) = keras.tree.flatten(output)
        return jnp.asarray(output, jnp.float32)

    def call(images: np.ndarray) -> np.ndarray:
        count = len(images)
        missing = (1 << (count - 1).bit_length()) - count
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), np.float32)])
        groups = model.trainable_variables, model.non_trainable_variables
        values = [[variable.value for variable in variables] for variables in groups]
        return np.asarray(logits(*values, images))[:count]

    return call


def as_input(images: Any) -> np.ndarray:
    """Returns images as the argument of a compiled function."""
    return np.asarray(images, np.float32)
