"""The segmentation network: normalization, backbone, head and resize in a functional model."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from deeplab_keras.config import NORMALIZATIONS, ModelConfig, UserError
from deeplab_keras.models.backbones import build_backbone
from deeplab_keras.models.heads import build_head
from deeplab_keras.models.heads.fcn import auxiliary
from deeplab_keras.models.layers import PACKAGE, Normalize, ResizeTo, Tensor, check_window
from deeplab_keras.models.quantization import quantized

# Weight of the auxiliary head's loss (docs/reference/sssegmentation.md#loss).
AUXILIARY_LOSS_WEIGHT = 0.4


@keras.saving.register_keras_serializable(PACKAGE)
class Segmentor(keras.Model):
    """A functional model from images to logits whose `fit` also trains its auxiliary outputs.

    The auxiliary outputs are the auxiliary head and the scales of an image pyramid. `compile` takes
    one loss. A training step applies it to the logits and to every auxiliary output, with the
    weights of `auxiliary_loss_weights`. Metrics and the loss of `evaluate` are computed on the
    logits only. Calling the model returns the logits, and computes the auxiliary outputs only with
    `training=True`.

    `save`, `keras.models.load_model`, `keras.models.clone_model` and `export` work as for every
    functional model.

    Args:
        inputs: The image, a `keras.Input`.
        outputs: The logits, possibly the output of an `AuxiliaryOutputs` layer.
        name: Name of the model.
        **kwargs: Other arguments of `keras.Model`, such as `trainable`.

    Example:
        >>> model = dk.load_model("runs/demo")
        >>> type(model).__name__
        'Segmentor'
        >>> images, labels = np.zeros((2, 64, 64, 3)), np.zeros((2, 64, 64))
        >>> metric = dk.metrics.MeanIoU(num_classes=model.output_shape[-1])
        >>> model.compile("adam", loss=dk.losses.make_loss(), metrics=[metric])
        >>> history = model.fit(images, labels, verbose=0)
        >>> sorted(history.history)
        ['loss', 'miou']
    """

    # By this signature, every version of Keras recognizes a functional model, which it can save.
    # Keras 3.11 does not recognize one that names the arguments.
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layer = next((x for x in self.layers if isinstance(x, AuxiliaryOutputs)), None)
        self._paths = None if layer is None else _Paths.of(self, layer)

    @property
    def auxiliary_loss_weights(self) -> dict[str, float]:
        """Weight of the loss of each auxiliary output by name. The dict can be changed.

        Set the weights before the first training step, which is compiled with them.
        """
        return {} if self._paths is None else self._paths.loss_weights

    @property
    def training_outputs(self) -> dict[str, Tensor]:
        """Symbolic outputs of a training step at the size of the image, by name.

        They include "logits".
        """
        return {"logits": self.output} if self._paths is None else self._paths.training.output

    @property
    def pad_value(self) -> tuple[float, ...]:
        """The color in 0..255 with which the reference pads images. Its normalized value is 0."""
        return pad_value(self)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if self._paths is None:
            return super().call(inputs, training=training, mask=mask)
        if not training:
            return self._paths.inference.call(inputs, training=training, mask=mask)
        outputs = self._paths.training.call(inputs, training=training, mask=mask)
        return outputs if _in_training_step.get() is self else outputs["logits"]

    @contextlib.contextmanager
    def training_step(self) -> Iterator[None]:
        """Context in which `model(x, training=True)` returns a dict with all `training_outputs`."""
        token = _in_training_step.set(self)
        try:
            yield
        finally:
            _in_training_step.reset(token)

    def train_step(self, *args: Any) -> Any:
        with self.training_step():
            return super().train_step(*args)

    def compute_loss(
        self,
        x: Tensor = None,
        y: Tensor = None,
        y_pred: Tensor | Mapping[str, Tensor] = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Tensor:
        """Returns the loss of the logits and, in a training step, of the auxiliary outputs."""
        if keras.backend.backend() != "jax":  # JAX would compile the step as a constant
            for function in keras.tree.flatten(self.loss):
                if hasattr(function, "follow"):
                    function.follow(lambda: self.optimizer.iterations)
        if not isinstance(y_pred, Mapping):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        loss = super().compute_loss(x, y, y_pred["logits"], sample_weight, training)
        return self._with_auxiliary_losses(loss, y, y_pred, sample_weight)

    def _with_auxiliary_losses(
        self, loss: Tensor, y: Tensor, y_pred: Mapping[str, Tensor], sample_weight: Tensor = None
    ) -> Tensor:
        """Returns the sum of the loss of the logits and the weighted ones of the other outputs."""
        if self._compile_loss is not None:
            for name, weight in self.auxiliary_loss_weights.items():
                loss = loss + weight * self._compile_loss(y, y_pred[name], sample_weight)
        return loss

    def compute_metrics(
        self,
        x: Tensor,
        y: Tensor,
        y_pred: Tensor | Mapping[str, Tensor],
        sample_weight: Tensor = None,
    ) -> dict[str, Tensor]:
        """Returns the metrics of the logits."""
        logits = y_pred["logits"] if isinstance(y_pred, Mapping) else y_pred
        return super().compute_metrics(x, y, logits, sample_weight)


# The model whose training step is running. Per thread, because replicas run in threads.
_in_training_step: contextvars.ContextVar[Segmentor | None] = contextvars.ContextVar(
    "_in_training_step", default=None
)


@dataclasses.dataclass(frozen=True)
class _Paths:
    """The two paths through a segmentor's layers.

    Keras does not track them, so they add no layers to the model.

    Attributes:
        inference: From the image to the logits.
        training: From the image to the logits and the auxiliary outputs.
        loss_weights: See `Segmentor.auxiliary_loss_weights`.
    """

    inference: keras.Model
    training: keras.Model
    loss_weights: dict[str, float]

    @classmethod
    def of(cls, model: Segmentor, layer: AuxiliaryOutputs) -> _Paths:
        logits, *scores = layer.input
        outputs = {"logits": logits}
        for name, values in zip(layer.loss_weights, scores, strict=False):
            resize = ResizeTo(layer.align_corners, dtype=layer.dtype_policy, name=f"resized_{name}")
            outputs[name] = resize([values, model.input])
        return cls(
            keras.Model(model.input, logits, name="inference"),
            keras.Model(model.input, outputs, name="training"),
            layer.loss_weights,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class AuxiliaryOutputs(keras.layers.Layer):
    """Returns its first input, and keeps outputs that only training needs in the model's graph.

    The inputs are the logits, the class scores of the auxiliary outputs in the order of
    `loss_weights`, and possibly tensors whose layers belong to the model but are not computed.

    Args:
        loss_weights: Weight of the loss of each auxiliary output by name.
        align_corners: How training resizes the scores to the size of the image, see `ResizeTo`.
        **kwargs: Arguments of every layer.
    """

    def __init__(
        self, loss_weights: Mapping[str, float], align_corners: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.loss_weights, self.align_corners = dict(loss_weights), align_corners

    def call(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0]

    def compute_output_shape(self, input_shape: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "loss_weights": dict(self.loss_weights),
            "align_corners": self.align_corners,
        }


def build_segmentor(
    config: ModelConfig, input_size: tuple[int, int] | None = None, *, batch_size: int | None = None
) -> Segmentor:
    """Builds the network of a config, with random weights.

    Args:
        config: The architecture.
        input_size: (height, width) of the images. `None` accepts any size.
        batch_size: Number of images per batch. `None` accepts any number. On-device converters
            require 1.

    Returns:
        A functional model from images `[batch, height, width, channels]`, RGB in 0..255, to logits
        `[batch, height, width, num_classes]`, float32. The layers "logits" and, with an auxiliary
        head, "auxiliary_logits" compute the class scores before they are resized. The auxiliary
        head is part of the model (weights, summary, number of parameters) and trained by `fit`.
        Inference does not compute it.

    Raises:
        UserError: If `config` is not a `ModelConfig`, or if the network does not accept images of
            `input_size`.
    """
    if not isinstance(config, ModelConfig):
        raise UserError(
            f"config must be a ModelConfig. Received: config={config!r}; use get_config(NAME) with "
            "a name from list_models()"
        )
    if input_size is not None and not _is_size(input_size):
        raise UserError(
            "input_size must be (height, width), each at least 1, or None for any size. Received: "
            f"input_size={input_size!r}"
        )
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise UserError(
            "batch_size must be a whole number of at least 1, or None for any number of images. "
            f"Received: batch_size={batch_size!r}"
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
    logits = scores = build_head(features, config)
    scales: dict[str, Tensor] = {}
    if config.image_pyramid:
        scales, scores = _merge_pyramid(image, logits, config)
    output = ResizeTo(config.align_corners, dtype=keras.config.floatx(), name="resized_logits")(
        [scores, image]
    )
    loss_weights, kept = dict.fromkeys(scales, 1.0), list(scales.values())
    if config.auxiliary_head:
        loss_weights["auxiliary_logits"] = AUXILIARY_LOSS_WEIGHT
        kept.append(auxiliary(features, config))
    if config.image_pyramid and 1.0 not in config.image_pyramid:
        kept.append(logits)  # so that get_layer("logits").output is the same after loading
    if kept:
        output = AuxiliaryOutputs(
            loss_weights, config.align_corners, dtype=keras.config.floatx(), name="segmentation"
        )([output, *kept])
    model = Segmentor(image, output, name=config.name or f"{config.head}_{config.backbone}")
    return quantized(model) if config.quantization_aware else model


def _is_size(size: object) -> bool:
    sides = size if isinstance(size, tuple | list) else ()
    return len(sides) == 2 and all(
        isinstance(side, numbers.Integral) and not isinstance(side, bool) and int(side) >= 1
        for side in sides
    )


def _merge_pyramid(
    image: Tensor, logits: Tensor, config: ModelConfig
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the class scores of each scale of `image_pyramid`, and the merged scores.

    See docs/reference/official_deeplab.md#image-pyramid. All scores are resized to the size of the
    scores of the largest scale. The scales share the layers from `image` to `logits`. With a single
    scale, nothing is merged and the scale has no loss of its own.

    Returns:
        The scores by layer name ("logits_0.50" and so on), and the merged scores.
    """
    network = keras.Model(image, logits, name="single_scale")
    scores = {}
    for scale in config.image_pyramid:
        scaled = ResizeTo(config.align_corners, scale, name=f"image_{scale:.2f}")([image, image])
        scores[scale] = logits if scale == 1 else network.call(scaled)
    largest = max(scores)
    reference = scores[largest] if largest >= 1 else logits
    names = {
        scale: f"logits_{scale:.2f}" if len(scores) > 1 else "merged_logits" for scale in scores
    }
    resized = {
        names[scale]: ResizeTo(
            config.align_corners, dtype=keras.config.floatx(), name=names[scale]
        )([values, reference])
        for scale, values in scores.items()
    }
    if len(resized) == 1:
        return {}, resized["merged_logits"]
    merge = keras.layers.Maximum if config.merge_method == "max" else keras.layers.Average
    merged = merge(dtype=keras.config.floatx(), name="merged_logits")(list(resized.values()))
    return resized, merged


def pad_value(model: keras.Model) -> tuple[float, ...]:
    """Returns the color in 0..255 that `model` normalizes to 0, or black without normalization."""
    channels = model.input_shape[-1]
    mean = next((layer.mean for layer in model.layers if isinstance(layer, Normalize)), (0.0,))
    return mean * channels if len(mean) == 1 else mean


def with_auxiliary_output(model: Segmentor) -> keras.Model:
    """Returns a model with all `training_outputs` of a segmentor, for custom training loops."""
    return keras.Model(model.input, model.training_outputs, name=model.name)


def check_input_size(config: ModelConfig, height: int, width: int) -> None:
    """Raises `UserError` if an image of this size is too small for the image pooling window."""
    if not config.image_pooling_window:
        return
    check_window(
        height,
        width,
        config.image_pooling_window,
        config.output_stride,
        config.image_pooling_crop_size,
    )
