"""The segmentation network: normalise, backbone, head, resize; one plain functional keras.Model."""

from __future__ import annotations

import numbers
import re
from typing import Any

import keras

from deeplab_keras.config import NORMALIZATIONS, ModelConfig, UserError
from deeplab_keras.models.backbones import build_backbone
from deeplab_keras.models.heads import build_head
from deeplab_keras.models.heads.fcn import auxiliary
from deeplab_keras.models.layers import PACKAGE, Normalize, ResizeTo, Tensor, check_window
from deeplab_keras.models.quantization import quantized


def build_segmentor(
    config: ModelConfig, input_size: tuple[int, int] | None = None, *, batch_size: int | None = None
) -> keras.Model:
    """Builds the network that `config` describes, with fresh weights.

    Args:
        config: the architecture.
        input_size: (height, width) of the images, or None for any size.
        batch_size: number of images, or None for any; on-device converters want 1.

    Returns:
        A functional model from images `[batch, height, width, channels]`, RGB in 0..255, to logits
        `[batch, height, width, num_classes]`, float32. Layers "logits" and, with an auxiliary head,
        "auxiliary_logits" give the class scores before the resize. The auxiliary head is part of
        the model (its weights, summary and parameter count), but nothing of it is computed at
        inference.

    Raises:
        UserError: no config, an unknown backbone or head, or a size that the network cannot take.
    """
    if not isinstance(config, ModelConfig):
        raise UserError(
            f"build_segmentor: {config!r} is no ModelConfig; give get_config(NAME), list_models() "
            "names them"
        )
    if input_size is not None and not _is_size(input_size):
        raise UserError(
            f"build_segmentor: input_size={input_size!r} is not (height, width) of at least 1; "
            "None takes any size"
        )
    height, width = input_size or (None, None)
    if input_size is not None:
        check_input_size(config, *input_size)
    image = keras.Input((height, width, config.input_channels), batch_size=batch_size, name="image")
    mean, std = (values[: config.input_channels] for values in NORMALIZATIONS[config.normalization])
    if config.input_channels > 3:  # unit_range has one value for all channels
        mean, std = mean[:1], std[:1]
    x = image if config.normalization == "none" else Normalize(mean, std, name="normalize")(image)
    features = build_backbone(x, config)
    logits = build_head(features, config)
    if config.image_pyramid:
        logits = _merge_pyramid(image, logits, config)
    output = ResizeTo(config.align_corners, dtype=keras.config.floatx(), name="resized_logits")(
        [logits, image]
    )
    if config.auxiliary_head:
        output = KeepAuxiliary(dtype=keras.config.floatx(), name="segmentation")(
            [output, auxiliary(features, config)]
        )
    model = keras.Model(image, output, name=config.name or f"{config.head}_{config.backbone}")
    return quantized(model) if config.quantization_aware else model


def _is_size(size: object) -> bool:
    sides = size if isinstance(size, tuple | list) else ()
    return len(sides) == 2 and all(
        isinstance(side, numbers.Integral) and int(side) >= 1 for side in sides
    )


def _merge_pyramid(image: Tensor, logits: Tensor, config: ModelConfig) -> Tensor:
    """Class scores of the image at every scale of `image_pyramid`, resized to the largest scale's size and merged.

    See docs/reference/official_deeplab.md#image-pyramid. The scores of each scale come from layers
    named "logits_0.50" and so on.
    """
    network = keras.Model(image, logits, name="single_scale")
    network.input_spec = None  # it takes every scale's size, also where `image` has a fixed one
    scores = {}
    for scale in config.image_pyramid:
        scaled = ResizeTo(config.align_corners, scale, name=f"image_{scale:.2f}")([image, image])
        scores[scale] = logits if scale == 1 else network(scaled)
    largest = max(scores)
    reference = scores[largest] if largest >= 1 else logits
    names = {
        scale: f"logits_{scale:.2f}" if len(scores) > 1 else "merged_logits" for scale in scores
    }
    resized = [
        ResizeTo(config.align_corners, dtype=keras.config.floatx(), name=names[scale])(
            [values, reference]
        )
        for scale, values in scores.items()
    ]
    if 1.0 not in scores:  # keeps the network's layers, which bear the weights' names, in the model
        resized[0] = KeepAuxiliary(dtype=keras.config.floatx(), name="pyramid")(
            [resized[0], logits]
        )
    if len(resized) == 1:
        return resized[0]
    merge = keras.layers.Maximum if config.merge_method == "max" else keras.layers.Average
    return merge(dtype=keras.config.floatx(), name="merged_logits")(resized)


def with_auxiliary_output(model: keras.Model, align_corners: bool = False) -> keras.Model:
    """A view of a segmentor for training: the same layers and weights, with every head an output at the input's size.

    Returns:
        A model whose outputs are a dict: "logits" and, where there is an auxiliary head,
        "auxiliary_logits", and "logits_0.50" and so on for the scales of an image pyramid, each
        `[batch, height, width, num_classes]`.
    """
    outputs = {"logits": model.get_layer("resized_logits").output}
    for layer in model.layers:
        if re.fullmatch(
            r"logits_\d+\.\d+", layer.name
        ):  # each scale of an image pyramid has its own loss
            outputs[layer.name] = ResizeTo(
                align_corners, dtype=keras.config.floatx(), name=f"resized_{layer.name}"
            )([layer.output, model.input])
    if "auxiliary_logits" in [layer.name for layer in model.layers]:
        scores = model.get_layer("auxiliary_logits").output
        outputs["auxiliary_logits"] = ResizeTo(
            align_corners, dtype=keras.config.floatx(), name="resized_auxiliary_logits"
        )([scores, model.input])
    return keras.Model(model.input, outputs, name=model.name)


@keras.saving.register_keras_serializable(PACKAGE)
class KeepAuxiliary(keras.layers.Layer):
    """Returns the first of its inputs; the second is kept in the model's graph and, unused, never computed."""

    def call(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0]

    def compute_output_shape(self, input_shape: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        return input_shape[0]


def check_input_size(config: ModelConfig, height: int, width: int) -> None:
    """Raises UserError for an input that is too small for the image-pooling window."""
    if not config.image_pooling_window:
        return
    check_window(
        height,
        width,
        config.image_pooling_window,
        config.output_stride,
        config.image_pooling_crop_size,
    )
