"""Defines flags from the fields of config classes, and writes their help text."""

from __future__ import annotations

import ast
import dataclasses
import math
import os
import re
import textwrap
import typing
from collections.abc import Callable
from typing import Any

from absl import flags as absl_flags

from deeplab_keras.cli.summary import CommonOptions
from deeplab_keras.config import (
    Config,
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    render_options,
)
from deeplab_keras.config.commands import render_examples, render_pages

# The classes whose options occur in messages.
CONFIGS = (ModelConfig, DataConfig, TrainConfig, EvalConfig, PredictConfig, ExportConfig)

TITLES = {
    ModelConfig: "Model",
    DataConfig: "Data",
    TrainConfig: "Training",
    EvalConfig: "Inference and evaluation",
    CommonOptions: "Every command",
}
ALIASES = {"initial_checkpoint": "tf_initial_checkpoint", "vis_split": "eval_split"}
HELP_WIDTH = 100
HELP_COLUMN = 44


def flag_name(field: dataclasses.Field[Any]) -> str:
    """Returns the name of a field's flag: the field's own, or the official DeepLab's."""
    return field.metadata.get("flag") or field.name


def flag_writer(*sections: type[Config]) -> Callable[[str, str | None], str]:
    """Returns a function that writes an option of a message as a flag, for `UserError.render`.

    Args:
        sections: The config classes of the running command, which take precedence if classes have
            fields of the same name.
    """
    every: tuple[type[Config], ...] = (*CONFIGS, *sections)
    fields = [field for section in every for field in section.options().values()]
    flags = {field.name: flag_name(field) for field in fields}

    def write(name: str, value: str | None) -> str:
        flag = f"--{flags.get(name, name)}"
        if value is None:
            return flag
        try:
            found = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            found = value
        if isinstance(found, bool):
            value = str(found).lower()
        elif isinstance(found, list | tuple):
            value = ",".join(map(str, found))
        elif isinstance(found, str):
            value = found
        return f"{flag}={value}"

    return write


@dataclasses.dataclass
class Origin:
    """Where the arguments that are being parsed come from.

    Attributes:
        name: The path of a flagfile, or "" for the command line.
    """

    name: str = ""


def define(
    values: absl_flags.FlagValues,
    section: type[Config],
    field: dataclasses.Field[Any],
    origin: Origin,
) -> None:
    """Defines the flag of a field; the parser sets `origin` before it parses arguments."""
    kind, element = _kind(section, field)
    name, help = flag_name(field), field.metadata["help"]
    default: Any = field.default
    if kind is bool:
        absl_flags.DEFINE_boolean(name, bool(default), help, flag_values=values)
    elif kind is tuple:
        flag = _ListFlag(_Parser(kind, element), _Serializer(), name, default, help, origin)
        absl_flags.DEFINE_flag(flag, flag_values=values)
    else:
        absl_flags.DEFINE(
            _Parser(kind, element),
            name,
            default,
            help,
            flag_values=values,
            serializer=_Serializer(),
        )


class _ListFlag(absl_flags.Flag):
    """A flag with several values: `--rates=6,12`, or the official form `--rates=6 --rates=12`.

    Repeated single values in one flagfile or on the command line form a list. A list with commas,
    an empty value, and a value from another place replace the previous value.
    """

    def __init__(
        self,
        parser: _Parser,
        serializer: _Serializer,
        name: str,
        default: Any,
        help: str,
        origin: Origin,
    ) -> None:
        super().__init__(parser, serializer, name, default, help)
        self._origin = origin
        self._before: tuple[str, str] | None = None  # place and text of the previous value

    def parse(self, argument: Any) -> None:
        """Parses one occurrence of the flag."""
        text, place = str(argument).strip(), self._origin.name
        continues = (
            self._before is not None
            and self._before[0] == place
            and self._before[1]
            and text
            and "," not in text
        )
        if continues and self._before is not None and "," in self._before[1]:
            raise absl_flags.IllegalFlagValueError(
                f"--{self.name}={self._before[1]} is followed by --{self.name}={text}: give one "
                f"list, separated by commas, or repeat --{self.name} for each value"
            )
        found: Any = self.value if continues else ()
        super().parse(argument)
        values: Any = self.value
        self.value = (*found, *values)
        self._before = (place, text)


def _kind(section: type[Config], field: dataclasses.Field[Any]) -> tuple[type, type]:
    """Returns the type of a field's value (other than `None`) and of a tuple's elements."""
    annotation = section.types()[field.name]
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if type(None) in typing.get_args(annotation):
        annotation = options[0]
    if typing.get_origin(annotation) is tuple:
        return tuple, typing.get_args(annotation)[0]
    return annotation, annotation


