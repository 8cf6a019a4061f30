"""What an export converts: a model, its classes and, if it is known, its config."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deeplab_keras.checkpoints.folder import LoadedCheckpoint, assign_weights, named_weights
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.export.graph import check_operations
from deeplab_keras.inference.keras_network import KerasNetwork, made_by
from deeplab_keras.models.concat_conv import ConcatConv2D
from deeplab_keras.models.layers import WindowPooling, smallest_size
from deeplab_keras.models.quantization import Quantized, without_ranges
from deeplab_keras.models.segmentor import build_segmentor, pad_value
from deeplab_keras.zoo.loading import open_checkpoint

ANY_SIZE = (193, 257)  # (height, width) for a model of any input size
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Exportable:
    """A model to export.

    Attributes:
        model: From images `[batch, height, width, channels]` to one score per pixel and class.
        info: The classes.
        config: The architecture; `None` for a model that was given as a `keras.Model`.
        path: Where the weights are from, for messages.
    """

    model: keras.Model
    info: DatasetInfo
    config: ModelConfig | None = None
    path: pathlib.Path = pathlib.Path()

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str] | LoadedCheckpoint | keras.Model,
        class_names: Sequence[str] = (),
    ) -> Exportable:
        """Opens what `export_model` takes.

        Args:
            source: See `export_model`.
            class_names: The names of the classes of a `keras.Model`.

        Raises:
            UserError: It is something else, or the numbers of classes of the model and of the names
                differ.
        """
        if isinstance(source, keras.Model):
            _check_input(source)
            source = without_softmax(source)
            check_operations(source)
            count = KerasNetwork(source).num_classes
            _check_names(class_names, count)
            names = list(class_names) or [f"class_{number}" for number in range(count)]
            return cls(source, info_for_classes(source.name, names))
        if isinstance(source, str | os.PathLike):
            source = open_checkpoint(source)
        if not isinstance(source, LoadedCheckpoint):
            raise UserError(
                "`checkpoint` must be a path, the name of a model, a loaded checkpoint or a "
                f"keras.Model, not {type(source).__name__}"
            )
        if class_names:
            raise UserError(
                "`class_names` cannot be combined with a checkpoint, which has its own class "
                "names; omit it"
            )
        classes = KerasNetwork(source.model).num_classes
        if not classes == source.config.num_classes == source.info.num_classes:
            raise UserError(
                f"the model outputs {classes} classes, its config has "
                f"{source.config.num_classes} and its class list {source.info.num_classes}; "
                "give a LoadedCheckpoint in which all three agree, or the keras.Model"
            )
        return cls(source.model, source.info, source.config, source.path)

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return int(self.model.input_shape[-1])

    @property
    def architecture(self) -> str:
        """The head and the backbone, or the name of a model without a config."""
        config = self.config
        return f"{config.head} on {config.backbone}" if config else self.model.name

    @property
    def description(self) -> dict[str, Any]:
        """The model in `model.json`."""
        if self.config:
            return self.config.to_dict()
        return {"name": self.model.name, "input_channels": self.channels}

    @property
    def quantization_aware(self) -> bool:
        """Whether layers of the model simulate int8."""
        return any(isinstance(layer, Quantized) for layer in _layers(self.model))

    @property
    def branchwise(self) -> bool:
        """Whether the model computes convolutions over concatenated maps map by map."""
        return any(isinstance(layer, ConcatConv2D) for layer in _layers(self.model))

    @functools.cached_property
    def smallest(self) -> tuple[int, int]:
        """The (height, width) of the smallest image that the model takes."""
        sizes = [smallest_size(x.pool_size, x.output_stride) for x in self._windows]
        heights, widths = zip((1, 1), *sizes, strict=True)
        return max(heights), max(widths)

    @property
    def usual_size(self) -> tuple[int, int]:
        """The model's fixed (height, width), or one that it takes."""
        (height, width), (least_height, least_width) = ANY_SIZE, self.smallest
        return _size(self.model) or (max(height, least_height), max(width, least_width))

    def check_size(self, height: int, width: int) -> None:
        """Raises `UserError` if the model does not take images of this size, or changes it."""
        for layer in self._windows:
            layer.check_size(height, width)
        if self.config is None:
            shape = self.model.compute_output_shape((1, height, width, self.channels))
            if tuple(shape[1:3]) != (height, width):
                raise UserError(
                    f"the model {self.model.name!r} has scores of {shape[1]}x{shape[2]} for an "
                    f"image of {height}x{width}; add a resize to the size of the image"
                )

    def check_weights(self) -> None:
        """Raises `UserError` if weights are NaN or infinite, which most runtimes do not refuse."""
        for layer in _layers(self.model):
            for variable in layer.weights:
                if not np.isfinite(ops.convert_to_numpy(variable)).all():
                    raise UserError(
                        f"the model {self.model.name!r} has weights that are NaN or infinite, in "
                        f"its layer {layer.name!r}, so its training may have diverged; export "
                        "another checkpoint"
                    )

    def check_dtypes(self, kind: str) -> None:
        """Raises `UserError` if a format cannot have the arithmetic of the model's layers."""
        for layer in _layers(self.model):
            if layer.compute_dtype != "float32":
                raise UserError(
                    f"`formats={kind}`: the layer {layer.name!r} computes in "
                    f"{layer.compute_dtype}, and the converters need float32; build the model "
                    "with the dtype policy float32 and the same weights"
                )

    @property
    def _windows(self) -> list[WindowPooling]:
        return [layer for layer in _layers(self.model) if isinstance(layer, WindowPooling)]

    @property
    def pad_value(self) -> tuple[float, ...]:
        """The color in 0..255 that the model normalizes to 0."""
        return pad_value(self.model)

    def changed(self, **changes: Any) -> Exportable:
        """Returns the model with options of its config changed that do not affect its weights.

        A model with layers that its config does not describe is copied layer by layer.

        Args:
            **changes: `branchwise=False`, `align_corners=False` or `quantization_aware=False`.
        """
        config = self.config and self.config.replace(**changes)
        if self.config and config and _is_described(self.model, self.config):
            model = _rebuilt(self.model, config, self.path)
        else:
            model = _copy(self.model, **changes)
        return dataclasses.replace(self, model=model, config=config)


