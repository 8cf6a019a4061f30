"""Networks, losses, optimizers and checkpoints on Keras' JAX backend, without TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from contracts import ROOT

# Hides TensorFlow and what depends on it in a process and in those that it starts. PyTorch asks
# `find_spec` for it, which must return None as if it were not installed.
BLOCKED = """
import sys

HIDDEN = ("tensorflow", "tensorflow_datasets", "keras_cv")

class Filter:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Filter, sys.meta_path)
"""


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs Python without TensorFlow and returns stdout and stderr."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(BLOCKED)

    def run(*arguments: str, status: int = 0, **variables: str) -> tuple[str, str]:
        environment = {
            **os.environ,
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{tmp_path}/path:{ROOT}",
            **variables,
        }
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr

    return run


def test_a_script_names_the_missing_package(run):
    script = f"{ROOT}/scripts/build_tfrecords.py"
    _, error = run(script, "--output_dir=x", status=1, KERAS_BACKEND="tensorflow")
    assert error.startswith(
        "error: tensorflow is not installed, but Keras needs it: pip install tensorflow; "
    )
    assert error.count("\n") == 1


@pytest.mark.jax
def test_training_on_jax_requires_tensorflow_for_its_images(run):
    arguments = ("--training_number_of_steps=1", "--train_logdir=run")
    _, error = run(f"{ROOT}/scripts/train.py", *arguments, status=1)
    assert error == (
        "error: tensorflow is not installed, but reading images needs it, also on Keras' JAX "
        "backend: pip install tensorflow\n"
    )


def test_lists_need_neither_tensorflow_nor_keras(run):
    code = """
import sys
from deeplab_keras.cli.script import call_command
assert [call_command(name, [name]) for name in ("list_models", "recipes")] == [0, 0]
assert "keras" not in sys.modules
"""
    out, error = run("-c", code, KERAS_BACKEND="tensorflow")
    assert "\nlraspp_mobilenet_v3_large " in out and "\nsynthetic/demo.flags " in out
    assert error == ""


@pytest.mark.jax
def test_the_benchmark_of_a_training_step_needs_no_tensorflow(run):
    """The machine with a GPU that this is for has JAX and PyTorch."""
    out, _ = run(
        f"{ROOT}/scripts/benchmark.py",
        "--what=train",
        "--head=lraspp",
        "--model_variant=mobilenet_v3_small",
        "--num_classes=5",
        "--depth_multiplier=0.5",
        "--train_crop_size=64,64",
        "--train_batch_size=2",
        "--rounds=1",
        "--batches=1",
    )
    assert "noise of 5 classes, batches of 2 crops of 64x64, float32" in out
    assert (
        re.search(r"^jax, steps alone +[\d.]+ .* images/s, on CPU$", out, re.MULTILINE)
        and "waiting" not in out
    )


@pytest.mark.jax
def test_the_gpu_kit_needs_no_tensorflow(run, tmp_path):
    """The small preset. A slow machine does not reach all parts."""
    peer = "torch" if importlib.util.find_spec("torch") else ""
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "crops.npz",
        images=random.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8),
        labels=random.integers(0, 5, (2, 64, 64)).astype(np.int32),
        num_classes=np.int32(5),
        ignore_label=np.int32(255),
    )
    flags = ("--what=gpu", "--preset=small", "--json=gpu.json", "--page=gpu.md", "--npz=crops.npz",
             "--seconds=840")  # fmt: skip
    out, _ = run(f"{ROOT}/scripts/benchmark.py", *flags, f"--against={peer}", KERAS_BACKEND="")
    assert out.startswith("no GPU: small networks on the CPU; ")
    report = json.loads((tmp_path / "gpu.json").read_text())
    setting, parts = report["setting"], report["parts"]
    assert setting["device"] == "CPU" and setting["batch"] == "crops.npz, 5 classes"
    states = [part["status"] for part in parts.values()]
    assert len(states) == 5 and set(states[3:]) <= {"done", "not run"}, out
    assert states[:3] == ["done"] * 3, out
    (system,) = {row["subject"].partition(",")[0] for row in parts["parity"]["rows"]}
    found = {(row["subject"].partition(", ")[2], row["quantity"]): row["median"]
             for row in parts["parity"]["rows"]}  # fmt: skip
    assert system == "deeplabv3plus_mobilenetv2os8_voc" and len(found) == 2 * 2
    assert found["float32", "logits"] <= parts["parity"]["bounds"]["float32"]["logits"]
    assert found["float32", "logits"] < found["bfloat16", "logits"], "computed in float32"
    for kind, quantities in (("train", ["steps alone"]), ("inference", ["batch 1", "batch 2"])):
        part = parts[f"{kind} fcn_mobilenetv2os8_voc bfloat16"]
        speeds = {(row["subject"].rpartition(": ")[2], row["quantity"]): row["median"]
                  for row in part["rows"] if row["unit"] == "images/s"}  # fmt: skip
        contenders = ["jax", *filter(None, [peer])]
        assert list(speeds) == [(f"{name}, CPU", q) for name in contenders for q in quantities]
        assert min(speeds.values()) > 0 and part["errors"] == {}
    assert (tmp_path / "gpu.md").read_text().count("\n## gpu: ") == 3


@pytest.mark.jax
def test_a_model_learns_and_is_saved_without_tensorflow(run):
    code = """
        import sys
        import numpy as np
        import deeplab_keras as dk
        from deeplab_keras.checkpoints.folder import save_checkpoint
        from deeplab_keras.data.info import info_for_classes
        from deeplab_keras.training.losses import make_loss
        from deeplab_keras.evaluation.metrics import ConfusionMatrix
        from deeplab_keras.training.optimizers import make_optimizer

        config = dk.get_config("lrasppnet_mobilenetv3sos8_voc").replace(
            num_classes=5, depth_multiplier=0.5, output_stride=16, image_pooling_size=(),
            dropout_rate=0.0)
        model = dk.build_segmentor(config)
        training = dk.TrainConfig(learning_policy="constant", base_learning_rate=0.05)
        model.compile(
            optimizer=make_optimizer(training, 10),
            loss=make_loss("cross_entropy+0.5*dice+0.5*lovasz"),
            metrics=[ConfusionMatrix(5)])
        random = np.random.default_rng(0)
        images = random.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
        labels = np.repeat(np.repeat(random.integers(0, 5, (2, 4, 4)), 16, 1), 16, 2)
        labels[:, :8] = 255
        losses = [float(model.train_on_batch(images, labels)[0]) for _ in range(8)]
        assert losses[-1] < losses[0], losses
        save_checkpoint("saved", model, config, info_for_classes("five", "abcde"))
        found, expected = (
            np.asarray(m.predict_on_batch(images)) for m in (dk.load_model("saved"), model))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        imported = [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
        print("learned:", losses[0], losses[-1], imported)
        """
    out, _ = run("-c", textwrap.dedent(code))
    assert out.startswith("learned: ") and out.rstrip().endswith("[]")
