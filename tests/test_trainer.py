"""Training as a user meets it: runs that are killed and go on, folders in use, rates that explode, other classes."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from contracts import ROOT, script

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.initial import initialize
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import ModelConfig, TrainConfig, UserError
from deeplab_keras.segmentor import build_segmentor
from deeplab_keras.trainer import make_strategy, training_steps

STEPS, SAVE_STEPS = 8, 2
RUN = (
    f"--training_number_of_steps={STEPS}", f"--save_interval_steps={SAVE_STEPS}", "--deterministic", "--strategy=none",
    "--eval_interval_epochs=2", "--ema_momentum=0.9", "--optimizer=momentum", "--summary_images=0",
)  # fmt: skip


def start(workdir: pathlib.Path, tiny_flags: list[str], *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "scripts/train.py", *tiny_flags, *RUN, f"--train_logdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path: pathlib.Path, process: subprocess.Popen[str]) -> None:
    """Until the path exists; fails if the process ends before."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def final_arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Weights, averages, optimizer and step of the last training checkpoint."""
    last = folder.step_folders(workdir)[-1]
    assert last.name == f"step_{STEPS:08d}"
    return folder.read_weights(last) | folder.read_arrays(last / folder.STATE)


@pytest.fixture(scope="module")
def undisturbed(tiny_flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(workdir, tiny_flags)
    assert process.wait() == 0, process.communicate()
    return workdir


def test_a_killed_run_ends_with_the_same_weights(
    undisturbed: pathlib.Path, tiny_flags: list[str], tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    process = start(workdir, tiny_flags)
    wait_for(workdir / folder.STEPS / "step_00000004", process)  # the end of the second pass over 8 images
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = start(workdir, tiny_flags)
    assert again.wait() == 0, again.communicate()
    expected, found = final_arrays(undisturbed), final_arrays(workdir)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not np.array_equal(expected[name], found[name])]
    assert not different
    rows = [[line.split(",")[0] for line in (d / "training.csv").read_text().splitlines()] for d in (undisturbed, workdir)]
    assert rows[0] == rows[1]


def test_sigterm_saves_and_the_same_command_goes_on(tiny_flags: list[str], tmp_path: pathlib.Path) -> None:
    process = start(tmp_path, tiny_flags, "--training_number_of_steps=1000000", "--save_interval_steps=1000000")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("compiling"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    step = int(folder.step_folders(tmp_path)[-1].name.removeprefix("step_"))
    assert f"stopped at step {step} of 1000000" in errors


def test_the_workdir_holds_all_that_is_needed(tiny_run: pathlib.Path) -> None:
    for name in ("config.json", "flags.txt", "environment.json", "metrics.json", "training.csv", "tensorboard", "best"):
        assert (tiny_run / name).exists(), name
    assert {path.name for path in (tiny_run / "best").iterdir()} >= {"config.json", "dataset.json", "weights.npz", "metrics.json"}
    loaded = folder.load_checkpoint(tiny_run)
    assert loaded.path == tiny_run / "best"
    assert loaded.info.num_classes == loaded.config.num_classes == loaded.model.output_shape[-1]
    report = json.loads((tiny_run / "metrics.json").read_text())
    assert len(report["confusion_matrix"]) == loaded.info.num_classes
    assert not [path for path in tiny_run.rglob("*") if path.name.endswith((".tmp", ".old"))]


def test_a_finished_run_is_not_trained_again(tiny_run: pathlib.Path, tiny_flags: list[str]) -> None:
    before = (folder.step_folders(tiny_run)[-1] / folder.WEIGHTS).stat().st_mtime_ns
    assert script("train.py")(*tiny_flags, f"--train_logdir={tiny_run}") == 0
    assert (folder.step_folders(tiny_run)[-1] / folder.WEIGHTS).stat().st_mtime_ns == before


def test_a_workdir_of_another_config_is_refused(
    tiny_run: pathlib.Path, tiny_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("train.py")(*tiny_flags, f"--train_logdir={tiny_run}", "--base_learning_rate=0.123") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "base_learning_rate=0.01, not 0.123" in error and str(tiny_run) in error


def test_a_workdir_in_use_is_refused(tmp_path: pathlib.Path) -> None:
    configs = {"train": TrainConfig(epochs=1)}
    with Workdir(tmp_path, configs), pytest.raises(UserError, match=f"in use by a running training .process {os.getpid()}"):
        Workdir(tmp_path, configs).__enter__()
    with Workdir(tmp_path, configs):
        pass  # free again


def test_a_diverging_training_stops_with_step_and_rate(
    tiny_flags: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--train_logdir={tmp_path}", "--base_learning_rate=1e30", "--training_number_of_steps=40"]
    flags += ["--eval_interval_epochs=100"]
    assert script("train.py")(*tiny_flags, *flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the loss is ") and "at step" in error and "--base_learning_rate" in error
    assert not folder.step_folders(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training_number_of_steps=3", "--epochs=2"], "either --training_number_of_steps or --epochs"),
        (["--head=unicorn"], "unknown head (--head) 'unicorn'"),
        (["--train_logdir="], "--train_logdir is needed"),
        (["--base_learning_rate=0"], "--base_learning_rate=0.0: above 0"),
        (["--loss=crossentropy"], "did you mean 'cross_entropy'"),
        (["--image_pooling_size=9,9", "--head=lraspp"], "the smallest is 257x257"),
        (["--tf_initial_checkpoint=nowhere"], "nowhere: no such file"),
        (["--loss=dice", "--top_k_percent_pixels=0.5"], "acts on cross_entropy, which --loss=dice has not"),
        (["--label_weights=1,2"], "--label_weights: 2 numbers; synthetic has"),
        (["--train_logdir=/proc/nowhere"], "/proc/nowhere: cannot be used"),
    ],
)
def test_bad_input_is_told_in_one_line(
    flags: list[str], message: str, tiny_flags: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path / 'run'}", *flags) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not folder.step_folders(tmp_path / "run")


def test_an_unknown_head_leaves_no_folder(tiny_flags: list[str], tmp_path: pathlib.Path) -> None:
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path / 'run'}", "--head=unicorn") == 1
    assert not (tmp_path / "run").exists()


def test_length_in_passes_over_the_images() -> None:
    assert training_steps(TrainConfig(epochs=3), images=367, batch_size=8) == 138
    assert training_steps(TrainConfig(training_number_of_steps=7), images=367, batch_size=8) == 7


def test_strategy_of_one_device_is_the_default_one() -> None:
    assert make_strategy("auto").num_replicas_in_sync == 1


# --- Checkpoints ---


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    narrow = {"depth_multiplier": 0.25, "head_channels": 8, "auxiliary_channels": 8}
    return ModelConfig(head="fcn", auxiliary_head=True, num_classes=4, **narrow)


def test_weights_go_round_through_a_folder(config: ModelConfig, tiny_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    info = folder.read_info(tiny_run / "best")
    model = build_segmentor(config)
    folder.save_checkpoint(tmp_path / "c", model, config, info)
    loaded = folder.load_checkpoint(tmp_path / "c", input_size=(65, 97), batch_size=1)
    assert loaded.config == config and loaded.info == info
    for name, value in folder.named_weights(model).items():
        assert np.array_equal(value, folder.named_weights(loaded.model)[name]), name
    assert len(folder.named_weights(model)) == len(model.weights)


def test_a_truncated_newest_checkpoint_is_passed_over(tiny_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = Workdir(tmp_path, {})
    model, config, info = (getattr(folder.load_checkpoint(tiny_run), name) for name in ("model", "config", "info"))
    for step in (1, 2, 3):
        state = {"step": np.int64(step)}
        workdir.save_step(step, model, config, info, weights=folder.named_weights(model), state=state)
    assert [path.name for path in folder.step_folders(tmp_path)] == ["step_00000002", "step_00000003"]  # two are kept
    newest = tmp_path / folder.STEPS / "step_00000003" / folder.WEIGHTS
    newest.write_bytes(newest.read_bytes()[:-1000])
    found = workdir.newest()
    assert found is not None and found[1]["step"] == 2


def test_a_replacement_cut_short_leaves_the_old_checkpoint(tiny_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    loaded = folder.load_checkpoint(tiny_run)
    best = folder.save_checkpoint(tmp_path / folder.BEST, loaded.model, loaded.config, loaded.info)
    best.rename(tmp_path / f".{folder.BEST}.old")  # as a kill between the two renames leaves it
    assert folder.find_checkpoint(tmp_path) == best


def test_other_classes_start_with_fresh_classifiers_only(
    config: ModelConfig, tiny_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = build_segmentor(config)
    folder.save_checkpoint(tmp_path / "c", source, config, folder.read_info(tiny_run / "best"))
    other = config.replace(num_classes=6)
    model = build_segmentor(other)
    before = folder.named_weights(model)
    initialize(model, other, str(tmp_path / "c"))
    for name, value in folder.named_weights(model).items():
        is_classifier = name.split("/")[0] in ("logits", "auxiliary_logits")
        assert np.array_equal(value, before[name] if is_classifier else folder.named_weights(source)[name]), name


def test_a_checkpoint_of_another_width_is_refused(
    config: ModelConfig, tiny_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder.save_checkpoint(tmp_path / "c", build_segmentor(config), config, folder.read_info(tiny_run / "best"))
    wider = config.replace(depth_multiplier=0.5)
    model = build_segmentor(wider)
    before = folder.named_weights(model)
    with pytest.raises(UserError, match="of another shape .*for"):
        initialize(model, wider, str(tmp_path / "c"))
    assert all(np.array_equal(before[name], value) for name, value in folder.named_weights(model).items())


@pytest.mark.parametrize("include_top", [False, True])
def test_imagenet_weights_give_the_same_features(include_top: bool, tmp_path: pathlib.Path) -> None:
    theirs = keras.applications.MobileNetV2((96, 128, 3), alpha=0.35, include_top=include_top, weights=None)
    random = np.random.default_rng(3)
    theirs.set_weights([random.uniform(0.2, 0.8, w.shape) - 0.45 * (w.ndim > 1) for w in theirs.get_weights()])
    theirs.save_weights(tmp_path / "imagenet.weights.h5")
    fitting = ModelConfig(
        head="fcn", head_channels=8, depth_multiplier=0.35, output_stride=32, normalization="unit_range",
        padding="same", backbone_bn_epsilon=1e-3, num_classes=3,
    )  # fmt: skip
    ours = build_segmentor(fitting)
    initialize(ours, fitting, str(tmp_path / "imagenet.weights.h5"))
    image = np.random.default_rng(5).uniform(0, 255, (1, 96, 128, 3)).astype(np.float32)
    expected = keras.Model(theirs.input, theirs.get_layer("block_16_project_BN").output)(image / 127.5 - 1)
    found = keras.Model(ours.input, ours.get_layer("block17_project_bn").output)(image)
    assert np.std(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.std(expected))


# --- A full disk ---


def test_a_disk_too_small_for_the_checkpoints_is_told_before_the_first_step(
    tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder.load_checkpoint(tiny_run).model
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=f"--train_logdir={tmp_path}: 0 MiB are free, the checkpoints need"):
        Workdir(tmp_path, {}).check_space(model)


def test_a_disk_that_fills_up_leaves_the_old_checkpoint_and_nothing_half_written(
    tiny_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = folder.load_checkpoint(tiny_run)
    path = folder.save_checkpoint(tmp_path / "best", loaded.model, loaded.config, loaded.info, metrics={"miou": 0.5})

    def full(file: object, *arguments: object, **arrays: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match="no space left on the device"):
        folder.save_checkpoint(path, loaded.model, loaded.config, loaded.info, metrics={"miou": 0.9})
    assert [p.name for p in tmp_path.iterdir()] == ["best"]
    assert json.loads((path / folder.METRICS).read_text()) == {"miou": 0.5}
    assert folder.read_weights(path).keys() == folder.named_weights(loaded.model).keys()
