"""The running statistics of batch norm in a training: where they start, whether they keep up, and measuring them anew.

Only the layers' running means and variances are touched here. The weights of a training do not
depend on them, so a run takes the same steps as the reference implementations whatever happens in
this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import ModelConfig
from deeplab_keras.models.layers import BatchNormalization, warm_up
from deeplab_keras.models.segmentor import build_segmentor

LONG_MOMENTUM = 0.99  # from here on a momentum is worth a warning in a short training
LEFT_OVER = 0.05  # share of the initial statistics at the end of a training that is worth one


def updated_layers(model: keras.Model) -> list[BatchNormalization]:
    """The layers whose statistics a training step updates, in the model's order."""
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    return [layer for layer in layers if layer.trainable and not layer.freeze_statistics]


def find_fresh(model: keras.Model) -> np.ndarray:
    """For each batch norm of the model, 1 where its statistics are those of a new layer (mean 0, variance 1), else 0."""
    return np.array(
        [_is_fresh(layer) for layer in model.layers if isinstance(layer, BatchNormalization)],
        np.uint8,
    )


def _is_fresh(layer: BatchNormalization) -> bool:
    mean, variance = map(keras.ops.convert_to_numpy, (layer.moving_mean, layer.moving_variance))
    return bool(np.all(mean == 0) and np.all(variance == 1))


def warm_up_fresh(model: keras.Model, fresh: np.ndarray, updates: Callable[[], Any]) -> None:
    """Lets fresh statistics warm up; those of an initial checkpoint follow their momentum, as in the references.

    Must be called before the training step is traced.

    Args:
        model: the segmentor.
        fresh: as `find_fresh` returned it when the training started, not when it was resumed.
        updates: returns the number of steps so far, a tensor that is saved with the training.
    """
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    for layer, is_fresh in zip(layers, fresh, strict=True):
        layer.share = (lambda momentum: warm_up(momentum, updates())) if is_fresh else None


def warn_of_lag(model: keras.Model, fresh: np.ndarray, steps: int) -> None:
    """Warns of statistics that will not follow the weights within a training of so many steps."""
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    updated = {layer.name for layer in updated_layers(model)}
    frozen = [
        layer.name
        for layer, new in zip(layers, fresh, strict=True)
        if new and layer.name not in updated
    ]
    if frozen:
        logging.warning(
            "%d batch norm layers start fresh and keep mean 0 and variance 1 (%s, ...): "
            "`fine_tune_batch_norm=False` and "
            "`freeze_backbone` fit layers whose statistics come from the initial checkpoint",
            len(frozen),
            frozen[0],
        )
    kept = {
        layer.momentum: layer.momentum**steps
        for layer, new in zip(layers, fresh, strict=True)
        if layer.name in updated
        and not new
        and layer.momentum >= LONG_MOMENTUM
        and layer.momentum**steps > LEFT_OVER
    }
    if kept:
        shares = " and ".join(
            f"{share:.0%} at momentum {momentum:g}" for momentum, share in kept.items()
        )
        logging.warning(
            "after %d steps batch norm still has a share of the initial checkpoint's statistics "
            "(%s), so validation will fall "
            "behind training: give `backbone_bn_momentum=0.9` `head_bn_momentum=0.9`, or "
            "`recalibrate_batch_norm=20`",
            steps,
            shares,
        )


def measure(
    config: ModelConfig,
    weights: Mapping[str, np.ndarray],
    layers: Iterable[str],
    batches: Iterable[Any],
) -> dict[str, np.ndarray]:
    """The statistics that these weights have on some batches: the mean over the batches, each counting the same.

    Dropout is left out, as in inference. The running model, its statistics and its random state
    stay as they are.

    Args:
        config: the architecture.
        weights: all weights by name.
        layers: names of the batch norm layers to measure; the others keep their statistics, in use
            too.
        batches: of images `[batch, height, width, channels]`, or of pairs of images and labels.

    Returns:
        The running means and variances of `layers`, by weight name.
    """
    model, layers = build_segmentor(config.replace(dropout_rate=0.0)), set(layers)
    folder.assign_weights(model, weights, source="the training's weights")
    seen = tf.Variable(0.0, trainable=False)
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.freeze_statistics = layer.name not in layers
            layer.share = lambda momentum: seen / (seen + 1)

    @tf.function(autograph=False, reduce_retracing=True)
    def look(images: tf.Tensor) -> None:
        model(images, training=True)
        seen.assign_add(1.0)

    for batch in batches:
        look(batch[0] if isinstance(batch, tuple) else batch)
    found = folder.named_weights(model)
    return {
        name: found[name] for name in found if name.split("/")[0] in layers and "/moving_" in name
    }
