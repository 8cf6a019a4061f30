"""A run on JAX equals the run on TensorFlow: steps, checkpoints, resuming, several devices."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable

import engine_runs
import keras
import numpy as np
import PIL.Image
import pytest
import toy
from contracts import ROOT, raises_line, script
from test_training_kills import kill

from deeplab_keras.checkpoints.folder import save_checkpoint
from deeplab_keras.config import TrainConfig
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.segmentor import build_segmentor

pytestmark = pytest.mark.jax

# Options of runs whose steps both backends must compute alike.
RUNS = {
    "plain": {"ema_momentum": 0.9, "clip_gradient_norm": 1.0, "recalibrate_batch_norm": 2},
    "parts": {"gradient_accumulation_steps": 2, "loss": "cross_entropy+0.5*dice"},
    "pixels": {
        "top_k_percent_pixels": 0.5,
        "hard_example_mining_step": 8,
        "label_weights": [1, 2, 3, 4, 5, 5, 4, 3, 2, 1],
        "label_smoothing": 0.125,
    },
    "terms": {"loss": "focal+0.5*lovasz", "auxiliary_loss_weight": 0.7},
    "adamw": {"optimizer": "adamw", "backbone_learning_rate_multiplier": 0.5},
    "frozen": {"freeze_backbone": True, "optimizer": "lion"},
    "statistics": {"fine_tune_batch_norm": False, "weight_decay_on_all": False},
    "taught": {"teacher": "TEACHER", "distillation_weight": 0.75, "clip_gradient_norm": 1.0},
    "taught parts": {
        "teacher": "TEACHER",
        "distillation_temperature": 3.0,
        "gradient_accumulation_steps": 2,
    },
}
# Bounds of the differences in double precision, where they are not 1e-9.
BOUNDS = {
    # Mining selects pixels, so a rounding error may select another one of nearly equal losses.
    "pixels": 1e-8,
    # Keras converts the decay rates of Adam and Lion through float32 on TensorFlow.
    "adamw": 1e-5,
    # Keras normalizes with running statistics in float32 on JAX.
    "frozen": 1e-6,
    "statistics": 1e-6,
}


def environment(backend: str, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": str(ROOT),
        **variables,
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with random weights, where all runs start."""
    path = tmp_path_factory.mktemp("start") / "start"
    with toy.registered():
        keras.utils.set_random_seed(0)
        model = build_segmentor(engine_runs.MODEL)
        info = open_dataset(engine_runs.DATA, "train").info
        save_checkpoint(path, model, engine_runs.MODEL, info)
        config = engine_runs.MODEL.replace(head="psp", output_stride=8, depth_multiplier=0.5)
        save_checkpoint(path.with_name("teacher"), build_segmentor(config), config, info)
    return str(path)


Results = dict[str, dict[str, np.ndarray]]


