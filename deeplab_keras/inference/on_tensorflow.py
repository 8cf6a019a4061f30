"""A Keras model as one function compiled by TensorFlow, for `KerasNetwork`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.inference import tensors as ARITHMETIC

__all__ = ["ARITHMETIC", "as_input", "compiled", "explaining"]


@contextlib.contextmanager
def explaining(images: Any) -> Iterator[None]:
    """Context that turns TensorFlow's errors about the size of images into one line.

    Raises:
        UserError: The images are too small for the model, or do not fit into memory.
    """
    size = "x".join(map(str, images.shape[1:3]))
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise UserError(
            f"{len(images)} images of {size} do not fit into memory; lower `eval_batch_size`, or "
            "give `inference='slide'` with a smaller `eval_crop_size`"
        ) from None
    except tf.errors.InvalidArgumentError as error:
        reason = error.message.splitlines()[0].split("}} ")[-1].strip()
        raise UserError(
            f"the model cannot take an input of {size} ({reason}); give a larger image, or "
            "`eval_short_side`"
        ) from None


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
