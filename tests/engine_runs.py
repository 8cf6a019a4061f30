"""Training runs of a few steps on the backend of this process, for tests that compare backends.

`python tests/engine_runs.py '{"start": ..., "out": ..., "runs": {...}}'` trains a network for each
of the runs, from the checkpoint `start`, and writes the results to `out/NAME.npz`. The options of a
run are those of `TrainConfig`, and `stop`, the number of steps that this process takes.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
    sys.path.insert(1, str(pathlib.Path(__file__).resolve().parent))

import keras
import numpy as np
import toy

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import DataConfig, TrainConfig
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.evaluation.report import Report

MODEL = toy.toy_config(
    num_classes=10,
    head="fcn",
    head_channels=8,
    output_stride=16,
    dropout_rate=0.0,
    auxiliary_head=True,
    auxiliary_channels=8,
)
# The scenes are smaller than the crop and scaled at random. The rest of each crop is ignored.
DATA = DataConfig(
    train_samples=8,
    eval_samples=1,
    synthetic_size=(24, 56),
    train_crop_size=(65, 65),
    train_batch_size=4,
    photometric_distortion=False,
)
# Schedules are computed in float32 on TensorFlow and in floatx on JAX. float32 represents this
# constant rate exactly.
TRAINING = TrainConfig(
    training_number_of_steps=10,
    base_learning_rate=2.0**-10,
    learning_policy="constant",
    weight_decay=1e-2,
    eval_interval_epochs=100.0,
    summary_images=0,
    html_report=False,
    strategy="none",
)


def run(start: str, options: dict[str, Any], stop: int = 0) -> dict[str, np.ndarray]:
    """Trains, and returns the loss, gradient norm and mIoU of each step, and the final state."""
    from deeplab_keras.training import train as trainer
    from deeplab_keras.training import validation

    info, steps, devices = open_dataset(DATA, "train").info, [], 1

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append([float(logs[name]) for name in ("loss", "gradient_norm", "miou")])
            if len(steps) == stop:
                self.model.stop_training = True

        def on_train_end(self, logs=None):
            nonlocal devices
            weight = self.model.trainable_variables[0].value
            devices = len(weight.devices()) if keras.backend.backend() == "jax" else 1

    report = Report.from_matrix(np.eye(info.num_classes, dtype=int), info, 1)
    with (
        tempfile.TemporaryDirectory() as workdir,
        mock.patch.object(validation, "evaluate", lambda *args, **options: report),
    ):
        options = {"tf_initial_checkpoint": start, "train_logdir": workdir, **options}
        training = TRAINING.replace(**options)
        trainer.train(MODEL, DATA, training, callbacks=[Steps()])
        last = folder.step_folders(training.train_logdir)[-1]
        arrays = {**folder.read_weights(last), **folder.read_arrays(last / folder.STATE)}
        best = pathlib.Path(training.train_logdir) / folder.BEST
        if best.exists():  # with the statistics of `recalibrate_batch_norm`
            arrays |= {f"best/{name}": value for name, value in folder.read_weights(best).items()}
    measured = ("row/images_per_second", "meter/")  # different in equal runs
    arrays = {name: value for name, value in arrays.items() if not name.startswith(measured)}
    return {"steps": np.array(steps), "devices": np.array(devices), **arrays}


def save(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, **{name.replace("/", "|"): array for name, array in arrays.items()})


def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name.replace("|", "/"): file[name] for name in file.files}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.get("floatx"):
        keras.config.set_floatx(given["floatx"])
        set_policy = keras.config.set_dtype_policy
        keras.config.set_dtype_policy = lambda name: set_policy(given["floatx"])
    with toy.registered():
        for name, options in given["runs"].items():
            stop = options.pop("stop", 0)
            save(pathlib.Path(given["out"]) / f"{name}.npz", run(given["start"], options, stop))
