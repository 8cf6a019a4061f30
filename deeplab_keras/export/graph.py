"""The network as a TensorFlow graph with constant weights, the source of all exported files.

With constant weights, TensorFlow folds batch norm into the convolutions, and a conversion to TFLite
takes a tenth of the time of a conversion from the Keras model, with the same operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import op_def_registry
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from deeplab_keras.config import UserError
from deeplab_keras.inference.keras_network import last_resize

Shape = tuple[int | None, int | None, int | None, int]
Function = Any  # tf.types.experimental.ConcreteFunction

# Output -> function from the logits `[batch, height, width, num_classes]` and the dtype of labels.
OUTPUTS: dict[str, Callable[[tf.Tensor, str], tf.Tensor]] = {
    "labels": lambda logits, label_type: tf.cast(
        tf.argmax(logits, axis=-1, output_type=tf.int32), label_type
    ),
    "logits": lambda logits, _: tf.identity(logits),
    "probabilities": lambda logits, _: tf.nn.softmax(logits),
}
# Prefixes of the kinds of operations that need more than the image and the weights -> what they do,
# and what to do instead.
OUTSIDE = {
    ("PyFunc", "EagerPyFunc"): (
        "calls Python code",
        "write the layer with keras.ops instead of tf.numpy_function or tf.py_function",
    ),
    ("LookupTable", "ReadFile", "Timestamp"): (
        "reads a table, a file or the clock",
        "compute with constants instead",
    ),
}
CHANGING = (
    "draws random numbers or changes variables, also with training=False",
    "do so only with training=True",
)
# Operations that TensorFlow calls stateful, but whose results depend on their inputs only.
HARMLESS = {
    "Assert", "Case", "CheckNumerics", "CheckNumericsV2", "DeepCopy", "Empty", "GuaranteeConst",
    "If", "Print", "PrintV2", "ReadVariableOp", "ResourceGather", "ResourceGatherNd",
    "StatefulPartitionedCall", "VarHandleOp", "VarIsInitializedOp", "VariableShape", "While",
    "XlaCallModule",
}  # fmt: skip


def freeze(
    model: keras.Model,
    shape: Shape,
    dtype: tf.DType,
    outputs: Sequence[str],
    label_type: str = "int32",
) -> Function:
    """Freezes a model into a graph with constant weights, for images of one shape and dtype.

    Converters for devices need a shape without `None`. Only then do they recognize dilated
    convolutions, which TensorFlow writes as SpaceToBatch, convolution and BatchToSpace.

    Args:
        model: A segmentor for any size, or for this size.
        shape: The shape `(batch, height, width, channels)` of the images; `None` for any length.
        dtype: The dtype of the images, which are in 0..255.
        outputs: Names in OUTPUTS.
        label_type: The dtype of labels, "int32" or "uint8".

    Returns:
        A concrete function from images to the list of outputs.

    Raises:
        UserError: See `check_operations`.
    """
    return convert_variables_to_constants_v2(_traced(model, shape, dtype, outputs, label_type))


def check_operations(model: keras.Model) -> None:
    """Raises `UserError` if a model computes with more than the image and its constant weights.

    Its file would then differ from the model, or would not run in another process.
    """
    _traced(model, model.input_shape, tf.float32, ["logits"])


def _traced(
    model: keras.Model,
    shape: Shape,
    dtype: tf.DType,
    outputs: Sequence[str],
    label_type: str = "int32",
) -> Function:
    """Returns the concrete function that `freeze` freezes."""

    def serve(image: tf.Tensor) -> list[tf.Tensor]:
        logits = tf.cast(model(tf.cast(image, tf.float32), training=False), tf.float32)
        return [OUTPUTS[name](logits, label_type) for name in outputs]

    traced = tf.function(serve).get_concrete_function(tf.TensorSpec(shape, dtype, name="image"))
    for name, kind in _operations(traced.graph.as_graph_def()):
        outside = next((said for kinds, said in OUTSIDE.items() if kind.startswith(kinds)), None)
        if outside is None and _changes(kind):
            outside = CHANGING
        if outside:
            what, hint = outside
            raise UserError(
                f"the model {model.name!r} cannot be exported: its operation {name!r} {what}; "
                f"{hint}"
            )
    return traced


def _changes(kind: str) -> bool:
    """Whether operations of a kind change a state, such as that of random numbers."""
    definition = op_def_registry.get(kind)
    return definition is not None and definition.is_stateful and kind not in HARMLESS


def _operations(graph: Any) -> Iterator[tuple[str, str]]:
    """Yields name and kind of each operation, also of functions that the graph calls."""
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            yield node.name, node.op


def head_of(model: keras.Model) -> tuple[keras.Model, bool]:
    """Returns a segmentor up to its class scores before the last resize.

    Returns:
        The model, and whether the last resize aligns corners.

    Raises:
        UserError: The model does not end with the resize of `build_segmentor`.
    """
    found = last_resize(model)
    if found is None:
        raise UserError(
            f"`output_at='head'`: the model {model.name!r} does not end with the resize of its "
            "class scores to the image's size, so other layers would be lost; omit `output_at`"
        )
    layer, scores = found
    return keras.Model(model.input, scores, name=model.name), layer.align_corners


def named(frozen: Function, outputs: Sequence[str]) -> Function:
    """Restores the names of a frozen graph's outputs: a function from "image" to a dict."""
    shapes = [output.shape for output in frozen.outputs]

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        values = [
            tf.ensure_shape(value, shape)
            for value, shape in zip(frozen(image), shapes, strict=True)
        ]
        return dict(zip(outputs, values, strict=True))

    (image,) = frozen.inputs
    return tf.function(serve).get_concrete_function(
        tf.TensorSpec(image.shape, image.dtype, name="image")
    )
