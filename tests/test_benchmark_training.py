"""The benchmark of a training step: plausible numbers, and contenders that take the same step."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from benchmark_workers import InProcess
from contracts import ROOT, as_command_line, raises_line, script

import deeplab_keras as dk
from benchmarks import peak, peers, training, workers
from deeplab_keras.config import DataConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.models.multiply_adds import count_multiply_adds

TINY = ModelConfig(
    depth_multiplier=0.25,
    output_stride=32,
    head_channels=16,
    atrous_rates=(),
    decoder_filters=16,
    low_level_channels=(8,),
)
TINY_FLAGS = [
    "--what=train", "--depth_multiplier=0.25", "--output_stride=32", "--aspp_convs_filters=16",
    "--atrous_rates=", "--decoder_filters=16", "--low_level_channels=8", "--synthetic_size=64,64",
    "--train_crop_size=64,64", "--train_samples=4", "--train_batch_size=2", "--rounds=2",
    "--batches=1",
]  # fmt: skip
WITH_AUXILIARY = ["--auxiliary_head", "--auxiliary_channels=8"]


def rows_of(path) -> dict[tuple[str, str], float]:
    with open(path, newline="") as file:
        return {
            (row["subject"], row["quantity"]): float(row["median"]) for row in csv.DictReader(file)
        }


@pytest.mark.slow
def test_train_as_a_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(workers, "Worker", InProcess)
    monkeypatch.setattr(peak, "MATRIX", 64)
    monkeypatch.setattr(peak, "CHANNELS", 8)
    table = tmp_path / "found.csv"
    assert script("benchmark.py")(*TINY_FLAGS, *WITH_AUXILIARY, f"--csv={table}") == 0
    assert {subject for subject, _ in rows_of(table)} == {"training, CPU"}
    found = {quantity: value for (_, quantity), value in rows_of(table).items()}
    assert 0 <= found["waiting for input"] <= 100
    for share, speed in (("of the peak", "speed"), ("steps alone, of the peak", "steps alone")):
        expected = 100 * found["multiply-adds per image"] * found[speed] / found["device's peak"]
        assert found[share] == pytest.approx(expected, rel=1e-3)
    assert found["peak memory"] > 100 and "of the peak" in capsys.readouterr().out
    model = dk.build_segmentor(
        TINY.replace(num_classes=10, auxiliary_head=True, auxiliary_channels=8), (64, 64)
    )
    whole = count_multiply_adds(model, auxiliary=True)
    height, width, channels = model.get_layer("auxiliary_logits").output.shape[1:]
    assert whole - count_multiply_adds(model) > height * width * 8 * channels, (
        "the 3x3 convolution counts too"
    )
    assert found["multiply-adds per image"] == pytest.approx(3e-9 * whole, rel=1e-5), (
        "forward and twice as much backward"
    )


# --- The contenders ---


@pytest.mark.jax
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_contenders_as_a_command(precision, tmp_path):
    """One run with TensorFlow including input, JAX, and PyTorch if it is installed."""
    names = ["jax", *["torch"] * (importlib.util.find_spec("torch") is not None)]
    table, environment = (
        tmp_path / "found.csv",
        {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": str(ROOT)},
    )
    flags = [
        *TINY_FLAGS,
        f"--precision={precision}",
        f"--against={','.join(names)}",
        f"--csv={table}",
    ]
    subprocess.run(
        [sys.executable, "scripts/benchmark.py", *flags],
        cwd=ROOT,
        env=environment,
        check=True,
        timeout=900,
    )
    found = rows_of(table)
    subjects = [subject for subject, quantity in found if quantity == "steps alone"]
    assert [subject.partition(",")[0] for subject in subjects] == ["training", *names], (
        "each contender must have rows"
    )
    assert all(
        found[subject, "steps alone"] > 0 and subject.partition(", ")[2] for subject in subjects
    )
    assert len({found[subject, "multiply-adds per image"] for subject in subjects}) == 1
    assert found[subjects[1], "device's peak"] > 0 and precision in table.read_text()
    for subject in subjects[:2]:  # ours on TensorFlow and on JAX read the same files
        assert found[subject, "speed"] > 0 and 0 <= found[subject, "waiting for input"] <= 100


@pytest.mark.torch
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-6), ("mixed_bfloat16", 2e-2)])
def test_torch_takes_training_steps_on_the_same_network(precision, bound):
    import torch

    from benchmarks.batches import noise
    from benchmarks.peers.plan import describe
    from benchmarks.peers.torch_training import TorchTraining

    config = ModelConfig(
        num_classes=5, depth_multiplier=0.35, head="fcn", head_channels=16, dropout_rate=0.0
    )
    steps = describe(dk.build_segmentor(config, (33, 33)))
    contender = TorchTraining(steps, noise((2, 33, 33, 3), 5), 1, precision)
    assert contender.images.shape == (2, 33, 33, 3) and int(contender.labels.max()) == 4

    def loss():
        scores = contender.network.logits(contender.images)
        return float(torch.nn.functional.cross_entropy(scores, contender.labels).detach())

    before, weights = loss(), contender.network.parts["stem_conv"].conv.weight.detach().clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=contender.mixed):
        scores = contender.network.logits(contender.images)
    assert scores.dtype == torch.float32, "the class scores are float32 in every precision"
    found = float(torch.nn.functional.cross_entropy(scores, contender.labels).detach())
    assert abs(found - before) <= bound * before
    assert contender.measure(5)["bare_speed"] > 0 and contender.measure(0)["device"] == "CPU"
    assert (
        loss() != before and (contender.network.parts["stem_conv"].conv.weight != weights).all()
    ), "every weight must be trained"
    assert sum(p.numel() for p in contender.network.parameters()) == sum(
        int(np.prod(v.shape)) for v in dk.build_segmentor(config).trainable_variables
    )


# --- User errors ---


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "torch",
            {"loss": "focal"},
            "--against=torch requires --loss=cross_entropy; set these flags, or leave out torch",
        ),
        (
            "torch",
            {"optimizer": "lion", "clip_gradient_norm": 1.0},
            "requires --optimizer=momentum, --clip_gradient_norm=0; set",
        ),
        (
            "torch_compile",
            {"label_weights": (1.0, 2.0)},
            "--against=torch_compile requires --label_weights=; set",
        ),
        (
            "torch",
            {"precision": "mixed_float16"},
            "--against=torch requires --precision=float32 or mixed_bfloat16; set",
        ),
        (
            "onnxruntime",
            {},
            "--against must be one of jax, torch, torch_compile with --what=train. Received: "
            "--against=onnxruntime",
        ),
    ],
)
def test_a_step_that_a_peer_does_not_support_is_refused(name, settings, message, monkeypatch):
    monkeypatch.setattr(peers, "require", lambda peer, packages: None)
    with pytest.raises(UserError) as error:
        training.measure_training(TINY, DataConfig(), TrainConfig(**settings), against=[name])
    assert message in as_command_line(error.value)


def test_an_auxiliary_head_is_refused_with_a_peer_that_lacks_it(monkeypatch):
    monkeypatch.setattr(peers, "require", lambda peer, packages: None)
    with raises_line("--against=torch requires --auxiliary_head=false"):
        training.measure_training(
            TINY.replace(auxiliary_head=True), DataConfig(), TrainConfig(), against=["torch"]
        )


@pytest.mark.parametrize(
    ("gpu", "package"), [(None, "jax"), ("/usr/bin/nvidia-smi", "'jax[cuda12]'")]
)
def test_the_error_for_a_missing_peer_has_the_install_command(gpu, package, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(training.shutil, "which", lambda name: gpu)
    with pytest.raises(UserError) as error:
        training.measure_training(TINY, DataConfig(), TrainConfig(), against=["jax"])
    assert as_command_line(error.value).endswith(
        f"packages that are not installed: {package}; run: pip install {package}"
    )
