"""The guard around parsers, and the check of weight values."""

from __future__ import annotations

import numpy as np
import pytest
from contracts import as_command_line, raises_line

from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import UserError
from deeplab_keras.io.foreign import reading


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            KeyError("node"),
            "x.pb: damaged or not a frozen graph (KeyError: 'node'); download it again",
        ),
        (
            RecursionError("too\ndeep"),
            "x.pb: damaged or not a frozen graph (RecursionError: too); download it again",
        ),
        (
            MemoryError(),
            "x.pb: out of memory while reading it, so the file may be damaged; download it again",
        ),
        (
            AssertionError(),
            "x.pb: damaged or not a frozen graph (AssertionError); download it again",
        ),
        (
            OSError("truncated"),
            "x.pb: damaged or not a frozen graph (OSError: truncated); download it again",
        ),
        (
            PermissionError(13, "Permission denied"),
            "x.pb: cannot be read (Permission denied); check the path and its permissions",
        ),  # noqa: E501
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_exception_of_a_parser_becomes_one_line(error, line):
    with pytest.raises(UserError) as caught, reading("x.pb", "a frozen graph", "download it again"):
        raise error
    assert as_command_line(caught.value) == line
    assert caught.value.__cause__ is error


def test_user_errors_and_interrupts_pass_unchanged():
    with raises_line("^as it was$"), reading("x", "a file"):
        raise UserError("as it was")
    with pytest.raises(KeyboardInterrupt), reading("x", "a file"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["bn/moving_variance", "bn.running_var"])
def test_unusable_values_are_refused(name):
    good = {name: np.array([0.0, 1.0]), "step": np.array([-1])}
    check_values(good, "f", "train again")
    with raises_line(rf"^f: {name} has a negative variance \(-1\); train again$"):
        check_values(good | {name: np.array([2.0, -1.0])}, "f", "train again")
    with raises_line("^f: 2 of 3 values of w are NaN or infinite; train again$"):
        check_values(good | {"w": np.array([np.nan, 1, np.inf], np.float16)}, "f", "train again")
