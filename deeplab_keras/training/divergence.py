"""The report of a diverged run: the network or layer with non-finite outputs, and the batch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from deeplab_keras.checkpoints import folder
from deeplab_keras.io.writing import replacing, write_text
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.run import Run

FOLDER = "diverged"


@dataclasses.dataclass(frozen=True)
class Batch:
    """The batch of a training step.

    Attributes:
        names: The names of the images in their source.
        images: The augmented images, `[batch, height, width, channels]`, float32 in 0..255.
        labels: Class index of each pixel, `[batch, height, width]`, int32.
    """

    names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray


def describe(run: Run, batch: Batch, values: Mapping[str, float]) -> tuple[str, str]:
    """Writes `diverged/report.json` and `diverged/batch.npz` to the workdir.

    The training step does not apply non-finite gradients. So the weights are still those of the
    forward pass, except for the update from momentum.

    Args:
        run: The run, after the step that diverged.
        batch: The batch of that step.
        values: The step's loss and gradient norm, for the report.

    Returns:
        A summary of the report, and what to change, each in one line.
    """
    finite = teacher_is_finite(run, batch.images)
    outputs = largest_outputs(run, batch.images)
    broken = next((name for name, value in outputs.items() if not math.isfinite(value)), None)
    largest = max(outputs, key=lambda name: outputs[name], default=None) if broken is None else None
    path = run.workdir.path / FOLDER
    report = {
        "step": run.step,
        "learning_rate": run.learning_rate(),
        **values,
        "first_broken_layer": broken,
        "layer_of_largest_output": largest,
        "teacher_is_finite": finite,
        "images": batch.names,
        "largest_output_of_each_layer": outputs,
    }
    write_text(path / "report.json", json.dumps(report, indent=2) + "\n")
    with replacing(path / "batch.npz") as aside, aside.open("wb") as file:
        np.savez_compressed(
            file, images=np.rint(batch.images).astype(np.uint8), labels=batch.labels
        )
    summary = "the layers' outputs could not be computed"
    advice = "lower `base_learning_rate`, or set `warmup_steps` or `clip_gradient_norm`"
    if run.teacher is not None and finite is False:
        summary = f"the logits of the teacher {run.teacher.files.source} are not finite"
        advice = "give another `teacher`, or `precision=float32`"
    elif broken:
        summary = f"the first layer with a non-finite output is {broken}"
    elif largest:
        summary = f"layer {largest} has the largest output, {outputs[largest]:.3g}"
    return f"{summary}; see {path} for the batch and the names of its images", advice


def teacher_is_finite(run: Run, images: np.ndarray) -> bool | None:
    """Returns whether the teacher's logits are finite; `None` without a teacher or its memory."""
    teacher = run.teacher
    if teacher is None:
        return None

    def check(images: Any) -> Any:
        return ops.all(ops.isfinite(teacher.logits(images)))

    try:
        return bool(run.engine.compiled(check, teacher.model.variables)(images))
    except run.engine.OUT_OF_MEMORY:
        return None


def largest_outputs(run: Run, images: np.ndarray) -> dict[str, float]:
    """Returns the largest absolute output of each layer in training mode, in the network's order.

    The value is NaN if an output is not finite. The result is empty if memory does not suffice.
    """
    model = build_segmentor(run.config)
    variables = folder.model_variables(model)
    for name, value in folder.named_weights(run.model).items():
        variables[name].assign(value)
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    probe = keras.Model(model.input, [layer.output for layer in layers])

    def largest_of_each(images: Any) -> Any:
        outputs = [ops.cast(output, "float32") for output in probe(images, training=True)]
        finite = [ops.all(ops.isfinite(output)) for output in outputs]
        largest = [ops.max(ops.abs(output)) for output in outputs]
        return ops.where(ops.stack(finite), ops.stack(largest), float("nan"))

    try:
        values = ops.convert_to_numpy(run.engine.compiled(largest_of_each, model.variables)(images))
    except run.engine.OUT_OF_MEMORY:
        return {}
    return {layer.name: float(value) for layer, value in zip(layers, values, strict=True)}
