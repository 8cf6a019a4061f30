"""tf.data service: a dispatcher and two local workers yield the batch of each step once."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from contracts import ROOT, raises_line, script
from data_files import write_dataset
from test_data_pipeline import PAD

from deeplab_keras.config import DataConfig
from deeplab_keras.data import service
from deeplab_keras.data.pipeline import train_dataset
from deeplab_keras.data.records.build import build_records
from deeplab_keras.data.registry import open_dataset


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> DataConfig:
    root = write_dataset(tmp_path_factory.mktemp("photos"), count=5)
    config = DataConfig(
        dataset="folder", dataset_dir=str(root), train_crop_size=(16, 24), train_batch_size=4
    )
    build_records(open_dataset(config, "train"), "train", root / "records")
    return config.replace(dataset="tfrecord", dataset_dir=str(root / "records"))


@pytest.fixture(scope="module")
def dispatcher():
    server = service.start_dispatcher(0)
    workers = [service.start_worker(server.target, 0, "localhost") for _ in range(2)]
    yield server.target
    for worker in workers:
        worker._stop()
    server._stop()


def steps_of(batches, config: DataConfig, start: int) -> list[int]:
    """Takes 20 batches, or more until there is that of the first step, which may be delayed.

    Returns:
        The steps of the normal stream to which the batches belong.
    """
    normal = train_dataset(open_dataset(config, "train"), config, PAD).take(1000)
    coming = enumerate(map(content, normal.as_numpy_iterator()))
    known: dict[bytes, int] = {}
    steps: list[int] = []
    for batch in map(content, batches):
        while batch not in known:
            step, expected = next(coming, (0, None))
            assert expected is not None, "a batch that is not in the stream"
            known[expected] = step
        steps.append(known[batch])
        if len(steps) >= 20 and start in steps:
            return steps
    raise AssertionError("the stream ended")


def content(batch: tuple[np.ndarray, np.ndarray]) -> bytes:
    return b"".join(part.tobytes() for part in batch)


def check_steps(steps: list[int], start: int) -> None:
    assert len(set(steps)) == len(steps), "a batch occurs twice"
    assert min(steps) == start and max(steps) < start + len(steps) + 17
    lasts: list[int] = []  # the last steps of the fewest ascending sequences that make up `steps`
    for step in steps:
        before = [last for last in lasts if last < step]
        if before:
            lasts.remove(max(before))
        lasts.append(step)
    assert len(lasts) <= 2, "each of the two workers yields its batches in order"


@pytest.mark.slow
def test_two_workers_yield_every_batch_once(records, dispatcher):
    config = records.replace(data_service=dispatcher)
    found = train_dataset(open_dataset(config, "train"), config, PAD, start_step=3)
    check_steps(steps_of(found.as_numpy_iterator(), records, start=3), start=3)


def test_sources_read_by_python_are_refused(records, dispatcher, tmp_path):
    scenes = DataConfig(train_samples=2, synthetic_size=(16, 24), data_service=dispatcher)
    with raises_line(
        "--data_service: --dataset=synthetic is read by Python .+; convert it to records: py",
    ):
        train_dataset(open_dataset(scenes, "train"), scenes, PAD)
    cached = records.replace(cache=True, data_service=dispatcher)
    with raises_line("is read by Python"):
        train_dataset(open_dataset(cached, "train"), cached, PAD)
    on_disk = records.replace(cache_dir=str(tmp_path))
    service.require_portable(
        open_dataset(on_disk, "train").tf_load, "a cache on a disk that all share"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_errors_are_one_line(records, dispatcher, capsys):
    unused = f"grpc://localhost:{free_port()}"
    config = records.replace(data_service=unused)
    with raises_line(
        f"^--data_service={unused}: no response .+; start a dispatcher: python",
    ):
        train_dataset(open_dataset(config, "train"), config, PAD)
    for address in ("head:5050", "grpc://head", "http://head:5050", "grpc://:5050"):
        with raises_line(
            f"--data_service must be grpc://HOST:PORT, .* Received: --data_service={address}$",
        ):
            DataConfig(data_service=address)
    run = script("data_service.py")
    taken = dispatcher.rpartition(":")[2]
    for arguments, message in (
        ([], "--role is required: --role=dispatcher or --role=worker"),
        (["--role=worker"], "--role=worker requires --dispatcher=grpc://HOST:PORT"),
        (
            ["--role=worker", "--dispatcher=http://x"],
            "--dispatcher=http://x: must be grpc://HOST:PORT",
        ),
        (
            ["--role=worker", f"--dispatcher={unused}"],
            f"--dispatcher={unused}: no response",
        ),
        (["--role=dispatcher", f"--port={taken}"], f"--port={taken}: cannot be opened"),
        (["--role=chief"], "unknown --role 'chief'"),
    ):
        assert run(*arguments) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_processes_of_the_script_yield_every_batch_once(records):
    """The workers share only the files with this process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "scripts/data_service.py", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        )

    head = start("--role=dispatcher")
    processes = [head]
    try:
        address = re.search("--data_service=(grpc://.+)", head.stdout.readline())[1]
        processes += [start("--role=worker", f"--dispatcher={address}") for _ in range(2)]
        for worker in processes[1:]:
            assert worker.stdout.readline().startswith("worker of grpc://")
        config = records.replace(data_service=address)
        found = train_dataset(open_dataset(config, "train"), config, PAD)
        check_steps(steps_of(found.as_numpy_iterator(), records, start=0), start=0)
    finally:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + 20
        for process in processes:
            process.wait(max(deadline - time.monotonic(), 1))
