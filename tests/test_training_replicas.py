"""Two devices train like one: a complete run in a process with two logical CPU devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from contracts import ROOT

# In double precision. In single precision, the runs differ by rounding only, but a network with
# random weights amplifies the difference a hundredfold per step: a ReLU whose input is on the other
# side of 0 changes the gradient by a finite amount.
PROGRAM = """
import json, sys, tempfile
import keras, numpy as np, tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
keras.config.set_floatx("float64")
set_policy = keras.config.set_dtype_policy
keras.config.set_dtype_policy = lambda name: set_policy("float64")

from deeplab_keras.training import train as trainer, validation
from deeplab_keras.training.engine_tensorflow import make_strategy
from deeplab_keras.training.steps import Steps
from deeplab_keras.checkpoints import folder
from deeplab_keras.config import DataConfig, ModelConfig, TrainConfig
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.data import pipeline
from deeplab_keras.evaluation.report import Report

model = ModelConfig(head="fcn", depth_multiplier=0.25, head_channels=8, output_stride=16,
                    dropout_rate=0.0, auxiliary_channels=8, auxiliary_head=True)
# The scenes are smaller than the crop and scaled at random. The rest of each crop is ignored.
data = DataConfig(train_samples=8, eval_samples=1, synthetic_size=(24, 56),
                  train_crop_size=(65, 65), train_batch_size=4, photometric_distortion=False)
training = TrainConfig(training_number_of_steps=10, base_learning_rate=1e-3,
                       eval_interval_epochs=100.0, summary_images=0, html_report=False,
                       loss="cross_entropy+0.5*dice", clip_gradient_norm=1.0, ema_momentum=0.9,
                       weight_decay=1e-2)
info = open_dataset(data, "train").info
if sys.argv[1] == "teacher":
    from deeplab_keras.models.segmentor import build_segmentor
    other = model.replace(head="psp", depth_multiplier=0.35, num_classes=info.num_classes)
    path = tempfile.mkdtemp()
    folder.save_checkpoint(path, build_segmentor(other), other, info)
    training = training.replace(teacher=path, distillation_weight=0.75)
matrix = np.eye(info.num_classes, dtype=int)
validation.evaluate = lambda *args, **options: Report.from_matrix(matrix, info, 1)

steps = []
end_of_step = Steps.on_train_batch_end
def record(self, batch, logs=None):
    steps.append((float(logs["loss"]), float(logs["gradient_norm"])))
    end_of_step(self, batch, logs)
Steps.on_train_batch_end = record

runs = {}
for strategy in ("none", "mirrored"):
    steps.clear()
    workdir = tempfile.mkdtemp()
    trainer.train(model, data, training.replace(strategy=strategy, train_logdir=workdir))
    last = folder.step_folders(workdir)[-1]
    arrays = {**folder.read_weights(last), **folder.read_arrays(last / folder.STATE)}
    runs[strategy] = np.array(steps), arrays

(steps_1, arrays_1), (steps_2, arrays_2) = runs["none"], runs["mirrored"]
assert arrays_1.keys() == arrays_2.keys()
valid = [(labels.numpy() != info.ignore_label).sum((1, 2)) for _, labels in
         pipeline.train_dataset(open_dataset(data, "train"), data, (0.0,) * 3).take(10)]
names = [name for name in arrays_1 if not name.startswith(("meter/", "row/images"))]
differences = {name: float(np.abs(arrays_1[name] - arrays_2[name]).max())
               for name in names if name not in ("best_miou", "stale_rounds")}
print("RESULT", json.dumps({
    "replicas": make_strategy("mirrored").num_replicas_in_sync,
    "valid": [[int(v[:2].sum()), int(v[2:].sum())] for v in valid],
    "losses": steps_1[:, 0].tolist(),
    "norms": steps_1[:, 1].tolist(),
    "of losses": float(np.abs(steps_1 - steps_2).max()),
    "of weights": max(value for name, value in differences.items() if "moving_" not in name),
    "of statistics": max(value for name, value in differences.items() if "moving_" in name),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["no teacher", "teacher"])
def test_two_replicas_train_as_one(teacher):
    """Compares losses, gradient norms, weights, averages and optimizer state after ten steps."""
    environment = dict(
        os.environ, TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="-1", PYTHONPATH=str(ROOT)
    )
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, teacher],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    results = [
        line.removeprefix("RESULT ")
        for line in done.stdout.splitlines()
        if line.startswith("RESULT ")
    ]
    assert results, done.stderr[-3000:]
    result = json.loads(results[0])
    assert result["replicas"] == 2 and len(result["losses"]) == 10
    assert any(2 * min(halves) < max(halves) for halves in result["valid"]), (
        "the replicas must have different numbers of valid pixels"
    )
    assert len(set(result["losses"])) == 10 and max(result["norms"]) > 1, (
        "the loss must change in every step, and gradients must be clipped"
    )
    for what in ("of losses", "of weights", "of statistics"):
        assert result[what] < 1e-5, (what, result)
