"""The program deeplab-keras, recipes from any folder, and the options of every command."""

from __future__ import annotations

import ast
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from contracts import ROOT, SCRIPTS, commands, raises_line, script
from PIL import Image

from deeplab_keras import __version__
from deeplab_keras import cli as flags
from deeplab_keras.cli.main import PURPOSES, main
from deeplab_keras.cli.recipes import recipes
from deeplab_keras.cli.script import load_keras
from deeplab_keras.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
    UserError,
    render_options,
)
from deeplab_keras.config.commands import COMMANDS, commands_of
from deeplab_keras.io.progress import Progress

LIBRARY = sorted((ROOT / "deeplab_keras").rglob("*.py"))
NAMES = r"\b(?:" + "|".join(COMMANDS.values()) + r")\.py\b"


def deeplab_keras(*arguments: str) -> int:
    return main(["/usr/bin/deeplab-keras", *arguments])


# --- The program ---


def test_every_command_has_a_script_and_a_purpose():
    modules = {path.stem for path in (ROOT / "deeplab_keras/cli/commands").glob("[a-z]*.py")}
    assert set(COMMANDS.values()) == modules and len(COMMANDS) == len(modules)
    assert {f"{name}.py" for name in modules} <= set(SCRIPTS)
    assert list(PURPOSES) == list(COMMANDS)


def test_help_lists_the_commands(capsys):
    assert deeplab_keras("--help") == 0
    printed, error = capsys.readouterr()
    assert error == ""
    assert re.findall(r"^  (\S+)  +\S", printed, re.MULTILINE) == list(COMMANDS)
    assert deeplab_keras() == 1  # a command is missing
    assert capsys.readouterr() == ("", printed)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_of_the_program(name, capsys):
    for spelled in (name, COMMANDS[name], f"{COMMANDS[name]}.py", name.replace("-", "_")):
        assert deeplab_keras(spelled, "--help") == 0
        printed, error = capsys.readouterr()
        ours = re.sub(rf"the official DeepLab's {NAMES}", "", printed)
        assert error == "" and "scripts/" not in ours and not re.search(NAMES, ours)
        examples = commands(printed.partition("\nFlags (")[0])
        assert examples and {called for called, _ in examples} == {f"{COMMANDS[name]}.py"}
        assert f"deeplab-keras {name} --" in printed


def test_as_a_module_it_names_itself_so(capsys):
    assert main(["/x/deeplab_keras/__main__.py", "predict", "--help"]) == 0
    assert "    python -m deeplab_keras predict --checkpoint_dir=" in capsys.readouterr().out


