"""Errors that tell users what to change."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from deeplab_keras.config.commands import render_commands

LONGEST = 3000  # characters of a message
# Values, such as paths, may contain backticks.
_OPTION = re.compile(r"(?<![^\s(])`(\w+)(?:=(.*?))?`(?![^\s:;,.?)])")


def _keyword(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


_show_option: contextvars.ContextVar[Callable[[str, str | None], str]] = contextvars.ContextVar(
    "_show_option", default=_keyword
)


@contextlib.contextmanager
def options_shown_by(option: Callable[[str, str | None], str]) -> Iterator[None]:
    """Makes `str(error)` show options as `option(name, value)`; see `UserError.render`."""
    token = _show_option.set(option)
    try:
        yield
    finally:
        _show_option.reset(token)


class UserError(ValueError):
    """An error in one line: what was received, what is allowed, and what to do next.

    Messages name options in backticks under their Python names, with or without a value:
    `` `output_stride` ``, `` `output_stride=8` ``. `str(error)` shows options as Python keywords,
    or as flags while a command runs. Commands are in backticks too, as scripts of a checkout
    (`config/commands.py`): `` `python scripts/predict.py` ``.

    Args:
        message: The message, one line.
        field: The option with the wrong value. The default is the option at the beginning of the
            message, if there is one.
        value: The value received.
        allowed: The allowed values, if they can be listed.
        hint: What to do next; appended to the message.

    Attributes:
        field, value, allowed, hint: As in the arguments.
        text: The message and the hint, with options in backticks.

    Example:
        >>> try:
        ...     dk.ModelConfig(output_stride=7)
        ... except dk.UserError as error:
        ...     print(error)
        ...     print(error.field, error.value)
        output_stride must be 8, 16 or 32. Received: output_stride=7
        output_stride 7
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        value: Any = None,
        allowed: Iterable[Any] = (),
        hint: str = "",
    ) -> None:
        message = message.replace("\r", r"\r").replace("\n", r"\n")  # of a path, for example
        if len(message) > LONGEST:  # with a line of a damaged file, for example
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 3 :]}"
        if not field and (subject := _OPTION.match(message)):
            field, value = subject[1], subject[2]
        self.message, self.field, self.value = message, field, value
        self.allowed, self.hint = tuple(allowed), hint
        super().__init__(self.text)

    def __str__(self) -> str:
        return self.render(_show_option.get())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and unpickles the error with its data, in subclasses with other arguments too."""
        return _restored, (type(self), self.args, vars(self))

    @property
    def text(self) -> str:
        """The message and the hint with options in backticks, for use in another message."""
        return f"{self.message}; {self.hint}" if self.hint else self.message

    def render(self, option: Callable[[str, str | None], str]) -> str:
        """Returns the message with each option as `option(name, value)` shows it.

        Args:
            option: A function of an option's name and the text of its value. The value is `None`
                where the message names only the option.
        """
        return render_options(self.text, option)


def _restored(cls: type[UserError], args: tuple[Any, ...], values: dict[str, Any]) -> UserError:
    error = cls.__new__(cls, *args)
    error.args = args
    vars(error).update(values)
    return error


class OptionError(UserError):
    """An option has a value that is not allowed.

    Args:
        field: The name of the option.
        value: The value received.
        requirement: What is allowed, such as "must be 8, 16 or 32".
        allowed: The allowed values, if they can be listed.
        hint: What to do next.

    Example:
        >>> str(OptionError("output_stride", 7, "must be 8, 16 or 32", allowed=(8, 16, 32)))
        'output_stride must be 8, 16 or 32. Received: output_stride=7'
    """

    def __init__(
        self,
        field: str,
        value: Any,
        requirement: str,
        *,
        allowed: Iterable[Any] = (),
        hint: str = "",
    ) -> None:
        message = f"`{field}` {requirement}. Received: `{field}={value!r}`"
        super().__init__(message, field=field, value=value, allowed=allowed, hint=hint)


def unknown_name(kind: str, name: Any, known: Iterable[str], field: str = "") -> UserError:
    """Returns the error for an unknown name; it suggests the most similar known one.

    Args:
        kind: What the name stands for, such as "model".
        name: The name received.
        known: All known names.
        field: The option with the name.
    """
    known = sorted(known)
    lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    message = f"unknown {kind} {name!r}; {hint}known: {', '.join(known)}"
    return UserError(message, field=field, value=name, allowed=known)


def unknown_option(field: str, name: Any, known: Iterable[str]) -> UserError:
    """Returns the error for an option whose value is an unknown name; see `unknown_name`."""
    return unknown_name(f"`{field}`", name, known, field)


def wrong_backend(what: str, backend: str, source: str, backends: Iterable[str]) -> UserError:
    """Returns the error for a Keras backend on which something does not run.

    Args:
        what: What requires another backend, as the subject of a sentence, such as "prediction".
        backend: The backend received.
        source: What sets it.
        backends: The backends that it runs on.
    """
    names = " or ".join({"tensorflow": "TensorFlow", "jax": "JAX"}[name] for name in backends)
    return UserError(
        f"{what} requires Keras' {names} backend. Received: backend {backend}, set by {source}; "
        f"set {' or '.join(f'KERAS_BACKEND={name}' for name in backends)}"
    )


def render_options(text: str, option: Callable[[str, str | None], str] | None = None) -> str:
    """Returns a text with each option in backticks as `option(name, value)` shows it.

    Commands in backticks are shown as the user can run them, see `config/commands.py`.

    Args:
        text: A message.
        option: See `UserError.render`. The default shows options as `str(error)` does.
    """
    option = option or _show_option.get()
    return _OPTION.sub(lambda found: option(found[1], found[2]), render_commands(text))
