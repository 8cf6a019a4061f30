"""Training runs: interrupted and resumed runs, workdirs, diverging runs and initial checkpoints."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
from contracts import MEASURED, ROOT, as_command_line, holding, raises_line, script

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints import workdir as workdir_module
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import NORMALIZATIONS, DataConfig, ModelConfig, TrainConfig, UserError
from deeplab_keras.convert.conversion import dataset_info
from deeplab_keras.convert.initial import initialize
from deeplab_keras.data import pipeline
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.engine_tensorflow import TensorFlowModel, make_strategy
from deeplab_keras.training.train import training_steps

STEPS, SAVE_STEPS = 8, 2
RUN = (
    f"--training_number_of_steps={STEPS}", f"--save_interval_steps={SAVE_STEPS}", "--deterministic",
    "--strategy=none", "--eval_interval_epochs=2", "--ema_momentum=0.9", "--optimizer=momentum",
    "--summary_images=0",
)  # fmt: skip


def start(workdir: pathlib.Path, tiny_flags: list[str], *flags: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "tests/toy.py",
        "scripts/train.py",
        *tiny_flags,
        *RUN,
        f"--train_logdir={workdir}",
        *flags,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def wait_for(path: pathlib.Path, process: subprocess.Popen[str]) -> None:
    """Waits until the path exists, and fails if the process ends before."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the weights, averages, optimizer state and step of the last training checkpoint."""
    last = folder.step_folders(workdir)[-1]
    assert last.name == f"step_{STEPS:08d}"
    return folder.read_weights(last) | folder.read_arrays(last / folder.STATE)


