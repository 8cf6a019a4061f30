"""Several workers: connecting, training like a single worker (slow), and lost workers (slow)."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from contracts import MEASURED, ROOT, as_command_line

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import UserError
from deeplab_keras.training.cluster import Cluster


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def tf_config(ports: list[int], index: int) -> str:
    hosts = [f"127.0.0.1:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})


def test_the_cluster_is_that_of_tensorflow(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config([1, 2], 1))
    cluster = Cluster.from_environment()
    assert cluster == Cluster(("127.0.0.1:1", "127.0.0.1:2"), 1) and not cluster.is_chief
    with_chief = {
        "cluster": {"worker": ["b:2", "c:3"], "chief": ["a:1"]},
        "task": {"type": "worker", "index": 1},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(with_chief))
    assert Cluster.from_environment() == Cluster(("a:1", "b:2", "c:3"), 2)
    with_chief["task"] = {"type": "chief", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps(with_chief))
    assert Cluster.from_environment().is_chief


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "TF_CONFIG, which is not set; on every worker, set TF_CONFIG to the same hosts"),
        ("{", "cannot parse TF_CONFIG={;"),
        ("[]", "cannot parse TF_CONFIG=[];"),
        ('{"cluster": {"worker": ["a:1"]}}', "cannot parse TF_CONFIG={"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}',
            "cannot parse TF_CONFIG={",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "the cluster has no worker 1",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
            "the cluster has no worker -1",
        ),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "TF_CONFIG may only have tasks of the types 'worker' and 'chief'",
        ),
        (
            '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
            "the hosts in TF_CONFIG must have the form name:port. Received: 'a'",
        ),
        (
            '{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}',
            "TF_CONFIG must list each host once",
        ),
    ],
)
def test_an_invalid_tf_config_is_refused(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError) as error:
        Cluster.from_environment()
    assert message in as_command_line(error.value) and "\n" not in as_command_line(error.value)


def connect(hosts: list[str], runs: list[str], seconds: float = 20) -> list[str]:
    """Returns the error of each worker, or "" if it has connected."""
    errors = [""] * len(runs)

    def worker(index: int) -> None:
        time.sleep(0.3 * index)
        try:
            Cluster(tuple(hosts), index).wait_for_all(seconds, runs[index])
        except UserError as error:
            errors[index] = str(error)

    threads = [threading.Thread(target=worker, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_workers_wait_for_each_other():
    hosts = [f"127.0.0.1:{port}" for port in free_ports(3)]
    assert connect(hosts, ["same"] * 3) == ["", "", ""]


def test_a_worker_with_different_flags():
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    errors = connect(hosts, ["a", "b"], seconds=2)
    assert f"worker 1 ({hosts[1]}) has different settings from this one, worker 0" in errors[0]
    assert errors[1], "neither worker may start"


def test_a_worker_that_does_not_start():
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    started = time.monotonic()
    errors = connect(hosts, ["a"], seconds=1)
    assert errors[0].startswith(
        f"strategy='multi_worker': no answer from {hosts[1]} within 1 seconds;"
    )
    assert time.monotonic() - started < 10


def test_another_program_on_the_port():
    """A program that accepts connections without an answer is not a worker."""
    ports = free_ports(2)
    with socket.create_server(("127.0.0.1", ports[1])):
        errors = connect([f"127.0.0.1:{port}" for port in ports], ["a"], seconds=1)
    assert f"no answer from 127.0.0.1:{ports[1]}" in errors[0]
    with socket.create_server(("", ports[0])):
        errors = connect([f"127.0.0.1:{port}" for port in ports], ["a"], seconds=1)
    assert errors[0].startswith(
        f"cannot listen on port {ports[0]}, this worker's port in TF_CONFIG (127.0.0.1:{ports[0]})"
    )


# --- Complete runs, each worker in its own process ---

# In double precision, for the reason in test_training_replicas.py. The workers' batches have
# different numbers of ignored pixels. At a learning rate of 1e-4, a rounding error of 6e-13 in the
# first step does not grow in ten steps; at 1e-3, each step amplifies it ten times or more.
PROGRAM = """
import json, sys
import keras
keras.config.set_floatx("float64")
set_policy = keras.config.set_dtype_policy
keras.config.set_dtype_policy = lambda name: set_policy("float64")
from deeplab_keras.training import train as trainer
from deeplab_keras.training.steps import Steps
from deeplab_keras.config import DataConfig, ModelConfig, TrainConfig

