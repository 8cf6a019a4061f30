"""Settings of all tests: environment variables, shared fixtures, and a summary of tests not run."""

from __future__ import annotations

import collections
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest
import toy
from contracts import BROWSER, SHARED, script

# Set before TensorFlow is imported. Two threads, so that parallel test processes do not compete.
for name, value in {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Otherwise the kernels, and the rounding of golden values, depend on the processor.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "2",
    "OMP_NUM_THREADS": "2",
    "KERAS_BACKEND": "tensorflow",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)

LANES = {"slow": "make slow", "torch": "make torch", "jax": "make jax"}
_deselected: collections.Counter[str] = collections.Counter()
_without_data: list[str] = []
# Package required by tests marked `package(name)` -> how to install it.
PACKAGES = {
    "imageio_ffmpeg": "pip install -e '.[video]'",
    "sklearn": "pip install scikit-learn",
    "torch": "pip install -e '.[convert]'",
    "onnxruntime": "pip install -e '.[onnx]'",
    "chromium": "apt-get install chromium, or from chromium.org",
}
_without_package: collections.Counter[str] = collections.Counter()
_not_run: dict[str, Any] = {
    "deselected": _deselected,
    "without_data": _without_data,
    "without_package": _without_package,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    there = {
        package: importlib.util.find_spec(package) for package in PACKAGES if package != "chromium"
    } | {"chromium": BROWSER}
    missing = {package for package, found in there.items() if found is None}
    for item in items:
        needed = item.get_closest_marker("package")
        if needed and needed.args[0] in missing:
            item.add_marker(pytest.mark.skip(reason=f"{needed.args[0]} is not installed"))
            _without_package[needed.args[0]] += 1
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"real data not found: no folder {SHARED}"))
            _without_data.append(item.nodeid)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        _deselected.update(lane for lane in LANES if item.get_closest_marker(lane))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes the counts from a worker: each worker collects all tests, the main process none."""
    _not_run.update(getattr(node, "workeroutput", {}).get("not_run", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        # Plain dictionaries: the output of a worker is serialized.
        counts = {"deselected": dict(_deselected), "without_package": dict(_without_package)}
        session.config.workeroutput["not_run"] = {**_not_run, **counts}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for lane, count in sorted(_not_run["deselected"].items()):
        terminalreporter.write_line(
            f"not run: {count} tests of the {lane} lane; run them with: {LANES[lane]}"
        )
    for package, count in sorted(_not_run["without_package"].items()):
        terminalreporter.write_line(
            f"not run: {count} tests that require {package}; install it with: {PACKAGES[package]}"
        )
    if names := _not_run["without_data"]:
        terminalreporter.write_line(
            f"not run: {len(names)} tests on real data; the folder {SHARED} does not exist:"
        )
        for nodeid in names:
            terminalreporter.write_line(f"  {nodeid}")


TINY = [
    "--depth_multiplier=0.25",
    "--output_stride=32",
    "--aspp_convs_filters=16",
    "--atrous_rates=",
    "--decoder_filters=16",
    "--low_level_channels=8",
    "--synthetic_size=64,64",
    "--train_crop_size=64,64",
    "--train_samples=8",
    "--eval_samples=4",
    "--train_batch_size=4",
    "--training_number_of_steps=2",
    "--summary_images=1",
]


@pytest.fixture(scope="session")
def _tiny_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    with toy.registered():
        assert script("train.py")("--model_variant=toy", *TINY, f"--train_logdir={workdir}") == 0
    return workdir


@pytest.fixture(scope="module")
def toy_backbone() -> Iterator[None]:
    """Registers the backbone `toy` for this process; another process needs `tests/toy.py`."""
    with toy.registered():
        yield


@pytest.fixture(scope="module")
def tiny_flags(toy_backbone: None) -> list[str]:
    """Flags of a training run that takes seconds, with the backbone `toy`."""
    return ["--model_variant=toy", *TINY]


@pytest.fixture(scope="module")
def tiny_run(toy_backbone: None, _tiny_run: pathlib.Path) -> pathlib.Path:
    """The workdir of a training run of two steps by scripts/train.py with `tiny_flags`."""
    return _tiny_run


@pytest.fixture(scope="session")
def tiny_real_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """As `tiny_run`, with MobileNetV2, for tests that cannot start processes by `tests/toy.py`."""
    workdir = tmp_path_factory.mktemp("runs") / "real"
    assert script("train.py")(*TINY, f"--train_logdir={workdir}") == 0
    return workdir
