"""What a training that has diverged leaves behind: where in the network the numbers broke, and on which images."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.checkpoints import folder
from deeplab_keras.io.writing import replacing, write_text
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.run import Run

FOLDER = "diverged"


@dataclasses.dataclass(frozen=True)
class Batch:
    """What a step was trained on.

    Attributes:
        names: of the images, as their source calls them.
        images: float32 `[batch, height, width, channels]` in 0..255, augmented.
        labels: int32 `[batch, height, width]`.
    """

    names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray


def describe(run: Run, batch: Batch, values: Mapping[str, float]) -> str:
    """Writes `diverged/report.json` and `diverged/batch.npz` into the workdir, and returns what they say in one line.

    The training step changes no weight by what is no number, so the weights are those it was
    computed with, but for the momentum.
    """
    outputs = largest_outputs(run, batch.images)
    broken = next((name for name, value in outputs.items() if not math.isfinite(value)), None)
    largest = max(outputs, key=lambda name: outputs[name], default=None) if broken is None else None
    where = run.workdir.path / FOLDER
    report = {
        "step": run.step,
        "learning_rate": run.learning_rate(),
        **values,
        "first_broken_layer": broken,
        "layer_of_largest_output": largest,
        "images": batch.names,
        "largest_output_of_each_layer": outputs,
    }
    write_text(where / "report.json", json.dumps(report, indent=2) + "\n")
    with replacing(where / "batch.npz") as aside, aside.open("wb") as file:
        np.savez_compressed(
            file, images=np.rint(batch.images).astype(np.uint8), labels=batch.labels
        )
    layer = "no layer could be looked into"
    if broken:
        layer = f"the first layer whose output is no number is {broken}"
    elif largest:
        layer = f"the largest output, {outputs[largest]:.3g}, is that of layer {largest}"
    return f"{layer}; the batch and the names of its images are in {where}"


def largest_outputs(run: Run, images: np.ndarray) -> dict[str, float]:
    """Layer -> its largest absolute output in training, in the network's order; NaN where one is no finite number."""
    model = build_segmentor(run.config)
    variables = folder.model_variables(model)
    for name, value in folder.named_weights(run.model).items():
        variables[name].assign(value)
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    probe = keras.Model(model.input, [layer.output for layer in layers])

    @tf.function
    def look(images: tf.Tensor) -> tf.Tensor:
        outputs = [tf.cast(output, tf.float32) for output in probe(images, training=True)]
        finite = [tf.reduce_all(tf.math.is_finite(output)) for output in outputs]
        largest = [tf.reduce_max(tf.abs(output)) for output in outputs]
        return tf.where(tf.stack(finite), tf.stack(largest), float("nan"))

    try:
        values = look(tf.constant(images)).numpy()
    except tf.errors.ResourceExhaustedError:
        return {}
    return {layer.name: float(value) for layer, value in zip(layers, values, strict=True)}