_EXPECTED = {int: "a whole number", float: "a number", str: "text"}
_EXPECTED_LIST = {
    int: "whole numbers, separated by commas",
    float: "numbers, separated by commas",
    str: "text, separated by commas",
}


class _Parser(absl_flags.ArgumentParser):
    """Parses the text of a flag as an int, float or str, or as a comma-separated list of them."""

    def __init__(self, kind: type, element: type) -> None:
        super().__init__()
        self._kind, self._element = kind, element

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):  # a default
            return argument
        if self._kind is not tuple:
            return self._one(argument)
        parts = [part.strip() for part in argument.split(",")] if argument.strip() else []
        if self._element is str and "" in parts:
            raise ValueError("the list has an empty element; remove the comma next to it")
        return tuple(map(self._one, parts))

    def _one(self, text: str) -> Any:
        if self._element is str:  # shells replace ~ only at the beginning of an argument
            return os.path.expanduser(text)
        try:
            # The official scripts have floats, such as --decay_steps=0.0, where ours have integers.
            whole = self._element is int and re.fullmatch(r"[+-]?\d+\.0*", text)
            value = self._element(text.partition(".")[0] if whole else text)
            if self._element is float and not math.isfinite(value):
                raise ValueError(text)
        except ValueError:
            expected = (_EXPECTED_LIST if self._kind is tuple else _EXPECTED)[self._element]
            raise ValueError(f"the value must be {expected}, not {text!r}") from None
        if self._element is int and abs(value) >= 2**63:  # NumPy and TensorFlow cannot hold it
            raise ValueError("the value must be smaller than 2^63")
        return value

    def flag_type(self) -> str:
        return self._kind.__name__


class _Serializer(absl_flags.ArgumentSerializer[Any]):
    def serialize(self, value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def help_text(doc: str, *sections: type[Config]) -> str:
    """Returns the command's docstring and its flags by section, wrapped at HELP_WIDTH columns."""
    rules = "Flags (--flagfile=FILE reads flags from a file; later values override earlier ones)"
    lists = "Lists: --name=1,2, or --name=1 --name=2"
    parts = [render_examples(doc.strip()), f"{rules}\n{lists}\n--version prints the version"]
    every: list[type[Config]] = [*sections, CommonOptions]
    for section in every:
        if script := getattr(section, "official_script", ""):
            parts.append(_official_help(section, script))
        elif section.options():
            lines = [TITLES.get(section, "This command") + ":"]
            lines += [_help_entry(section, field) for field in section.options().values()]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _official_help(section: type[Config], script: str) -> str:
    """Returns the names of the flags of an official script that are not flags of ours."""
    names = ", ".join(f"--{name}" for name in section.options())
    text = (
        f"Other flags of the official DeepLab's {script}, which are obeyed or answered in one line "
        f"(docs/from_official_deeplab.md): {names}"
    )
    text = render_pages(text)
    return textwrap.fill(
        text, HELP_WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _help_entry(section: type[Config], field: dataclasses.Field[Any]) -> str:
    prefix = "[no]" if _kind(section, field)[0] is bool else ""
    left = f"  --{prefix}{flag_name(field)}{_placeholder(section, field)}"
    text = render_options(field.metadata["help"], flag_writer(section))
    aliases = [alias for alias, name in ALIASES.items() if name == flag_name(field)]
    if aliases:
        text += f"; also --{aliases[0]}"
    choices = field.metadata["choices"]
    if choices:
        text += f"; one of: {', '.join(filter(None, choices))}"
    if field.default not in (None, "", ()):
        default = field.default
        shown = (
            str(default).lower() if isinstance(default, bool) else _Serializer().serialize(default)
        )
        text += f" (default: {shown})"
    indent = " " * HELP_COLUMN
    body = textwrap.wrap(
        text, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    if len(left) < HELP_COLUMN - 1:
        body[0] = left.ljust(HELP_COLUMN) + body[0].lstrip()
        return "\n".join(body)
    return "\n".join([left, *body])


def _placeholder(section: type[Config], field: dataclasses.Field[Any]) -> str:
    kind, element = _kind(section, field)
    if kind is bool:
        return ""
    if element is str:
        is_path = any(
            word in flag_name(field)
            for word in ("dir", "path", "checkpoint", "input", "output", "summary", "page", "file")
        )
        word = "PATH" if is_path and not field.metadata["choices"] else "NAME"
    else:
        word = "N" if element is int else "X"
    return f"={word},{word}..." if kind is tuple else f"={word}"
