"""A training of sixty steps that is killed at random moments, some of them while it writes a checkpoint."""

from __future__ import annotations

import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from contracts import ROOT

from deeplab_keras.checkpoints import folder

KILLS = 25
FLAGS = (
    "--training_number_of_steps=60", "--save_interval_steps=1", "--deterministic", "--strategy=none", "--eval_interval_epochs=15",
    "--ema_momentum=0.9", "--summary_images=0", "--nohtml_report",
)  # fmt: skip


def start(workdir: pathlib.Path, flags: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/train.py", *flags, *FLAGS, f"--train_logdir={workdir}"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def newest(workdir: pathlib.Path) -> str:
    """Name of the newest whole checkpoint; folders come and go while the training runs."""
    return max((path.name for path in (workdir / folder.STEPS).glob("step_*[0-9]")), default="")


def final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    last = folder.step_folders(workdir)[-1]
    assert last.name == "step_00000060"
    arrays = {**folder.read_weights(last), **folder.read_arrays(last / folder.STATE)}
    return {name: value for name, value in arrays.items() if not name.startswith("row/")}  # means since the last start


def live(workdir: pathlib.Path, flags: list[str], seconds: float | None) -> tuple[bool, bool]:
    """Starts the training and kills it so long after its first checkpoint of this life; whether it ended before, and how far."""
    before, process = newest(workdir), start(workdir, flags)
    while newest(workdir) == before and process.poll() is None:
        time.sleep(0.005)
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (0, -9), errors[-2000:]
    left = list((workdir / folder.STEPS).glob("*.tmp*")) if process.returncode else []
    return process.returncode == 0, bool(left)


@pytest.mark.slow
def test_killed_at_random_moments(tiny_flags, tmp_path):
    """Every run that was killed and started again ends with the weights of the one that was not, and no run needs a hand."""
    live(tmp_path / "undisturbed", tiny_flags, None)
    expected = final_arrays(tmp_path / "undisturbed")
    numbers, kills, runs, torn = random.Random(0), 0, 0, 0
    while kills < KILLS:
        workdir, ended = tmp_path / f"killed_{runs}", False
        while not ended:
            ended, while_writing = live(workdir, tiny_flags, numbers.uniform(0, 0.8) if kills < KILLS else None)
            kills, torn = kills + (not ended), torn + while_writing
        found = final_arrays(workdir)
        assert found.keys() == expected.keys()
        assert not [name for name in expected if not np.array_equal(expected[name], found[name])]
        runs += 1
    print(f"{kills} kills over {runs} runs, {torn} of them while a checkpoint was written")
    assert torn, "none of the kills met a checkpoint half written"
