"""The wheel: its files, and the package that it installs, without the checkout."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from contracts import ROOT
from PIL import Image

from deeplab_keras import __version__
from deeplab_keras.config.commands import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.package("setuptools")]


def call(*arguments: object, cwd: pathlib.Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The wheel, built from the source archive, so that both are complete."""
    place = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("deeplab_keras", "configs", "demo", "docs", "scripts", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, place / "checkout" / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, place / "checkout" / name)
    made = call("setup.py", "-q", "sdist", "-d", place, cwd=place / "checkout")
    assert made.returncode == 0, made.stderr
    (archive,) = place.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    (source,) = place.glob("deeplab_keras-*/")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    built = call("-m", "pip", "wheel", *offline, "-w", place, source, cwd=place)
    assert built.returncode == 0, built.stderr
    (path,) = place.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> pathlib.Path:
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--target", folder)
    done = call("-m", "pip", "install", *options, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_has_the_package_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    library = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "deeplab_keras").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    resources = {
        f"deeplab_keras/resources/{path.relative_to(ROOT).as_posix()}"
        for folder, pattern in (("configs", "**/*"), ("demo/web", "**/*"), ("docs", "*.md"))
        for path in (ROOT / folder).glob(pattern)
        if path.is_file() and path.name != "README.md"
    }
    assert "deeplab_keras/py.typed" in library and len(resources) > 40
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == library | resources
    read = zipfile.ZipFile(wheel).read
    entry = next(name for name in about if name.endswith("entry_points.txt"))
    assert "deeplab-keras = deeplab_keras.cli.main:main" in read(entry).decode()


def test_the_installed_package_works_anywhere(site, tiny_real_run, tmp_path):
    """Its commands, its recipes and its hints; the checkout cannot be imported."""
    variables = {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def run(*arguments: object) -> tuple[int, str, str]:
        done = call("-m", "deeplab_keras", *arguments, cwd=tmp_path, **variables)
        return done.returncode, done.stdout, done.stderr

    where = call("-c", "import deeplab_keras; print(deeplab_keras.__file__)", cwd=tmp_path,
                 **variables)  # fmt: skip
    assert where.stdout.strip() == str(site / "deeplab_keras/__init__.py")
    assert run("--version") == (0, f"deeplab-keras {__version__}\n", "")
    program = call(site / "bin/deeplab-keras", "--help", cwd=tmp_path, **variables)
    assert program.returncode == 0 and "    deeplab-keras COMMAND --flag=" in program.stdout
    assert all(f"\n  {name} " in program.stdout for name in COMMANDS)

    status, listed, error = run("recipes")
    assert (status, error) == (0, "") and "synthetic/demo.flags  " in listed
    status, listed, _ = run("train", "--help")
    (page,) = re.findall(r"\((\S+)from_official_deeplab\.md\)", listed)
    assert pathlib.Path(page) == site / "deeplab_keras/resources/docs"
    recipe = "--flagfile=synthetic/demo.flags"
    given = ("--train_samples=3", "--eval_samples=2", f"--output={tmp_path}/report", "--quiet")
    status, printed, error = run("check", recipe, *given, "--summary=check.json")
    assert (status, error) == (0, ""), error
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["counts"] == {"problems": 0, "train_pairs": 3, "val_pairs": 2}

    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    arguments = (f"--checkpoint_dir={tiny_real_run}", "--input=photo.png", "--output=out")
    status, printed, error = run("predict", *arguments, "--quiet", "--summary=s.json")
    assert (status, printed, error) == (0, "written: 1 of 1 images to out\n", "")
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["counts"] == {"inputs": 1, "written": 1, "skipped": 0, "failed": 0}
    assert found["command"].startswith("python -m deeplab_keras predict --checkpoint_dir=")
    assert Image.open(tmp_path / "out/photo_labels.png").size == (64, 48)


def test_hints_of_the_installed_package_name_its_commands(site, tmp_path):
    code = """
from deeplab_keras.config import UserError
from deeplab_keras.io.resources import resource_folder
print(UserError("run `python scripts/convert_masks.py` --from=rgb, or `export_model.py`"))
print(UserError("see docs/datasets.md; my/docs/datasets.md and docs/none.md are other files"))
print(resource_folder("demo/web"))
"""
    done = call("-c", code, cwd=tmp_path, PYTHONPATH=str(site), PYTHONSAFEPATH="1")
    hint, pages, page = done.stdout.splitlines()
    assert hint == "run deeplab-keras convert-masks --from=rgb, or deeplab-keras export"
    known = site / "deeplab_keras/resources/docs/datasets.md"
    assert pages == f"see {known}; my/docs/datasets.md and docs/none.md are other files"
    assert known.read_bytes() == (ROOT / "docs/datasets.md").read_bytes()
    assert page == str(site / "deeplab_keras/resources/demo/web")
    assert re.search("<html", (pathlib.Path(page) / "index.html").read_text())
