"""Guard for parsing files that may be damaged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from deeplab_keras.config import UserError

NEXT_STEP = "copy or download it again"


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], what: str, next_step: str = NEXT_STEP) -> Iterator[None]:
    """Converts any exception of a parser to a one-line `UserError`, with the cause chained.

    A damaged file can raise anything, including `RecursionError` and `MemoryError`, so no list of
    exceptions per parser is ever complete. A `UserError` raised in the block is passed on
    unchanged, and so are `KeyboardInterrupt` and `SystemExit`.

    Args:
        path: The file that is read. The message names it.
        what: What the file should be, with its article: "a frozen graph", "a TFLite file".
        next_step: What the user can do about it.

    Raises:
        UserError: If the block raised any other exception.

    Example:
        >>> with reading("model.pb", "a frozen graph"):
        ...     raise KeyError("node")
        Traceback (most recent call last):
        deeplab_keras.config.errors.UserError: model.pb: damaged or not a frozen graph (KeyError:
            'node'); copy or download it again
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.strerror is None:  # raised by a decoder, not the operating system
            raise UserError(_damaged(path, what, error, next_step)) from error
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    except MemoryError as error:
        raise UserError(
            f"{path}: out of memory while reading it, so the file may be damaged; {next_step}"
        ) from error
    except Exception as error:
        raise UserError(_damaged(path, what, error, next_step)) from error


def _damaged(path: str | os.PathLike[str], what: str, error: Exception, next_step: str) -> str:
    text = next(iter(str(error).splitlines()), "")[:120]
    cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{path}: damaged or not {what} ({cause}); {next_step}"