@pytest.fixture(scope="module")
def undisturbed(tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(workdir, tiny_flags)
    assert process.wait() == 0, process.communicate()
    return workdir


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(
    undisturbed: pathlib.Path, tiny_flags: list[str], tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, tiny_flags)
    # Step 4 is the end of the second epoch over 8 images.
    wait_for(workdir / folder.STEPS / "step_00000004", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = start(workdir, tiny_flags)
    assert again.wait() == 0, again.communicate()
    expected, found = final_arrays(undisturbed), final_arrays(workdir)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert set(different) <= {*MEASURED}, "only speed and time may differ"
    rows = [
        [line.split(",")[0] for line in (d / "training.csv").read_text().splitlines()]
        for d in (undisturbed, workdir)
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_sigterm_saves_the_run(tiny_flags: list[str], tmp_path: pathlib.Path) -> None:
    process = start(
        tmp_path, tiny_flags, "--training_number_of_steps=1000000", "--save_interval_steps=1000000"
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("compiling"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, "stopping on request is no error"
    step = int(folder.step_folders(tmp_path)[-1].name.removeprefix("step_"))
    assert f"stopped by SIGTERM at step {step} of 1000000" in errors


@pytest.mark.slow
def test_control_c_reports_the_latest_checkpoint(
    tiny_flags: list[str], tmp_path: pathlib.Path
) -> None:
    # A shell starts background jobs with SIGINT ignored, and processes inherit this.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(
        tmp_path, tiny_flags, "--training_number_of_steps=1000000", "--save_interval_steps=2"
    )
    signal.signal(signal.SIGINT, handler)
    try:
        wait_for(tmp_path / folder.STEPS / "step_00000002", process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    step = int(folder.step_folders(tmp_path)[-1].name.removeprefix("step_"))
    assert process.returncode == 130 and errors.endswith("interrupted\n")
    assert (
        f"{tmp_path}: interrupted; the latest checkpoint is of step {step}, and the same command "
        "resumes from there" in errors
    )


class Killer:
    """An evaluation in which SIGTERM arrives."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *arguments: object, **options: object) -> None:
        self.calls += 1
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)  # interrupted by the signal handler, which raises an exception


@pytest.mark.slow
def test_sigterm_interrupts_an_evaluation_and_the_resumed_run_repeats_it(
    tiny_flags: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A preempted machine only has seconds, but an evaluation may take minutes.

    So the step is saved before the evaluation.
    """
    flags = [
        *tiny_flags,
        "--summary_images=0",
        "--training_number_of_steps=4",
        f"--train_logdir={tmp_path}",
    ]
    killer = Killer()
    with monkeypatch.context() as patch:
        patch.setattr("deeplab_keras.training.validation.evaluate", killer)
        assert script("train.py")(*flags) == 0
    log = capsys.readouterr().err
    assert killer.calls == 1 and "stopped by SIGTERM at step 2 of 4; the run is saved" in log
    lines = log.splitlines()
    for start in (
        "model: deeplab_v3_plus on toy",
        "data: synthetic, 8 training images (train), 4 validation images",
    ):
        number = next(i for i, line in enumerate(lines) if line.startswith(start))
        assert number < lines.index("compiling the training step; 4 steps remaining"), (
            "the run is described before the wait"
        )
    assert f"run: {tmp_path}, new" in lines
    assert not (tmp_path / "training.csv").exists() and not (tmp_path / folder.BEST).exists()
    assert script("train.py")(*flags) == 0
    rows = (tmp_path / "training.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "2", "4"] and "nan" not in "".join(rows)
    assert f"run: {tmp_path}, resuming from step 2" in capsys.readouterr().err


def test_the_workdir_is_complete(tiny_run: pathlib.Path) -> None:
    files = (
        "config.json",
        "flags.txt",
        "environment.json",
        "metrics.json",
        "training.csv",
        "report.html",
        "model_card.md",
    )
    for name in (*files, "tensorboard", "best"):
        assert (tiny_run / name).exists(), name
    assert {path.name for path in (tiny_run / "best").iterdir()} >= {
        "config.json",
        "dataset.json",
        "weights.npz",
        "metrics.json",
    }
    loaded = folder.load_checkpoint(tiny_run)
    assert loaded.path == tiny_run / "best"
    assert loaded.info.num_classes == loaded.config.num_classes == loaded.model.output_shape[-1]
    report = json.loads((tiny_run / "metrics.json").read_text())
    assert len(report["confusion_matrix"]) == loaded.info.num_classes
    assert not [path for path in tiny_run.rglob("*") if path.name.endswith((".tmp", ".old"))]


def test_a_workdir_of_a_different_config_is_refused(
    tiny_run: pathlib.Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        script("train.py")(*tiny_flags, f"--train_logdir={tiny_run}", "--base_learning_rate=0.123")
        == 1
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "base_learning_rate=0.01, but this one has base_learning_rate=0.123" in error
        and str(tiny_run) in error
    )


def test_a_run_with_the_former_spelling_of_a_value_resumes(tmp_path: pathlib.Path) -> None:
    with Workdir(tmp_path / "run", {"data": DataConfig(mask_format="color")}) as workdir:
        (workdir.path / "best").mkdir()
        path = workdir.path / "config.json"
        path.write_text(path.read_text().replace('"color"', '"colour"'))
    with Workdir(tmp_path / "run", {"data": DataConfig(mask_format="color")}):
        pass
    with raises_line("mask_format=color, but this one has mask_format=index"):
        Workdir(tmp_path / "run", {"data": DataConfig()}).__enter__()


def test_a_run_that_failed_to_start_does_not_block_its_folder(tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    with (
        raises_line("unknown loss"),
        Workdir(run, {"train": TrainConfig(epochs=1, loss="dicee")}),
    ):
        raise UserError("unknown loss")
    assert not run.exists()
    # A run that is killed or stopped before its first checkpoint.
    with Workdir(run, {"train": TrainConfig(epochs=1, loss="dice")}):
        pass
    with Workdir(run, {"train": TrainConfig(epochs=2)}):
        (run / "best").mkdir()
    with raises_line("epochs=2.*, but this one has epochs=1"):
        Workdir(run, {"train": TrainConfig(epochs=1)}).__enter__()
    with raises_line("later"), Workdir(run, {"train": TrainConfig(epochs=2)}):
        raise UserError("later")
    assert (run / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("weights.npz", "is a checkpoint"), ("note.txt", "not the settings of a train")],
)
def test_a_folder_that_is_not_a_workdir_is_refused(
    name: str, message: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "config.json").write_text('{"head": "fcn"}')
    (tmp_path / name).write_text("x")
    with raises_line(message):
        Workdir(tmp_path, {"train": TrainConfig(epochs=1)}).__enter__()
    assert (tmp_path / "config.json").read_text() == '{"head": "fcn"}'


def test_a_workdir_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    configs = {"train": TrainConfig(epochs=1)}
    with (
        Workdir(tmp_path, configs),
        raises_line(f"in use by another training run .process {os.getpid()}"),
    ):
        Workdir(tmp_path, configs).__enter__()
    with Workdir(tmp_path, configs):
        pass  # free again


def test_a_workdir_is_free_once_its_process_is_killed(tmp_path: pathlib.Path) -> None:
    with holding(tmp_path / ".lock") as other:
        with raises_line("in use by another training run"):
            Workdir(tmp_path, {}).__enter__()
        other.kill()
    with Workdir(tmp_path, {}):
        pass


def test_the_lock_of_a_run_on_another_machine_expires(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The heartbeat of the lock file tells whether the other machine's run is still alive."""
    monkeypatch.setattr(workdir_module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(workdir_module, "PATIENCE", 0.5)
    (tmp_path / ".lock").write_text('{"pid": 7, "host": "elsewhere", "since": "noon"}')
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.05):
            os.utime(tmp_path / ".lock")

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with raises_line("in use by another training run .process 7 on elsewhere since noon"):
            Workdir(tmp_path, {}).__enter__()
    finally:
        ended.set()
        thread.join()
    with Workdir(tmp_path, {}):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        touched = (tmp_path / ".lock").stat().st_mtime_ns
        time.sleep(0.3)
        assert (tmp_path / ".lock").stat().st_mtime_ns > touched, "the heartbeat must be visible"
    assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.slow
def test_a_diverging_run_reports_step_rate_layer_and_images(
    tiny_flags: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        f"--train_logdir={tmp_path}",
        "--base_learning_rate=1e38",
        "--training_number_of_steps=40",
    ]
    flags += ["--eval_interval_epochs=100", "--learning_policy=constant"]
    assert script("train.py")(*tiny_flags, *flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(
        r"error: training diverged at step \d+ .learning rate 1e\+38.: the loss is (nan|inf); "
        r"the first layer with a non-finite output is ",
        error,
    )
    assert "--base_learning_rate" in error and str(tmp_path / "diverged") in error
    assert not folder.step_folders(tmp_path)
    report = json.loads((tmp_path / "diverged" / "report.json").read_text())
    assert f"at step {report['step']} " in error and report["first_broken_layer"] in error
    layers = list(report["largest_output_of_each_layer"].items())
    number = [name for name, _ in layers].index(report["first_broken_layer"])
    assert np.isfinite([value for _, value in layers[:number]]).all() and np.isnan(
        layers[number][1]
    )
    assert number < 20, "weights of 1e38 overflow within the first blocks"
    config = script("train.py").parse(*tiny_flags).config(DataConfig)
    source = open_dataset(config, "train")
    assert len(report["images"]) == 4 and set(report["images"]) <= set(source.names)
    with np.load(tmp_path / "diverged" / "batch.npz") as batch:
        batches = pipeline.train_dataset(
            source, config, NORMALIZATIONS["imagenet"][0], start_step=report["step"] - 1
        )
        images, labels = next(iter(batches))
        assert np.array_equal(batch["images"], np.rint(images)) and np.array_equal(
            batch["labels"], labels
        )


@pytest.mark.slow
def test_an_exploding_loss_stops_the_run(
    tiny_flags: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("deeplab_keras.training.steps.DIVERGED", 0.1)
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path}") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(
        r"error: training diverged at step 1 .*: the loss is \d\.\d+, more than 0.1 times the "
        r"first step's loss; layer \S+ has the largest output, ",
        error,
    )
    report = json.loads((tmp_path / "diverged" / "report.json").read_text())
    outputs = report["largest_output_of_each_layer"]
    assert outputs[report["layer_of_largest_output"]] == max(outputs.values())


@pytest.mark.slow
def test_a_frozen_backbone_does_not_change_and_the_run_stops_early(
    tiny_run: pathlib.Path,
    tiny_flags: list[str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The learning rate is too small to change a prediction, so the mIoU does not improve."""
    flags = [
        *tiny_flags,
        f"--train_logdir={tmp_path}",
        f"--tf_initial_checkpoint={tiny_run}",
        "--freeze_backbone",
        "--optimizer=lion",
        "--base_learning_rate=1e-7",
        "--early_stopping=1",
        "--training_number_of_steps=8",
        "--keep_checkpoints=1",
        "--save_interval_steps=1",
        "--summary_images=0",
        "--summary_histograms",
        "--profile_steps=2,3",
    ]
    assert script("train.py")(*flags) == 0
    assert list(tmp_path.rglob("tensorboard/plugins/profile/*/*.xplane.pb")), (
        "steps 2 and 3 must be profiled"
    )
    (events,) = tmp_path.glob("tensorboard/events*")
    assert b"block2_conv/kernel" in events.read_bytes(), "histograms of the weights"
    page = (tmp_path / "report.html").read_text()
    assert page.count("<figure") == 4 and "<h2>Training" in page, (
        "a run that stopped early must have a report too"
    )
    assert "stopped early: mIoU did not improve in the last evaluation" in capsys.readouterr().err
    (last,) = folder.step_folders(tmp_path)
    assert last.name == "step_00000004"
    before, after = folder.read_weights(folder.find_checkpoint(tiny_run)), folder.read_weights(last)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert not [name for name in moved if re.match("(stem|block|last)", name)]
    assert {"logits/kernel", "logits/bias"} <= moved
    assert script("train.py")(*flags) == 0  # a run that stopped early is not resumed
    assert [path.name for path in folder.step_folders(tmp_path)] == ["step_00000004"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--training_number_of_steps=3", "--epochs=2"],
            "--training_number_of_steps=3 and --epochs=2.0 are both set",
        ),
        (["--training_number_of_steps=0"], "either --training_number_of_steps or --epochs"),
        (["--head=unicorn"], "unknown --head 'unicorn'"),
        (["--train_logdir="], "--train_logdir is required"),
        (
            ["--base_learning_rate=0"],
            "--base_learning_rate must be above 0. Received: --base_learning_rate=0.0",
        ),
        (["--loss=crossentropy"], "did you mean 'cross_entropy'"),
        (
            ["--model_variant=mobilenet_v2", "--image_pooling_size=9,9"],
            "the smallest is 257x257",
        ),
        (
            ["--model_variant=mobilenet_v2", "--tf_initial_checkpoint=nowhere"],
            "nowhere: no such file",
        ),
        (
            ["--loss=dice", "--top_k_percent_pixels=0.5"],
            "requires the term cross_entropy, which --loss=dice does not have",
        ),
        (["--label_weights=1,2"], "--label_weights has 2 values, but synthetic has"),
        (["--train_logdir=/proc/nowhere"], "/proc/nowhere: cannot be used"),
        (["--train_logdir=setup.py"], "--train_logdir=setup.py: is a file; give a folder"),
        (
            ["--train_logdir=setup.py/run"],
            "--train_logdir=setup.py/run: cannot be used (Not a directory)",
        ),
        (
            ["--gradient_accumulation_steps=3"],
            "--train_batch_size must be a multiple of --gradient_accumulation_steps=3. Received: "
            "--train_batch_size=4; use 6",
        ),
        (["--freeze_backbone"], "--freeze_backbone requires --tf_initial_checkpoint"),
        (
            ["--keep_checkpoints=0"],
            "--keep_checkpoints must be at least 1. Received: --keep_checkpoints=0",
        ),
        (["--profile_steps=5"], "Received: --profile_steps=5"),
        (["--profile_steps=5,4"], "Received: --profile_steps=5,4"),
        (
            ["--strategy=multi_worker", "--jit_compile"],
            "--jit_compile cannot be combined with --strategy=multi_worker",
        ),
        (
            ["--strategy=multi_worker"],
            "--strategy=multi_worker requires the environment variable TF_CONFIG, which is not set",
        ),
    ],
)
def test_bad_input_is_reported_in_one_line(
    flags: list[str],
    message: str,
    tiny_flags: list[str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path / 'run'}", *flags) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not folder.step_folders(tmp_path / "run")


def test_other_backends_are_refused(
    tiny_flags: list[str], tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path}/run") == 1
    assert capsys.readouterr().err.endswith(
        "error: train.py requires Keras' TensorFlow or JAX backend. Received: backend torch, "
        "set by KERAS_BACKEND; set KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_unknown_head_creates_no_folder(tiny_flags: list[str], tmp_path: pathlib.Path) -> None:
    assert (
        script("train.py")(*tiny_flags, f"--train_logdir={tmp_path / 'run'}", "--head=unicorn") == 1
    )
    assert not (tmp_path / "run").exists()


def test_the_length_of_a_run_in_epochs() -> None:
    assert training_steps(TrainConfig(epochs=3), images=367, batch_size=8) == 138
    assert training_steps(TrainConfig(training_number_of_steps=7), images=367, batch_size=8) == 7


def test_a_single_device_has_the_default_strategy() -> None:
    assert make_strategy("auto").num_replicas_in_sync == 1


# --- Checkpoints ---


@pytest.fixture(scope="module")
def config(toy_backbone: None) -> ModelConfig:
    narrow = {"depth_multiplier": 0.25, "head_channels": 8, "auxiliary_channels": 8}
    return ModelConfig(backbone="toy", head="fcn", auxiliary_head=True, num_classes=4, **narrow)


def test_weights_survive_saving_and_loading(config: ModelConfig, tmp_path: pathlib.Path) -> None:
    info = dataset_info(config)
    model = build_segmentor(config)
    folder.save_checkpoint(tmp_path / "c", model, config, info)
    loaded = folder.load_checkpoint(tmp_path / "c", input_size=(65, 97), batch_size=1)
    assert loaded.config == config and loaded.info == info
    for name, value in folder.named_weights(model).items():
        assert np.array_equal(value, folder.named_weights(loaded.model)[name]), name
    assert len(folder.named_weights(model)) == len(model.weights)


def test_a_truncated_checkpoint_is_skipped(tiny_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = Workdir(tmp_path, {})
    model, config, info = (
        getattr(folder.load_checkpoint(tiny_run), name) for name in ("model", "config", "info")
    )
    for step in (1, 2, 3):
        state = {"step": np.int64(step), "best_miou": np.float64(0)}
        workdir.save_step(
            step, model, config, info, weights=folder.named_weights(model), state=state
        )
    assert [path.name for path in folder.step_folders(tmp_path)] == [
        "step_00000002",
        "step_00000003",
    ], "two checkpoints are kept"
    newest = tmp_path / folder.STEPS / "step_00000003" / folder.WEIGHTS
    newest.write_bytes(newest.read_bytes()[:-1000])
    found = workdir.newest()
    assert found is not None and found.state["step"] == 2
    older = tmp_path / folder.STEPS / "step_00000002" / folder.STATE
    older.write_bytes(older.read_bytes()[:100])
    with raises_line("all 2 checkpoints are damaged; .* to start over"):
        workdir.newest()


def test_an_interrupted_replacement_keeps_the_old_checkpoint(
    tiny_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    loaded = folder.load_checkpoint(tiny_run)
    best = folder.save_checkpoint(tmp_path / folder.BEST, loaded.model, loaded.config, loaded.info)
    best.rename(tmp_path / f".{folder.BEST}.old")  # as after a kill between the two renames
    assert folder.find_checkpoint(tmp_path) == best


def test_different_classes_only_reinitialize_the_classifiers(
    config: ModelConfig, tmp_path: pathlib.Path
) -> None:
    source = build_segmentor(config)
    folder.save_checkpoint(tmp_path / "c", source, config, dataset_info(config))
    other = config.replace(num_classes=6)
    model = build_segmentor(other)
    before = folder.named_weights(model)
    initialize(model, other, str(tmp_path / "c"))
    for name, value in folder.named_weights(model).items():
        is_classifier = name.split("/")[0] in ("logits", "auxiliary_logits")
        assert np.array_equal(
            value, before[name] if is_classifier else folder.named_weights(source)[name]
        ), name


@pytest.mark.parametrize(
    ("names", "flags", "warning"),
    [
        (
            ("road", "Car", "_sky_", "class 3"),
            {},
            "",
        ),  # different spelling, and a default class name
        (
            ("road", "sky", "car", "tree"),
            {},
            "these classes in another order: class 1 is 'car' there and 'sky' here and 1 more",
        ),
        (
            ("road", "bus", "sky", "tree"),
            {},
            "other classes: class 1 is 'car' there and 'bus' here; the classifiers",
        ),
        (
            ("road", "sky", "car", "tree"),
            {"skip_layers": ("logits", "auxiliary_logits")},
            "",
        ),
    ],
)
def test_classes_with_different_names_or_order_reinitialize_the_classifiers(
    names: tuple[str, ...],
    flags: dict[str, bool],
    warning: str,
    config: ModelConfig,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(
        "deeplab_keras.convert.initial.logger.warning",
        lambda text, *values: warnings.append(text % values),
    )
    source, model = build_segmentor(config), build_segmentor(config)
    folder.save_checkpoint(
        tmp_path / "c", source, config, info_for_classes("street", ("road", "car", "sky", "tree"))
    )
    before, theirs = folder.named_weights(model), folder.named_weights(source)
    initialize(model, config, str(tmp_path / "c"), **flags, info=info_for_classes("mine", names))
    for name, value in folder.named_weights(model).items():
        fresh = (warning or flags) and name.split("/")[0] in ("logits", "auxiliary_logits")
        assert np.array_equal(value, before[name] if fresh else theirs[name]), name
    assert len(warnings) == bool(warning)
    assert all(warning in line and "\n" not in line for line in warnings), warnings


@pytest.mark.slow
def test_a_run_compares_its_classes_with_those_of_the_initial_checkpoint(
    tiny_flags: list[str],
    tiny_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    start = tmp_path / "start"
    shutil.copytree(tiny_run / "best", start)
    (start / folder.HASHES).unlink()
    info = folder.read_info(start)
    names = [info.class_names[0], info.class_names[2], info.class_names[1], *info.class_names[3:]]
    (start / folder.DATASET).write_text(json.dumps({**info.to_dict(), "class_names": names}))
    flags = [*tiny_flags, "--summary_images=0", "--nohtml_report", f"--initial_checkpoint={start}"]
    assert script("train.py")(*flags, f"--train_logdir={tmp_path}/run") == 0
    message = (
        f"another order: class 1 is {names[1]!r} there and {names[2]!r} here and 1 more; "
        "the classifiers start from random weights"
    )
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("fcn_mobilenetv2os8_voc", "--model=fcn_mobilenetv2os8_voc would use"),
        ("", "--head=fcn with the other"),
    ],
)
def test_a_warning_if_only_the_backbone_of_a_network_is_used(
    name: str,
    fits: str,
    config: ModelConfig,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It names the model that could use all weights. A backbone alone causes no warning."""
    warnings: list[str] = []
    monkeypatch.setattr(
        "deeplab_keras.convert.initial.logger.warning",
        lambda text, *values: warnings.append(text % values),
    )
    source = build_segmentor(config)
    folder.save_checkpoint(tmp_path / "c", source, config.replace(name=name), dataset_info(config))
    initialize(build_segmentor(config), config, str(tmp_path / "c"))
    assert not warnings
    other = config.replace(head="psp")
    model = build_segmentor(other)
    initialize(model, other, str(tmp_path / "c"))
    assert (
        len(warnings) == 1
        and "has the head fcn, so only its backbone is loaded and the head psp" in warnings[0]
    )
    assert fits in as_command_line(warnings[0]) and "\n" not in warnings[0]
    theirs = folder.named_weights(source)
    for weight, value in folder.named_weights(model).items():
        assert not re.match("stem|block|last", weight) or np.array_equal(value, theirs[weight]), (
            weight
        )


def test_a_checkpoint_of_a_different_width_is_refused(
    config: ModelConfig, tmp_path: pathlib.Path
) -> None:
    folder.save_checkpoint(tmp_path / "c", build_segmentor(config), config, dataset_info(config))
    wider = config.replace(depth_multiplier=0.5)
    model = build_segmentor(wider)
    before = folder.named_weights(model)
    with raises_line("of another shape .*for"):
        initialize(model, wider, str(tmp_path / "c"))
    assert all(
        np.array_equal(before[name], value) for name, value in folder.named_weights(model).items()
    )


@pytest.mark.slow  # tests/test_convert.py has a file with the classifier in the quick lane
@pytest.mark.parametrize("include_top", [False, True])
def test_imagenet_weights_give_the_same_features(include_top: bool, tmp_path: pathlib.Path) -> None:
    theirs = keras.applications.MobileNetV2(
        (96, 128, 3), alpha=0.35, include_top=include_top, weights=None
    )
    random = np.random.default_rng(3)
    theirs.set_weights(
        [random.uniform(0.2, 0.8, w.shape) - 0.45 * (w.ndim > 1) for w in theirs.get_weights()]
    )
    theirs.save_weights(tmp_path / "imagenet.weights.h5")
    fitting = ModelConfig(
        head="fcn",
        head_channels=8,
        depth_multiplier=0.35,
        output_stride=32,
        normalization="unit_range",
        padding="same",
        backbone_bn_epsilon=1e-3,
        num_classes=3,
    )
    ours = build_segmentor(fitting)
    initialize(ours, fitting, str(tmp_path / "imagenet.weights.h5"))
    image = np.random.default_rng(5).uniform(0, 255, (1, 96, 128, 3)).astype(np.float32)
    expected = keras.Model(theirs.input, theirs.get_layer("block_16_project_BN").output)(
        image / 127.5 - 1
    )
    found = keras.Model(ours.input, ours.get_layer("block17_project_bn").output)(image)
    assert np.std(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.std(expected))


# --- A full disk ---


def test_too_little_disk_space_is_reported_before_the_first_step(
    tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder.load_checkpoint(tiny_run).model
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    )
    with raises_line(f"--train_logdir={tmp_path}: 0 MiB are free, but the checkpoints need"):
        Workdir(tmp_path, {}).check_space(model)


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_no_partial_file(
    tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = folder.load_checkpoint(tiny_run)
    path = folder.save_checkpoint(
        tmp_path / "best", loaded.model, loaded.config, loaded.info, metrics={"miou": 0.5}
    )

    def full(file: object, *arguments: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with raises_line("no space left on the device"):
        folder.save_checkpoint(
            path, loaded.model, loaded.config, loaded.info, metrics={"miou": 0.9}
        )
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert json.loads((path / folder.METRICS).read_text()) == {"miou": 0.5}
    assert folder.read_weights(path).keys() == folder.named_weights(loaded.model).keys()


@pytest.mark.parametrize("file", [".lock", "config.json"])
def test_a_full_disk_at_the_start_is_reported_and_keeps_the_run(
    file: str, tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    before = (tmp_path / "run/config.json").read_text()
    configs = {"train": TrainConfig.from_dict(json.loads(before)["train"])}

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            *(
                ("filelock.lock_descriptor", full)
                if file == ".lock"
                else ("pathlib.Path.write_text", full)
            )
        )
        with raises_line(
            r"^(--train_logdir=)?\S+: cannot be written( to)? \(No space left on device\); ",
        ):
            Workdir(tmp_path / "run", configs).__enter__()
    assert (tmp_path / "run/config.json").read_text() == before and not list(
        (tmp_path / "run").glob(".*.tmp")
    )
    with Workdir(tmp_path / "run", configs):
        pass


def test_resetting_metrics_traces_once():
    """TensorFlow logs a warning about functions that are traced again at every evaluation."""
    image = keras.Input((4,))
    model = TensorFlowModel(image, keras.layers.Dense(1)(image))
    model.compile("sgd", "mse")
    tracker = model.metrics[0]
    for _ in range(3):
        tracker.update_state(5.0)
        model.reset_metrics()
        assert float(tracker.result()) == 0
    assert model._reset[1].experimental_get_tracing_count() == 1
