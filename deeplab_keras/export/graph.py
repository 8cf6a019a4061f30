"""The network as a TensorFlow graph whose weights are constants: what every exported file is made from.

With constants for weights TensorFlow folds batch norm into the convolutions, and a conversion to TFLite takes a tenth
of the time that it takes from a Keras model, with the same operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

Shape = tuple[int | None, int | None, int | None, int]
Function = Any  # tf.types.experimental.ConcreteFunction

# Name of an output -> how it comes from the logits `[batch, height, width, num_classes]`.
OUTPUTS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "labels": lambda logits: tf.argmax(logits, axis=-1, output_type=tf.int32),
    "logits": tf.identity,
    "probabilities": tf.nn.softmax,
}


def freeze(model: keras.Model, shape: Shape, dtype: tf.DType, outputs: Sequence[str]) -> Function:
    """The model as a graph of constants, for images of one shape and dtype.

    A shape without None is what converters for devices want: only then do they see through the dilated convolutions,
    which TensorFlow spells SpaceToBatch, convolution, BatchToSpace.

    Args:
        model: a segmentor for any size, or for this one.
        shape: `(batch, height, width, channels)` of the images; None: any.
        dtype: of the images, which are in 0..255.
        outputs: names out of OUTPUTS.

    Returns:
        A concrete function from images to the list of the outputs.
    """

    def serve(image: tf.Tensor) -> list[tf.Tensor]:
        logits = tf.cast(model(tf.cast(image, tf.float32), training=False), tf.float32)
        return [OUTPUTS[name](logits) for name in outputs]

    traced = tf.function(serve).get_concrete_function(tf.TensorSpec(shape, dtype, name="image"))
    return convert_variables_to_constants_v2(traced)


def named(frozen: Function, outputs: Sequence[str]) -> Function:
    """A frozen graph from "image" to a dict: with names for its outputs, which freezing loses."""
    shapes = [output.shape for output in frozen.outputs]

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        values = [tf.ensure_shape(value, shape) for value, shape in zip(frozen(image), shapes, strict=True)]
        return dict(zip(outputs, values, strict=True))

    (image,) = frozen.inputs
    return tf.function(serve).get_concrete_function(tf.TensorSpec(image.shape, image.dtype, name="image"))
