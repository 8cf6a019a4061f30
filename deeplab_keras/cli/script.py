"""A script's frame: runs its main and turns what went wrong into one line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence

from absl import logging as absl_logging

from deeplab_keras.cli.command import Command
from deeplab_keras.cli.fields import flag_writer, help_text
from deeplab_keras.config import Config, UserError, options_shown_by, render_options
from deeplab_keras.io.progress import without_noise


def run(
    doc: str | None, main: Callable[[Command], int | None], *sections: type[Config]
) -> typing.NoReturn:
    """Runs a script and ends the process: status 0 when the job was done, 1 with one line on stderr when it was not.

    Args:
        doc: the script's docstring, the first part of its `--help`.
        main: does the job; an int that it returns is the exit status.
        sections: the dataclasses whose flags the script uses, its own first.
    """
    sys.exit(call(sys.argv, doc, main, *sections))


def run_command(name: str) -> typing.NoReturn:
    """Runs the module `deeplab_keras.cli.commands.<name>` as the command of this process, and ends the process."""
    command = importlib.import_module(f"deeplab_keras.cli.commands.{name}")
    run(command.__doc__, command.main, *command.SECTIONS)


def call(
    argv: Sequence[str],
    doc: str | None,
    main: Callable[[Command], int | None],
    *sections: type[Config],
) -> int:
    """As `run`, for a given command line, and returns the exit status."""
    if {"--help", "-h", "-help", "--helpfull"} & set(argv[1:]):
        try:
            print(help_text(doc or "", *sections), flush=True)
        except BrokenPipeError:  # `script --help | head`
            _leave_stdout()
        return 0
    os.environ.setdefault(
        "TF_CPP_MIN_LOG_LEVEL", "2"
    )  # TensorFlow's notes on the CPU's instruction sets
    out, err = (
        _Escaped(stream, kept) if stream else stream
        for stream, kept in ((sys.stdout, "\n\t"), (sys.stderr, "\n\t\r"))
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return _call(argv, main, *sections)


class _Escaped:
    r"""A stream that shows control characters, which names in files may hold and a terminal would obey, as `\\x1b`.

    Args:
        stream: gets the text.
        kept: control characters that are written as they are.
    """

    def __init__(self, stream: typing.TextIO, kept: str) -> None:
        self._stream = stream
        codes = [
            *range(32),
            *range(127, 160),
            0x2028,
            0x2029,
            *range(0x202A, 0x202F),
            *range(0x2066, 0x206A),
        ]
        self._table = {code: ascii(chr(code))[1:-1] for code in codes if chr(code) not in kept}

    def write(self, text: str) -> int:
        self._stream.write(text.translate(self._table))
        return len(text)

    def writelines(self, lines: typing.Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._stream, name)


def _call(
    argv: Sequence[str], main: Callable[[Command], int | None], *sections: type[Config]
) -> int:
    show = flag_writer(*sections)
    _show_log(show)
    with options_shown_by(show):
        return _run(argv, main, sections)


def _run(
    argv: Sequence[str],
    main: Callable[[Command], int | None],
    sections: Sequence[type[Config]],
) -> int:
    try:
        command = Command(argv, *sections)
        _load_keras()
        status = main(command) or 0
        if sys.stdout is not None:  # as it is where the descriptor was closed: `script >&-`
            sys.stdout.flush()
        return status
    except UserError as error:
        message = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `script | head`: the reader has what it wanted
        _leave_stdout()
        return 0
    except OSError as error:
        message = _outside_trouble(error)
    print(f"error: {message}", file=sys.stderr)
    return 1


BACKENDS = ("keras", "tensorflow", "jax", "jaxlib", "torch", "openvino")


def _load_keras() -> None:
    """Imports Keras, and with it TensorFlow or whatever its backend is."""
    try:
        with without_noise():
            importlib.import_module("keras")
    except ModuleNotFoundError as error:
        if error.name not in BACKENDS:
            raise
        backend = os.environ.get("KERAS_BACKEND")
        source = (
            f"KERAS_BACKEND={backend}" if backend else f"{_keras_json()}, or by default TensorFlow"
        )
        raise UserError(
            f"{error.name} is not installed, and Keras needs it here: pip install {error.name}; "
            f"the backend is set by {source}"
        ) from error


def _keras_json() -> str:
    return os.path.join(
        os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras"),
        "keras.json",
    )


def require_tensorflow(command: Command) -> None:
    """Raises UserError for a script that needs TensorFlow where Keras runs on another backend."""
    layers = importlib.import_module("deeplab_keras.models.layers")  # takes the import of Keras
    layers.require_tensorflow(os.path.basename(command.argv[0]))


def _leave_stdout() -> None:
    """Nobody reads it any more; what Python still holds of it goes nowhere instead of into an error at its end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_log(show: Callable[[str, str | None], str]) -> None:
    """The library's log goes to stderr, a plain line each; of TensorFlow's, which has the same logger, only warnings do."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine(show))
    handler.addFilter(
        lambda record: (
            record.levelno >= logging.WARNING or "tensorflow" not in record.pathname.split(os.sep)
        )
    )
    logger = absl_logging.get_absl_logger()
    logger.handlers, logger.propagate = [handler], False
    absl_logging.set_verbosity(absl_logging.INFO)


class _LogLine(logging.Formatter):
    def __init__(self, show: Callable[[str, str | None], str]) -> None:
        super().__init__()
        self._show = show

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + render_options(record.getMessage(), self._show)


def _outside_trouble(error: OSError) -> str:
    """What to do about a full disk or a path that cannot be used; every other OSError is a bug and raised again."""
    advice = {
        errno.ENOSPC: "free some space there",
        errno.EDQUOT: "free some space there",
        errno.EACCES: "choose a folder that you may use, or change its permissions",
        errno.EPERM: "choose a folder that you may use, or change its permissions",
        errno.EROFS: "choose a folder that can be written to",
        errno.ENOTDIR: "a part of this path is a file; choose another path",
        errno.EEXIST: "choose another path",
        errno.EISDIR: "choose another path",
        errno.ENAMETOOLONG: "choose a shorter path",
    }.get(error.errno or 0)
    if advice is None:
        raise error
    path, reason = error.filename or "writing a file", (error.strerror or "").lower()
    return f"{path}: {reason}; {advice} and give the same command again"
