"""Mistakes on the command line: one line, before TensorFlow is imported, and nothing written."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest
from contracts import ROOT, raises_line, script
from PIL import Image

from deeplab_keras import cli as flags
from deeplab_keras.cli.main import main
from deeplab_keras.config import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    TrainConfig,
    UserError,
    render_options,
)
from deeplab_keras.data import service
from deeplab_keras.data.annotations.masks import convert_masks
from deeplab_keras.io.writing import check_file, check_folder
from deeplab_keras.prediction.inputs import find_inputs
from deeplab_keras.training.train import training_steps

FLAGFILES = {
    "nul": (b"--epochs=3\0\n", r"--flagfile=nul: not a text file; a flagfile has one .*"),
    "utf16": ("--epochs=-3\n".encode("utf-16-le"), r"--flagfile=utf16: not a text file; .*"),
    "bytes": (bytes(range(256)), r"--flagfile=bytes: not a text file; .*"),
    "quotes": (
        b'--train_logdir="a b"\n',
        r"--flagfile=quotes: the quotes .*write --train_logdir=a b; .*",
    ),
    "shell": (b"--epochs=3 \\\n--seed=4\n", r"--flagfile=shell: a line ends with a backslash, .*"),
    "space": (b"--epochs 3\n", r"space: --epochs 3: write it as --epochs=3"),
    "dashes": (
        b"epochs=3\n",
        r"dashes: unexpected argument 'epochs=3'; write flags as --name=value",
    ),
    "unknown": (
        b"--seed=1\n--epohcs=3\n",
        r"unknown: unknown flag --epohcs; did you mean --epochs\? .*",
    ),
    "value": (b"--epochs=x\n", r"value: --epochs=x: the value must be a number, not 'x'"),
    "truth": (b"--cache=maybe\n", r"truth: --cache=maybe: the value must be true or false"),
    "missing": (
        b"--head\n--epochs=3\n",
        r"missing: --head: its value is missing before --epochs=3; .*",
    ),
    "itself": (
        b"--flagfile=./itself\n",
        r"--flagfile=\./itself: includes itself; delete that line",
    ),
    "large": (b"#" * (1 << 20) + b"\n", r"--flagfile=large: larger than 1 MiB; .*"),
}
# Command -> command lines with a mistake, and what is printed.
MISTAKES = {
    "train": [
        ([], "--train_logdir is required: a folder for the run, such as runs/first"),
        (["--train-logdir=x"], r"unknown flag --train-logdir; did you mean --train_logdir\? .*"),
        (["--no-cache"], r"unknown flag --no-cache; did you mean --cache=false\? .*"),
        (["--no_cache=1"], r"unknown flag --no_cache; did you mean --cache=false\? .*"),
        (["--eval_logdir=x"], "unknown flag --eval_logdir, which deeplab-keras eval has; .*"),
        (
            ["--train_logdir", "--epochs=3"],
            "--train_logdir: its value is missing before --epochs=3; write --train_logdir=VALUE",
        ),
        (
            ["\N{EM DASH}epochs=3"],
            "unexpected argument .*; it begins with '\N{EM DASH}' instead of two hyphens",
        ),
        (["setup.py"], "unexpected argument 'setup.py'; .*, and a pattern in quotes, .*"),
        (["--epochs=-1"], "--epochs must be above 0, .* Received: --epochs=-1.0"),
        (["--seed=" + "9" * 30], "--seed=9*: the value must be smaller than 2\\^63"),
        (
            ["--training_number_of_steps=9000000000000000000"],
            "--training_number_of_steps must be .*",
        ),
        (
            ["--low_level_features=c2,"],
            "--low_level_features=c2,: the list has an empty element; .*",
        ),
        (["--label_weights=0,0"], "--label_weights must be numbers .* not all 0. Received: .*"),
        (["--min_resize_value=-1"], "--min_resize_value must be at least 0. Received: .*=-1"),
        (
            ["--eval_samples=0"],
            "--eval_samples must be between 1 and .* Received: --eval_samples=0",
        ),
        (["--eval_long_side=-2"], "--eval_long_side must be at least 0. Received: .*=-2"),
        (["--synthetic_size=1000000,1000000"], "--synthetic_size must be at most 4096,4096 .*"),
        (["--rand_augment=1000000000"], "--rand_augment must be between 0 and 16. Received: .*"),
    ],
    "eval": [
        (["--checkpoint_dir=x", "--eval_scales=0"], "--eval_scales must be .*"),
        (
            ["--checkpoint_dir=x", "--initial_checkpoint=y"],
            "--initial_checkpoint: deeplab-keras eval does not use training flags; .*",
        ),
        (
            ["--checkpoint_dir=x", "--no_fine_tune_batch_norm"],
            "--fine_tune_batch_norm: deeplab-keras eval does not use training flags; .*",
        ),
        (["--compare=a,"], "--compare=a,: the list has an empty element; remove the comma .*"),
    ],
    "vis": [(["--checkpoint_dir=x", "--vis_samples=-1"], "--vis_samples must be at least 0. .*")],
    "predict": [
        (["--checkpoint_dir=x", "--input=y"], "--output is required: a folder for the results"),
        (["--vis_split=x"], "--vis_split: deeplab-keras predict does not use data flags; .*"),
    ],
    "export": [
        (["--checkpoint_dir=x"], "--export_path is required: a folder for the files"),
        (
            ["--checkpoint_dir=x", "--export_path=y", "--threads=1000000000000"],
            "--threads must be .*",
        ),
    ],
    "convert": [
        ([], "--source or --to is required, but not both. Received: --source="),
        (["--source=x", "--checkpoint=y", "--output=z"], "--model is required: .*"),
    ],
    "check": [
        (["--unlabeled=x"], "--unlabeled needs --checkpoint_dir, a trained model. .*"),
        (["--eval_batch_size=0"], "--eval_batch_size must be at least 1. .*"),
    ],
    "convert-masks": [(["--input=x"], "--output is required: .*")],
    "build-tfrecords": [
        ([], "--output_dir is required: a folder for the records"),
        (["--output_dir=x", "--splits="], "--splits is required: one or more splits, .*"),
    ],
    "build-tfds": [(["--data_dir"], "Missing value for flag --data_dir; .*")],
    "build-web": [(["--model_file=x"], "--output is required: a folder for the page")],
    "data-service": [
        ([], "--role is required: --role=dispatcher or --role=worker"),
        (["--role=worker"], "--role=worker requires --dispatcher=grpc://HOST:PORT, .*"),
        (["--role=dispatcher", "--port=70000"], "--port must be between 0 and 65535. .*"),
    ],
    "list": [(["--match=nothing"], "--match=nothing: no model has such a name; .*")],
}


def test_mistakes_are_reported_before_tensorflow_is_imported(tmp_path):
    """All in one process, which has not imported Keras afterwards; nothing is written."""
    for name, (data, _) in FLAGFILES.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "setup.py").touch()
    calls = [[name, *arguments] for name, cases in MISTAKES.items() for arguments, _ in cases]
    calls += [["train", f"--flagfile={name}"] for name in FLAGFILES]
    code = textwrap.dedent(
        """
        import contextlib, io, json, sys
        from deeplab_keras.cli.main import main
        for call in json.loads(sys.argv[1]):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                with contextlib.redirect_stderr(io.StringIO()) as err:
                    status = main(["deeplab-keras", *call])
            print(json.dumps([status, out.getvalue(), err.getvalue()]))
        print(json.dumps(sorted({"keras", "tensorflow"} & set(sys.modules))))
        """
    )
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    *answers, imported = map(json.loads, done.stdout.splitlines())
    assert imported == [] and sorted(tmp_path.iterdir()) == before
    messages = [message for cases in MISTAKES.values() for _, message in cases]
    messages += [message for _, message in FLAGFILES.values()]
    for call, (status, out, error), message in zip(calls, answers, messages, strict=True):
        assert (status, out) == (1, ""), call
        assert re.fullmatch(f"error: {message}\n", error), (call, error)


def command(*arguments: str) -> flags.Command:
    return flags.Command(["scripts/x.py", *arguments], TrainConfig, DataConfig, EvalConfig)


def test_flagfiles_of_windows_in_utf_16(tmp_path):
    path = tmp_path / "run.flags"
    path.write_text("--epochs=3\r\n--dataset_dir=ü\r\n", encoding="utf-16")
    parsed = command(f"--flagfile={path}")
    assert parsed.config(TrainConfig).epochs == 3
    assert parsed.config(DataConfig).dataset_dir == "ü"


def test_an_empty_flagfile_option_has_no_flags():
    assert command("--flagfile=", "--epochs=3").config(TrainConfig).epochs == 3


def test_the_home_folder_is_found_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    parsed = command("--train_logdir=~/runs/a", "--dataset_dir=~", "--cache_dir=a~b/~")
    assert parsed.config(TrainConfig).train_logdir == f"{tmp_path}/runs/a"
    data = parsed.config(DataConfig)
    assert (data.dataset_dir, data.cache_dir) == (str(tmp_path), "a~b/~")
    parsed = script("eval.py").parse("--compare=~/a,~/b")
    assert parsed.config(script("eval.py").sections[0]).compare == (
        f"{tmp_path}/a",
        f"{tmp_path}/b",
    )


@pytest.mark.parametrize(
    "value", ["a\nb", "a ", '"a"', "a\x1b", "a \\", "a\udcff", "\N{LINE SEPARATOR}\r"]
)
def test_a_value_that_a_flagfile_cannot_hold_is_not_recorded_wrongly(value, tmp_path):
    with raises_line("cannot be recorded in flags.txt because of quotes, line breaks, .*; rename"):
        command(f"--train_logdir={value}").text()


@pytest.mark.parametrize(
    "value", ["a b", "a#b #c", "a'b\"", "a`b`%d[1]", "ü\N{LINE SEPARATOR}x", "\\"]
)
def test_other_values_are_recorded_and_read_back(value, tmp_path):
    (tmp_path / "flags.txt").write_text(command(f"--train_logdir={value}").text(), encoding="utf-8")
    again = command(f"--flagfile={tmp_path / 'flags.txt'}")
    assert again.config(TrainConfig).train_logdir == value


@pytest.mark.parametrize(
    "recorded", ['{"data": 3}', '{"data": null}', "[" * 100_000, "\x00", '{"model": {}}']
)
def test_a_damaged_record_of_a_run_is_not_its_data(recorded, tmp_path):
    (tmp_path / "config.json").write_text(recorded)
    assert command().data_config(str(tmp_path)) == DataConfig()


def test_help_is_a_command_too(capsys):
    assert main(["deeplab-keras", "help"]) == 0
    printed = capsys.readouterr().out
    assert main(["deeplab-keras", "--help"]) == 0 and capsys.readouterr().out == printed
    assert main(["deeplab-keras", "help", "list"]) == 0
    assert "--match=NAME" in capsys.readouterr().out


# --- Values in messages ---


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`output=a`b`: is a file", "output=a`b: is a file"),
        ("`output=a`b``: is a file; give `x`", "output=a`b`: is a file; give x"),
        ("runs/a`x`b: no such folder", "runs/a`x`b: no such folder"),
        ("(`inference='slide'`), `seed`?", "(inference='slide'), seed?"),
        ("`a=1` and `b=2`.", "a=1 and b=2."),
    ],
)
def test_backticks_in_values_are_shown(message, shown):
    assert render_options(message) == str(UserError(message)) == shown


def test_a_message_stays_readable():
    error = UserError(f"{'a' * 10**6}: no such file", hint="check the path")
    assert len(str(error)) < 4000 and re.search(
        r"^aaa.* \.\.\. a+: no such file; check", str(error)
    )


# --- Numbers ---


def test_numbers_that_no_machine_can_hold():
    with raises_line(
        "^--epochs=1e\\+300: .* steps of 4 images, but at most 1000000000 are allowed"
    ):
        training_steps(TrainConfig(epochs=1e300), 8, 4)
    with raises_line("^--threads must be between 1 and 1024"):
        ExportConfig(threads=1025)
    with raises_line("^--id_offset must be at least -255 and at most 255"):
        convert_masks("index", "a", "b", id_offset=256)
    for port in (-1, 65536):
        with raises_line("^--port must be at least 0 and at most 65535"):
            service.start_dispatcher(port)
    with raises_line(r"^--data_service=grpc://localhost:99999: no response \("):
        service.require_answer("grpc://localhost:99999", "data_service")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 14.6 TiB for an array"),
         r"out of memory \(Unable to allocate 14\.6 TiB\); use smaller images, .*"),
        (type("ResourceExhaustedError", (Exception,), {})(
            "{{a}} OOM when allocating tensor with shape[4,9,9,3] and type\nfloat"),
         r"out of memory \(tensor with shape\[4,9,9,3\]\); use smaller images, .*"),
        (MemoryError(), "out of memory; use smaller images, crops and batches, or a smaller model"),
    ],
)  # fmt: skip
def test_out_of_memory_is_one_line(error, line, capsys):
    def work(command: flags.Command) -> None:
        raise error

    assert flags.call(["x.py"], "", work) == 1
    assert re.fullmatch(f"error: {line}\n", capsys.readouterr().err)


# --- Links ---


def test_links_that_lead_nowhere(tmp_path):
    for name, target in (("loop", "loop"), ("broken.json", "nothing")):
        (tmp_path / name).symlink_to(target)
    loop, broken = tmp_path / "loop", tmp_path / "broken.json"
    with raises_line(f"^--output={loop}: is a broken link; give a folder"):
        check_folder(loop, "output")
    with raises_line(f"^--output={loop}/a/b: {loop} is a broken link; give a folder"):
        check_folder(loop / "a/b", "output")
    with raises_line(f"^--summary={broken}: is a broken link; give another path, or delete it"):
        check_file(broken, "summary")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    assert {item.name for item in find_inputs(str(tmp_path), str(loop))} == {"a", "b"}
    with raises_line(f"^--input={tmp_path}/nothing: this folder does not exist"):
        convert_masks("index", f"{tmp_path}/nothing", str(loop))


# --- Standard streams ---

STREAMS = """
ulimit -c 0
run() { "$PYTHON" -m deeplab_keras "$@"; }
run list --match=fcn > /dev/full; echo "full $?"
run --version > /dev/full; echo "full $?"
run list --match=fcn >&-; echo "closed $?"
run list --match=fcn_mobilenetv2os8_voc 2>&-; echo "closed $?"
run list --nope 2>&-; echo "closed $?"
run list --match=fcn <&- >&- 2>&- --summary=closed.json; echo "closed $?"
run list --nope 2> /dev/full; echo "full $?"
run list | head -n 1; echo "head ${PIPESTATUS[0]}"
PYTHONIOENCODING=ascii run list --match=$'\\xc3\\xa9\\xff'; echo "ascii $?"
"$PYTHON" "$WORK"; echo "work $?"
"$PYTHON" "$WORK" | head -n 1; echo "work ${PIPESTATUS[0]}"
"$PYTHON" "$WORK" 2>&1 >/dev/null | head -n 1; echo "work ${PIPESTATUS[0]}"
"$PYTHON" "$WORK" > /dev/full; echo "work $?"
"$PYTHON" "$WORK" 2>&-; echo "work $?"
"""
# Writes more than a pipe holds to both streams, then a file.
WORK = """
import os, pathlib, sys
from deeplab_keras import cli

