"""One call of a script: its flags, and the configs that they make."""

from __future__ import annotations

import difflib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from absl import flags as absl_flags

from deeplab_keras.cli.fields import ALIASES, TITLES, Origin, define, flag_name, flag_writer
from deeplab_keras.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
    UserError,
    render_options,
)

# What a recipe may hold: the flags of these are accepted by every script.
RECIPE: tuple[type[Config], ...] = (ModelConfig, DataConfig, TrainConfig, EvalConfig)

T = TypeVar("T", bound=Config)


class Command:
    """One call of a script: which flags were given, and the configs they make.

    Args:
        argv: the command line, the script's name first.
        sections: the dataclasses whose flags the script uses.

    Raises:
        UserError: an unknown flag, a value of the wrong kind, a flag that this script does not use,
            a missing flagfile.
    """

    def __init__(self, argv: Sequence[str], *sections: type[Config]) -> None:
        self.argv = list(argv)
        self._sections = sections
        self._values = absl_flags.FlagValues()
        self._values.set_gnu_getopt(True)
        self._origin = Origin()
        for section in dict.fromkeys([*sections, *RECIPE]):
            for field in section.options().values():
                define(self._values, section, field, self._origin)
        for alias, name in ALIASES.items():
            absl_flags.DEFINE_alias(alias, name, flag_values=self._values)
        self._parse()
        self._refuse_unused([section for section in RECIPE if section not in sections])

    def given(self, section: type[Config]) -> dict[str, Any]:
        """Field name -> value of the flags that were given, on the command line or in a flagfile."""
        flags = {field.name: self._values[flag_name(field)] for field in section.options().values()}
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
            from deeplab_keras.zoo import (
                registry as zoo,
            )  # it builds on Keras, which takes seconds to import

            base = zoo.get_config(name)
        return self.config(ModelConfig, base)

    def data_config(self, checkpoint_dir: str) -> DataConfig:
        """As `config`, but starts from the data that the run at `checkpoint_dir` was trained on, if recorded."""
        recorded = _recorded_data(pathlib.Path(checkpoint_dir))
        dataset = self.given(DataConfig).get("dataset")
        if recorded is None or dataset not in (None, recorded.get("dataset")):
            return self.config(DataConfig)
        return self.config(DataConfig, DataConfig.from_dict(recorded))

    def show(self, text: str) -> str:
        """Returns a message of the library with its options as flags."""
        return render_options(text, flag_writer(*self._sections))

    def text(self) -> str:
        """The given flags as a flagfile, a line each: the record of a run, and its recipe."""
        flags = [self._values[name] for name in sorted(self._values) if name not in ALIASES]
        return "".join(f"{flag.serialize()}\n" for flag in flags if flag.present)

    def _parse(self) -> None:
        try:
            rest = [
                argument
                for part in _by_origin(self.argv[1:])
                for argument in self._parse_part(*part)
            ]
        except absl_flags.UnrecognizedFlagError as error:
            name = error.flagname.replace("-", "_")
            close = [
                flag_name(field) for field in ModelConfig.options().values() if field.name == name
            ]  # Python's name of it
            close = close or difflib.get_close_matches(name, list(self._values), n=1)
            hint = f"did you mean --{close[0]}? " if close else ""
            raise UserError(
                f"unknown flag --{error.flagname}; {hint}{self.argv[0]} --help lists all"
            ) from error
        except absl_flags.IllegalFlagValueError as error:
            message = str(error).removeprefix("flag ")
            if "Non-boolean" in message:
                message = message.partition(":")[0] + ": true or false is needed here"
            raise UserError(message) from error
        except (absl_flags.Error, ValueError) as error:  # a flag without its value, --noflag=value
            raise UserError(f"{error}; flags are written --name=value") from error
        if rest:
            raise UserError(f"unexpected argument {rest[0]!r}; flags are written --name=value")

    def _spelled(self, argument: str) -> str:
        """`--no_check` as absl spells it, `--nocheck`."""
        name = argument.removeprefix("--no_")
        return (
            f"--no{name}"
            if name != argument and name in self._values and self._values[name].boolean
            else argument
        )

    def _parse_part(self, origin: str, arguments: list[str]) -> list[str]:
        """Parses arguments that come from one place; returns those that are no flags."""
        self._origin.name = origin
        return self._values([self.argv[0], *map(self._spelled, arguments)])[1:]

    def refuse(self, name: str, reason: str) -> None:
        """Refuses a flag on the command line itself; in a flagfile, which serves several scripts, it is passed over.

        Raises:
            UserError: it was given.
        """
        given = {
            argument.lstrip("-").partition("=")[0]
            for argument in self.argv[1:]
            if argument.startswith("-")
        }
        if {name, f"no{name}"} & given:
            raise UserError(f"--{name}: {reason}; leave it out (in a flagfile it may stay)")

    def _refuse_unused(self, unused: Sequence[type[Config]]) -> None:
        for section in unused:
            reason = (
                f"{os.path.basename(self.argv[0])} has no use for {TITLES[section].lower()} flags"
            )
            for field in section.options().values():
                self.refuse(flag_name(field), reason)


def _by_origin(
    arguments: Sequence[str], origin: str = "", within: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """The arguments in order, flagfiles read in their places, in pieces that come from one place each.

    Args:
        arguments: of the command line or of a flagfile.
        origin: that flagfile; "": the command line.
        within: the flagfiles that led here.

    Yields:
        A flagfile's path, or "" for the command line, and arguments without flagfiles.

    Raises:
        UserError: a flagfile cannot be read, or reads itself.
    """
    part: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, given, path = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            part.append(argument)
            continue
        if not given and (path := next(rest, "")) == "":
            raise UserError("--flagfile: give a file, as --flagfile=configs/synthetic/demo.flags")
        yield origin, part
        part, path = [], os.path.expanduser(path.strip())
        if path in within:
            raise UserError(
                f"--flagfile={path}: reads itself by way of {within[-1]}; take one of the two "
                "lines out"
            )
        yield from _by_origin(_flagfile_lines(path), path, (*within, path))
    yield origin, part


def _flagfile_lines(path: str) -> list[str]:
    """The lines of a flagfile without comments; of an empty path none, as in every program with absl flags."""
    try:
        lines = pathlib.Path(path).read_text().splitlines() if path else []
    except OSError as error:
        raise UserError(
            f"--flagfile={path}: {error.strerror}; paths are relative to the current folder, "
            f"{os.getcwd()}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--flagfile={path}: not a text file; a flagfile holds one --flag=value a line"
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith(("#", "//"))]


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