losses = []
end_of_step = Steps.on_train_batch_end
def record(self, batch, logs=None):
    losses.append(float(logs["loss"]))
    end_of_step(self, batch, logs)
    print("STEP", self.run.step, flush=True)
Steps.on_train_batch_end = record
model = ModelConfig(head="fcn", depth_multiplier=0.25, head_channels=8, output_stride=16,
                    dropout_rate=0.0)
data = DataConfig(train_samples=8, eval_samples=1, synthetic_size=(24, 56),
                  train_crop_size=(65, 65), train_batch_size=4, photometric_distortion=False)
training = TrainConfig(base_learning_rate=1e-4, eval_interval_epochs=2.0, summary_images=0,
                       ema_momentum=0.9, worker_timeout=120)
report = trainer.train(model, data, training.replace(**json.loads(sys.argv[1])))
print("RESULT", json.dumps({"losses": losses, "report": report is not None}))
"""


def start(settings: dict[str, object], config: str = "") -> subprocess.Popen[str]:
    environment = dict(
        os.environ,
        TF_CPP_MIN_LOG_LEVEL="3",
        CUDA_VISIBLE_DEVICES="-1",
        PYTHONPATH=str(ROOT),
        TF_CONFIG=config,
    )
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result(process: subprocess.Popen[str]) -> dict[str, object]:
    out, err = process.communicate(timeout=600)
    lines = [
        line.removeprefix("RESULT ") for line in out.splitlines() if line.startswith("RESULT ")
    ]
    assert lines, err[-3000:]
    return json.loads(lines[0])


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    last = folder.step_folders(workdir)[-1]
    return {**folder.read_weights(last), **folder.read_arrays(last / folder.STATE)}


@pytest.mark.slow
def test_two_workers_train_as_one(tmp_path):
    """Ten steps, interrupted by a SIGTERM to the second worker and resumed."""
    one = result(
        start(
            {
                "train_logdir": str(tmp_path / "one"),
                "training_number_of_steps": 10,
                "strategy": "none",
            }
        )
    )
    settings = {
        "train_logdir": str(tmp_path / "two"),
        "training_number_of_steps": 10,
        "strategy": "multi_worker",
    }
    ports = free_ports(2)
    pair = [start(settings, tf_config(ports, index)) for index in range(2)]
    while not folder.step_folders(tmp_path / "two") and pair[0].poll() is None:
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    first = [result(process) for process in pair]
    assert [bool(found["report"]) for found in first] == [False, False]
    done = len(first[0]["losses"])
    assert 4 <= done < 10 and not first[1]["losses"], (
        "the run must stop early, and the second worker must print nothing"
    )
    assert f"step_{done:08d}" in [path.name for path in folder.step_folders(tmp_path / "two")]

    ports = free_ports(2)
    second = [
        result(process)
        for process in [start(settings, tf_config(ports, index)) for index in range(2)]
    ]
    assert [bool(found["report"]) for found in second] == [True, False]
    losses = first[0]["losses"] + second[0]["losses"]
    np.testing.assert_allclose(losses, one["losses"], rtol=0, atol=1e-10)
    expected, found = arrays(tmp_path / "one"), arrays(tmp_path / "two")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if name not in (*MEASURED, "best_miou", "stale_rounds"):
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_a_worker_that_is_killed(tmp_path):
    settings = {
        "train_logdir": str(tmp_path),
        "training_number_of_steps": 10**6,
        "save_interval_steps": 2,
    }
    settings["strategy"] = "multi_worker"
    ports = free_ports(2)
    pair = [start(settings, tf_config(ports, index)) for index in range(2)]
    while len(folder.step_folders(tmp_path)) < 2 and pair[0].poll() is None:
        time.sleep(0.05)
    pair[1].kill()
    _, err = pair[0].communicate(timeout=300)
    assert pair[0].returncode != 0
    last = [line for line in err.splitlines() if "UserError" in line][-1]
    assert (
        "lost the connection to another worker after step" in last
        and "run the same command again on each to resume from the latest checkpoint" in last
    )
    values = arrays(tmp_path)
    del values["meter/joules"]  # NaN where the energy cannot be measured
    assert all(np.isfinite(value).all() for value in values.values())
    saved = int(folder.step_folders(tmp_path)[-1].name.rpartition("_")[2])
    again = start({**settings, "strategy": "none"})
    try:
        assert again.stdout is not None and again.stdout.readline() == f"STEP {saved + 1}\n"
    finally:
        again.kill()
        again.communicate()
