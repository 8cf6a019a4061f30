"""Every script: its help, its mistakes, and the chain from training to export on a tiny model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from contracts import ROOT, SCRIPTS, commands, script
from PIL import Image

from deeplab_keras import cli as flags
from deeplab_keras.checkpoints import folder
from deeplab_keras.config import UserError


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, f"scripts/{name}", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_answers_at_once_with_an_example(name):
    start = time.perf_counter()
    done = run(name, "--help")
    assert time.perf_counter() - start < 5  # 0.2 s on an idle machine; importing TensorFlow takes 7
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= flags.HELP_WIDTH
    assert f"python scripts/{name} --" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_flag_gets_one_line(name, capsys):
    assert script(name)("--flagfil=x") == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert re.fullmatch(r"error: unknown flag --flagfil; .*\n", error)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_of_the_help_are_right(name):
    examples = commands(script(name).doc)
    assert examples
    for called, arguments in examples:
        assert called == name
        command = script(name).parse(*arguments)
        for section in script(name).sections:
            command.config(section)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train.py", ["--epochs=1"], "--train_logdir"),
        ("train.py", ["--train_logdir={tmp}/run"], "--training_number_of_steps or --epochs"),
        (
            "train.py",
            ["--train_logdir={tmp}/run", "--epochs=1", "--dataset=pascal"],
            "unknown --dataset 'pascal'",
        ),
        (
            "train.py",
            ["--train_logdir={tmp}/run", "--epochs=1", "--model=fcn"],
            "unknown model 'fcn'",
        ),
        (
            "train.py",
            ["--train_logdir={tmp}/run", "--epochs=1", "--seed=-1"],
            "--seed must be between 0 and 4294967295. Received: --seed=-1",
        ),
        (
            "train.py",
            ["--train_logdir={tmp}/run", "--epochs=1", "--train_crop_size=-5,3"],
            "--train_crop_size must be two whole numbers",
        ),
        (
            "train.py",
            ["--train_logdir={tmp}/run", "--epochs=1", "--train_crop_size=99999,99999"],
            "fewer than 2^31 values",
        ),
        (
            "train.py",
            ["--train_logdir={tmp}/run", "--epochs=1", "--train_batch_size=99999999"],
            "fewer than 2^31 values",
        ),
        (
            "train.py",
            ["--train_logdir={tmp}/a", "--epochs=1", "--initial_checkpoint={tmp}"],
            "{tmp}: not a checkpoint",
        ),
        (
            "train.py",
            ["--num_classes=5"],
            "--num_classes: the dataset determines the number of classes; leave it out",
        ),
        ("eval.py", [], "--checkpoint_dir is required"),
        (
            "eval.py",
            ["--checkpoint_dir=a", "--compare=a,b"],
            "--compare cannot be combined with --checkpoint_dir. Received: --compare=a,b",
        ),
        ("eval.py", ["--checkpoint_dir={tmp}/none"], "{tmp}/none: no such folder"),
        (
            "eval.py",
            ["--checkpoint_dir=x", "--eval_scales=1e9"],
            "Received: --eval_scales=1000000000.0",
        ),
        (
            "vis.py",
            ["--checkpoint_dir={tmp}", "--vis_samples=-1"],
            "--vis_samples must be at least 0. Received: --vis_samples=-1",
        ),
        ("predict.py", ["--checkpoint_dir=x", "--output=y"], "--input is required"),
        (
            "predict.py",
            ["--checkpoint_dir=x", "--output=y", "--input={tmp}"],
            "--input={tmp}: contains no image or video",
        ),
        (
            "predict.py",
            ["--checkpoint_dir=x", "--output=y", "--input=x", "--seed=3"],
            "does not use data flags",
        ),
        ("export_model.py", [], "--checkpoint_dir is required"),
        (
            "export_model.py",
            ["--checkpoint_dir=x", "--export_path=y", "--input_size=7"],
            "Received: --input_size=7",
        ),
        (
            "export_model.py",
            ["--checkpoint_dir=x", "--export_path=y", "--formats=tflit"],
            "did you mean 'tflite'",
        ),
        ("list_models.py", ["--match=nothing"], "--match=nothing: no model has such a name"),
        (
            "check_dataset.py",
            ["--dataset_dir=datasets/mine"],
            "--dataset_dir=datasets/mine: not used by --dataset=synthetic",
        ),
    ],
)
def test_mistakes_get_one_line(name, arguments, message, tmp_path, capsys):
    status = script(name)(*(argument.format(tmp=tmp_path) for argument in arguments))
    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format(tmp=tmp_path) in error
    assert not any(tmp_path.rglob("*.npz")), "something was written"


@pytest.mark.parametrize("name", ["eval.py", "vis.py", "export_model.py"])
def test_an_exported_model_is_told_from_a_checkpoint(name, tmp_path, capsys):
    path = tmp_path / "model.tflite"
    path.touch()
    more = (
        ["--input_size=65,65", f"--export_path={tmp_path}/out"] if name == "export_model.py" else []
    )
    assert script(name)(f"--checkpoint_dir={path}", *more) == 1
    message = (
        "an exported model; give the checkpoint that it was exported from "
        "(predict.py also takes exported models)"
    )
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == f"error: {path}: {message}" and message not in said.out
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_run_is_not_trained_again(tiny_run, tiny_flags, capsys):
    best, last = tiny_run / "best/weights.npz", folder.step_folders(tiny_run)[-1] / "weights.npz"
    before = best.read_bytes(), last.stat().st_mtime_ns
    assert script("train.py")(*tiny_flags, f"--train_logdir={tiny_run}") == 0
    assert (best.read_bytes(), last.stat().st_mtime_ns) == before
    assert script("train.py")(*tiny_flags, f"--train_logdir={tiny_run}", "--decoder_filters=9") == 1
    assert "decoder_filters" in capsys.readouterr().err


def test_the_flags_of_a_run_are_kept_as_a_recipe(tiny_run, tiny_flags):
    again = script("train.py").parse(f"--flagfile={tiny_run}/flags.txt")
    first = script("train.py").parse(*tiny_flags, f"--train_logdir={tiny_run}")
    for section in script("train.py").sections:
        assert again.config(section) == first.config(section)


def test_eval_writes_metrics(tiny_run, tmp_path, capsys):
    assert (
        script("eval.py")(
            f"--checkpoint_dir={tiny_run}", f"--eval_logdir={tmp_path}", "--eval_samples=3"
        )
        == 0
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (
        metrics["images"] == 3 and metrics["dataset"] == "synthetic" and metrics["split"] == "val"
    )
    assert {
        "miou",
        "pixel_accuracy",
        "mean_accuracy",
        "frequency_weighted_iou",
        "per_class_iou",
    } <= metrics.keys()
    matrix = np.array(metrics["confusion_matrix"])
    assert matrix.shape == (len(metrics["per_class_iou"]),) * 2 and matrix.sum() > 0
    assert str(tmp_path / "metrics.json") in capsys.readouterr().out


def test_eval_looks_at_all_of_its_folders_before_it_evaluates(
    tiny_run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        "deeplab_keras.evaluation.loop.evaluate", None
    )  # an evaluation would be a TypeError
    (tmp_path / "file").touch()
    assert script("eval.py")(f"--checkpoint_dir={tiny_run}", f"--eval_logdir={tmp_path}/file") == 1
    assert re.fullmatch(
        r"error: --eval_logdir=.*/file: is a file; give a folder.*\n", capsys.readouterr().err
    )
    assert script("eval.py")(f"--compare={tiny_run},{tmp_path}/none") == 1
    assert re.fullmatch(r"error: .*/none: no such folder; .*\n", capsys.readouterr().err)


def test_compare_refuses_other_classes_before_it_evaluates(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("deeplab_keras.evaluation.loop.evaluate", None)
    other = shutil.copytree(tiny_run / "best", tmp_path / "other")
    about = json.loads((other / folder.DATASET).read_text())
    (other / folder.HASHES).unlink()
    (other / folder.DATASET).write_text(
        json.dumps({**about, "class_names": ["a", "b"], "palette": about["palette"][:2]})
    )
    assert script("eval.py")(f"--compare={tiny_run},{other}") == 1
    assert re.fullmatch(
        r"error: .*/other: was trained on the 2 classes of .*\n", capsys.readouterr().err
    )


@pytest.mark.slow
def test_vis_writes_pictures(tiny_run, tmp_path):
    arguments = (
        f"--checkpoint_dir={tiny_run}",
        f"--vis_logdir={tmp_path}",
        "--eval_samples=4",
        "--vis_samples=2",
    )
    assert script("vis.py")(*arguments, "--also_save_raw_predictions") == 0
    kinds = sorted(path.stem.rpartition("_")[2] for path in tmp_path.rglob("*.png"))
    assert kinds == sorted(["image", "labels", "overlay", "panel", "prediction"] * 2)
    image, labels = (
        np.asarray(Image.open(next(tmp_path.rglob(f"*_{kind}.png"))))
        for kind in ("image", "labels")
    )
    assert labels.ndim == 2 and labels.shape == image.shape[:2]


def test_vis_without_the_photographs(tiny_run, tmp_path):
    arguments = (
        f"--checkpoint_dir={tiny_run}",
        f"--vis_logdir={tmp_path}",
        "--eval_samples=4",
        "--vis_samples=1",
    )
    assert script("vis.py")(*arguments, "--vis_photographs=false") == 0
    kinds = sorted(path.stem.rpartition("_")[2] for path in tmp_path.rglob("*.png"))
    assert kinds == ["panel", "prediction"]


def test_export_writes_a_checked_model(tiny_run, tmp_path):
    arguments = (f"--checkpoint_dir={tiny_run}", f"--export_path={tmp_path}/export")
    assert script("export_model.py")(*arguments, "--formats=tflite", "--input_size=65,65") == 0
    assert list((tmp_path / "export").rglob("*.tflite"))


def test_list_models(capsys):
    assert script("list_models.py")("--match=lraspp") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 6 and all("lraspp" in line for line in lines[1:])


@pytest.mark.parametrize("name", ["a\x1b[31mred", "\x9b2J", "a\x07b", "\u202ecba", "a\x7f"])
def test_control_characters_are_escaped_in_what_is_printed(name, capsys):
    def main(command):
        print(f"class {name}\tend")
        raise UserError(f"{name}: wrong")

    assert flags.call(["x.py"], "doc", main) == 1
    out, err = capsys.readouterr()
    escaped = ascii(name)[1:-1]
    assert out == f"class {escaped}\tend\n" and err == f"error: {escaped}: wrong\n"


def test_a_closed_stdout_is_no_error(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert flags.call(["x.py"], "doc", lambda command: print("done")) == 0


@pytest.mark.slow
def test_a_reader_that_left_is_no_error():
    """Of `script | head` the reader is gone when the job's last lines are written."""
    code = (
        "from deeplab_keras import cli\ncli.run('doc', lambda command: [print('x' * 80) for _ "
        "in range(9999)] and None)"
    )
    command = f'{sys.executable} -c "{code}" | head -n 1'
    done = subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert (
        done.stdout == "x" * 80 + "\n"
        and "Traceback" not in done.stderr
        and "Exception" not in done.stderr
    )
