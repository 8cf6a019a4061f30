"""Compares our networks and training step on this device with golden values of the reference.

It runs on Keras' JAX and TensorFlow backends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from benchmarks import golden
from deeplab_keras.convert import sssegmentation
from deeplab_keras.convert.transfer import dump_weights, load_weights
from deeplab_keras.models.segmentor import Segmentor, build_segmentor
from deeplab_keras.training.engine import find_engine
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.optimizers import MomentumSGD
from deeplab_keras.zoo import registry as zoo

# Quantity -> unit and meaning. "labels" is a share that must be reached, the others are differences
# that must not be exceeded.
QUANTITIES = {
    "logits": "largest difference of the class scores, as a share of the largest score",
    "labels": "share of the pixels with the same label",
    "loss": "relative difference of the loss of a training step",
    "gradient norm": "relative difference of the norm of its gradient",
    "weights": "98 % quantile of the relative differences of the norms of weights after the step",
}
# Bounds by precision. docs/benchmarks.md has what was measured on a CPU, which has no TF32: its
# bounds are an estimate between those of float32 and bfloat16.
BOUNDS: dict[str, dict[str, float]] = {
    "float32": {
        "logits": 2e-5,
        "labels": 0.999,
        "loss": 1e-4,
        "gradient norm": 0.02,
        "weights": 1e-4,
    },
    "tf32": {
        "logits": 0.03,
        "labels": 0.98,
        "loss": 0.01,
        "gradient norm": 0.1,
        "weights": 1e-3,
    },
    "bfloat16": {
        "logits": 0.2,
        "labels": 0.9,
        "loss": 0.05,
        "gradient norm": 0.3,
        "weights": 1e-2,
    },
}


class Parity:
    """Computes the differences of one system after the other, in one precision.

    Args:
        policy: Keras' dtype policy.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy

    def measure(self, system: str, train: bool) -> dict[str, Any]:
        """Returns the differences by name, see `QUANTITIES`.

        Args:
            system: A name from `golden.VOC`.
            train: Whether to compare a training step too.
        """
        keras.backend.clear_session()  # resets the policy
        keras.config.set_dtype_policy(self.policy)
        values, config = golden.golden(system), zoo.get_config(system).replace(dropout_rate=0.0)
        model = build_segmentor(config)
        load_weights(model, golden.weights(values), sssegmentation.rules(config))
        return outputs(values, model) | (training_step(values, model) if train else {})


def outputs(values: golden.Golden, model: Segmentor) -> dict[str, float]:
    """Returns the differences of the outputs, for images of the last of the golden sizes."""
    size = values.sizes[-1]
    view = keras.Model(model.input, [model.get_layer("logits").output, model.output])
    logits, final = view.predict_on_batch(golden.images(*size).astype(np.float32))
    found = {"logits": logits, "final": final, "argmax": np.argmax(final, -1)}
    differences = {"logits": 0.0, "labels": 1.0}
    for kind, height, width, step, expected in values.outputs():
        if (height, width) != size or kind not in found:
            continue
        ours = np.asarray(found[kind])[:, ::step, ::step]
        if kind == "argmax":
            differences["labels"] = float(np.mean(ours == expected))
        else:
            largest = np.abs(ours.astype(np.float64) - expected).max() / np.abs(expected).max()
            differences["logits"] = float(np.maximum(differences["logits"], largest))
    return differences


def training_step(values: golden.Golden, model: Segmentor) -> dict[str, float]:
    """Returns the differences of a step of `deeplab_keras.training`."""
    expected, size = values.train_step, values.train_size
    trained = find_engine().Model(model.input, model.output, name=model.name)
    trained.compile(
        optimizer=MomentumSGD(expected["learning_rate"], momentum=0.9, weight_decay=5e-4),
        loss=make_loss("cross_entropy"),
        jit_compile=keras.backend.backend() == "jax",
    )
    trained.optimizer.build(trained.trained_variables)
    images = golden.images(*size, seed=11, count=2).astype(np.float32)
    history = trained.fit(images, golden.labels(*size), batch_size=2, verbose=0).history
    trained.sync()
    after = dump_weights(model, sssegmentation.rules(zoo.get_config(values.name)))
    norms = {name: float(np.linalg.norm(np.float64(tensor))) for name, tensor in after.items()}
    gradient = math.hypot(*expected["gradient_l2"].values())
    changes = [_relative(norms[name], norm) for name, norm in expected["after_step_l2"].items()]
    return {
        "loss": _relative(history["loss"][0], expected["losses"]["loss_total"]),
        "gradient norm": _relative(history["gradient_norm"][0], gradient),
        "weights": float(np.quantile(changes, 0.98)),
    }


def failures(found: Mapping[str, float], precision: str) -> list[str]:
    """Returns a text for each difference that is out of its bounds, or not a number."""
    bounds = BOUNDS[precision]
    return [
        f"{name} {value:.3g} (required: {'>=' if name == 'labels' else '<='} {bounds[name]:g})"
        for name, value in found.items()
        if not (value >= bounds[name] if name == "labels" else value <= bounds[name])
    ]


def _relative(found: float, expected: float) -> float:
    return abs(float(found) - expected) / abs(expected)
