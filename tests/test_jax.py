"""Models, losses, optimizers and schedules on Keras' JAX backend equal the reference."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from contracts import ROOT

from benchmarks.golden import VOC, Golden, golden, images, labels, weights
from deeplab_keras.convert import sssegmentation
from deeplab_keras.convert.transfer import dump_weights, load_weights
from deeplab_keras.models.segmentor import build_segmentor, with_auxiliary_output
from deeplab_keras.training.losses import SegmentationLoss
from deeplab_keras.training.optimizers import MomentumSGD, make_schedule
from deeplab_keras.zoo import registry as zoo

pytestmark = pytest.mark.jax


def load(name: str) -> tuple[Golden, keras.Model]:
    assert keras.backend.backend() == "jax", "run them with: make jax"
    keras.backend.clear_session()
    values, config = golden(name), zoo.get_config(name).replace(dropout_rate=0.0)
    model = build_segmentor(config)
    load_weights(model, weights(values), sssegmentation.rules(config))
    return values, model


@pytest.mark.parametrize("name", VOC)
def test_outputs(name):
    values, model = load(name)
    outputs = {"logits": model.get_layer("logits").output, "final": model.output}
    if any(kind == "aux" for kind, *_ in values.outputs()):
        outputs["aux"] = model.get_layer("auxiliary_logits").output
    view = keras.Model(model.input, outputs)
    for height, width in values.sizes:
        ours = view.predict_on_batch(images(height, width).astype(np.float32))
        ours["argmax"] = ours["final"].argmax(-1)
        for kind, h, w, step, expected in values.outputs():
            if (h, w) != (height, width):
                continue
            found = ours[kind][:, ::step, ::step]
            if kind == "argmax":
                assert np.mean(found == expected) >= 0.999
            else:
                print(
                    f"{name} on JAX, {h}x{w} {kind}: largest difference "
                    f"{np.abs(found - expected).max():.1e}"
                )
                np.testing.assert_allclose(
                    found, expected, rtol=0, atol=2e-4, err_msg=f"{kind} at {h}x{w}"
                )


@pytest.mark.parametrize("name", [VOC[0], VOC[3], VOC[4]])
def test_a_training_step_of_keras_itself(name):
    """`compile` and `train_on_batch` with a schedule; the bounds are those of TensorFlow's test."""
    values, model = load(name)
    height, width = values.train_size
    trained, truth, expected = (
        with_auxiliary_output(model),
        labels(height, width),
        values.train_step,
    )
    schedule = make_schedule("poly", expected["learning_rate"], 100, end=1e-4)
    shares = {head: 0.4 if head == "auxiliary_logits" else 1.0 for head in trained.output}
    trained.compile(
        optimizer=MomentumSGD(schedule, momentum=0.9, weight_decay=5e-4),
        loss={head: SegmentationLoss() for head in trained.output},
        loss_weights=shares,
    )
    pictures = images(height, width, seed=11, count=2).astype(np.float32)
    loss = trained.train_on_batch(
        pictures, {head: truth for head in trained.output}, return_dict=True
    )["loss"]
    assert loss == pytest.approx(expected["losses"]["loss_total"], abs=1e-4)
    found = dump_weights(model, sssegmentation.rules(zoo.get_config(name)))
    norms = {key: float(np.linalg.norm(tensor.astype(np.float64))) for key, tensor in found.items()}
    assert norms == pytest.approx(expected["after_step_l2"], rel=2e-3)
    differences = [abs(norms[key] - norm) / norm for key, norm in expected["after_step_l2"].items()]
    print(
        f"{name} on JAX: loss {abs(loss - expected['losses']['loss_total']):.1e}, weights "
        f"{np.quantile(differences, 0.98):.1e}"
    )
    assert np.quantile(differences, 0.98) < 1e-4


def test_the_documented_training(tmp_path):
    """The code of docs/python.md runs in its own process; TensorFlow evaluates its checkpoint."""
    page = (ROOT / "docs/python.md").read_text().partition("## Training on a GPU through JAX")[2]
    (tmp_path / "train_on_jax.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    commands = {
        "jax": ["train_on_jax.py"],
        "tensorflow": [
            f"{ROOT}/scripts/eval.py",
            "--checkpoint_dir=runs/jax",
            "--synthetic_size=64,64",
            "--eval_samples=2",
        ],
    }
    for backend, command in commands.items():
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
