"""The running statistics of batch norm during a run: warm-up, warnings and recalibration.

This module only changes the running means and variances of the layers. The training steps do not
depend on them, so a run takes the same steps as the reference implementations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import ModelConfig
from deeplab_keras.models.layers import BatchNormalization, warm_up
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.engine import find_engine

logger = logging.getLogger(__name__)

LARGE_MOMENTUM = 0.99  # smaller momentums do not cause a warning
MAX_INITIAL_SHARE = 0.05  # share of the initial statistics at the end of a run without a warning


def updated_layers(model: keras.Model) -> list[BatchNormalization]:
    """Returns the layers whose statistics a training step updates, in the model's order."""
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    return [layer for layer in layers if layer.trainable and not layer.freeze_statistics]


def find_fresh(model: keras.Model) -> np.ndarray:
    """Returns 1 for each batch norm layer with initial statistics (mean 0, variance 1), else 0."""
    return np.array(
        [_is_fresh(layer) for layer in model.layers if isinstance(layer, BatchNormalization)],
        np.uint8,
    )


def _is_fresh(layer: BatchNormalization) -> bool:
    mean, variance = map(keras.ops.convert_to_numpy, (layer.moving_mean, layer.moving_variance))
    return bool(np.all(mean == 0) and np.all(variance == 1))


def warm_up_fresh(model: keras.Model, fresh: np.ndarray, updates: Callable[[], Any]) -> None:
    """Makes fresh statistics warm up, with a momentum that depends on the number of steps.

    Statistics from an initial checkpoint use their layer's momentum, as in the references. Must be
    called before the training step is traced.

    Args:
        model: The segmentor.
        fresh: The result of `find_fresh` when the run started, not when it was resumed.
        updates: Returns the number of steps so far, as a tensor that is saved with the run.
    """
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    for layer, is_fresh in zip(layers, fresh, strict=True):
        layer.share = (lambda momentum: warm_up(momentum, updates())) if is_fresh else None


def warn_of_lag(model: keras.Model, fresh: np.ndarray, steps: int) -> None:
    """Warns about statistics that will not follow the weights within a run of `steps` steps."""
    layers = [layer for layer in model.layers if isinstance(layer, BatchNormalization)]
    updated = {layer.name for layer in updated_layers(model)}
    frozen = [
        layer.name
        for layer, new in zip(layers, fresh, strict=True)
        if new and layer.name not in updated
    ]
    if frozen:
        logger.warning(
            "%d batch norm layers are not initialized from the checkpoint and keep mean 0 and "
            "variance 1 (%s, ...); use `fine_tune_batch_norm=False` and `freeze_backbone` only "
            "for layers whose statistics come from the initial checkpoint",
            len(frozen),
            frozen[0],
        )
    kept = {
        layer.momentum: layer.momentum**steps
        for layer, new in zip(layers, fresh, strict=True)
        if layer.name in updated
        and not new
        and layer.momentum >= LARGE_MOMENTUM
        and layer.momentum**steps > MAX_INITIAL_SHARE
    }
    if kept:
        shares = " and ".join(
            f"{share:.0%} at momentum {momentum:g}" for momentum, share in kept.items()
        )
        logger.warning(
            "after %d steps, the statistics of batch norm will still contain a share of the "
            "initial checkpoint's statistics (%s), so validation scores will lag behind training; "
            "set `backbone_bn_momentum=0.9` and `head_bn_momentum=0.9`, or "
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
    """Measures the statistics of batch norm on some batches, with equal weight for each batch.

    Dropout is turned off, as in inference. The model that is being trained, its statistics and its
    random state do not change.

    Args:
        config: The architecture.
        weights: All weights by name.
        layers: Names of the batch norm layers to measure. The other layers normalize with their
            statistics in `weights`.
        batches: Batches of images, `[batch, height, width, channels]`, or of pairs of images and
            labels.

    Returns:
        The means and variances of `layers`, by weight name.
    """
    model, layers = build_segmentor(config.replace(dropout_rate=0.0)), set(layers)
    folder.assign_weights(model, weights, source="the weights of the run")
    seen = keras.Variable(0.0, trainable=False, dtype="float32", name="seen")
    for layer in model.layers:
        if isinstance(layer, BatchNormalization):
            layer.freeze_statistics = layer.name not in layers
            layer.share = lambda momentum: seen / (seen + 1)

    def update(images: Any) -> None:
        model(images, training=True)
        seen.assign_add(1.0)

    compiled = find_engine().compiled(update, [*model.variables, seen])
    for batch in batches:
        compiled(batch[0] if isinstance(batch, tuple) else batch)
    return {
        name: value
        for name, value in folder.named_weights(model).items()
        if name.split("/")[0] in layers and "/moving_" in name
    }
