"""A run of 60 steps is killed at random moments, and its newest checkpoint is damaged each time."""

from __future__ import annotations

import collections
import csv
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from contracts import MEASURED, ROOT

from deeplab_keras.checkpoints import folder

KILLS = 25
FLAGS = (
    "--training_number_of_steps=60",
    "--save_interval_steps=1",
    "--deterministic",
    "--strategy=none",
    "--eval_interval_epochs=15",
    "--ema_momentum=0.9",
    "--rare_class_crops=0.5",
    "--summary_images=0",
    "--nohtml_report",
)


def start(workdir: pathlib.Path, flags: list[str]) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "tests/toy.py",
        "scripts/train.py",
        *flags,
        *FLAGS,
        f"--train_logdir={workdir}",
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def newest(workdir: pathlib.Path) -> str:
    """Name of the newest whole checkpoint; folders come and go while the training runs."""
    return max((path.name for path in (workdir / folder.STEPS).glob("step_*[0-9]")), default="")


def final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    last = folder.step_folders(workdir)[-1]
    assert last.name == "step_00000060"
    arrays = {**folder.read_weights(last), **folder.read_arrays(last / folder.STATE)}
    return {name: value for name, value in arrays.items() if name not in MEASURED}


def rows(workdir: pathlib.Path) -> list[dict[str, str]]:
    """training.csv without the speed, which is the machine's."""
    found = list(csv.DictReader((workdir / "training.csv").read_text().splitlines()))
    return [
        {name: value for name, value in row.items() if name != "images_per_second"} for row in found
    ]


def damage(workdir: pathlib.Path, numbers: random.Random) -> str:
    """Damages the newest checkpoint, if there is an older one, and returns the kind of damage."""
    folders = folder.step_folders(workdir)
    if len(folders) < 2:
        return "none"
    path = numbers.choice(sorted(folders[-1].iterdir()))
    data = path.read_bytes()
    kind = numbers.choice(
        ("cut", "emptied", "deleted", "bit flipped", "bit flipped", "folder deleted")
    )
    if kind == "cut":
        path.write_bytes(data[: numbers.randrange(len(data))])
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "deleted":
        path.unlink()
    elif kind == "folder deleted":
        shutil.rmtree(folders[-1])
    else:
        at = numbers.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << numbers.randrange(8)]) + data[at + 1 :])
    return kind


def live(workdir: pathlib.Path, flags: list[str], seconds: float | None) -> tuple[bool, bool]:
    """Starts the run and kills it `seconds` after its first new checkpoint.

    Returns:
        Whether the run ended by itself, and whether the kill interrupted the writing of a
        checkpoint.
    """
    before, process = newest(workdir), start(workdir, flags)
    while newest(workdir) == before and process.poll() is None:
        time.sleep(0.005)
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    _, errors = process.communicate(timeout=1800)
    assert "Traceback" not in errors
    assert process.returncode in (0, -9), errors[-2000:]
    left = list((workdir / folder.STEPS).glob("*.tmp*")) if process.returncode else []
    return process.returncode == 0, bool(left)


def kill(kills_wanted: int, tiny_flags: list[str], tmp_path: pathlib.Path) -> pathlib.Path:
    """Kills, damages and resumes runs, which must end with the state of an undisturbed run.

    Returns:
        The workdir of the last run.
    """
    live(tmp_path / "undisturbed", tiny_flags, None)
    expected = final_arrays(tmp_path / "undisturbed")
    numbers, kills, runs, torn = random.Random(0), 0, 0, 0
    damages: collections.Counter[str] = collections.Counter()
    while kills < kills_wanted:
        workdir, ended = tmp_path / f"killed_{runs}", False
        while not ended:
            ended, while_writing = live(
                workdir, tiny_flags, numbers.uniform(0, 0.8) if kills < kills_wanted else None
            )
            kills, torn = kills + (not ended), torn + while_writing
            if not ended:
                damages[damage(workdir, numbers)] += 1
        found = final_arrays(workdir)
        assert found.keys() == expected.keys()
        assert not [name for name in expected if not np.array_equal(expected[name], found[name])]
        assert rows(workdir) == rows(tmp_path / "undisturbed")
        runs += 1
    done = ", ".join(f"{kind} {count}" for kind, count in sorted(damages.items()))
    print(
        f"{kills} kills over {runs} runs, {torn} of them while a checkpoint was written; damage: "
        f"{done}"
    )
    return workdir


@pytest.mark.slow
def test_killed_at_random_moments(tiny_flags, tmp_path):
    workdir = kill(KILLS, tiny_flags, tmp_path)
    for path in folder.step_folders(workdir):  # and where nothing is intact, one line says so
        (path / folder.WEIGHTS).write_bytes(b"")
    process = start(workdir, tiny_flags)
    _, errors = process.communicate(timeout=1800)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert (
        process.returncode == 1 and len(lines) == 1 and "all 2 checkpoints are damaged" in lines[0]
    )
