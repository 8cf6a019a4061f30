"""A Keras model as one compiled function."""

from __future__ import annotations

import functools
import importlib
import threading
from typing import Any

import keras

from deeplab_keras.config import UserError
from deeplab_keras.inference.network import Network
from deeplab_keras.models.layers import ResizeTo, WindowPooling, require_backend
from deeplab_keras.models.quantization import Quantized
from deeplab_keras.models.segmentor import AuxiliaryOutputs, pad_value

# Keras' backend -> the module that compiles a model, and the arithmetic of its scores.
RUNTIMES = {
    "tensorflow": "deeplab_keras.inference.on_tensorflow",
    "jax": "deeplab_keras.inference.on_jax",
}
# The layers that `build_segmentor` puts between the layer "logits" and the model's output.
MERGES = (ResizeTo, Quantized, keras.layers.Maximum, keras.layers.Average)


def made_by(tensor: Any) -> tuple[Any, list[Any]]:
    """Returns the operation that outputs a tensor, and the input tensors of the operation."""
    operation, node, _ = tensor._keras_history
    return operation, list(operation._inbound_nodes[node].input_tensors)


def last_resize(model: keras.Model) -> tuple[ResizeTo, Any] | None:
    """Returns the layer that resizes a segmentor's class scores to the image's size, and its input.

    Returns `None` if the model does not end with this layer.
    """
    operation, inputs = made_by(model.outputs[0])
    if isinstance(operation, AuxiliaryOutputs):
        operation, inputs = made_by(inputs[0])
    if isinstance(operation, ResizeTo) and operation.scale == 1 and inputs[1] is model.inputs[0]:
        return operation, inputs[0]
    return None


class KerasNetwork(Network):
    """A Keras model as one compiled function.

    TensorFlow traces it once for all batch sizes and, if the model allows it, all image sizes. JAX
    compiles it for each size.

    Args:
        model: A model from images `[batch, height, width, channels]` in 0..255 to logits
            `[batch, height, width, num_classes]`.

    Attributes:
        model: See the argument.

    Raises:
        UserError: The model has several outputs, or its output is not one score per pixel and
            class.
    """

    def __init__(self, model: keras.Model) -> None:
        require_backend("inference", RUNTIMES)
        outputs = getattr(model, "outputs", None) or []  # a subclassed model has no such attribute
        if len(outputs) != 1:
            raise UserError(
                f"model {model.name!r} has {len(outputs)} outputs; must be a functional model with "
                "a single output, the logits"
            )
        shape = tuple(outputs[0].shape)
        if len(shape) != 4 or shape[-1] is None or shape[-1] < 2:
            raise UserError(
                f"model {model.name!r} has an output of shape {shape}; must be logits [batch, "
                "height, width, classes] of at least 2 classes: for a single class, add the "
                "background as the other"
            )
        _, height, width, channels = model.input_shape
        super().__init__(
            model.name, (height, width) if height and width else None, channels, int(shape[-1])
        )
        self.model = model
        self._windows = [layer for layer in model.layers if isinstance(layer, WindowPooling)]
        runtime = importlib.import_module(RUNTIMES[keras.backend.backend()])
        self.arithmetic = runtime.ARITHMETIC
        self._compiled = runtime.compiled(model)
        self._runtime = runtime
        self._lock = threading.Lock()

    @property
    def pad_value(self) -> tuple[float, ...]:
        return pad_value(self.model)

    @property
    def before_resize(self) -> KerasNetwork:
        with self._lock:
            return self._before_resize

    @functools.cached_property
    def _before_resize(self) -> KerasNetwork:
        if self._head is None:
            return self
        return KerasNetwork(keras.Model(self.model.input, self._head))

    @functools.cached_property
    def _head(self) -> Any:
        """The output of the layer "logits", if only a segmentor's merges and resizes follow it.

        In a model that a user has built on top of a segmentor, other layers follow.
        """
        waiting, head = [self.model.outputs[0]], None
        while waiting:
            tensor = waiting.pop()
            operation, inputs = made_by(tensor)
            if operation.name == "logits":
                head = operation.output  # in an image pyramid, the one at scale 1
            elif isinstance(operation, AuxiliaryOutputs):
                waiting += inputs[:1]
            elif isinstance(operation, MERGES):
                waiting += inputs
            elif tensor is not self.model.inputs[0]:
                return None
        return head

    @functools.cached_property
    def ends_with_resize(self) -> bool:
        found = last_resize(self.model)
        return (
            found is not None
            and not found[0].align_corners
            and self._head is not None
            and found[1] is self._head
        )

    def _logits(self, images: Any) -> Any:
        for layer in self._windows:
            layer.check_size(*images.shape[1:3])
        with self._runtime.explaining(images):
            return self._compiled(self._runtime.as_input(images))
