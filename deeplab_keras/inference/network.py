"""A model as one compiled function."""

from __future__ import annotations

import functools

import keras
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.layers import Normalize, ResizeTo, WindowPooling


class Network:
    """A model as one compiled function, traced once for every batch size and, if the model allows, every image size.

    Args:
        model: from `[batch, height, width, channels]` in 0..255 to logits `[batch, height, width, num_classes]`.

    Attributes:
        name: the model's name.
        input_size: (height, width) for which the model was built, or None for any size.
        channels: channels of the image.
        num_classes: channels of the logits.

    Raises:
        UserError: the model has several outputs.
    """

    def __init__(self, model: keras.Model) -> None:
        if len(model.outputs) != 1:
            raise UserError(f"model {model.name!r} has {len(model.outputs)} outputs; allowed is one: the logits")
        self.name = model.name
        _, height, width, self.channels = model.input_shape
        self.input_size = (height, width) if height and width else None
        self.num_classes = int(model.outputs[0].shape[-1])
        self.model = model
        self._windows = [layer for layer in model.layers if isinstance(layer, WindowPooling)]

        def logits(images: tf.Tensor) -> tf.Tensor:
            (output,) = tf.nest.flatten(model(images, training=False))
            return tf.cast(output, tf.float32)

        signature = [tf.TensorSpec([None, height, width, self.channels], tf.float32)]
        self._compiled = tf.function(logits, input_signature=signature)

    @property
    def pad_value(self) -> tuple[float, ...]:
        """The colour that is 0 to the network: the mean of its normalization."""
        normalize = next((layer for layer in self.model.layers if isinstance(layer, Normalize)), None)
        return normalize.mean if normalize else (0.0,) * self.channels

    @functools.cached_property
    def before_resize(self) -> Network:
        """The same network up to its logits before the last resize."""
        return Network(keras.Model(self.model.input, self.model.get_layer("logits").output))

    @functools.cached_property
    def ends_with_resize(self) -> bool:
        """Whether the model's last step is a half-pixel resize of `before_resize`, which may as well go to another size."""
        layers = {layer.name: layer for layer in self.model.layers}
        resize = layers.get("resized_logits")
        return isinstance(resize, ResizeTo) and not resize.align_corners and resize.input[0] is layers["logits"].output

    @classmethod
    def of(cls, model: keras.Model | Network) -> Network:
        """`model` itself if it is a Network already."""
        return model if isinstance(model, Network) else cls(model)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Logits of images that have the model's input size, float32.

        Raises:
            UserError: the images are too small for the model, or too large for the memory.
        """
        size = "x".join(map(str, images.shape[1:3]))
        for layer in self._windows:
            layer.check_size(*images.shape[1:3])
        try:
            return self._compiled(images)
        except tf.errors.ResourceExhaustedError:
            raise UserError(
                f"{len(images)} images of {size} do not fit into the memory; "
                "lower --eval_batch_size, or give --inference=slide with a smaller --eval_crop_size"
            ) from None
        except tf.errors.InvalidArgumentError as error:
            reason = error.message.splitlines()[0].split("}} ")[-1].strip()
            raise UserError(
                f"the model cannot take an input of {size} ({reason}); give a larger image, or --eval_short_side"
            ) from None
