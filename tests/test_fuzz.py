"""Every reader gets thousands of damaged files: one line or a right result, never a crash."""

from __future__ import annotations

import collections
import json
import os
import pathlib
import select
import subprocess
import sys

import pytest
from contracts import ROOT
from fuzz_mutations import STRANGERS, mutated
from fuzz_targets import TARGETS, Target

SECONDS = 60  # an input may take; the longest of today takes a few
ALLOWED = {"refused", "harmless", "different"}
# Where DEEPLAB_KERAS_FUZZ_REPORT names a file, one line of JSON for each target goes there:
# docs/robustness.md is made of it.
REPORT = os.environ.get("DEEPLAB_KERAS_FUZZ_REPORT", "")


class Worker:
    """A process that reads damaged files of one target; started anew when an input ends it."""

    def __init__(self, name: str, home: pathlib.Path) -> None:
        self.command = [sys.executable, str(ROOT / "tests" / "fuzz_worker.py"), name, str(home)]
        self.home = home
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """A process that has read the good file."""
        if self.process is None or self.process.poll() is not None:
            environment = os.environ | {
                "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
                "CUDA_VISIBLE_DEVICES": "",
            }
            log = (self.home / "stderr.txt").open("a")
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.home,
                env=environment,
            )
            assert self.process.stdout is not None
            ready = self.process.stdout.readline()
            assert ready == "ready\n", (self.home / "stderr.txt").read_text()[-3000:]
        return self.process

    def read(self, number: int) -> dict[str, str]:
        """What became of a damaged file."""
        process = self.start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], SECONDS)[0]:
            process.kill()
            process.wait()
            return {"outcome": "hang", "text": f"no answer within {SECONDS} s"}
        line = process.stdout.readline()
        if not line:
            return {"outcome": "crash", "text": f"the process ended with status {process.wait()}"}
        return json.loads(line)

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def _parameters() -> list[object]:
    marks = {
        name: [pytest.mark.package(target.package)] if target.package else []
        for name, target in TARGETS.items()
    }
    return [pytest.param(target, id=name, marks=marks[name]) for name, target in TARGETS.items()]


@pytest.mark.slow
@pytest.mark.parametrize("target", _parameters())
def test_damaged_files(target: Target, tmp_path: pathlib.Path) -> None:
    """No traceback, hang, crash, wrong value or memory beyond four times the file plus 256 MiB."""
    worker, counts, bad = Worker(target.name, tmp_path), collections.Counter[str](), []
    try:
        for number in range(target.inputs):
            answer = worker.read(number)
            outcome = answer["outcome"]
            counts[outcome] += 1
            if outcome not in ALLOWED or (outcome == "different" and target.checked):
                bad.append(
                    f"{number} ({answer.get('damage')}): {outcome}: {answer.get('text', '')}"
                )
    finally:
        worker.stop()
    if REPORT:
        with open(REPORT, "a", encoding="utf-8") as file:
            file.write(
                json.dumps(
                    {
                        "target": target.name,
                        "checked": target.checked,
                        "tried": target.inputs,
                        **counts,
                    }
                )
                + "\n"
            )
    assert not bad, f"{len(bad)} of {target.inputs}: " + "\n".join(bad[:12])


def test_the_lane_tries_at_least_four_thousand_inputs() -> None:
    assert sum(target.inputs for target in TARGETS.values()) >= 4000


def test_damage_is_the_same_in_every_run_and_is_damage() -> None:
    data = bytes(range(256)) * 10
    made = [mutated(data, "x", number) for number in range(200)]
    assert made == [mutated(data, "x", number) for number in range(200)]
    assert {kind for kind, _ in made[: len(STRANGERS)]} == set(STRANGERS)
    changed = sum(copy != data for _, copy in made)
    assert changed > 180
