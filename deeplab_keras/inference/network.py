"""A model as one compiled function."""

from __future__ import annotations

import functools
import threading
from typing import Any

import keras
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.models.layers import ResizeTo, WindowPooling, require_tensorflow
from deeplab_keras.models.quantization import Quantized
from deeplab_keras.models.segmentor import AuxiliaryOutputs, pad_value

# The layers by which `build_segmentor` leads from the layer "logits" to the model's output.
MERGES = (ResizeTo, Quantized, keras.layers.Maximum, keras.layers.Average)


def _made_by(tensor: Any) -> tuple[Any, list[Any]]:
    """The layer or operation whose output a tensor is, and that operation's inputs; of an input layer there are none."""
    operation, node, _ = tensor._keras_history
    return operation, list(operation._inbound_nodes[node].input_tensors)


class Network:
    """A model as one compiled function, traced once for every batch size and, if the model allows, every image size.

    Several threads may call one `Network` at the same time.

    Args:
        model: from `[batch, height, width, channels]` in 0..255 to logits `[batch, height, width,
            num_classes]`.

    Attributes:
        name: the model's name.
        input_size: (height, width) for which the model was built, or None for any size.
        channels: channels of the image.
        num_classes: channels of the logits.

    Raises:
        UserError: the model has several outputs, or one that is not a score per pixel and class.
    """

    def __init__(self, model: keras.Model) -> None:
        require_tensorflow("inference")
        outputs = getattr(model, "outputs", None) or []  # a subclassed model has no such attribute
        if len(outputs) != 1:
            raise UserError(
                f"model {model.name!r} has {len(outputs)} outputs; allowed is a functional model "
                "with one: logits"
            )
        shape = tuple(outputs[0].shape)
        if len(shape) != 4 or shape[-1] is None or shape[-1] < 2:
            raise UserError(
                f"model {model.name!r} has an output of shape {shape}; allowed are logits [batch, "
                "height, width, classes] of at "
                "least 2 classes: for one class against the rest, give it and the background"
            )
        self.name = model.name
        _, height, width, self.channels = model.input_shape
        self.input_size = (height, width) if height and width else None
        self.num_classes = int(shape[-1])
        self.model = model
        self._windows = [layer for layer in model.layers if isinstance(layer, WindowPooling)]

        def logits(images: tf.Tensor) -> tf.Tensor:
            (output,) = tf.nest.flatten(model(images, training=False))
            return tf.cast(output, tf.float32)

        signature = [tf.TensorSpec([None, height, width, self.channels], tf.float32)]
        self._compiled = tf.function(logits, input_signature=signature)
        self._lock = threading.Lock()

    @property
    def pad_value(self) -> tuple[float, ...]:
        """The color, in 0..255, that the model normalizes to 0."""
        return pad_value(self.model)

    @property
    def before_resize(self) -> Network:
        """The same network up to its logits before the last resize; the network itself if it does not end as a segmentor does."""
        with self._lock:
            return self._before_resize

    @functools.cached_property
    def _before_resize(self) -> Network:
        return self if self._head is None else Network(keras.Model(self.model.input, self._head))

    @functools.cached_property
    def _head(self) -> Any:
        """The output of the layer "logits", if nothing but a segmentor's own merges and resizes lies behind it.

        Users build models on top of ours, in which a layer of that name is not what leads to the
        output.
        """
        waiting, head = [self.model.outputs[0]], None
        while waiting:
            tensor = waiting.pop()
            operation, inputs = _made_by(tensor)
            if operation.name == "logits":
                head = operation.output  # of an image pyramid, the scores at the image's own size
            elif isinstance(operation, AuxiliaryOutputs):
                waiting += inputs[:1]
            elif isinstance(operation, MERGES):
                waiting += inputs
            elif tensor is not self.model.inputs[0]:
                return None
        return head

    @functools.cached_property
    def ends_with_resize(self) -> bool:
        """Whether the model's last step is a half-pixel resize of `before_resize`, which may as well go to another size."""
        operation, inputs = _made_by(self.model.outputs[0])
        if isinstance(operation, AuxiliaryOutputs):
            operation, inputs = _made_by(inputs[0])
        half_pixel = (
            isinstance(operation, ResizeTo) and not operation.align_corners and operation.scale == 1
        )
        return (
            half_pixel
            and self._head is not None
            and inputs[0] is self._head
            and inputs[1] is self.model.inputs[0]
        )

    @classmethod
    def of(cls, model: keras.Model | Network) -> Network:
        """`model` itself if it is a Network already."""
        return model if isinstance(model, Network) else cls(model)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Logits of images that have the model's input size, float32.

        Raises:
            UserError: the images have another shape, are too small for the model, or too large for
                the memory.
        """
        # Before tf.function sees it: one that refuses its input keeps its lock, and every other
        # thread waits for ever.
        images = tf.cast(images, tf.float32)
        height, width = self.input_size or (None, None)
        if not images.shape.is_compatible_with([None, height, width, self.channels]):
            allowed = f"[batch, {height or 'height'}, {width or 'width'}, {self.channels}]"
            raise UserError(f"images of shape {tuple(images.shape)}; the model takes {allowed}")
        size = "x".join(map(str, images.shape[1:3]))
        for layer in self._windows:
            layer.check_size(*images.shape[1:3])
        try:
            return self._compiled(images)
        except tf.errors.ResourceExhaustedError:
            raise UserError(
                f"{len(images)} images of {size} do not fit into the memory; "
                "lower `eval_batch_size`, or give `inference='slide'` with a smaller `eval_crop_size`"
            ) from None
        except tf.errors.InvalidArgumentError as error:
            reason = error.message.splitlines()[0].split("}} ")[-1].strip()
            raise UserError(
                f"the model cannot take an input of {size} ({reason}); give a larger image, or "
                "`eval_short_side`"
            ) from None