def rebuilt(checkpoint: LoadedCheckpoint, **changes: Any) -> LoadedCheckpoint:
    """Rebuilds a checkpoint's network with changes to its config that do not affect its weights.

    Raises:
        UserError: The network has layers that its config does not describe, which would be lost.
    """
    if not _is_described(checkpoint.model, checkpoint.config):
        raise UserError(
            f"the layers of {checkpoint.model.name!r} are not those that its config describes, and "
            f"{', '.join(f'{name}={value}' for name, value in changes.items())} rebuilds the "
            "network; give the unmodified network, or omit the option"
        )
    config = checkpoint.config.replace(**changes)
    model = _rebuilt(checkpoint.model, config, checkpoint.path)
    return dataclasses.replace(checkpoint, model=model, config=config)


def _is_described(model: keras.Model, config: ModelConfig) -> bool:
    return _names(model) == _names(build_segmentor(config, _size(model)))


def _rebuilt(model: keras.Model, config: ModelConfig, path: pathlib.Path) -> keras.Model:
    changed = build_segmentor(config, _size(model))
    assign_weights(changed, without_ranges(named_weights(model)), str(path))
    return changed


def _size(model: keras.Model) -> tuple[int, int] | None:
    height, width = model.input_shape[1:3]
    return (height, width) if height and width else None


def _check_input(model: keras.Model) -> None:
    """Raises `UserError` for a model that does not take batches of images of one or any size."""
    inputs = getattr(model, "inputs", None) or []
    by_name = not isinstance(model, keras.Sequential) and inputs and isinstance(model.output, dict)
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or by_name:
        raise UserError(
            f"the model {model.name!r} must be a functional or Sequential model with a keras.Input "
            "of images [height, width, channels] and a single output, no dictionary"
        )
    count, height, width, channels = inputs[0].shape
    if count not in (None, 1) or (height is None) != (width is None) or channels is None:
        raise UserError(
            f"the model {model.name!r} has an input of shape {tuple(inputs[0].shape)}; must be "
            "[batch, height, width, channels] for any batch size, with both sides fixed or none"
        )


def _check_names(names: Sequence[str], count: int) -> None:
    """Raises `UserError` if names cannot be those of `count` classes, one per line of a file."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"`class_names` must be a list of names, not {type(names).__name__}; give one name per "
            "class, such as ['road', 'car']"
        )
    for name in names:
        if not name.strip() or not name.isprintable():
            raise UserError(
                f"`class_names`: {name!r} is empty or has a line break or control character; give "
                "printable names"
            )
    if names and len(names) != count:
        raise UserError(
            f"`class_names`: {len(names)} names for a model with {count} classes; give one "
            "name per class"
        )


def without_softmax(model: keras.Model) -> keras.Model:
    """Returns a model up to its logits: files return logits, and their labels are the same.

    Raises:
        UserError: The softmax is part of the last layer.
    """
    output = model.outputs[0] if len(model.outputs) == 1 else None
    if output is None:
        return model
    operation, inputs = made_by(output)
    softmax = keras.activations.softmax
    is_softmax = type(operation).__name__ == "Softmax" or (
        isinstance(operation, keras.layers.Activation) and operation.activation is softmax
    )
    if is_softmax and getattr(operation, "axis", -1) in (-1, 3):
        logger.info("the softmax %r is left out, because files return logits", operation.name)
        return keras.Model(model.inputs[0], inputs[0], name=model.name)
    if getattr(operation, "activation", None) is softmax:
        raise UserError(
            f"the layer {operation.name!r} ends with a softmax, but files return logits; build it "
            "without an activation, and add keras.layers.Softmax() after it where you need it"
        )
    return model


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the layers of a model, also those inside of wrappers and nested models."""
    return list(model._flatten_layers(include_self=False))


def _names(model: keras.Model) -> list[tuple[str, str]]:
    return [
        (type(layer).__name__, layer.name)
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def _copy(
    model: keras.Model,
    *,
    branchwise: bool = True,
    align_corners: bool = True,
    quantization_aware: bool = True,
) -> keras.Model:
    """Returns a copy of a model whose layers compute in another way. `True` changes nothing."""
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, Quantized) and not quantization_aware:
            layer = layer.layer
        options = layer.get_config()
        if isinstance(layer, ConcatConv2D) and not branchwise:
            options["concatenated"] = True
        if options.get("align_corners") and not align_corners:
            options["align_corners"] = False
        pairs.append((layer, type(layer).from_config(options)))
        return pairs[-1][1]

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for layer, cloned in pairs:
        cloned.set_weights(layer.get_weights())
    return copy