@pytest.fixture
def train(start: str, tmp_path: pathlib.Path) -> Callable[..., Results]:
    """Returns a function that trains in another process and returns the results by name."""

    def train(backend: str, runs: dict[str, dict], floatx: str, **variables: str) -> Results:
        teacher = {"teacher": str(pathlib.Path(start).with_name("teacher"))}
        runs = {
            name: {**options, **(teacher if "teacher" in options else {})}
            for name, options in runs.items()
        }
        out = tmp_path / f"{backend}_{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        given = {"start": start, "out": str(out), "runs": runs, "floatx": floatx}
        done = subprocess.run(
            [sys.executable, "tests/engine_runs.py", json.dumps(given)],
            cwd=ROOT,
            env=environment(backend, **variables),
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {name: engine_runs.load(out / f"{name}.npz") for name in runs}

    return train


def differences(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest difference of each array, relative to its largest value or 1."""
    assert found.keys() == expected.keys()
    return {
        name: float(np.abs(array - expected[name].astype(float)).max(initial=0))
        / max(1.0, float(np.abs(array).max(initial=0)))
        for name, array in found.items()
    }


def test_ten_steps_equal_those_of_tensorflow_in_double_precision(train):
    """Losses, gradient norms, weights, averages, optimizer state and counts of every option."""
    found = train("jax", RUNS, "float64", JAX_ENABLE_X64="1")
    expected = train("tensorflow", RUNS, "float64")
    for name in RUNS:
        losses = expected[name]["steps"][:, 0]
        assert len(set(losses)) == 10, name
        found[name]["steps"], expected[name]["steps"] = (
            results[name]["steps"][:, :2] for results in (found, expected)
        )
        relative = np.abs(found[name]["steps"] / expected[name]["steps"] - 1).max()
        largest = differences(found[name], expected[name])
        largest.pop("row/train_miou")  # computed in float32
        worst = max(largest, key=lambda name: largest[name])
        print(f"{name}: steps {relative:.1e}, {worst} {largest[worst]:.1e}")
        bound = BOUNDS.get(name, 1e-9)
        assert relative < bound and largest[worst] < bound, (name, worst)


def test_ten_steps_equal_those_of_tensorflow_in_single_precision(train):
    rates = {"learning_policy": "poly", "base_learning_rate": 1e-4}
    bounds = {"float32": 1e-4, "mixed_bfloat16": 0.02, "mixed_float16": 0.02}
    runs = {name: {**RUNS["plain"], **rates, "precision": name} for name in bounds}
    found = train("jax", runs, "")
    # On CPUs, TensorFlow has no dilated convolutions in float16.
    expected = train("tensorflow", {name: runs[name] for name in ("float32", "mixed_bfloat16")}, "")
    losses = {name: results["steps"][:, 0] for name, results in found.items()}
    for name, bound in bounds.items():
        reference = expected.get(name, expected["float32"])["steps"][:, 0]
        relative = np.abs(losses[name] / reference - 1).max()
        print(f"losses of ten steps, {name}: {relative:.1e}")
        assert relative < bound and len(set(losses[name])) == 10
        assert name == "float32" or any(losses[name] != losses["float32"])


def test_two_devices_train_as_one(train):
    """In double precision, for the reason in test_training_replicas.py."""
    runs = {
        name: {**RUNS[name], "strategy": "auto"} for name in ("plain", "parts", "pixels", "taught")
    }
    one, two = (
        train(
            "jax",
            runs,
            "float64",
            JAX_ENABLE_X64="1",
            XLA_FLAGS=f"--xla_force_host_platform_device_count={count}",
        )
        for count in (1, 2)
    )
    for name in runs:
        assert (one[name].pop("devices"), two[name].pop("devices")) == (1, 2)
        largest = differences(two[name], one[name])
        worst = max(largest, key=lambda name: largest[name])
        print(f"{name}: {worst} {largest[worst]:.1e}")
        assert largest[worst] < 1e-5, (name, worst)


def test_a_run_changes_its_engine(train, tmp_path):
    """From TensorFlow to JAX and back, at steps 20 and 40 of 60."""
    options = {**RUNS["plain"], "training_number_of_steps": 60, "save_interval_steps": 20}
    variables = {"JAX_ENABLE_X64": "1"}
    (whole,) = train("tensorflow", {"whole": options}, "float64").values()
    options = {**options, "train_logdir": str(tmp_path / "run"), "stop": 20}
    parts = [
        train(backend, {"part": options}, "float64", **variables)["part"]
        for backend in ("tensorflow", "jax", "tensorflow")
    ]
    assert [len(part["steps"]) for part in parts] == [20, 20, 20]
    found = {**parts[-1], "steps": np.concatenate([part["steps"] for part in parts])}
    found["steps"], whole["steps"] = (results["steps"][:, 0] for results in (found, whole))
    largest = differences(found, whole)
    largest.pop("row/train_miou")
    worst = max(largest, key=lambda name: largest[name])
    print(f"after two changes: {worst} {largest[worst]:.1e}")
    assert largest[worst] < 1e-9 and whole["step"] == found["step"] == 60


def test_killed_ten_times(tiny_flags, tmp_path, monkeypatch):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}  # the same program each time
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    for name, value in environment("jax", **cache).items():
        monkeypatch.setenv(name, value)
    kill(10, tiny_flags, tmp_path)


INFERENCE = {
    "whole": (),
    "scales": ("--eval_scales=0.75,1.25", "--add_flipped_images"),
    "slide": ("--inference=slide", "--eval_crop_size=48,48"),
    "official": ("--inference=official", "--eval_crop_size=65,65"),
}


@pytest.mark.parametrize("name", INFERENCE)
def test_evaluation_equals_that_of_tensorflow(name, tiny_run, tmp_path):
    """Of a checkpoint that JAX trained."""
    assert keras.backend.backend() == "jax", "run them with: make jax"
    arguments = [f"--checkpoint_dir={tiny_run}", *INFERENCE[name]]
    assert script("eval.py")(*arguments, f"--eval_logdir={tmp_path}/jax") == 0
    run_on_tensorflow("eval.py", *arguments, f"--eval_logdir={tmp_path}/tensorflow")
    found, expected = (
        json.loads((tmp_path / backend / "metrics.json").read_text())
        for backend in ("jax", "tensorflow")
    )
    for score in ("miou", "pixel_accuracy"):
        assert found[score] == pytest.approx(expected[score], abs=1e-3), score
    assert found["images"] == expected["images"] == 4


def run_on_tensorflow(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "tests/toy.py", f"scripts/{name}", *arguments],
        cwd=ROOT,
        env=environment("tensorflow"),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_pictures_labels_and_an_export(tiny_run, tmp_path):
    assert script("vis.py")(f"--checkpoint_dir={tiny_run}", f"--vis_logdir={tmp_path}/vis") == 0
    pictures = sorted(path for path in (tmp_path / "vis").rglob("*.png"))
    predict = [f"--checkpoint_dir={tiny_run}", f"--input={pictures[0]}"]
    assert script("predict.py")(*predict, f"--output={tmp_path}/jax") == 0
    run_on_tensorflow("predict.py", *predict, f"--output={tmp_path}/tensorflow")
    files = sorted((tmp_path / "jax").rglob("*.png"))
    assert files
    for file in files:
        found, expected = (
            np.asarray(PIL.Image.open(tmp_path / backend / file.relative_to(tmp_path / "jax")))
            for backend in ("jax", "tensorflow")
        )
        assert np.mean(found == expected) > 0.999, file
    export = [f"--checkpoint_dir={tiny_run}", f"--export_path={tmp_path}/export"]
    run_on_tensorflow("export_model.py", *export, "--formats=tflite", "--input_size=64,64")


def test_a_diverged_run_names_the_layer_and_the_batch(tiny_flags, tmp_path, capsys):
    flags = ["--base_learning_rate=1e30", "--training_number_of_steps=6", "--ema_momentum=0.9"]
    assert script("train.py")(*tiny_flags, *flags, f"--train_logdir={tmp_path}/run") == 1
    assert "error: training diverged at step" in capsys.readouterr().err
    report = json.loads((tmp_path / "run/diverged/report.json").read_text())
    assert report["first_broken_layer"] in report["largest_output_of_each_layer"]
    assert len(report["images"]) == 4


# --- Bad input ---


def test_several_machines_require_tensorflow(tiny_flags, tmp_path, capsys):
    flags = ["--strategy=multi_worker", f"--train_logdir={tmp_path}/run"]
    assert script("train.py")(*tiny_flags, *flags) == 1
    error = capsys.readouterr().err
    assert "error: --strategy requires Keras' TensorFlow backend. Received: " in error
    assert "KERAS_BACKEND=tensorflow" in error and not (tmp_path / "run").exists()


DEVICES = {
    "cpu": ({"platform": "cpu"}, "mixed_float16", ""),
    "turing": ({"platform": "gpu", "compute_capability": "7.5"}, "mixed_bfloat16", "mixed_float16"),
    "ampere": ({"platform": "gpu", "compute_capability": "8.6"}, "mixed_bfloat16", ""),
    "tpu": ({"platform": "tpu"}, "mixed_float16", "mixed_bfloat16"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_a_precision_that_the_device_lacks(name, monkeypatch):
    from deeplab_keras.training import engine_jax

    values, precision, instead = DEVICES[name]
    device = types.SimpleNamespace(device_kind=name, **values)
    monkeypatch.setattr(engine_jax.jax, "devices", lambda: [device])
    training = TrainConfig(precision=precision)
    if not instead:
        engine_jax.check(training)
        return
    with raises_line(f"--precision is not supported by this device, {name}.*{instead}"):
        engine_jax.check(training)


def test_determinism_on_a_gpu_requires_a_flag_of_xla(monkeypatch):
    from deeplab_keras.training import engine_jax

    device = types.SimpleNamespace(platform="gpu", compute_capability="9.0", device_kind="H100")
    monkeypatch.setattr(engine_jax.jax, "devices", lambda: [device])
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    with raises_line("--deterministic=true requires .*XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        engine_jax.check(TrainConfig(deterministic=True))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    engine_jax.check(TrainConfig(deterministic=True))


def test_a_resumed_run_has_the_same_optimizer(tiny_flags, tmp_path, capsys):
    run = f"--train_logdir={tmp_path}/run"
    run_on_tensorflow("train.py", *tiny_flags, run, "--save_interval_steps=1")
    flags = ["--optimizer=adamw"]
    assert script("train.py")(*tiny_flags, run, *flags) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "optimizer" in lines[0]
