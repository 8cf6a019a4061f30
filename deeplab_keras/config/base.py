"""What the config dataclasses have in common: checks when made, JSON, and the error that a user's mistake gets."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import os
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar


class UserError(ValueError):
    """A user's mistake, told in one line: what was given, what is allowed, what to do next."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that nobody knows; suggests the nearest known one."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}")


def option(
    default: Any, help: str, *, flag: str | None = None, choices: tuple[str, ...] | None = None
) -> Any:
    """A dataclass field with its help text, the allowed strings, and a flag name where it differs from the field's."""
    return dataclasses.field(
        default=default, metadata={"help": help, "flag": flag, "choices": choices}
    )


T = TypeVar("T", bound="Config")

_EXPECTED = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def typed(value: Any, kind: Any, flag: str) -> Any:
    """The value as the field's type has it: lists become tuples, paths text, NumPy's numbers Python's.

    Raises:
        UserError: the value is of another type, or not a number.
    """
    choices = typing.get_args(kind)
    if type(None) in choices:
        (kind,) = set(choices) - {type(None)}
        return None if value is None else typed(value, kind, flag)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{flag}={value!r}: must be a list, not {type(value).__name__}")
        return tuple(typed(one, choices[0], flag) for one in value)
    if getattr(value, "ndim", None) == 0:  # NumPy's scalars
        value = value.item()
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    fits = isinstance(value, numbers.Real) if kind is float else isinstance(value, kind)
    if not fits or isinstance(value, bool) != (kind is bool):
        raise UserError(
            f"{flag}={value!r}: must be {_EXPECTED[kind]} ({kind.__name__}), not "
            f"{type(value).__name__}"
        )
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{flag}=nan: must be a number")
    return value


@functools.cache
def _fields(cls: type[Config]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


@functools.cache
def _type_hints(cls: type[Config]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@dataclasses.dataclass(frozen=True)
class Config:
    """Base of all configs: checks types and `choices`, turns lists into tuples, reads and writes JSON."""

    def __post_init__(self) -> None:
        types = self.types()
        for field in dataclasses.fields(self):
            if "help" not in field.metadata:  # a part, which checked itself
                continue
            value = typed(
                getattr(self, field.name),
                types[field.name],
                f"--{field.metadata['flag'] or field.name}",
            )
            object.__setattr__(self, field.name, value)
            choices = field.metadata.get("choices")
            for one in value if isinstance(value, tuple) else (value,):
                if choices and one is not None and one not in choices:
                    raise unknown_name(
                        f"--{field.metadata['flag'] or field.name}", str(one), filter(None, choices)
                    )
        self.validate()

    def validate(self) -> None:
        """Raises UserError for values that no run could use."""

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed.

        Raises:
            UserError: a field of that name does not exist, or the new value is not allowed.
        """
        for name in changes:
            if name not in self.options():
                raise unknown_name(f"{type(self).__name__} field", name, self.options())
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The fields as a JSON object, a line each."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """The config of these fields; what is left out has its default.

        Raises:
            UserError: a field of that name does not exist, or a value is not allowed.
        """
        for name in values:
            if name not in cls.options():
                raise unknown_name(f"{cls.__name__} field", name, cls.options())
        return cls(**values)

    @classmethod
    def from_json(cls: type[T], text: str) -> T:
        """The config that `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """Returns the fields by name."""
        return _fields(cls)  # type: ignore[arg-type]

    @classmethod
    def types(cls) -> dict[str, Any]:
        """Returns the type of each field by name."""
        return _type_hints(cls)  # type: ignore[arg-type]

    def _require(self, ok: bool, field: str, allowed: str) -> None:
        if not ok:
            flag = self.options()[field].metadata["flag"] or field
            value = getattr(self, field)
            if value in ("", ()) and allowed.startswith("is needed"):
                raise UserError(f"--{flag} {allowed}")
            shown = (
                ",".join(map(str, value)) if isinstance(value, tuple) else value
            )  # as it is typed
            raise UserError(f"--{flag}={shown}: {allowed}")
