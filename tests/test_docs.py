"""The documentation is correct: its commands parse, its Python code runs, its links resolve."""

from __future__ import annotations

import importlib
import pathlib
import re
import types

import numpy as np
import pytest
from contracts import ROOT, SCRIPTS, commands, noise, script
from PIL import Image

import deeplab_keras as dk
from deeplab_keras.config import DataConfig, ModelConfig, TrainConfig
from deeplab_keras.training import train as trainer

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE = re.compile(r"^make ((?:[a-z]+ ?)+)", re.MULTILINE)


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: pathlib.Path, language: str) -> list[str]:
    return [block for _, block in marked_blocks(path, language)]


def marked_blocks(path: pathlib.Path, language: str) -> list[tuple[bool, str]]:
    """The code blocks of a page, and whether a comment `<!-- not run: why -->` stands before it."""
    found = re.findall(
        rf"^(<!-- not run: .+ -->\n)?```{language}\n(.*?)^```",
        path.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return [(bool(mark), block) for mark, block in found]


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_commands_parse(path, monkeypatch):
    """Each with the script's own flags; what a flagfile of a run would hold is left out."""
    monkeypatch.chdir(ROOT)
    for name, arguments in [call for block in blocks(path, "bash") for call in commands(block)]:
        assert name in SCRIPTS, f"{relative(path)}: there is no scripts/{name}"
        if "--help" in arguments:
            assert script(name)("--help") == 0
            continue
        command = script(name).parse(
            *(a for a in arguments if not a.startswith("--flagfile=runs/"))
        )
        for section in script(name).sections:
            if section is ModelConfig:
                command.model_config()
            else:
                command.config(section)


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_trainings_on_a_folder_of_ones_own_take_any_folder(path, monkeypatch):
    """No class weights of another dataset, no warm-up longer than a training on a dozen images."""
    monkeypatch.chdir(ROOT)
    calls = [call for block in blocks(path, "bash") for call in commands(block)]
    for arguments in [
        found for name, found in calls if name == "train.py" and "--help" not in found
    ]:
        command = script("train.py").parse(
            *(a for a in arguments if not a.startswith("--flagfile=runs/"))
        )
        data, training = command.config(DataConfig), command.config(TrainConfig)
        if data.dataset == "folder" and "camvid" not in data.dataset_dir:
            assert training.label_weights == ()
            steps = trainer.training_steps(training, 12, data.train_batch_size)
            assert training.warmup_steps + training.slow_start_step < steps


@pytest.mark.parametrize("path", PAGES, ids=relative)
def test_make_has_the_verbs(path):
    makefile = (ROOT / "Makefile").read_text()
    for verbs in [match for block in blocks(path, "bash") for match in MAKE.findall(block)]:
        for verb in verbs.split():
            assert re.search(rf"^{verb}:.*##", makefile, re.MULTILINE), f"make {verb}"


@pytest.mark.parametrize(
    "path",
    [
        page if page.name != "python.md" else pytest.param(page, marks=pytest.mark.slow)
        for page in PAGES
        if blocks(page, "python")
    ],
    ids=relative,
)
def test_python_runs(path, tiny_run, tmp_path, monkeypatch):
    """Runs all blocks of a page in order; runs/demo and runs/mine are trained models."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "photographs"):
        (tmp_path / folder).mkdir()
    for name in ("demo", "mine"):
        (tmp_path / "runs" / name).symlink_to(tiny_run)
    image = noise(40, 60, 3).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "photographs" / "a.png")
    names = {"image": image, "images": noise(1, 256, 256, 3)}
    for not_run, block in marked_blocks(path, "python"):
        code = compile(block, relative(path), "exec")
        if not not_run:
            exec(code, names)
    if path.name == "README.md":
        assert names["labels"].shape == (240, 320) and names["logits"].shape == (1, 240, 320, 11)


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=relative)
def test_links_lead_somewhere(path):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not target.startswith(("https://", "http://")):
            assert (path.parent / target).exists(), f"{relative(path)} links to {target}"


def test_the_readme_is_short_and_names_every_script():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert [name for name in SCRIPTS if f"`{name}`" not in text] == []


def test_every_public_name_is_in_the_api_reference():
    """Names of `dk`, and of its namespaces through the `__all__` of their modules."""
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    entries = re.findall(r"^::: deeplab_keras\.([\w.]+)$", pages, re.MULTILINE)
    for name in set(dk.__all__) - {"__version__"}:
        value = getattr(dk, name)
        places = {entry for entry in entries if entry.rpartition(".")[2] == name}
        if isinstance(value, types.ModuleType):
            places |= {entry for entry in entries if f"deeplab_keras.{entry}" == value.__name__}
        assert len(places) == 1, name
        module, _, attribute = places.pop().rpartition(".")
        found = importlib.import_module(f"deeplab_keras.{module}" if module else "deeplab_keras")
        assert getattr(found, attribute) is value, name
