"""Holds the code to docs/architecture.md: who may import whom, how files are named, what has a docstring."""

from __future__ import annotations

import ast
import functools
import pathlib
import re

import pytest
from contracts import ROOT

PACKAGE = "deeplab_keras"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py")) + sorted((ROOT / "scripts").glob("*.py"))

# Rank -> rooms. A room is a module or a package with all that is in it; the longest name that fits counts.
RANKS = (
    ("version", "config", "labels", "layers", "concat_conv", "blocks", "progress", "writing", "data.info"),
    ("backbones", "heads", "losses", "metrics", "optimizers", "quantization", "data"),
    ("segmentor", "data.pipeline", "visualization", "official_inference", "tflite_file"),
    ("inference", "checkpoints"),
    ("evaluation", "export", "prediction", "dataset_report", "zoo", "zoo_official"),
    ("trainer", "callbacks", "benchmark"),
    ("flags", "scripts"),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
# Rooms of one rank that are one room in two files.
TOGETHER = {
    "zoo_official": "zoo", "callbacks": "trainer", "benchmark": "trainer", "flags": "scripts",
    **dict.fromkeys(RANKS[0], "rank 0"),
}  # fmt: skip

# Outside package -> the rooms that may import it.
CONFINED = {
    "tensorflow": "data data.pipeline trainer evaluation inference official_inference export callbacks benchmark "
    "checkpoints layers tflite_file",
    "tensorflow_datasets": "data data.pipeline",
    "keras_cv": "data data.pipeline visualization",
    "matplotlib": "visualization",
    "absl.flags": "flags scripts",
    "torch": "checkpoints benchmark",
    "cv2": "benchmark",
    "jax": "benchmark",
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "core"}
# Methods that override one of Keras, where they are documented.
KERAS_METHODS = {
    "call", "build", "get_config", "from_config", "compute_output_shape", "compute_output_spec", "convolution_op",
    "update_state", "result", "reset_state", "update_step", "on_train_begin", "on_train_end", "on_train_batch_begin",
    "on_train_batch_end", "on_epoch_begin", "on_epoch_end",
}  # fmt: skip


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: pathlib.Path) -> str:
    """`deeplab_keras/data/info.py` -> `data.info`; `scripts/train.py` -> `scripts.train`; the package itself -> ``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == PACKAGE else parts
    return ".".join(parts[:-1] if parts[-1:] == ["__init__"] else parts)


def room(module: str) -> str:
    fitting = [name for name in RANK if module == name or module.startswith(name + ".")]
    assert fitting, f"{module} stands in no room of tests/test_architecture.py and docs/architecture.md"
    return max(fitting, key=len)


def imports(path: pathlib.Path) -> set[str]:
    """Every module imported anywhere in the file, also within functions; `from a import b` gives both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_modules(path: pathlib.Path) -> set[str]:
    """The modules of this package among a file's imports."""
    known = {module_name(module) for module in MODULES}
    names = {name.removeprefix(PACKAGE + ".") for name in imports(path) if name.startswith(PACKAGE + ".")}
    # `from deeplab_keras.data import info` names the package `data` only as the way to `data.info`.
    through = {name.rpartition(".")[0] for name in names if name in known and "." in name}
    explicit = {node.module.removeprefix(PACKAGE + ".") for node in ast.walk(tree(path))
                if isinstance(node, ast.ImportFrom) and node.module
                and any(f"{node.module}.{alias.name}".removeprefix(PACKAGE + ".") not in known for alias in node.names)}
    return {name for name in names & known if name not in through or name in explicit}


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_go_down_the_ranks(path):
    name = module_name(path)
    if not name:  # the package's __init__ offers the public names of every rank
        return
    here = room(name)
    for other in own_modules(path):
        there = room(other)
        same_room = TOGETHER.get(here, here) == TOGETHER.get(there, there)
        assert RANK[there] < RANK[here] or same_room, f"{name} (rank {RANK[here]}) imports {other} (rank {RANK[there]})"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_packages_stay_in_their_rooms(path):
    name = module_name(path)
    for package, rooms in CONFINED.items():
        if any(other == package or other.startswith(package + ".") for other in imports(path)):
            assert name and room(name) in rooms.split(), f"{name or PACKAGE} imports {package}; allowed in: {rooms}"


def test_the_tflite_converter_stays_in_export():
    elsewhere = [path for path in MODULES if not module_name(path).startswith("export")]
    assert [path for path in elsewhere if "TFLiteConverter" in path.read_text()] == []


def test_torch_is_imported_in_one_place_and_in_what_is_measured_beside_us():
    places = [module_name(path) for path in MODULES if "torch" in imports(path)]
    assert len([name for name in places if not name.startswith("benchmark.peers.")]) <= 1


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_file_names(path):
    assert path.stem not in FORBIDDEN_NAMES, "a file is named by what it does; put such a function beside its caller"


def public_definitions(body: list[ast.stmt], inside: str = "") -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    found: list[tuple[str, ast.FunctionDef | ast.ClassDef]] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((inside + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node.body, f"{node.name}.")
    return found


@functools.cache
def documented_methods() -> set[str]:
    """Names of methods with a docstring; a class that overrides or implements one of them need not repeat it."""
    definitions = [item for path in MODULES for item in public_definitions(tree(path).body)]
    return {name.rpartition(".")[2] for name, node in definitions if "." in name and ast.get_docstring(node)}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_public_names_have_docstrings(path):
    missing = [] if ast.get_docstring(tree(path)) else ["the module"]
    for name, node in public_definitions(tree(path).body):
        is_property = any("property" in ast.unparse(mark) for mark in node.decorator_list)
        known_method = "." in name and node.name in KERAS_METHODS | documented_methods()
        if not ast.get_docstring(node) and not is_property and not known_method:
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_is_left_unfinished(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", source)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            swallowed = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            assert not swallowed and node.type is not None, f"line {node.lineno}: an exception is swallowed"


def test_library_code_does_not_know_where_the_real_data_lie():
    for path in MODULES:
        assert not re.search(r"\.\./shared|/work/|/tmp/", path.read_text(encoding="utf-8")), path


def test_the_ranks_are_those_of_the_documentation():
    rows = re.findall(r"^\| (\d) \| (.+?) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    documented = {int(rank): re.findall(r"`([^`]+)`", rooms) for rank, rooms in rows}
    for rank, rooms in enumerate(RANKS):
        assert {name.removesuffix("/*").replace("/", ".") for name in documented[rank]} == set(rooms), f"rank {rank}"
