"""Every recipe under configs/: its header, its flags, its network, and one step of training."""

from __future__ import annotations

import csv
import pathlib
import re

import keras
import pytest
from contracts import ROOT, commands, script
from dataset_trees import TREES, camvid

from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, TrainConfig
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.segmentor import check_input_size
from deeplab_keras.training import train as trainer
from deeplab_keras.training.step import TrainedModel

RECIPES = sorted(path for path in (ROOT / "configs").rglob("*.flags") if path.parent.name != "base")
# The quick lane's one: the systems of the references have golden tests, the slow lane takes them
# all.
OWN = [path for path in RECIPES if path.stem == "demo"]
HALVES = sorted((ROOT / "configs" / "base").glob("*.flags"))
HEADER = ("command", "hardware, time", "mIoU reported", "mIoU measured")


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def read(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[ModelConfig, DataConfig, TrainConfig]:
    monkeypatch.chdir(ROOT)  # nested flagfiles are relative to where the command is given
    command = script("train.py").parse(f"--flagfile={relative(path)}")
    command.config(EvalConfig)
    return command.model_config(), command.config(DataConfig), command.config(TrainConfig)


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_the_header_says_what_to_expect(path, monkeypatch):
    header = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].endswith("."), "the first line says what it is"
    for name in HEADER:
        assert any(line.startswith(f"{name}:") for line in header), f"the header lacks '{name}:'"
    (called, arguments), *_ = commands("\n".join(line.removeprefix("command:") for line in header))
    assert called == "train.py" and arguments[0] == f"--flagfile={relative(path)}"
    monkeypatch.chdir(ROOT)
    assert script("train.py").parse(*arguments).config(TrainConfig).train_logdir


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_the_recipe_is_complete_and_fits_together(path, monkeypatch):
    model, data, training = read(path, monkeypatch)
    assert (training.training_number_of_steps is None) != (training.epochs is None), (
        "the length of the training"
    )
    check_input_size(model, *data.train_crop_size)
    if data.dataset == "synthetic":
        assert open_dataset(data, data.train_split).info.num_classes >= 8
    else:
        assert data.dataset_dir is None and not training.train_logdir, (
            "folders are named on the command line"
        )


# A model to convert, like the one in convert_checkpoint's help; there is no recipe to train it.
CONVERTED = ("configs/base/torchvision_deeplabv3_mobilenet_v3_large.flags",)


@pytest.mark.parametrize("path", HALVES, ids=relative)
def test_a_half_parses_and_is_used(path, monkeypatch):
    read(path, monkeypatch)
    name = f"--flagfile={relative(path)}"
    in_a_recipe = any(name in other.read_text().splitlines() for other in RECIPES + HALVES)
    in_a_script = any(
        name in command.read_text()
        for command in (ROOT / "deeplab_keras/cli/commands").glob("*.py")
    )  # an example of its help
    assert in_a_recipe or in_a_script or relative(path) in CONVERTED, "nothing uses it"


def take_steps(
    path: pathlib.Path,
    crop: tuple[int, int],
    steps: int,
    workdir: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The recipe's own training, cut to some steps, from random weights.

    On a made-up dataset in the layout of the recipe's own, where there is one, else on built-in
    scenes.
    """
    model, data, training = read(path, monkeypatch)
    data = data.replace(train_batch_size=2, train_crop_size=crop)
    trees = {**TREES, "camvid": camvid}
    if data.dataset in trees:
        trees[data.dataset](workdir / "data", size=crop)
        data = data.replace(dataset_dir=str(workdir / "data"))
    else:
        data = data.replace(
            dataset="synthetic",
            dataset_dir=None,
            train_split="train",
            eval_split="val",
            train_samples=2,
            eval_samples=1,
            synthetic_size=crop,
        )
    training = training.replace(
        epochs=None,
        training_number_of_steps=steps,
        warmup_steps=0,
        tf_initial_checkpoint=None,
        summary_images=0,
        train_logdir=str(workdir / "run"),
    )
    report = trainer.train(model, data, training, EvalConfig())
    assert sum(map(sum, report.confusion_matrix)) > 0
    assert (
        not model.name
        or data.dataset not in trees
        or len(report.confusion_matrix) == model.num_classes
    )
    *_, row = csv.DictReader(
        (workdir / "run" / "training.csv").read_text().splitlines()
    )  # one an evaluation
    assert int(row["step"]) == steps and float(row["loss"]) > 0
    keras.backend.clear_session()  # thirty compiled trainings would fill the memory


@pytest.mark.slow  # `make demo` trains with this recipe
@pytest.mark.parametrize("path", OWN, ids=relative)
def test_the_network_builds_and_takes_a_step(path, tmp_path, monkeypatch):
    """Uses a small crop and no compilation; the slow lane runs each recipe unmodified."""
    compile_model = TrainedModel.compile
    monkeypatch.setattr(
        TrainedModel,
        "compile",
        lambda *args, **options: compile_model(*args, **options, run_eagerly=True),
    )
    take_steps(path, (65, 65), 1, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_the_recipe_takes_two_steps_at_its_own_crop(path, tmp_path, monkeypatch):
    height, width = read(path, monkeypatch)[1].train_crop_size
    take_steps(path, (height, width), 2, tmp_path, monkeypatch)


def test_recipe_names_say_what_they_hold():
    for path in RECIPES:
        assert re.fullmatch(r"[a-z0-9_-]+\.flags", path.name)
