"""The names of the commands, and how messages tell users to run one.

Messages name a command in backticks as the script of a checkout, `` `python scripts/predict.py` ``
or `` `predict.py` ``. If the user called `deeplab-keras`, and in an installed package, which has no
scripts, `render_commands` writes `deeplab-keras predict` instead. Messages name a page of the
documentation as `docs/export.md`; in an installed package, `render_commands` writes its path.
"""

from __future__ import annotations

import contextlib
import contextvars
import pathlib
import re
from collections.abc import Iterator

# Name in `deeplab-keras NAME` -> name of the script, and of the module in cli/commands.
COMMANDS = {
    "train": "train",
    "eval": "eval",
    "vis": "vis",
    "predict": "predict",
    "export": "export_model",
    "convert": "convert_checkpoint",
    "check": "check_dataset",
    "convert-masks": "convert_masks",
    "build-tfrecords": "build_tfrecords",
    "build-tfds": "build_tfds",
    "build-web": "build_web",
    "data-service": "data_service",
    "list": "list_models",
    "recipes": "recipes",
}
PROGRAM = "deeplab-keras"

_NAMES = {script: name for name, script in COMMANDS.items()}
_SCRIPT = rf"({'|'.join(_NAMES)})\.py"
_IN_MESSAGE = re.compile(rf"`((?:python )?(?:scripts/)?{_SCRIPT})`")
_IN_EXAMPLE = re.compile(rf"python scripts/{_SCRIPT}\b")

_PAGE = re.compile(r"(?<![\w./\\-])docs/(\w+\.md)\b")

# The pages in a wheel (io/resources.py); a checkout has no such folder.
_PAGES = pathlib.Path(__file__).resolve().parents[1] / "resources/docs"
_SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
# The program whose commands messages name; "" for the scripts of a checkout.
_program: contextvars.ContextVar[str] = contextvars.ContextVar(
    "_program", default="" if (_SCRIPTS / "predict.py").is_file() else PROGRAM
)


@contextlib.contextmanager
def commands_of(program: str) -> Iterator[None]:
    """Makes messages name the commands of a program, such as `deeplab-keras predict`.

    Args:
        program: The program, as the user calls it.
    """
    token = _program.set(program)
    try:
        yield
    finally:
        _program.reset(token)


def render_commands(text: str) -> str:
    """Returns a message with commands in backticks as the user can run them, and paths of pages."""
    program = _program.get()
    return _IN_MESSAGE.sub(
        lambda found: f"{program} {_NAMES[found[2]]}" if program else found[1], render_pages(text)
    )


def render_examples(text: str) -> str:
    """Returns a help text with each `python scripts/NAME.py` as the user can run it."""
    program = _program.get()
    return _IN_EXAMPLE.sub(lambda found: f"{program} {_NAMES[found[1]]}", text) if program else text


def render_pages(text: str) -> str:
    """Returns a text with each `docs/NAME.md` as the path of the page in an installed package."""

    def path(found: re.Match[str]) -> str:
        page = _PAGES / found[1]
        return str(page) if page.is_file() else found[0]

    return _PAGE.sub(path, text)
