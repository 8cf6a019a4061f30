"""Training in half precision is close to single precision, and keeps its weights in float32."""

from __future__ import annotations

import csv
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from contracts import ROOT

from deeplab_keras.checkpoints import folder

LENGTH = (
    "--training_number_of_steps=60", "--eval_interval_epochs=10", "--strategy=none",
    "--summary_images=0", "--optimizer=adamw", "--base_learning_rate=3e-3",
)  # fmt: skip


def losses(workdir: pathlib.Path, tiny_flags: list[str], precision: str) -> list[float]:
    """Returns the mean loss before each evaluation of a run."""
    command = [
        sys.executable,
        "tests/toy.py",
        "scripts/train.py",
        *tiny_flags,
        *LENGTH,
        f"--precision={precision}",
        f"--train_logdir={workdir}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [
        float(row["loss"])
        for row in csv.DictReader((workdir / "training.csv").read_text().splitlines())
    ]


@pytest.mark.slow
def test_half_precision_learns_like_single_precision(tiny_flags, tmp_path):
    single = losses(tmp_path / "float32", tiny_flags, "float32")
    assert len(single) > 2 and single[-1] < single[0] - 0.1
    for precision in ("mixed_bfloat16", "mixed_float16"):
        half = losses(tmp_path / precision, tiny_flags, precision)
        print(
            f"{precision}: largest relative difference of the loss "
            f"{np.max(np.abs(np.divide(half, single) - 1)):.1e}"
        )
        np.testing.assert_allclose(half, single, rtol=0.03)
        assert half != single, "the run did not use half precision"
        last = folder.step_folders(tmp_path / precision)[-1]
        weights = folder.read_weights(last)
        assert {array.dtype for array in weights.values()} == {np.dtype("float32")}
