"""Resuming from damaged checkpoints: intact ones are used, and damage is reported in one line."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import keras
import numpy as np
import pytest
from contracts import MEASURED, raises_line, script
from toy import toy_config

from deeplab_keras.checkpoints import folder, workdir
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import DataConfig
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.segmentor import build_segmentor

CONFIG = toy_config(head="fcn", head_channels=8, output_stride=32, num_classes=3)
pytestmark = pytest.mark.usefixtures("toy_backbone")
QUIET = ("--summary_images=0", "--nohtml_report", "--strategy=none", "--deterministic")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build_segmentor(CONFIG)


@pytest.fixture(scope="module")
def info():
    found = open_dataset(DataConfig(), "train").info
    return dataclasses.replace(found, class_names=("sand", "sea", "sky"), palette=found.palette[:3])


@pytest.fixture
def run(model, info, tmp_path) -> pathlib.Path:
    """A workdir with checkpoints of steps 2 and 3. All their weights are equal to the step."""
    for step in (1, 2, 3):
        weights = {
            name: np.full_like(value, step) for name, value in folder.named_weights(model).items()
        }
        state = {
            "step": np.int64(step),
            "best_miou": np.float64(-1),
            "row/train_miou": np.float64("nan"),
        }
        Workdir(tmp_path, {}).save_step(step, model, CONFIG, info, weights=weights, state=state)
    return tmp_path


def flip(path: pathlib.Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    path.write_bytes(data)


def without_step(path: pathlib.Path) -> None:
    np.savez(path / folder.STATE, best_miou=np.float64(0))
    (path / folder.HASHES).unlink()


def array_alone(path: pathlib.Path) -> None:
    with (path / folder.WEIGHTS).open("wb") as file:
        np.save(file, np.zeros(3))
    (path / folder.HASHES).unlink()


def shorter_header(path: pathlib.Path) -> None:
    """Makes an array in the .npz shorter than its data, so that NumPy does not check the CRC-32."""
    (path / folder.HASHES).unlink()
    data = (path / folder.WEIGHTS).read_bytes()
    at = data.index(b"'shape': (")
    (path / folder.WEIGHTS).write_bytes(data[:at] + b"'shape': [" + data[at + 10 :])


def replace(name: str, content: bytes) -> Callable[[pathlib.Path], None]:
    return lambda path: (path / name).write_bytes(content) and None


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
    "weights gone": lambda path: (path / folder.WEIGHTS).unlink(),
    "weights cut": lambda path: (
        (path / folder.WEIGHTS).write_bytes((path / folder.WEIGHTS).read_bytes()[:-1000]) and None
    ),
    "weights empty": replace(folder.WEIGHTS, b""),
    "weights of another kind": array_alone,
    "weights with another shape": shorter_header,
    "a bit of the weights": lambda path: flip(path / folder.WEIGHTS, 0.5),
    "the first bits of the weights": lambda path: flip(path / folder.WEIGHTS, 0.001),
    "state gone": lambda path: (path / folder.STATE).unlink(),
    "state empty": replace(folder.STATE, b""),
    "state without its step": without_step,
    "a bit of the state": lambda path: flip(path / folder.STATE, 0.9),
    "classes gone": lambda path: (path / folder.DATASET).unlink(),
    "a letter of a class": lambda path: flip(path / folder.DATASET, 0.3),
    "config cut": replace(folder.CONFIG, b'{"head": '),
    "a list for a config": replace(folder.CONFIG, b"[1]"),
    "hashes cut": replace(folder.HASHES, b"0123"),
    "hashes empty": replace(folder.HASHES, b""),
    "all of it": lambda path: [file.unlink() for file in path.iterdir()] and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_latest_checkpoint_is_skipped(damage, run, model, info, monkeypatch):
    warnings = []
    monkeypatch.setattr(
        workdir.logger, "warning", lambda text, *values: warnings.append(text % values)
    )
    newest, before = folder.step_folders(run)[::-1]
    DAMAGES[damage](newest)
    found = Workdir(run, {}).newest()
    assert (
        found is not None
        and found.path == before
        and found.state["step"] == 2
        and found.info == info
    )
    assert all((value == 2).all() for value in found.weights.values())
    assert (
        len(warnings) == 1
        and "\n" not in warnings[0]
        and str(newest) in warnings[0]
        and "trying the previous checkpoint" in warnings[0]
    )
    DAMAGES[damage](before)
    with raises_line("all 2 checkpoints are damaged"):
        Workdir(run, {}).newest()


def test_damaged_checkpoints_do_not_count_as_kept(run, model, info):
    """The checkpoint of step 7 is damaged, so the run resumed from step 2 and saves step 4."""
    (run / folder.STEPS / "step_00000003").rename(run / folder.STEPS / "step_00000007")
    replace(folder.WEIGHTS, b"")(run / folder.STEPS / "step_00000007")
    state = {"step": np.int64(4), "best_miou": np.float64(-1)}
    Workdir(run, {}).save_step(
        4, model, CONFIG, info, weights=folder.named_weights(model), state=state
    )
    assert [path.name for path in folder.step_folders(run)] == ["step_00000002", "step_00000004"]


# --- Hashes ---


def test_sha256sum_can_check_the_hashes(run):
    newest = folder.step_folders(run)[-1]
    lines = dict(line.split()[::-1] for line in (newest / folder.HASHES).read_text().splitlines())
    names = ("config.json", "dataset.json", "weights.npz", "state.npz")
    assert lines == {
        name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in names
    }
    if shutil.which("sha256sum"):
        subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", folder.HASHES], cwd=newest, check=True
        )


@pytest.mark.parametrize("at", [0.0, 0.01, 0.37, 0.99, 1.0])
def test_a_flipped_bit_is_detected(at, run):
    newest = folder.step_folders(run)[-1]
    flip(newest / folder.WEIGHTS, at)
    with raises_line(
        r"weights\.npz: damaged .its SHA-256 differs from SHA256SUMS.; delete this checkpoint",
    ):
        folder.load_checkpoint(newest)


def test_a_checkpoint_of_an_older_version_has_no_hashes(run):
    newest = folder.step_folders(run)[-1]
    (newest / folder.HASHES).unlink()
    assert all(
        (value == 3).all()
        for value in folder.named_weights(folder.load_checkpoint(newest).model).values()
    )


def test_a_config_that_the_user_changed(run):
    """It is refused until the hashes are deleted, as the message says."""
    newest = folder.step_folders(run)[-1]
    (newest / folder.CONFIG).write_text(CONFIG.replace(name="mine").to_json())
    with raises_line(
        r"config\.json: damaged .* or delete SHA256SUMS if you changed the file yourself$"
    ):
        folder.load_checkpoint(newest)
    (newest / folder.HASHES).unlink()
    assert folder.load_checkpoint(newest).config.name == "mine"


# --- Values ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "are NaN or infinite"),
        (np.inf, "are NaN or infinite"),
        (-np.inf, "NaN or infinite"),
        (-0.5, "negative variance"),
    ],
)
def test_invalid_weights_are_neither_saved_nor_loaded(value, message, run, model, info, tmp_path):
    weights = folder.named_weights(model)
    weights["stem_bn/moving_variance"] = np.append(
        weights["stem_bn/moving_variance"][1:], np.float32(value)
    )
    path = tmp_path / "new"
    with raises_line(f"new: .*stem_bn/moving_variance.*{message}|{message}.*not saved"):
        folder.save_checkpoint(path, model, CONFIG, info, weights=weights)
    assert not path.exists()
    with raises_line("the training run has diverged"):  # although the averages are still finite
        raw = {f"raw/{name}": array for name, array in weights.items()}
        folder.save_checkpoint(path, model, CONFIG, info, state={"step": np.int64(1), **raw})
    newest = folder.step_folders(run)[-1]
    with (newest / folder.WEIGHTS).open("wb") as file:
        np.savez(file, **weights)
    (newest / folder.HASHES).unlink()
    with raises_line(message):
        folder.load_checkpoint(newest)


def test_weights_that_overflow_are_never_the_best(tiny_flags, tmp_path, capsys):
    """The loss of the last step is finite, but its update makes the weights overflow."""
    flags = [
        "--training_number_of_steps=1",
        "--optimizer=momentum",
        "--base_learning_rate=3e38",
        "--weight_decay=100",
    ]
    assert (
        script("train.py")(
            *tiny_flags, *QUIET, *flags, "--learning_policy=constant", f"--train_logdir={tmp_path}"
        )
        == 1
    )
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "are NaN or infinite; such weights are not saved: the training run has diverged" in error
    assert not folder.step_folders(tmp_path) and not (tmp_path / folder.BEST).exists()


# --- The same run ---


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of training.csv without the speed, which differs between runs."""
    found = list(csv.DictReader((path / "training.csv").read_text().splitlines()))
    return [
        {name: value for name, value in row.items() if name != "images_per_second"} for row in found
    ]


