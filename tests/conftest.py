"""Settings of all tests: environment variables, shared fixtures, and a summary of tests not run."""

from __future__ import annotations

import collections
import gc
import importlib.util
import os
import pathlib
import random
import re
from collections.abc import Iterator
from typing import Any

import file_server
import numpy as np
import pytest
import toy
from contracts import BROWSER, SHARED, script

# Set before TensorFlow is imported. Two threads, so that parallel test processes do not compete.
# With one, golden values of a training step are rounded differently.
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

# Parametrized tests whose cases repeat the same check on other networks or files -> pattern of the
# cases in the quick lane. The slow lane runs the others.
QUICK_CASES = {
    "test_backends.py::test_channels_first_in_keras_json_changes_nothing": "squeeze and excite",
    "test_convert.py::test_two_swapped_tensors_fail_the_proof_of_every_converter": "config[26]-",
    "test_convert_proof.py::test_an_intact_tflite_file": "v3",
    "test_convert_proof.py::test_the_error_names_the_flags_that_fit": r"changes([0139]|11)-",
    "test_convert_proof.py::test_third_party_files": "unfolded",
    "test_data_pipeline.py::test_caching_changes_nothing": "png",
    "test_data_pipeline.py::test_the_parts_of_two_workers_equal_the_batches_of_one": "mixed0",
    "test_concat_conv.py::test_networks_agree_with_and_without_concatenation": "psp",
    "test_convert_pth.py::test_bombs_take_neither_memory_nor_time": (
        "names|same|storages|hashes|nested"
    ),
    "test_data_tfds.py::test_files_records_and_tfds_yield_the_same_batch": "ade20k",
    "test_docs.py::test_python_runs": "^(?!docs/export)",
    "test_examples.py::test_every_public_object_has_an_example_that_runs": (
        "^(?!Segmentor|visualization|export_model)"
    ),
    "test_export.py::test_labels_can_be_uint8": "tflite",
    "test_export.py::test_predictor_with_a_file_agrees_with_keras": "tflite",
    "test_export_at_head.py::test_logits_are_enlarged_like_in_the_network": "aligned",
    "test_export_at_head.py::test_onnx_files_are_enlarged_too": "aligned",
    "test_export_calibration.py::test_an_export_is_calibrated": "two",
    "test_export_metadata.py::test_metadata_describes_the_tensors": "both",
    "test_golden_official.py::test_small_networks_are_still_what_was_right": "dm035|small_seg",
    "test_golden_official.py::test_the_official_graph_s_outputs": "mnv2_dm05|small_seg",
    "test_golden_sssegmentation.py::test_names_and_order_are_the_reference_s": "fcn|plus|v3sos8",
    "test_golden_sssegmentation.py::test_one_training_step": "mobilenetv3s",
    "test_inference_tiles.py::test_windows_by_rows_equal_the_mean_of_all_windows": "1-aligned",
    "test_models.py::test_every_head_keeps_the_contract": "16",
    "test_models.py::test_features_have_the_contracts_strides": "16",
    "test_models.py::test_the_initial_weights_are_those_of_pytorch": "lraspp",
    "test_models.py::test_any_number_of_input_channels": "mobilenet_v2|v3_small-",
    "test_segmentor.py::test_fit_trains_every_output_with_its_weight": "False",
    "test_training_official.py::test_skipped_layers_keep_their_weights": "True",
    "test_zoo.py::test_parameters_and_multiply_adds_equal_the_reference": "^fcn|v3s",
    "test_zoo_loading.py::test_an_imagenet_backbone_by_name": "openmmlab-$|torchvision",
    "test_zoo_loading.py::test_either_file_may_be_put_into_the_cache": "train",
}

# Files that take longest, first: a process with one of them at the end keeps the other waiting.
LONGEST = (
    "export",
    "segmentor",
    "data_pipeline",
    "training",
    "scripts",
    "models",
    "zoo_loading",
    "convert_proof",
    "golden_official",
    "golden_sssegmentation",
    "training_resume",
    "convert",
    "backends",
    "docs",
    "prediction",
    "inference_tiles",
    "optimizers",
    "data_transforms",
    "training_official",
    "inference_reference",
    "examples",
    "export_sizes",
    "export_calibration",
    "export_at_head",
    "checkpoints_folder",
    "command_line",
    "convert_pth",
    "official_command_line",
)

LANES = {
    "slow": "make slow",
    "torch": "make torch",
    "jax": "make jax",
    "lowest": "make lowest",
}
_deselected: collections.Counter[str] = collections.Counter()
_without_data: list[str] = []
# Package required by tests marked `package(name)` -> how to install it.
PACKAGES = {
    "ai_edge_litert": "pip install ai-edge-litert",
    "imageio_ffmpeg": "pip install imageio imageio-ffmpeg",
    "setuptools": "pip install setuptools",
    "sklearn": "pip install scikit-learn",
    "torch": "pip install torch",
    "mediapipe": "pip install mediapipe",
    "onnxruntime": "pip install onnxruntime tf2onnx",
    "pycocotools": "pip install pycocotools",
    "chromium": "apt-get install chromium, or from chromium.org",
}
_without_package: collections.Counter[str] = collections.Counter()
_not_run: dict[str, Any] = {
    "deselected": _deselected,
    "without_data": _without_data,
    "without_package": _without_package,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    there = {
        package: importlib.util.find_spec(package) for package in PACKAGES if package != "chromium"
    } | {"chromium": BROWSER}
    missing = {package for package, found in there.items() if found is None}
    for item in items:
        test, _, case = item.nodeid.removesuffix("]").partition("[")
        quick = QUICK_CASES.get(test.rpartition("/")[2])
        if quick and not re.search(quick, case):
            item.add_marker(pytest.mark.slow)
        needed = item.get_closest_marker("package")
        if needed and needed.args[0] in missing:
            item.add_marker(pytest.mark.skip(reason=f"{needed.args[0]} is not installed"))
            _without_package[needed.args[0]] += 1
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"real data not found: no folder {SHARED}"))
            _without_data.append(item.nodeid)


def pytest_collection_finish() -> None:
    """Makes garbage collection cheaper: it took a tenth of the time of tests that build networks.

    Imported modules are exempt from it, and it runs less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


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


@pytest.fixture(autouse=True)
def seed() -> None:
    """Gives each test the same random numbers, alone or after others.

    Keras draws the seeds of its initializers and of dropout from `random`.
    """
    random.seed(1)
    np.random.seed(1)


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[file_server.Server]:
    """A local server that replaces the hosts of released weights; downloads retry at once."""
    monkeypatch.setattr("deeplab_keras.checkpoints.download.PAUSE", 0)
    with file_server.running() as server:
        yield server


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The empty cache folder for downloads of this test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DEEPLAB_KERAS_CACHE", str(folder))
    return folder


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