def main(command):
    for _ in range(3000):
        print("result " * 9)
        print("progress " * 9, file=sys.stderr)
    os.write(2, b"native code\\n")
    with open("result.txt", "a") as file:
        file.write("done\\n")

cli.run("doc", main)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_closed_broken_and_full_streams(tmp_path):
    """The work continues after a reader exits, and no file takes the place of a closed stream."""
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "all.sh").write_text(STREAMS)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "WORK": "work.py",
    }
    done = subprocess.run(
        ["bash", "all.sh"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("result ")]
    full = r"error: writing a file: no space left on device; .*"
    assert [line for line in lines if re.match("full|closed|head|ascii|work", line)] == (
        ["full 1"] * 2 + ["closed 0"] * 2 + ["closed 1", "closed 0", "full 1", "head 0", "ascii 1"]
        + ["work 0"] * 3 + ["work 1", "work 0"]
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if not line.startswith("progress ")]
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    assert len([line for line in errors if re.fullmatch(full, line)]) == 3
    assert [line for line in errors if "ascii" not in line and "xe9" in line] == [
        r"error: --match=\xe9\udcff: no model has such a name; omit --match to list all"
    ]
    assert json.loads((tmp_path / "closed.json").read_text())["exit_status"] == 0
    # Complete with each reader that left, and without stderr; not with a full stdout.
    assert (tmp_path / "result.txt").read_text() == "done\n" * 4
    assert {path.name for path in tmp_path.iterdir()} == {
        "work.py", "all.sh", "closed.json", "result.txt",
    }  # fmt: skip
    assert pathlib.Path("/dev/null").exists()