@pytest.fixture(scope="module")
def undisturbed(tiny_flags, tmp_path_factory) -> tuple[pathlib.Path, list[str]]:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    flags = [
        *tiny_flags,
        *QUIET,
        "--training_number_of_steps=4",
        "--save_interval_steps=1",
        "--eval_interval_epochs=1.5",
    ]
    flags += ["--keep_checkpoints=9", "--ema_momentum=0.9", "--head_bn_momentum=0.9997"]
    assert script("train.py")(*flags, f"--train_logdir={path}") == 0
    return path, flags


@pytest.mark.slow
def test_training_csv_of_a_resumed_run_is_the_same(undisturbed, tmp_path):
    """A round has three steps. The run resumes in the middle of the first round."""
    path, flags = undisturbed
    run = tmp_path / "run"
    shutil.copytree(path, run)
    for gone in (*folder.step_folders(run)[1:], run / folder.BEST):
        shutil.rmtree(gone)
    (run / "training.csv").write_text("")  # damaged as well
    assert script("train.py")(*flags, f"--train_logdir={run}") == 0
    assert rows(run) == rows(path) and len(rows(run)) == 2
    last, expected = (folder.step_folders(p)[-1] for p in (run, path))
    for read in (folder.read_weights, lambda p: folder.read_arrays(p / folder.STATE)):
        found, wanted = read(last), read(expected)
        assert found.keys() == wanted.keys()
        assert not [
            n for n in wanted if not np.array_equal(found[n], wanted[n]) and n not in MEASURED
        ]


