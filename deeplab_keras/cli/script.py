"""Runs a script, and turns errors into one line and an exit status."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Sequence

from deeplab_keras.cli.command import Command
from deeplab_keras.cli.fields import flag_writer, help_text
from deeplab_keras.cli.streams import standard_streams
from deeplab_keras.cli.summary import CommonOptions, RunSummary, check_summary, summary_path
from deeplab_keras.config import (
    Config,
    UserError,
    options_shown_by,
    render_options,
    wrong_backend,
)
from deeplab_keras.io.progress import without_noise, without_progress
from deeplab_keras.version import __version__

HELP = ("--help", "-h", "-help", "--helpfull")
VERSION = ("--version", "-version")
INTERRUPTED = 130  # exit status


def run(
    doc: str | None,
    main: Callable[[Command], int | None],
    *sections: type[Config],
) -> typing.NoReturn:
    """Runs a script and exits: with status 0, or 1 and one line on stderr after an error.

    Args:
        doc: The script's docstring, which begins the output of `--help`.
        main: The function to run; if it returns an int, this is the exit status.
        sections: The config classes whose flags the script uses, its own class first.
    """
    sys.exit(call(sys.argv, doc, main, *sections))


def run_command(name: str) -> typing.NoReturn:
    """Runs the command in `deeplab_keras.cli.commands.<name>` as a script, and exits."""
    command = importlib.import_module(f"deeplab_keras.cli.commands.{name}")
    run(command.__doc__, command.main, *command.SECTIONS)


def call_command(name: str, argv: Sequence[str]) -> int:
    """Runs the command in `deeplab_keras.cli.commands.<name>`, and returns the exit status."""
    command = importlib.import_module(f"deeplab_keras.cli.commands.{name}")
    return call(argv, command.__doc__, command.main, *command.SECTIONS)


def call(
    argv: Sequence[str],
    doc: str | None,
    main: Callable[[Command], int | None],
    *sections: type[Config],
) -> int:
    """Runs a script with the given command line, see `run`, and returns the exit status.

    Args:
        argv: The command line.
        doc: See `run`.
        main: See `run`.
        sections: See `run`.
    """
    if set(HELP) & set(argv[1:]):
        return show(help_text(doc or "", *sections))
    if set(VERSION) & set(argv[1:]):
        return show(version())
    # Silences TensorFlow's messages about the CPU's instruction sets.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    write = flag_writer(*sections)
    with standard_streams(), _shown_log(write), options_shown_by(write):
        return _Run(argv, main, sections).call()


def show(text: str) -> int:
    """Prints a text that is the whole output of a command, and returns the exit status."""
    with standard_streams():
        try:
            print(text, flush=True)
        except OSError as error:  # a full disk
            return fail(_file_error(error))
    return 0


def fail(message: str) -> int:
    """Prints an error, and returns the exit status 1."""
    with standard_streams():
        print(f"error: {message}", file=sys.stderr)
    return 1


def version() -> str:
    """Returns the line that `--version` prints."""
    return f"deeplab-keras {__version__}"


class _Run:
    """A run of a command.

    Args:
        argv: The command line.
        main: The function to run.
        sections: The config classes of the command.
    """

    def __init__(
        self,
        argv: Sequence[str],
        main: Callable[[Command], int | None],
        sections: Sequence[type[Config]],
    ) -> None:
        self.argv, self.main, self.sections = argv, main, sections
        self.summary, self.summary_path = RunSummary(), ""

    def call(self) -> int:
        """Runs the command, prints its error, writes its summary, and returns the exit status."""
        try:
            status, message = self._attempt()
        except Exception as error:  # a bug, whose traceback is shown
            self._write_summary(1, f"{type(error).__name__}: {error}")
            raise
        if message:
            print(message if status == INTERRUPTED else f"error: {message}", file=sys.stderr)
        return self._write_summary(status, message)

    def _attempt(self) -> tuple[int, str]:
        """Runs the command, and returns the exit status and the message of its error."""
        try:
            return self._call(), ""
        except UserError as error:
            return 1, str(error)
        except KeyboardInterrupt:
            return INTERRUPTED, "interrupted"
        except OSError as error:
            return 1, _file_error(error)
        except Exception as error:
            if _is_memory_error(error):
                return 1, _memory_error(error)
            raise

    def _call(self) -> int:
        try:
            command = Command(self.argv, *self.sections)
        except UserError:
            self._prepare_summary(summary_path(self.argv))
            raise
        options, self.summary = command.config(CommonOptions), command.summary
        self._prepare_summary(options.summary)
        with _quiet() if options.quiet else contextlib.nullcontext():
            status = self.main(command) or 0
            sys.stdout.flush()
        return status

    def _prepare_summary(self, path: str) -> None:
        if path:
            check_summary(path)
            self.summary_path = path

    def _write_summary(self, status: int, error: str) -> int:
        """Writes the summary, if it is wanted, and returns the exit status."""
        if self.summary_path:
            try:
                self.summary.save(self.summary_path, self.argv, status, error)
            except UserError as failed:
                return max(fail(str(failed)), status)
        return status


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without progress and without the log, except for its warnings."""
    logging.getLogger("deeplab_keras").setLevel(logging.WARNING)
    with without_progress():
        yield


