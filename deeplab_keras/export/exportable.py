"""What an export converts: a model, its classes and, if it is known, its config."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras

from deeplab_keras.checkpoints.folder import LoadedCheckpoint, assign_weights, named_weights
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.concat_conv import ConcatConv2D
from deeplab_keras.models.layers import WindowPooling, smallest_size
from deeplab_keras.models.quantization import Quantized, without_ranges
from deeplab_keras.models.segmentor import build_segmentor, pad_value
from deeplab_keras.zoo.loading import open_checkpoint


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
            count = KerasNetwork(source).num_classes
            names = list(class_names) or [f"class_{number}" for number in range(count)]
            if len(names) != count:
                raise UserError(
                    f"`class_names`: {len(names)} names for a model with {count} classes; give one "
                    "name per class"
                )
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

    def check_size(self, height: int, width: int) -> None:
        """Raises `UserError` if the model does not take images of this size."""
        for layer in self._windows:
            layer.check_size(height, width)

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
