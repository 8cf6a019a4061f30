"""The wheel: its files, and the package that it installs, without the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import venv
import zipfile

import numpy as np
import pytest
from contracts import ROOT
from PIL import Image

from deeplab_keras import Predictor, __version__, export
from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import ExportConfig
from deeplab_keras.config.commands import COMMANDS
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.zoo.loading import build_segmentor
from deeplab_keras.zoo.registry import get_config

SMALL_MODEL = "lrasppnet_mobilenetv3sos8_voc"
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
    assert "deeplab_keras/zoo/bundled/synthetic_demo/weights.npz" in library
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

    arguments = ("--checkpoint_dir=synthetic_demo", "--input=photo.png", "--output=built_in")
    assert run("predict", *arguments, "--quiet")[0] == 0
    assert Image.open(tmp_path / "built_in/photo_labels.png").size == (64, 48)
    status, listed, _ = run("list", "--match=synthetic")
    assert status == 0 and "synthetic_demo" in listed


# What a small machine needs for exported files; absl only for the command line.
LIGHT = {
    "numpy": "numpy",
    "PIL": "pillow",
    "ai_edge_litert": "ai-edge-litert",
    "flatbuffers": "flatbuffers",
    "absl": "absl-py",
}
FIRST = """
import sys, time
start = time.perf_counter()
import numpy as np
import deeplab_keras as dk
labels = dk.Predictor(sys.argv[1])(np.load("image.npy"))
seconds = time.perf_counter() - start
np.save("labels.npy", labels)
heavy = {name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "keras")}
assert not heavy, heavy
# The peak that getrusage returns includes that of the process that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024)
"""


@pytest.fixture(scope="module")
def small_machine(wheel, tmp_path_factory) -> pathlib.Path:
    """Python of a new environment that has the wheel and the packages of `LIGHT` only."""
    folder = tmp_path_factory.mktemp("small")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, project in LIGHT.items():
        found = importlib.metadata.distribution(project)
        tops = {path.parts[0] for path in found.files or [] if ".." not in path.parts}
        assert name in tops
        for top in tops - {"__pycache__"}:  # linked instead of installed: no network is needed
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    options = ("--no-deps", "--no-index", "--disable-pip-version-check", "--target", packages)
    done = call("-m", "pip", "install", *options, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin/python"


def test_a_small_machine_predicts_without_tensorflow(small_machine, tmp_path):
    """Prints the time to the first result and the peak memory of a process."""
    model = build_segmentor(get_config(SMALL_MODEL))
    info = info_for_classes("test", [f"class {number}" for number in range(21)])
    checkpoint = LoadedCheckpoint(model, get_config(SMALL_MODEL), info, pathlib.Path(), {})
    source = Exportable.of(checkpoint)
    job = export._Job(source, source, ExportConfig(input_size=(385, 385)))
    path = tmp_path / "model.tflite"
    job.write("tflite", path)
    colors = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(colors).resize((640, 480), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "photo.png")
    np.save(tmp_path / "image.npy", np.asarray(picture))
    expected = Predictor(path)(picture)

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [small_machine, *map(str, arguments)],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    measured = [tuple(map(float, run("-c", FIRST, path).split())) for _ in range(6)]
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), expected)
    arguments = (f"--checkpoint_dir={path}", "--input=photo.png", "--output=out")
    out = run("-m", "deeplab_keras", "predict", *arguments, "--quiet")
    assert out == "written: 1 of 1 images to out\n"
    written = np.asarray(Image.open(tmp_path / "out/photo_labels.png"))
    np.testing.assert_array_equal(written, expected)
    # The first process compiles the modules.
    seconds, megabytes = (statistics.median(values) for values in zip(*measured[1:], strict=True))
    load = os.getloadavg()[0]
    print(
        f"{SMALL_MODEL} at 385x385, image of 480x640: first result after {seconds:.2f} s, peak "
        f"memory {megabytes:.0f} MB, median of 5 processes, load {load:.1f}"
    )
    assert megabytes < 250
    assert seconds < 1 or load > 1.5  # other processes take its time


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
