"""The standard streams of a command, which may be closed, broken or full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import typing
from collections.abc import Iterable, Iterator

# Control characters, which a terminal would interpret, and characters that change the direction of
# text.
_CODES = (
    *range(32),
    *range(127, 160),
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Context in which `sys.stdout` and `sys.stderr` are `Output`s, also where they are closed."""
    if isinstance(sys.stdout, Output):
        yield
        return
    _open_closed_descriptors()
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        out = Output(sys.stdout or null, "\n\t")
        err = Output(sys.stderr or null, "\n\t\r", needed=False)
        stack.enter_context(contextlib.redirect_stdout(typing.cast(typing.TextIO, out)))
        stack.enter_context(contextlib.redirect_stderr(typing.cast(typing.TextIO, err)))
        try:
            yield
        finally:
            for stream in (out, err):  # Python would report an error of its own on exit
                with contextlib.suppress(OSError):
                    stream.flush()


def _open_closed_descriptors() -> None:
    """Opens the null device in place of closed standard streams, as after `2>&-` in a shell.

    Otherwise a file that is opened later gets the number 2, and the messages of native code are
    written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


class Output:
    r"""A stream for messages.

    * Control characters, and characters that the stream cannot encode, are written as escapes, such
      as `\\x1b`. The names of files may contain both.
    * If the reader exits, as in `script | head`, the remaining output is discarded, and the command
      continues.

    Args:
        stream: The stream to write to.
        kept: Control characters to write unchanged.
        needed: Whether other errors, such as a full disk, are raised. Otherwise, the remaining
            output is discarded after them too.
    """

    def __init__(self, stream: typing.TextIO, kept: str, *, needed: bool = True) -> None:
        self._stream, self._needed = stream, needed
        self._table = {code: ascii(chr(code))[1:-1] for code in _CODES if chr(code) not in kept}

    def write(self, text: str) -> int:
        """Writes a text; returns its length."""
        encoding = self._stream.encoding or "utf-8"  # `io.StringIO` has none
        shown = text.translate(self._table).encode(encoding, "backslashreplace").decode(encoding)
        with self._broken():
            self._stream.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flushes the stream."""
        with self._broken():
            self._stream.flush()

    @contextlib.contextmanager
    def _broken(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if self._needed and error.errno != errno.EPIPE:
                raise

    def _discard(self) -> None:
        """Sends the remaining output to the null device; Python would fail to write it on exit."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(self._stream, name)