def test_damaged_lines_of_training_csv_are_dropped(tmp_path):
    (tmp_path / "training.csv").write_bytes(b"step,loss\n1,0.5\n2,0.\xff\n\x00\x01\n3\n4,0.1\n")
    Workdir(tmp_path, {}).log_row({"step": 4, "loss": 0.25})
    assert (tmp_path / "training.csv").read_text(errors="replace").splitlines() == [
        "step,loss",
        "1,0.5",
        "2,0.\ufffd",
        "4,0.25",
    ]


def test_a_damaged_best_model_is_replaced(undisturbed, tmp_path, capsys):
    path, flags = undisturbed
    run = tmp_path / "run"
    shutil.copytree(path, run)
    flip(run / folder.BEST / folder.WEIGHTS, 0.5)
    assert script("train.py")(*flags, f"--train_logdir={run}") == 0
    log = capsys.readouterr().err
    assert (
        f"{run / folder.BEST / folder.WEIGHTS}: damaged" in log
        and "the model of the next evaluation will replace it" in log
    )
    assert folder.load_checkpoint(run).metrics["step"] == 4


# --- Classes ---


def rename(path: pathlib.Path, change: Callable[[list[str]], list[str]]) -> None:
    """Changes the names of the classes in a checkpoint."""
    (path / folder.HASHES).unlink()
    found = json.loads((path / folder.DATASET).read_text())
    (path / folder.DATASET).write_text(
        json.dumps({**found, "class_names": change(found["class_names"])})
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda names: [names[0], names[2], names[1], *names[3:]],
            "in another order: class 1 is 'grass' in the checkpoint and 'water' in the dataset",
        ),
        (
            lambda names: [*names[1:], names[0]],
            "in another order: class 0 is 'water' in the checkpoint and 'sand' in the dataset",
        ),
    ],
)
def test_classes_in_another_order_are_refused(change, message, undisturbed, tmp_path, capsys):
    path, flags = undisturbed
    run = tmp_path / "run"
    shutil.copytree(path, run)
    newest = folder.step_folders(run)[-1]
    rename(newest, change)
    assert script("train.py")(*flags, f"--train_logdir={run}") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        error.startswith(f"error: {newest}: was trained on these classes {message}")
        and "classes.txt" in error
    )


@pytest.mark.slow  # test_classes_in_another_order_are_refused covers the same code
def test_a_dataset_folder_whose_classes_were_reordered(tmp_path, tiny_flags, capsys):
    """A user edits classes.txt between two runs of the same command."""
    from PIL import Image

    data, run = tmp_path / "data", tmp_path / "run"
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (data / kind / split).mkdir(parents=True)
        for index in range(2):
            mask = random.integers(0, 3, (8, 8), np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(mask).save(data / "labels" / split / f"{index}.png")
            Image.fromarray((mask[..., None] * 80).repeat(3, 2)).save(
                data / "images" / split / f"{index}.png"
            )
    flags = [
        *tiny_flags,
        *QUIET,
        "--dataset=folder",
        f"--dataset_dir={data}",
        f"--train_logdir={run}",
        "--train_batch_size=2",
    ]
    (data / "classes.txt").write_text("ground\nred\nblue\n")
    assert script("train.py")(*flags) == 0
    shutil.rmtree(folder.step_folders(run)[-1])  # as if the run had been stopped at step 1
    (data / "classes.txt").write_text("ground\nblue\nred\n")
    assert script("train.py")(*flags) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "was trained on these classes in another order: class 1 is 'red' in the checkpoint and "
        "'blue' in the dataset; put classes.txt" in error
    )
    assert [folder.read_info(path).class_names[1] for path in folder.step_folders(run)] == ["red"]


@pytest.mark.parametrize("change", ["missing", "more", "another shape"])
def test_an_optimizer_state_of_another_form_is_refused(
    change: str,
    tiny_run: pathlib.Path,
    tiny_flags: list[str],
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as the state of another optimizer or version, in a run of another backend."""
    shutil.copytree(tiny_run, tmp_path / "run")
    last = folder.step_folders(tmp_path / "run")[-1]
    state = folder.read_arrays(last / folder.STATE)
    count = sum(name.startswith("optimizer/") for name in state)
    if change == "missing":
        del state[f"optimizer/{count - 1}"]
    elif change == "more":
        state[f"optimizer/{count}"] = np.zeros(3)
    else:
        state["optimizer/1"] = state["optimizer/1"][..., :-1]
    np.savez(last / folder.STATE, **state)
    (last / folder.HASHES).unlink()
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path}/run") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "the optimizer state of its checkpoints does not match" in lines[0]
