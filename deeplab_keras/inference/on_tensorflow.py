"""A Keras model as one function compiled by TensorFlow, for `KerasNetwork`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from deeplab_keras.inference import tensors as ARITHMETIC
from deeplab_keras.inference.network import not_taken, too_large

__all__ = ["ARITHMETIC", "as_input", "compiled", "explaining"]


@contextlib.contextmanager
def explaining(images: Any) -> Iterator[None]:
    """Context that turns TensorFlow's errors about the size of images into one line.

    Raises:
        UserError: The images are too small for the model, or do not fit into memory.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise too_large(images) from None
    except tf.errors.InvalidArgumentError as error:
        reason = error.message.splitlines()[0].split("}} ")[-1].strip()
        raise not_taken(images, reason) from None


def compiled(model: keras.Model) -> Callable[[Any], tf.Tensor]:
    """Returns a function from images `[batch, height, width, channels]` to float32 logits."""

    def logits(images: tf.Tensor) -> tf.Tensor:
        (output,) = tf.nest.flatten(model(images, training=False))
        return tf.cast(output, tf.float32)

    signature = [tf.TensorSpec([None, *model.input_shape[1:]], tf.float32)]
    return tf.function(logits, input_signature=signature)


def as_input(images: Any) -> tf.Tensor:
    """Returns images as the argument of a compiled function."""
    return tf.cast(images, tf.float32)
