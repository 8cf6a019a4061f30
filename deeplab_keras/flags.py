"""Command-line flags of the scripts, made from the dataclasses of config.

Flags stop at the door: a script gets a `Command`, takes configs from it and calls the library with them.

    @dataclasses.dataclass(frozen=True)
    class Options(Config):
        checkpoint_dir: str = option("", "a workdir or a checkpoint")

    def main(command: Command) -> None:
        checkpoint = load_checkpoint(command.config(Options).checkpoint_dir)
        evaluate(..., command.config(EvalConfig))

    if __name__ == "__main__":
        run(__doc__, main, Options, EvalConfig)

Every script accepts every flag of a recipe, so that one flagfile serves training, evaluation and export; a flag that a
script has no use for is an error on its command line and ignored in a flagfile. Nothing here imports TensorFlow:
`--help` and a mistyped flag answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import json
import logging
import math
import os
import pathlib
import sys
import textwrap
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import flags as absl_flags
from absl import logging as absl_logging

from deeplab_keras.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig, UserError

# What a recipe may hold: the flags of these are accepted by every script.
RECIPE: tuple[type[Config], ...] = (ModelConfig, DataConfig, TrainConfig, EvalConfig)
TITLES = {ModelConfig: "Model", DataConfig: "Data", TrainConfig: "Training", EvalConfig: "Inference and evaluation"}
ALIASES = {"initial_checkpoint": "tf_initial_checkpoint", "vis_split": "eval_split"}
HELP_WIDTH = 100
HELP_COLUMN = 44

T = TypeVar("T", bound=Config)


class Command:
    """One call of a script: which flags were given, and the configs they make.

    Args:
        argv: the command line, the script's name first.
        sections: the dataclasses whose flags the script uses.

    Raises:
        UserError: an unknown flag, a value of the wrong kind, a flag that this script does not use, a missing flagfile.
    """

    def __init__(self, argv: Sequence[str], *sections: type[Config]) -> None:
        self.argv = list(argv)
        self._values = absl_flags.FlagValues()
        self._values.set_gnu_getopt(True)
        for section in dict.fromkeys([*sections, *RECIPE]):
            for field in dataclasses.fields(section):
                _define(self._values, section, field)
        for alias, name in ALIASES.items():
            absl_flags.DEFINE_alias(alias, name, flag_values=self._values)
        self._parse()
        self._refuse_unused([section for section in RECIPE if section not in sections])

    def given(self, section: type[Config]) -> dict[str, Any]:
        """Field name -> value of the flags that were given, on the command line or in a flagfile."""
        flags = {field.name: self._values[flag_name(field)] for field in dataclasses.fields(section)}
        return {name: flag.value for name, flag in flags.items() if flag.present}

    def config(self, section: type[T], base: T | None = None) -> T:
        """`base`, or else the defaults, with the given flags put in.

        Raises:
            UserError: a value is not allowed.
        """
        given = self.given(section)
        return section(**given) if base is None else base.replace(**given)

    def model_config(self, base: ModelConfig | None = None) -> ModelConfig:
        """As `config`, but starts from the model that `--model` names, if it was given.

        Raises:
            UserError: no model of that name, or a value is not allowed.
        """
        name = self.given(ModelConfig).get("name")
        if name:
            from deeplab_keras import zoo  # it builds on Keras, which takes seconds to import

            base = zoo.get_config(name)
        return self.config(ModelConfig, base)

    def data_config(self, checkpoint_dir: str) -> DataConfig:
        """As `config`, but starts from the data that the run at `checkpoint_dir` was trained on, if recorded."""
        recorded = _recorded_data(pathlib.Path(checkpoint_dir))
        dataset = self.given(DataConfig).get("dataset")
        if recorded is None or dataset not in (None, recorded.get("dataset")):
            return self.config(DataConfig)
        return self.config(DataConfig, DataConfig.from_dict(recorded))

    def text(self) -> str:
        """The given flags as a flagfile, a line each: the record of a run, and its recipe."""
        flags = [self._values[name] for name in sorted(self._values) if name not in ALIASES]
        return "".join(f"{flag.serialize()}\n" for flag in flags if flag.present)

    def _parse(self) -> None:
        try:
            rest = self._values(self.argv)[1:]
        except absl_flags.UnrecognizedFlagError as error:
            close = difflib.get_close_matches(error.flagname.replace("-", "_"), list(self._values), n=1)
            hint = f"did you mean --{close[0]}? " if close else ""
            raise UserError(f"unknown flag --{error.flagname}; {hint}{self.argv[0]} --help lists all") from error
        except absl_flags.CantOpenFlagFileError as error:
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            path = getattr(reason, "filename", "?")
            strerror = getattr(reason, "strerror", reason)
            raise UserError(
                f"--flagfile={path}: {strerror}; paths are relative to the current folder, {os.getcwd()}"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError("--flagfile: not a text file; a flagfile holds one --flag=value a line") from error
        except absl_flags.IllegalFlagValueError as error:
            message = str(error).removeprefix("flag ")
            if "Non-boolean" in message:
                message = message.partition(":")[0] + ": true or false is needed here"
            raise UserError(message) from error
        except (absl_flags.Error, ValueError) as error:  # a flag without its value, --noflag=value
            raise UserError(f"{error}; flags are written --name=value") from error
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")

    def _refuse_unused(self, unused: Sequence[type[Config]]) -> None:
        names = {argument.lstrip("-").partition("=")[0] for argument in self.argv[1:] if argument.startswith("-")}
        for section in unused:
            for field in dataclasses.fields(section):
                if {name := flag_name(field), f"no{name}"} & names:
                    use = f"{os.path.basename(self.argv[0])} has no use for {TITLES[section].lower()} flags"
                    raise UserError(f"--{name}: {use}; leave it out (in a flagfile it may stay)")


def _recorded_data(checkpoint_dir: pathlib.Path) -> dict[str, Any] | None:
    """The data settings that a training left in its workdir: the folder itself, or one or two above a checkpoint."""
    for folder in (checkpoint_dir, *checkpoint_dir.absolute().parents[:2]):
        try:
            recorded = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(recorded, dict) and "data" in recorded:
            return recorded["data"]
    return None


def flag_name(field: dataclasses.Field[Any]) -> str:
    """The flag of a config's field: mostly of the same name, else the official DeepLab one."""
    return field.metadata.get("flag") or field.name


