"""Checks the rules of docs/architecture.md: imports, file names, docstrings."""

from __future__ import annotations

import ast
import builtins
import functools
import pathlib
import re
import textwrap

import conftest
from contracts import ROOT

PACKAGE = "deeplab_keras"
MODULES = [
    path
    for folder in (PACKAGE, "scripts", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

# The rooms from the bottom to the top. A module imports only from its own room and from rooms
# listed before it.
ROOMS = (
    "version",
    "config",
    "io",
    "models",
    "data.info",
    "data.source",
    "data.files",
    "data.datasets",
    "data.records",
    "data.tfds",
    "data.registry",
    "data.annotations",
    "data.augment",
    "data.check",
    "data.order",
    "data.service",
    "data.pipeline",
    "data",
    "visualization",
    "checkpoints",
    "convert",
    "zoo",
    "inference",
    "evaluation",
    "export",
    "prediction",
    "training",
    "cli",
    "__main__",
    "benchmarks",
    "scripts",
)

# Third-party package -> the rooms that may import it.
CONFINED = {
    "tensorflow": "data training evaluation inference export benchmarks convert models "
    "io.tflite_file",
    "tensorflow_datasets": "data.tfds",
    "keras_cv": "data.augment",
    "matplotlib": "visualization",
    "jinja2": "visualization",
    "absl": "cli",  # its first log line would add a handler to the root logger
    "torch": "benchmarks",
    "cv2": "benchmarks",
    "pycocotools": "data.annotations",
    "jax": "benchmarks inference.on_jax training.engine_jax",
}
# Modules that must work on Keras' other backends, in rooms that may import TensorFlow, or that run
# exported files without TensorFlow.
WITHOUT_TENSORFLOW = {
    "checkpoints.folder",
    "checkpoints.values",
    "data.info",
    "evaluation.labels",
    "evaluation.metrics",
    "evaluation.regions",
    "inference",
    "inference.arrays",
    "inference.images",
    "inference.keras_network",
    "inference.logits",
    "inference.network",
    "inference.on_jax",
    "inference.opening",
    "inference.predictor",
    "inference.resizing",
    "inference.tiles",
    "inference.windows",
    "models.blocks",
    "models.concat_conv",
    "models.quantization",
    "models.segmentor",
    "training.divergence",
    "training.engine",
    "training.engine_jax",
    "training.losses",
    "training.optimizers",
    "training.run",
    "training.statistics",
    "training.step",
    "training.steps",
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "core"}
# Methods that override a method of Keras, which documents them.
KERAS_METHODS = {
    "build",
    "call",
    "compute_output_shape",
    "compute_output_spec",
    "convolution_op",
    "from_config",
    "get_config",
    "on_epoch_begin",
    "on_epoch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_train_begin",
    "on_train_end",
    "reset_state",
    "result",
    "update_state",
    "update_step",
}


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: pathlib.Path) -> str:
    """Returns `data.info` for deeplab_keras/data/info.py, and "" for the package's `__init__`."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == PACKAGE else parts
    return ".".join(parts[:-1] if parts[-1:] == ["__init__"] else parts)


def room(module: str) -> str:
    fitting = [name for name in ROOMS if module == name or module.startswith(name + ".")]
    assert fitting, f"{module} is in no room of tests/test_architecture.py and docs/architecture.md"
    return max(fitting, key=len)


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
    """Returns all modules that a file imports; `from a import b` counts as both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@functools.cache
def known_modules() -> set[str]:
    return {module_name(module) for module in MODULES}


def own_modules(path: pathlib.Path) -> set[str]:
    """Returns the modules of this package that a file imports."""
    known = known_modules()
    names = {
        name.removeprefix(PACKAGE + ".") for name in imports(path) if name.startswith(PACKAGE + ".")
    }
    # `from deeplab_keras.data import info` imports `data.info`, but not a name of `data` itself.
    through = {name.rpartition(".")[0] for name in names if name in known and "." in name}
    explicit = {
        node.module.removeprefix(PACKAGE + ".")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and any(
            f"{node.module}.{alias.name}".removeprefix(PACKAGE + ".") not in known
            for alias in node.names
        )
    }
    return {name for name in names & known if name not in through or name in explicit}


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def test_imports_go_down():
    upward = [
        f"{name} imports {other}, which is in a higher room"
        for path in MODULES
        if (name := module_name(path))  # the package's __init__ imports from all rooms
        for other in own_modules(path)
        if ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert upward == []


def test_packages_stay_in_their_rooms():
    outside = []
    for path in MODULES:
        name = module_name(path)
        for package, rooms in CONFINED.items():
            if any(other == package or other.startswith(package + ".") for other in imports(path)):
                allowed = rooms.split()
                inside = any(name == allow or name.startswith(allow + ".") for allow in allowed)
                if not inside or (package == "tensorflow" and name in WITHOUT_TENSORFLOW):
                    outside.append(f"{name} imports {package}")
    assert outside == []


def imported_at_once(body: list[ast.stmt]) -> set[str]:
    """Returns the modules that statements import outside of functions and type checking."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Try | ast.ClassDef):
            found |= imported_at_once(node.body)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            found |= imported_at_once(node.body)
    return found


def test_a_prediction_of_a_file_imports_neither_tensorflow_nor_keras():
    """Follows the imports of these modules; functions may import more when they are called."""
    files = {module_name(path): path for path in MODULES}
    waiting = ["inference", "inference.exported", "prediction", "cli.commands.predict"]
    seen: dict[str, str] = dict.fromkeys(waiting, "")
    heavy = []
    while waiting:
        name = waiting.pop()
        for other in imported_at_once(tree(files[name]).body):
            if other.partition(".")[0] in ("tensorflow", "keras"):
                heavy.append(f"{name} (imported by {seen[name]}) imports {other}")
            own = other.removeprefix(PACKAGE + ".")
            parents = [own.rsplit(".", depth)[0] for depth in range(own.count(".") + 1)]
            for module in parents if other.startswith(PACKAGE + ".") else ():
                if module in files and module not in seen:
                    seen[module] = name
                    waiting.append(module)
    assert heavy == [] and "data.files.reading" in seen and "prediction.results" in seen


def test_no_module_is_outside_the_rooms():
    loose = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    assert loose == {"__init__", "__main__", "version"}


def test_the_tflite_converter_stays_in_export():
    elsewhere = [path for path in MODULES if not module_name(path).startswith("export")]
    assert [path for path in elsewhere if "TFLiteConverter" in path.read_text()] == []


def test_torch_is_imported_in_benchmarks_of_peers_only():
    places = [module_name(path) for path in MODULES if "torch" in imports(path)]
    assert [name for name in places if not name.startswith("benchmarks.peers.")] == []


def test_file_names():
    """Files are named after what they do."""
    assert [relative(path) for path in MODULES if path.stem in FORBIDDEN_NAMES] == []


def public_definitions(
    body: list[ast.stmt], inside: str = ""
) -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    found: list[tuple[str, ast.FunctionDef | ast.ClassDef]] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append((inside + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node.body, f"{node.name}.")
    return found


@functools.cache
def documented_methods() -> set[str]:
    """Returns the names of methods with a docstring, which overriding methods need not repeat."""
    definitions = [item for path in MODULES for item in public_definitions(tree(path).body)]
    return {
        name.rpartition(".")[2]
        for name, node in definitions
        if "." in name and ast.get_docstring(node)
    }


def test_public_names_have_docstrings():
    missing = []
    for path in MODULES:
        if not ast.get_docstring(tree(path)):
            missing.append(f"{relative(path)}: the module")
        for name, node in public_definitions(tree(path).body):
            is_property = any("property" in ast.unparse(mark) for mark in node.decorator_list)
            known_method = "." in name and node.name in KERAS_METHODS | documented_methods()
            if not ast.get_docstring(node) and not is_property and not known_method:
                missing.append(f"{relative(path)}: {name}")
    assert missing == []


def test_nothing_is_left_unfinished():
    unfinished = []
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        for found in re.finditer(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", source):
            unfinished.append(f"{relative(path)}: {found[0]}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                swallowed = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                if swallowed or node.type is None:
                    unfinished.append(f"{relative(path)}:{node.lineno}: an exception is swallowed")
    assert unfinished == []


def test_no_module_needs_a_posix_system():
    posix = {"fcntl", "grp", "posix", "pwd", "resource", "termios", "tty"}
    library = sorted((ROOT / PACKAGE).rglob("*.py"))
    assert [relative(path) for path in library if imports(path) & posix] == []
    missing_in_windows = re.compile(
        r"\bos\.(pread|pwrite|fork|getuid|geteuid|uname|sysconf|killpg|setsid|mkfifo|fchmod)\b|"
        r"\bsignal\.(SIGKILL|SIGHUP|SIGUSR1|SIGUSR2|SIGALRM|alarm|setitimer)\b"
    )
    used = [
        relative(path) for path in library if missing_in_windows.search(path.read_text("utf-8"))
    ]
    assert used == []


def test_the_wheel_has_every_file():
    listed = re.search(
        r'package_data=\{\s*"deeplab_keras": \[(.+?)\]\s*\}', (ROOT / "setup.py").read_text()
    )
    patterns = re.findall(r'"(.+?)"', listed[1])
    folder = ROOT / PACKAGE
    files = {
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    wanted = {path for path in files if path.suffix != ".py"}
    assert wanted == {path for pattern in patterns for path in folder.glob(pattern)}


def test_library_code_has_no_paths_of_this_machine():
    for path in MODULES:
        assert not re.search(r"\.\./shared|/work/|/tmp/", path.read_text(encoding="utf-8")), path


def test_the_rooms_are_those_of_the_documentation():
    """The documentation lists them from the top to the bottom."""
    section = (
        (ROOT / "docs/architecture.md")
        .read_text()
        .partition("## Rooms")[2]
        .partition("| package |")[0]
    )
    rows = re.findall(r"^\| `([\w./]+)` \|", section, re.MULTILINE)
    documented = [name.rstrip("/").replace("/", ".") for name in rows]
    assert documented == [name for name in reversed(ROOMS) if name != "data"]


def test_no_two_public_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(relative(path))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_the_quick_cases_are_those_of_existing_tests():
    for name in conftest.QUICK_CASES:
        file, _, function = name.partition("::")
        names = {node.name for node in tree(ROOT / "tests" / file).body if hasattr(node, "name")}
        assert function in names, name


def programs(module: ast.Module) -> list[ast.Module]:
    """Returns the programs in a module's string constants: those that begin with an import."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                program = ast.parse(textwrap.dedent(node.value))
            except (SyntaxError, ValueError):
                continue
            if program.body and isinstance(program.body[0], ast.Import | ast.ImportFrom):
                found.append(program)
    return found


def undefined(program: ast.Module) -> set[str]:
    """Returns the names that a program reads and nowhere imports, assigns or defines."""
    read, defined = set(), set(dir(builtins)) | {"__file__", "__name__"}
    for node in ast.walk(program):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return read - defined


def test_programs_that_tests_start_import_what_they_use():
    """The linter does not read strings, and slow tests do not run at every commit."""
    wrong = ast.parse("class A: pass\nimport os, sys as s\nos.x(s, A, y, sys)")
    assert undefined(wrong) == {"y", "sys"}
    count = 0
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for program in programs(tree(path)):
            count += 1
            assert not undefined(program), f"{path.name}: {ast.unparse(program)[:200]}"
    assert count > 10