KERAS_BACKENDS = ("tensorflow", "jax", "torch", "numpy", "openvino")
# Packages that Keras may lack.
BACKENDS = ("keras", "tensorflow", "jax", "jaxlib", "torch", "openvino")


def load_keras() -> None:
    """Imports Keras and its backend, and finds the devices, without the messages about them.

    This takes seconds, so a command calls it after it has made its configs: mistakes in flags are
    reported immediately.

    Raises:
        UserError: A package is not installed, Keras has no such backend, or JAX finds no device.
    """
    chosen = os.environ.get("KERAS_BACKEND")
    if chosen and chosen not in KERAS_BACKENDS:
        raise UserError(f"KERAS_BACKEND={chosen}: unknown backend; set it to tensorflow or jax")
    try:
        with without_noise():
            keras = importlib.import_module("keras")
            if keras.backend.backend() == "tensorflow":
                importlib.import_module("tensorflow").config.list_physical_devices("GPU")
            if keras.backend.backend() == "jax":
                _find_jax_devices()
    except ModuleNotFoundError as error:
        if error.name not in BACKENDS:
            raise
        if error.name == "keras":
            raise UserError(
                "needs Keras and TensorFlow, which are not installed; pip install tensorflow keras "
                "(`predict.py` runs .tflite and .onnx files without them)"
            ) from error
        backend = os.environ.get("KERAS_BACKEND")
        source = f"KERAS_BACKEND={backend}" if backend else f"{_keras_json()} (default: tensorflow)"
        raise UserError(
            f"{error.name} is not installed, but Keras needs it: pip install {error.name}; "
            f"the backend is set by {source}"
        ) from error


def _find_jax_devices() -> None:
    try:
        importlib.import_module("jax").devices()
    except Exception as error:  # also an AssertionError without a text
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device with JAX_PLATFORMS={asked} ({reason}); unset JAX_PLATFORMS or "
            "set it to cpu, or set KERAS_BACKEND=tensorflow"
        ) from error


def _keras_json() -> str:
    return os.path.join(
        os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras"),
        "keras.json",
    )


def require_backend(command: Command, backends: Collection[str] = ("tensorflow", "jax")) -> None:
    """Imports Keras, see `load_keras`, and requires that it runs on one of some backends.

    On JAX, TensorFlow only reads and prepares images. It must not reserve the GPU's memory.

    Raises:
        UserError: It runs on another backend, or a package is not installed.
    """
    chosen, name = os.environ.get("KERAS_BACKEND", ""), os.path.basename(command.argv[0])
    if chosen in KERAS_BACKENDS and chosen not in backends:  # before seconds of imports
        raise wrong_backend(name, chosen, "KERAS_BACKEND", backends)
    load_keras()
    layers = importlib.import_module("deeplab_keras.models.layers")
    layers.require_backend(name, backends)
    if importlib.import_module("keras").backend.backend() == "tensorflow":
        return
    try:
        with without_noise():
            tensorflow = importlib.import_module("tensorflow")
            with contextlib.suppress(RuntimeError):  # it was used before, in this process
                tensorflow.config.set_visible_devices([], "GPU")
    except ModuleNotFoundError as error:
        if error.name != "tensorflow":
            raise
        raise UserError(
            "tensorflow is not installed, but reading images needs it, also on Keras' JAX backend: "
            "pip install tensorflow"
        ) from error


@contextlib.contextmanager
def _shown_log(show: Callable[[str, str | None], str]) -> Iterator[None]:
    """Writes the library's log, and warnings of TensorFlow and Keras, to stderr as plain lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine(show))
    before = []
    for name, level in (("deeplab_keras", logging.INFO), ("absl", logging.WARNING)):
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers, logger.propagate, logger.level))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


class _LogLine(logging.Formatter):
    def __init__(self, show: Callable[[str, str | None], str]) -> None:
        super().__init__()
        self._show = show

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + render_options(record.getMessage(), self._show)


def _is_memory_error(error: Exception) -> bool:
    # TensorFlow's error has a class of its own, and JAX's error a code in its text.
    kind = type(error).__name__
    if kind == "JaxRuntimeError":
        return str(error).startswith("RESOURCE_EXHAUSTED")
    return isinstance(error, MemoryError) or kind == "ResourceExhaustedError"


def _memory_error(error: Exception) -> str:
    found = re.search(r"Unable to allocate \S+ \w+|tensor with shape\[[\d,]*\]", str(error))
    detail = f" ({found[0]})" if found else ""
    return f"out of memory{detail}; use smaller images, crops and batches, or a smaller model"


def _file_error(error: OSError) -> str:
    """Returns the message for a full disk or an unusable path; raises any other error again."""
    advice = {
        errno.ENOSPC: "free some space there",
        errno.EDQUOT: "free some space there",
        errno.EACCES: "choose another folder, or change the permissions",
        errno.EPERM: "choose another folder, or change the permissions",
        errno.EROFS: "choose a writable folder",
        errno.ENOTDIR: "part of this path is a file; choose another path",
        errno.EEXIST: "choose another path",
        errno.EISDIR: "choose another path",
        errno.ENAMETOOLONG: "choose a shorter path",
    }.get(error.errno or 0)
    if advice is None:
        raise error
    path, reason = error.filename or "writing a file", (error.strerror or "").lower()
    return f"{path}: {reason}; {advice} and run the same command again"
