"""Parses the command line of a script and turns its flags into configs."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags as absl_flags

from deeplab_keras.cli import official
from deeplab_keras.cli.fields import ALIASES, TITLES, Origin, define, flag_name, flag_writer
from deeplab_keras.cli.recipes import find_flagfile, similar_recipe
from deeplab_keras.cli.summary import CommonOptions, RunSummary
from deeplab_keras.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    TrainConfig,
    UserError,
    render_options,
)
from deeplab_keras.config.commands import COMMANDS

if TYPE_CHECKING:
    from deeplab_keras.checkpoints.folder import LoadedCheckpoint

# Classes whose flags a recipe may set. Every script accepts these flags.
RECIPE: tuple[type[Config], ...] = (ModelConfig, DataConfig, TrainConfig, EvalConfig)
LARGEST_FLAGFILE = 1 << 20  # bytes
# Characters that text files do not have, such as those of UTF-16 without a byte order mark.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_DASHES = "\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"  # as web pages and word processors show hyphens

T = TypeVar("T", bound=Config)


class Command:
    """The parsed command line of a script.

    Args:
        argv: The command line, beginning with the script's name.
        sections: The config classes whose flags the script uses.

    Attributes:
        official: What an official command line describes, see `cli.official`; `None` for others.
        summary: What the command did, which `main` notes for --summary.

    Raises:
        UserError: A flag is unknown, its value has the wrong type, the script does not use it, or
            a flagfile is missing.
    """

    def __init__(self, argv: Sequence[str], *sections: type[Config]) -> None:
        self.argv, self.summary = list(argv), RunSummary()
        self._sections = sections
        self._values = absl_flags.FlagValues()
        self._values.set_gnu_getopt(True)
        self._origin = Origin()
        every: list[type[Config]] = [*sections, *RECIPE, CommonOptions]
        for section in dict.fromkeys(every):
            for field in section.options().values():
                define(self._values, section, field, self._origin)
        for alias, name in ALIASES.items():
            absl_flags.DEFINE_alias(alias, name, flag_values=self._values)
        self._parse()
        self._official_flags = next(
            (section for section in sections if issubclass(section, official.OfficialFlags)), None
        )
        self.official: official.OfficialCommand | None = None
        if self._official_flags:
            flagfile = any(argument.lstrip("-").startswith("flagfile") for argument in argv[1:])
            self.official = official.read(self._values, self._official_flags, flagfile=flagfile)
        self._refuse_unused([section for section in RECIPE if section not in sections])

    def given(self, section: type[Config]) -> dict[str, Any]:
        """Returns the fields that the command line or a flagfile sets, with their values."""
        flags = {field.name: self._values[flag_name(field)] for field in section.options().values()}
        return {name: flag.value for name, flag in flags.items() if flag.present}

    def config(self, section: type[T], base: T | None = None) -> T:
        """Returns the config that the flags describe.

        Args:
            section: The class of the config.
            base: The config to change; `None` for the defaults.

        Raises:
            UserError: A value is not allowed.
        """
        given = self.given(section)
        return section(**given) if base is None else base.replace(**given)

    def model_config(self, base: ModelConfig | None = None) -> ModelConfig:
        """Returns the model's config, which starts from the model of the zoo that `--model` names.

        Args:
            base: The config to change if there is no `--model`; `None` for the defaults.

        Raises:
            UserError: The zoo has no such model, or a value is not allowed.
        """
        name = self.given(ModelConfig).get("name")
        if name:
            # Imports Keras, which takes seconds.
            from deeplab_keras.zoo import registry as zoo

            base = zoo.get_config(name)
        config = self.config(ModelConfig, base)
        if base and (config.backbone, config.head) != (base.backbone, base.head):
            return config.replace(name="")  # it is no longer the model of that name
        return config

    def data_config(self, checkpoint_dir: str) -> DataConfig:
        """Returns the data config, which starts from that of the run in `checkpoint_dir`."""
        recorded = _recorded_data(pathlib.Path(checkpoint_dir))
        dataset = self.given(DataConfig).get("dataset")
        if recorded is None and self.official:
            return self.config(DataConfig, DataConfig(dataset=official.DATASET))
        if recorded is None or dataset not in (None, recorded.get("dataset")):
            return self.config(DataConfig)
        return self.config(DataConfig, DataConfig.from_dict(recorded))

    def checkpoint(self, path: str) -> str:
        """Returns the checkpoint folder or workdir that a path stands for.

        `RUN/model.ckpt-1000` is a checkpoint in the workdir RUN. In an official command line, a
        workdir stands for its newest checkpoint, and a TF1 checkpoint is converted.

        Raises:
            UserError: The checkpoint does not exist, or its weights do not fit the command line.
        """
        if not official.is_official_checkpoint(path):
            path = official.find_step(path)
            return official.find_newest(path) if self.official else path
        if self.official is None:
            from deeplab_keras.zoo.loading import is_name

            if is_name(path):
                return path
            raise UserError(
                f"{path}: a checkpoint of the official DeepLab; convert it first: "
                "`python scripts/convert_checkpoint.py` --source=official_deeplab --model=NAME "
                f"--checkpoint={path} --output=FOLDER; `list_models.py` lists the names"
            )
        info = None
        if self.official.section is not official.ExportFlags:
            from deeplab_keras.data.registry import open_dataset

            data = self.data_config(path)
            info = open_dataset(data, data.eval_split).info
        return official.convert(path, self.official, info)

    def official_network(self, checkpoint: LoadedCheckpoint) -> LoadedCheckpoint:
        """Returns a checkpoint with the network that an official command line describes.

        Raises:
            UserError: Its weights do not fit.
        """
        changes = self.official.changes(checkpoint.config) if self.official else {}
        if not changes:
            return checkpoint
        from deeplab_keras.export.exportable import rebuilt

        return rebuilt(checkpoint, **changes)

    def show(self, text: str) -> str:
        """Returns a message of the library with its options as flags."""
        return render_options(text, flag_writer(*self._sections))

    def text(self) -> str:
        """Returns the given flags as a flagfile that reproduces the run, one flag per line.

        Official flags, and official defaults, are written as the flags of ours that they stand for.

        Raises:
            UserError: A value cannot be read from a flagfile.
        """
        hidden = {*ALIASES, *CommonOptions.options()}
        if self._official_flags:
            hidden |= self._official_flags.options().keys()
        flags = [self._values[name] for name in sorted(self._values) if name not in hidden]
        lines = [flag.serialize() for flag in flags if flag.present]
        for line in lines:
            if not _can_be_read(line):
                raise UserError(
                    f"{line!a}: cannot be recorded in flags.txt because of quotes, line breaks, "
                    "unprintable characters or spaces at the end; rename the file or folder"
                )
        return "".join(f"{line}\n" for line in lines)

    def _parse(self) -> None:
        try:
            for part in _by_origin(self.argv[1:]):
                self._parse_part(*part)
        except absl_flags.UnrecognizedFlagError as error:
            raise self._unknown(error.flagname) from error
        except absl_flags.IllegalFlagValueError as error:
            message = str(error).removeprefix("flag ")
            if "Non-boolean" in message:
                message = message.partition(":")[0] + ": the value must be true or false"
            raise UserError(f"{self._place()}{message}") from error
        except UserError:  # it is a ValueError too
            raise
        except (absl_flags.Error, ValueError) as error:  # a flag without a value, --noflag=value
            raise UserError(f"{self._place()}{error}; write flags as --name=value") from error

    def _place(self) -> str:
        """Returns the beginning of a message about the arguments that are being parsed."""
        return f"{self._origin.name}: " if self._origin.name else ""

    def _unknown(self, given: str) -> UserError:
        """Returns the error for an unknown flag."""
        name, _, value = given.partition(" ")  # the latter in a flagfile
        name = name.replace("-", "_")
        if value and name in self._values:
            return UserError(f"{self._place()}--{given}: write it as --{name}={value}")
        fields = ModelConfig.options().values()
        close = [flag_name(field) for field in fields if field.name == name]  # a Python name
        if name in self._values:  # --train-logdir
            close = [name]
        if self._spelled(f"--{name}") != f"--{name}":  # --no-cache, --no_cache=true
            close = [f"{name.removeprefix('no_')}=false"]
        if not close and (scripts := _scripts_with(name)):
            return UserError(
                f"{self._place()}unknown flag --{given}, which {', '.join(scripts)} has; "
                f"{self.argv[0]} --help lists all flags"
            )
        close = close or difflib.get_close_matches(name, list(self._values), n=1)
        hint = f"did you mean --{close[0]}? " if close else ""
        return UserError(
            f"{self._place()}unknown flag --{given}; {hint}{self.argv[0]} --help lists all flags"
        )

    def _spelled(self, argument: str) -> str:
        """Returns a flag in absl's spelling: `--nocheck` for `--no_check`."""
        name = argument.removeprefix("--no_")
        return (
            f"--no{name}"
            if name != argument and name in self._values and self._values[name].boolean
            else argument
        )

    def _parse_part(self, origin: str, arguments: list[str]) -> None:
        """Parses the arguments from one place."""
        self._origin.name = origin
        self._require_values(arguments)
        rest = self._values([self.argv[0], *map(self._spelled, arguments)])[1:]
        if not rest:
            return
        hint = "write flags as --name=value"
        if rest[0][:1] and rest[0][0] in _DASHES:
            hint = f"it begins with {rest[0][0]!r} instead of two hyphens"
        elif os.path.exists(rest[0]):
            hint += ", and a pattern in quotes, as --input='photos/*.jpg'"
        raise UserError(f"{self._place()}unexpected argument {rest[0]!r}; {hint}")

    def _require_values(self, arguments: Sequence[str]) -> None:
        """Refuses `--name --other`, where `--other` would be the value of `--name`."""
        for argument, following in zip(arguments, arguments[1:], strict=False):
            name = argument.lstrip("-")
            takes_value = argument[:1] == "-" and name in self._values
            if takes_value and not self._values[name].boolean and following.startswith("--"):
                raise UserError(
                    f"{self._place()}{argument}: its value is missing before {following}; write "
                    f"{argument}=VALUE"
                )

    def refuse(self, name: str, reason: str) -> None:
        """Refuses a flag on the command line, but not in a flagfile, which serves several scripts.

        Raises:
            UserError: The command line has the flag.
        """
        names = {name, *(alias for alias, flag in ALIASES.items() if flag == name)}
        for argument in self.argv[1:]:
            given = argument.lstrip("-").partition("=")[0]
            if argument[:1] == "-" and {given, re.sub("^no_?", "", given)} & names:
                given = given if given in names else name
                raise UserError(f"--{given}: {reason}; leave it out (flagfiles may contain it)")

    def _refuse_unused(self, unused: Sequence[type[Config]]) -> None:
        accepted = self.official.accepted if self.official else set()
        if self._official_flags and not self.official:
            for name, ours in official.RENAMED[self._official_flags].items():
                if name in DataConfig.options():
                    self.refuse(name, f"only resizes training images; give --{ours}")
        for section in unused:
            script = os.path.basename(self.argv[0])
            reason = f"{script} does not use {TITLES[section].lower()} flags"
            for field in section.options().values():
                if flag_name(field) not in accepted:
                    self.refuse(flag_name(field), reason)