def run(doc: str | None, main: Callable[[Command], int | None], *sections: type[Config]) -> typing.NoReturn:
    """Runs a script and ends the process: status 0 when the job was done, 1 with one line on stderr when it was not.

    Args:
        doc: the script's docstring, the first part of its `--help`.
        main: does the job; an int that it returns is the exit status.
        sections: the dataclasses whose flags the script uses, its own first.
    """
    sys.exit(call(sys.argv, doc, main, *sections))


def call(argv: Sequence[str], doc: str | None, main: Callable[[Command], int | None], *sections: type[Config]) -> int:
    """As `run`, for a given command line, and returns the exit status."""
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        print(help_text(doc or "", *sections))
        return 0
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on the CPU's instruction sets
    _show_log()
    try:
        status = main(Command(argv, *sections)) or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `script | head`: the reader has what it wanted
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        message = _outside_trouble(error)
    print(f"error: {message}", file=sys.stderr)
    return 1


def _show_log() -> None:
    """The library's log goes to stderr, a plain line each."""
    absl_logging.use_absl_handler()
    absl_logging.set_verbosity(absl_logging.INFO)
    absl_logging.get_absl_handler().setFormatter(_LogLine())


class _LogLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


def _outside_trouble(error: OSError) -> str:
    """What to do about a full disk or a forbidden folder; every other OSError is a bug and raised again."""
    advice = {
        errno.ENOSPC: "free some space there",
        errno.EDQUOT: "free some space there",
        errno.EACCES: "choose a folder that you may use, or change its permissions",
        errno.EPERM: "choose a folder that you may use, or change its permissions",
        errno.EROFS: "choose a folder that can be written to",
    }.get(error.errno or 0)
    if advice is None:
        raise error
    path, reason = error.filename or "writing a file", (error.strerror or "").lower()
    return f"{path}: {reason}; {advice} and give the same command again"