def test_the_version(capsys):
    line = f"deeplab-keras {__version__}\n"
    assert deeplab_keras("--version") == 0 and capsys.readouterr() == (line, "")
    assert deeplab_keras("train", "--version") == 0 and capsys.readouterr() == (line, "")
    for name in SCRIPTS:
        assert script(name)("--version") == 0 and capsys.readouterr() == (line, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], r"unknown command 'trian'; did you mean 'train'\? known: build-tfds, .*"),
        (["a\x1b[31m"], r"unknown command 'a\\x1b\[31m'; known: .*"),
        (["--quiet", "train"], r"--quiet is before the command; write deeplab-keras COMMAND .*"),
        (["eval", "--checkpoint=x"], r"unknown flag .* deeplab-keras eval --help lists all flags"),
        (["eval", "--epochs=3"], r"--epochs: deeplab-keras eval does not use training flags; .*"),
        (["convert", "--source=torchvision", "--checkpoint=x", "--output=y"],
         r"--model is required: a model of deeplab-keras list, or give .*"),
        (["train", "--train_logdir=x", "--flagfile=camvid/deeplab_v3.flags"],
         r".*; did you mean camvid/\S+\.flags\? deeplab-keras recipes lists the recipes, .*"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(arguments, message, capsys):
    assert deeplab_keras(*arguments) == 1
    printed, error = capsys.readouterr()
    assert printed == "" and re.fullmatch(f"error: {message}\n", error), error


# --- Commands in messages ---

MESSAGE = "run `python scripts/convert_masks.py` --from=rgb or `export_model.py`, with `dataset=a`"


def test_messages_name_commands_as_the_user_calls_them():
    """In a checkout, and there with deeplab-keras; tests/test_installed.py has the third case."""
    error = UserError(MESSAGE)
    assert str(error) == (
        "run python scripts/convert_masks.py --from=rgb or export_model.py, with dataset=a"
    )
    with commands_of("deeplab-keras"):
        assert (
            str(error)
            == render_options(MESSAGE)
            == (
                "run deeplab-keras convert-masks --from=rgb or deeplab-keras export, with dataset=a"
            )
        )


def test_an_error_of_the_library_names_the_program(tmp_path, capsys):
    for split in ("train", "val"):
        for kind, shape in (("images", (8, 8, 3)), ("labels", (8, 8))):
            (tmp_path / kind / split).mkdir(parents=True)
            pixels = np.zeros(shape, np.uint8)
            pixels[:4] = 255
            Image.fromarray(pixels).save(tmp_path / kind / split / "a.png")
    (tmp_path / "classes.txt").write_text("background\nroad\ntree\n")
    given = ("--dataset=folder", f"--dataset_dir={tmp_path}", f"--output={tmp_path / 'report'}")
    assert deeplab_keras("check", *given) == 1
    assert "run deeplab-keras convert-masks --from=binary" in capsys.readouterr().out
    report = (tmp_path / "report/report.html").read_text()
    stored = json.loads((tmp_path / "report/report.json").read_text())
    assert "deeplab-keras convert-masks --from=binary" in report and "`" not in stored["looks_like"]
    assert script("check_dataset.py")(*given) == 1
    assert "run scripts/convert_masks.py --from=binary" in capsys.readouterr().out


def strings(path: pathlib.Path) -> list[tuple[int, str]]:
    """Returns the text of each string in a module, other than docstrings, with its line."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    docs = {id(node.body[0].value) for node in nodes if ast.get_docstring(node) is not None}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def test_every_message_marks_the_commands_that_it_names():
    """Otherwise an installed package would point at scripts that do not exist there.

    A string that is only a name does not count as a message.
    """
    marked = re.compile(rf"`(?:python )?(?:scripts/)?{NAMES}`")
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in LIBRARY
        if path.name != "commands.py"
        for line, text in strings(path)
        if re.search(rf"{NAMES}|scripts/", marked.sub("", text)) and not re.fullmatch(NAMES, text)
    ]
    assert wrong == []


def test_install_hints_name_packages_that_setup_py_requires():
    """Not extras of this package, which is in no registry."""
    known = re.findall(r'"([a-z][\w-]+)(?:\[[\w-]+\])?>=', (ROOT / "setup.py").read_text())
    hints = [
        (path.name, *re.findall(r"pip install ([^;,:()]+)", text))
        for path in LIBRARY
        for _, text in strings(path)
        if "pip install" in text
    ]
    assert len(hints) >= 5
    for name, *found in hints:
        for package in " ".join(found).split():
            assert package in [*known, "onnx"], f"{name}: pip install {package}"


def test_an_unknown_backend_is_one_line(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "foo")
    with raises_line("KERAS_BACKEND=foo: unknown backend; set it to tensorflow or jax"):
        load_keras()


# --- Recipes ---


def parsed(*arguments: str) -> list[object]:
    command = flags.Command(["x.py", *arguments], TrainConfig, DataConfig, EvalConfig, ModelConfig)
    return [command.model_config(), *map(command.config, (DataConfig, TrainConfig, EvalConfig))]


def test_every_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    """With the parts that it includes, with and without `configs/`."""
    names = [recipe.name for recipe in recipes() if not recipe.name.startswith("base/")]
    files = [path for path in (ROOT / "configs").rglob("*.flags") if path.parent.name != "base"]
    assert len(names) == len(files) > 30
    for name in names:
        monkeypatch.chdir(ROOT)
        expected = parsed(f"--flagfile=configs/{name}")
        monkeypatch.chdir(tmp_path)
        assert parsed(f"--flagfile={name}") == parsed(f"--flagfile=configs/{name}") == expected


def test_a_file_in_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/base").mkdir(parents=True)
    (tmp_path / "configs/base/official.flags").write_text("--seed=77\n")
    assert parsed("--flagfile=configs/base/official.flags")[1] == DataConfig(seed=77)
    assert parsed("--flagfile=base/official.flags")[1] != DataConfig(seed=77)
    with pytest.raises(UserError, match=r"^--flagfile=\.\./configs/voc/x\.flags: No such file"):
        parsed("--flagfile=../configs/voc/x.flags")


def test_recipes_are_listed_with_their_first_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert deeplab_keras("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    files = [path for path in (ROOT / "configs").rglob("*.flags") if path.parent.name != "base"]
    assert sorted(" ".join(line.split()) for line in lines) == sorted(
        f"{path.relative_to(ROOT / 'configs')} {path.read_text().splitlines()[0].lstrip('# ')}"
        for path in files
    )
    assert script("recipes.py")("--match=camvid/") == 0
    own = list((ROOT / "configs/camvid").iterdir())
    assert len(capsys.readouterr().out.splitlines()) == len(own)
    assert script("recipes.py")("--match=camvid/*mobilenet_v2*") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert script("recipes.py")("--match=nothing") == 1
    assert "--match=nothing: no recipe has such a name" in capsys.readouterr().err


# --- --quiet ---


def test_quiet_leaves_results_warnings_and_errors(capsys):
    def work(command: flags.Command) -> int:
        logger = logging.getLogger("deeplab_keras.some.module")
        logger.info("a note")
        logger.warning("a warning")
        bar = Progress(2, "working", interval=0)
        bar.write("a line above the bar")
        bar.update(1)
        bar.write_error("error: a.png")
        bar.update(2)
        print("a result")
        raise UserError("an error")

    assert flags.call(["x.py", "--quiet"], "", work) == 1
    assert capsys.readouterr() == (
        "a result\n",
        "warning: a warning\nerror: a.png\nerror: an error\n",
    )
    assert flags.call(["x.py"], "", work) == 1  # the state of the process is as before
    printed, error = capsys.readouterr()
    for line in ("a note", "a line above the bar", "working 1/2", "working 2/2"):
        assert line in error, line


def test_quiet_prediction_prints_only_its_result_and_errors(tiny_run, tmp_path, capfd):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(photos / name)
    (photos / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    summary, output = tmp_path / "new" / "summary.json", tmp_path / "out"
    arguments = (f"--checkpoint_dir={tiny_run}", f"--input={photos}", f"--output={output}")
    assert deeplab_keras("predict", *arguments, "--quiet", f"--summary={summary}") == 1
    printed, error = capfd.readouterr()
    assert printed == f"written: 2 of 3 images to {output}; 1 failed\n"
    assert re.fullmatch(rf"error: {photos}/c\.png: .*\n", error)
    found = json.loads(summary.read_text())
    assert found.pop("elapsed_seconds") > 0
    assert found == {
        "deeplab_keras": __version__,
        "command": f"deeplab-keras predict {' '.join(arguments)} --quiet --summary={summary}",
        "working_directory": os.getcwd(),
        "exit_status": 1,
        "error": None,
        "counts": {"inputs": 3, "written": 2, "skipped": 0, "failed": 1},
        "failures": {f"{photos}/c.png": error.removeprefix("error: ").rstrip("\n")},
        "written": [str(output)],
    }


# --- --summary ---


def note(command: flags.Command) -> None:
    command.summary.count(images=3)
    command.summary.failures["b.png"] = "b.png: damaged"
    command.summary.wrote("out", pathlib.Path("out/a.png"), "out")


def failing(error: BaseException):
    def work(command: flags.Command) -> None:
        note(command)
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "status", "line"),
    [
        (note, 0, None),
        (failing(UserError("`seed=3`: no")), 1, "--seed=3: no"),
        (failing(KeyboardInterrupt()), 130, "interrupted"),
        (failing(OSError(28, "No space left on device", "a")), 1, "a: no space left on device; .*"),
        (lambda command: note(command) or 3, 3, None),
    ],
)
def test_a_summary_is_written_in_any_case(work, status, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert flags.call(["x.py", "--summary=a b.json", "--noquiet"], "", work) == status
    found = json.loads((tmp_path / "a b.json").read_text())
    assert found["exit_status"] == status and found["command"] == (
        "x.py '--summary=a b.json' --noquiet"
    )
    assert found["error"] == line or re.fullmatch(line, found["error"])
    assert found["counts"] == {"images": 3} and found["failures"] == {"b.png": "b.png: damaged"}
    assert found["written"] == ["out", "out/a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["a b.json"], "nothing half-written"
    assert flags.call(["x.py", "--summary=a b.json"], "", note) == 0  # an older one is replaced
    assert json.loads((tmp_path / "a b.json").read_text())["exit_status"] == 0


def test_a_bug_and_a_mistake_in_the_flags_are_in_the_summary_too(tmp_path, capsys):
    path = tmp_path / "summary.json"
    with pytest.raises(ZeroDivisionError):
        flags.call(["x.py", f"--summary={path}"], "", failing(ZeroDivisionError("by zero")))
    assert json.loads(path.read_text())["error"] == "ZeroDivisionError: by zero"
    with pytest.raises(FileNotFoundError):
        flags.call(["x.py", f"--summary={path}"], "", failing(FileNotFoundError(2, "No", "x")))
    assert "FileNotFoundError" in json.loads(path.read_text())["error"]
    for arguments in ([f"--summary={path}"], ["--summary", str(path)]):
        path.unlink()
        assert flags.call(["x.py", "--sumary=1", *arguments], "", note) == 1
        found = json.loads(path.read_text())
        assert found["exit_status"] == 1 and "unknown flag --sumary" in found["error"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{tmp}", r"--summary must be the name of a \.json file\. Received: --summary={tmp}"),
        ("{tmp}/weights.npz", r"--summary must be the name of a \.json file\. Received: .*"),
        ("{tmp}/folder.json", r"--summary={tmp}/folder\.json: is a folder or a device; .*"),
        ("{tmp}/config.json", r"--summary={tmp}/config\.json: exists and is not a summary of .*"),
        ("{tmp}/config.json/a.json", r"--summary=.*: {tmp}/config\.json is a file; give a .*"),
        ("/proc/x/a.json", r"--summary=/proc/x/a\.json: /proc is not writable .*"),
    ],
)
def test_a_bad_path_of_a_summary_is_refused_before_the_work(path, message, tmp_path, capsys):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "config.json").write_text('{"model": 1}')
    for more in ((), ("--no_such_flag",)):
        called: list[flags.Command] = []
        arguments = ["x.py", f"--summary={path.format(tmp=tmp_path)}", *more]
        assert flags.call(arguments, "", called.append) == 1
        error = capsys.readouterr().err
        if not more or "must be the name" not in message:
            assert re.fullmatch(f"error: {message.format(tmp=tmp_path)}\n", error), error
        assert called == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "folder.json"]
    assert (tmp_path / "config.json").read_text() == '{"model": 1}'


def test_a_disk_that_fills_up_before_the_summary(tmp_path, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()

    def work(command: flags.Command) -> None:
        folder.rmdir()
        folder.write_text("a file in the place of the folder")

    assert flags.call(["x.py", f"--summary={folder}/a.json"], "", work) == 1
    assert re.fullmatch(r"error: .*a\.json: cannot be written \(.*\n", capsys.readouterr().err)


def test_the_flags_of_a_run_leave_out_the_options_of_every_command(tmp_path):
    command = flags.Command(
        ["x", "--quiet", f"--summary={tmp_path}/a.json", "--seed=3"], DataConfig
    )
    assert command.text() == "--seed=3\n"


# Command -> arguments, and what its summary has. The other commands are in the tests above.
RUNS = {
    "list": (["--match=mobilenetv3"], {"models": 6, "backbones": 0}, []),
    "recipes": (["--match=camvid/*mobilenet_v2*"], {"recipes": 1}, []),
    "check": (
        ["--train_samples=3", "--eval_samples=2", "--output={tmp}/report"],
        {"problems": 0, "train_pairs": 3, "val_pairs": 2},
        ["{tmp}/report"],
    ),
    "build-tfrecords": (
        ["--splits=val", "--eval_samples=3", "--num_shards=2", "--output_dir={tmp}/records"],
        {"val_pairs": 3, "val_files": 2},
        ["{tmp}/records"],
    ),
    "convert-masks": (
        ["--from=binary", "--input={tmp}/masks", "--output={tmp}/ids"],
        {"converted": 1, "kept": 0, "failed": 1},
        ["{tmp}/ids"],
    ),
    "eval": (
        ["--checkpoint_dir={run}", "--eval_logdir={tmp}/eval", "--eval_samples=2"],
        {"images": 2},
        [f"{{tmp}}/eval/{name}" for name in (
            "metrics.json", "metrics.csv", "metrics.md", "report.html")],
    ),
    "vis": (
        ["--checkpoint_dir={run}", "--vis_logdir={tmp}/vis", "--vis_samples=1"],
        {"images": 1},
        ["{tmp}/vis"],
    ),
    "export": (
        ["--checkpoint_dir={run}", "--export_path={tmp}/out", "--formats=tflite",
         "--input_size=64,64"],
        {"files": 1},
        ["{tmp}/out/model.tflite"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_summary_of_each_command(name, tiny_run, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    pixels = np.array([[0, 255], [255, 0]], np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "masks/a.png")
    (tmp_path / "masks/b.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    given, counts, written = RUNS[name]
    arguments = [argument.format(tmp=tmp_path, run=tiny_run) for argument in given]
    status = deeplab_keras(name, *arguments, "--quiet", f"--summary={tmp_path}/summary.json")
    error = capsys.readouterr().err
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["counts"] == counts
    assert found["written"] == [path.format(tmp=tmp_path) for path in written]
    assert all(pathlib.Path(path).exists() for path in found["written"])
    assert found["exit_status"] == status == (name == "convert-masks")
    if name == "convert-masks":
        assert list(found["failures"]) == [f"{tmp_path}/masks/b.png"]
        assert error == f"error: {found['error']}\n"
    else:
        assert error == "" and found["failures"] == {} and found["error"] is None


# --- Systems ---


def test_everything_is_imported_without_modules_of_posix_systems():
    """As on Windows; modules whose optional packages are missing are left out."""
    code = textwrap.dedent(
        """
        import sys
        for name in ("fcntl", "resource", "pwd", "grp", "termios"):
            sys.modules[name] = None
        import importlib, os, pkgutil
        del os.pread
        import deeplab_keras
        count, missing = 0, set()
        for module in pkgutil.walk_packages(deeplab_keras.__path__, "deeplab_keras."):
            if module.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(module.name)
                count += 1
            except ModuleNotFoundError as error:
                missing.add(error.name)
        print(count, *missing)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    count, *missing = done.stdout.split()
    assert int(count) >= len(LIBRARY) - 20 and set(missing) <= {"onnx", "torch", "keras_cv", "jax"}
