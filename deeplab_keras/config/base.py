"""Base class of the config dataclasses: type checks and conversion from and to JSON."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import numbers
import os
import textwrap
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from deeplab_keras.config.errors import OptionError, UserError, unknown_name, unknown_option


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Any:
    """Returns a dataclass field for an option of a config.

    Args:
        default: The default value.
        help: The help text.
        flag: The name of the flag, where it differs from the field's.
        choices: The allowed strings; `None`: any.
        aliases: Other spellings of some choices, such as those of earlier versions.
    """
    metadata = {"help": help, "flag": flag, "choices": choices, "aliases": aliases or {}}
    return dataclasses.field(default=default, metadata=metadata)


T = TypeVar("T", bound="Config")

_EXPECTED = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def typed(value: Any, kind: Any, field: str) -> Any:
    """Converts a value to the type of an option: lists and arrays to tuples, paths to strings.

    Raises:
        UserError: The value has another type, or is NaN or infinite.
    """
    choices = typing.get_args(kind)
    if type(None) in choices:
        (kind,) = set(choices) - {type(None)}
        return None if value is None else typed(value, kind, field)
    if typing.get_origin(kind) is tuple:
        if getattr(value, "ndim", 0) == 1:  # NumPy's arrays
            value = value.tolist()
        if not isinstance(value, list | tuple):
            raise OptionError(field, value, f"must be a list, not {type(value).__name__}")
        try:
            return tuple(typed(one, choices[0], field) for one in value)
        except OptionError as error:
            elements = _EXPECTED[choices[0]]
            raise OptionError(
                field, value, f"must be a list whose elements are each {elements}"
            ) from error
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # NumPy's scalars
        value = value.item()
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    fits = isinstance(value, numbers.Real) if kind is float else isinstance(value, kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise OptionError(
            field, value, f"must be {_EXPECTED[kind]} ({kind.__name__}), not {type(value).__name__}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise OptionError(field, value, "must be a finite number")
    return value


def number(
    value: Any,
    kind: type[int] | type[float],
    field: str,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
    below: float = math.inf,
) -> Any:
    """Returns a number given as an argument, after checking its type and range.

    Args:
        value: The argument.
        kind: The type, `int` or `float`.
        field: The name of the argument.
        low: The smallest allowed value.
        above: A bound below all allowed values.
        high: The largest allowed value.
        below: A bound above all allowed values.

    Raises:
        UserError: The value has another type, is NaN or infinite, or is out of range.
    """
    value = typed(value, kind, field)
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    named = [f"{name} {bound:g}" for name, bound in bounds.items() if math.isfinite(bound)]
    if not (low <= value <= high and above < value < below):
        raise OptionError(field, value, f"must be {' and '.join(named)}")
    return value


@functools.cache
def _fields(cls: type[Config]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


@functools.cache
def _type_hints(cls: type[Config]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base class of all configs: checks types and choices, and converts from and to JSON.

    The docstring of a subclass gets a section with the help texts of its fields.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        fields = {
            name: field
            for name, field in vars(cls).items()
            if isinstance(field, dataclasses.Field) and "help" in field.metadata
        }
        if not fields or not cls.__doc__:
            return
        lines = []
        for name, field in fields.items():
            text = f"{name}: {field.metadata['help']}."
            if choices := field.metadata["choices"]:
                text += f" One of {', '.join(map(repr, choices))}."
            if field.default not in ("", (), None):  # otherwise the help text has the default
                text += f" Default: {field.default!r}."
            lines += textwrap.wrap(text, 96, initial_indent=" " * 8, subsequent_indent=" " * 12)
        head, example, tail = cls.__doc__.partition("    Example:\n")
        title = "Attributes" if "    Args:\n" in head else "Args"
        arguments = f"    {title}:\n" + "\n".join(lines) + "\n"
        cls.__doc__ = f"{head.rstrip()}\n\n{arguments}\n{example}{tail}"

    def __post_init__(self) -> None:
        types = self.types()
        for field in dataclasses.fields(self):
            if "help" not in field.metadata:  # a nested config, which has checked itself
                continue
            value = typed(getattr(self, field.name), types[field.name], field.name)
            if aliases := field.metadata.get("aliases"):
                several = isinstance(value, tuple)
                renamed = tuple(aliases.get(one, one) for one in (value if several else (value,)))
                value = renamed if several else renamed[0]
            object.__setattr__(self, field.name, value)
            choices = field.metadata.get("choices")
            for one in value if isinstance(value, tuple) else (value,):
                if choices and one is not None and one not in choices:
                    raise unknown_option(field.name, str(one), filter(None, choices))
        self.validate()

    def validate(self) -> None:
        """Raises a `UserError` if a value is not allowed."""

    def replace(self: T, **changes: Any) -> T:
        """Returns a copy with some fields changed.

        Raises:
            UserError: A field does not exist, or its new value is not allowed.
        """
        for name in changes:
            if name not in self.options():
                raise unknown_name(f"{type(self).__name__} field", name, self.options())
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the values of the fields by name."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Returns the fields as a JSON object with one line per field."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """Returns a config with these values; fields that are left out have their defaults.

        Raises:
            UserError: A field does not exist, or a value is not allowed.
        """
        if not isinstance(values, Mapping):
            raise UserError(
                f"{cls.__name__} must be made from values by name, not {type(values).__name__}"
            )
        for name in values:
            if name not in cls.options():
                raise unknown_name(f"{cls.__name__} field", name, cls.options())
        return cls(**values)

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """Returns the config that `to_json` wrote.

        Raises:
            UserError: The text is not a JSON object, or see `from_dict`.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UserError(f"{cls.__name__}: not valid JSON ({error})") from error
        return cls.from_dict(values)

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Returns the dataclass fields by name."""
        return _fields(cls)  # type: ignore[arg-type]

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Returns the type of each field by name."""
        return _type_hints(cls)  # type: ignore[arg-type]

    def _require(self, ok: bool, field: str, requirement: str, hint: str = "") -> None:
        if not ok:
            raise OptionError(field, getattr(self, field), requirement, hint=hint)

    def _require_given(self, field: str, what: str) -> None:
        if not getattr(self, field):
            raise UserError(f"`{field}` is required: {what}", field=field)


def require_instance(value: Any, kind: type, name: str) -> None:
    """Raises a `UserError` if an argument is not an instance of a class.

    Args:
        value: The argument.
        kind: The class, such as `EvalConfig`.
        name: The name of the argument.
    """
    if not isinstance(value, kind):
        what = "the class " if isinstance(value, type) else ""
        found = value.__name__ if isinstance(value, type) else type(value).__name__
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise UserError(
            f"`{name}` must be {article} {kind.__name__}, not {what}{found}", value=value
        )