# === Flags from fields ===


def _define(values: absl_flags.FlagValues, section: type[Config], field: dataclasses.Field[Any]) -> None:
    """Adds the flag of one field."""
    kind, element = _kind(section, field)
    name, help = flag_name(field), field.metadata["help"]
    if kind is bool:
        absl_flags.DEFINE_boolean(name, bool(field.default), help, flag_values=values)
    else:
        parser = _Parser(kind, element)
        default: Any = field.default
        absl_flags.DEFINE(parser, name, default, help, flag_values=values, serializer=_Serializer())


def _kind(section: type[Config], field: dataclasses.Field[Any]) -> tuple[type, type]:
    """Type of a field's value without its None, and of its elements where it is a tuple."""
    annotation = section.types()[field.name]
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if type(None) in typing.get_args(annotation):
        annotation = options[0]
    if typing.get_origin(annotation) is tuple:
        return tuple, typing.get_args(annotation)[0]
    return annotation, annotation


_EXPECTED = {int: "a whole number", float: "a number", str: "a text"}


class _Parser(absl_flags.ArgumentParser):
    """Text of a flag -> int, float, str, or a tuple of those from a comma-separated list."""

    def __init__(self, kind: type, element: type) -> None:
        super().__init__()
        self._kind, self._element = kind, element

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):  # a default
            return argument
        if self._kind is not tuple:
            return self._one(argument)
        return tuple(self._one(part.strip()) for part in argument.split(",")) if argument.strip() else ()

    def _one(self, text: str) -> Any:
        try:
            value = self._element(text)
            if self._element is float and not math.isfinite(value):
                raise ValueError(text)
            return value
        except ValueError:
            expected = _EXPECTED[self._element]
            if self._kind is tuple:
                expected = f"{expected} or several with commas between them"
            raise ValueError(f"{expected} is needed here, not {text!r}") from None

    def flag_type(self) -> str:
        return self._kind.__name__


class _Serializer(absl_flags.ArgumentSerializer[Any]):
    def serialize(self, value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# === Help ===


def help_text(doc: str, *sections: type[Config]) -> str:
    """The script's docstring and example, then its flags in sections, wrapped at HELP_WIDTH columns."""
    parts = [doc.strip(), "Flags (--flagfile=FILE reads more of them from a file; of two values the later one wins)"]
    for section in sections:
        if dataclasses.fields(section):
            lines = [TITLES.get(section, "This script") + ":"]
            lines += [_help_entry(section, field) for field in dataclasses.fields(section)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _help_entry(section: type[Config], field: dataclasses.Field[Any]) -> str:
    left = f"  --{'[no]' if _kind(section, field)[0] is bool else ''}{flag_name(field)}{_placeholder(section, field)}"
    text = field.metadata["help"]
    aliases = [alias for alias, name in ALIASES.items() if name == flag_name(field)]
    if aliases:
        text += f"; also --{aliases[0]}"
    choices = field.metadata["choices"]
    if choices:
        text += f"; one of: {', '.join(choices)}"
    if field.default not in (None, "", ()):
        default = field.default
        shown = str(default).lower() if isinstance(default, bool) else _Serializer().serialize(default)
        text += f" (default: {shown})"
    indent = " " * HELP_COLUMN
    body = textwrap.wrap(text, HELP_WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(left) < HELP_COLUMN - 1:
        body[0] = left.ljust(HELP_COLUMN) + body[0].lstrip()
        return "\n".join(body)
    return "\n".join([left, *body])


def _placeholder(section: type[Config], field: dataclasses.Field[Any]) -> str:
    kind, element = _kind(section, field)
    if kind is bool:
        return ""
    if element is str:
        is_path = any(word in flag_name(field) for word in ("dir", "path", "checkpoint", "input", "output"))
        word = "PATH" if is_path and "output_stride" not in flag_name(field) else "NAME"
    else:
        word = "N" if element is int else "X"
    return f"={word},{word}..." if kind is tuple else f"={word}"