def _by_origin(
    arguments: Sequence[str], origin: str = "", within: tuple[str, ...] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Splits arguments by where they come from, and inserts the contents of flagfiles.

    Args:
        arguments: The arguments of the command line or of a flagfile.
        origin: The path of the flagfile; "" for the command line.
        within: The flagfiles that include this one.

    Yields:
        The path of a flagfile ("" for the command line), and consecutive arguments from it.

    Raises:
        UserError: A flagfile cannot be read, or includes itself.
    """
    part: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, given, path = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            part.append(argument)
            continue
        if not given and (path := next(rest, "")) == "":
            raise UserError(
                "--flagfile: the file is missing; write --flagfile=configs/synthetic/demo.flags"
            )
        yield origin, part
        part, path = [], find_flagfile(os.path.expanduser(path.strip()))
        if path and path == origin:
            raise UserError(f"--flagfile={path}: includes itself; delete that line")
        if path in within:
            raise UserError(
                f"--flagfile={path}: includes itself through {within[-1]}; delete one of the two "
                "lines"
            )
        yield from _by_origin(_flagfile_lines(path), path, (*within, path))
    yield origin, part


def _flagfile_lines(path: str) -> list[str]:
    """Returns the lines of a flagfile without comments; none for an empty path, as absl does."""
    if not path:
        return []
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FLAGFILE + 1)
    except FileNotFoundError as error:
        similar = similar_recipe(path)
        hint = f"did you mean {similar}? " if similar else ""
        raise UserError(
            f"--flagfile={path}: {error.strerror}; {hint}`python scripts/recipes.py` lists the "
            f"recipes, and other paths are relative to the current folder, {os.getcwd()}"
        ) from error
    except OSError as error:
        raise UserError(
            f"--flagfile={path}: {error.strerror}; paths are relative to the current folder, "
            f"{os.getcwd()}"
        ) from error
    try:
        lines = _lines(data)
    except ValueError as error:
        raise UserError(
            f"--flagfile={path}: {error}; a flagfile has one --flag=value per line"
        ) from error
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def _lines(data: bytes) -> list[str]:
    """Returns the lines of a flagfile, without spaces around them.

    Raises:
        ValueError: It is not a text file, or has the syntax of a shell.
    """
    if len(data) > LARGEST_FLAGFILE:
        raise ValueError(f"larger than {LARGEST_FLAGFILE >> 20} MiB")
    try:  # Windows writes both encodings
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not a text file") from error
    if _NOT_TEXT.search(text):
        raise ValueError("not a text file")
    lines = [line.strip() for line in re.split("\r\n|\r|\n", text)]
    for line in lines:
        if line.endswith((" \\", "\t\\")):
            raise ValueError("a line ends with a backslash, as in a shell; remove it")
        if quoted := re.fullmatch(r"(--?\w+=)([\"'])(.*)\2", line):
            raise ValueError(f"the quotes would be part of the value; write {quoted[1]}{quoted[3]}")
    return lines


def _can_be_read(line: str) -> bool:
    """Whether reading a flagfile with this line returns the line unchanged."""
    try:
        return _lines(line.encode("utf-8")) == [line]
    except ValueError:  # a UnicodeEncodeError too
        return False


def _scripts_with(name: str) -> list[str]:
    """Returns the commands that have a flag, as messages name them."""
    found = []
    for script in COMMANDS.values():
        sections = importlib.import_module(f"deeplab_keras.cli.commands.{script}").SECTIONS
        fields = [field for section in sections for field in section.options().values()]
        if name in map(flag_name, fields):
            found.append(f"`{script}.py`")
    return found


def _recorded_data(checkpoint_dir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the data settings in the workdir of a run, or in that of a checkpoint folder."""
    for folder in (checkpoint_dir, *checkpoint_dir.absolute().parents[:2]):
        try:
            recorded = json.loads((folder / "config.json").read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(recorded, dict) and isinstance(recorded.get("data"), dict):
            return recorded["data"]
    return None
