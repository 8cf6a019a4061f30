"""Every public class and function has an `Example:` in its docstring, and the example is right."""

from __future__ import annotations

import doctest
import inspect
import io
import pathlib
import types
from typing import Any

import keras
import numpy as np
import pytest
from contracts import noise
from PIL import Image

import deeplab_keras as dk
from deeplab_keras.models.segmentor import Segmentor

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def documented(value: Any) -> list[Any]:
    """The classes and functions that a name of `dk` stands for: itself, or those of a namespace."""
    if not isinstance(value, types.ModuleType):
        return [value] if callable(value) else []
    names = getattr(value, "__all__", [name for name in vars(value) if not name.startswith("_")])
    members = [getattr(value, name) for name in names]
    own = [member for member in members if inspect.isclass(member) or inspect.isroutine(member)]
    return [member for member in own if member.__module__.startswith("deeplab_keras.")]


def examples(value: Any) -> list[doctest.DocTest]:
    """The examples of a class or function and of the public methods of a class."""
    found = [value]
    if inspect.isclass(value):
        found += [member for name, member in vars(value).items() if not name.startswith("_")]
    parser = doctest.DocTestParser()
    tests = [
        parser.get_doctest(
            inspect.getdoc(item) or "",
            {"dk": dk, "np": np, "keras": keras},
            value.__name__,
            None,
            0,
        )
        for item in found
    ]
    return [test for test in tests if test.examples]


@pytest.fixture
def folder(tiny_run, tmp_path, monkeypatch) -> pathlib.Path:
    """The current folder of the examples: a trained network of 11 classes, and a photo."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run)
    (tmp_path / "photos").mkdir()
    Image.fromarray(noise(40, 60, 3).astype(np.uint8)).save(tmp_path / "photos" / "street.png")
    return tmp_path


NAMES = sorted({*dk.__all__, "Segmentor"} - {"train"})


@pytest.mark.parametrize("name", [*NAMES, pytest.param("train", marks=pytest.mark.slow)])
def test_every_public_object_has_an_example_that_runs(name, folder):
    for value in documented(Segmentor if name == "Segmentor" else getattr(dk, name)):
        assert "\nExample:\n" in (inspect.getdoc(value) or ""), f"{value.__qualname__}: no Example:"
        assert examples(value), f"{value.__qualname__}: its Example: has no line with >>>"
        for test in examples(value):
            output, runner = io.StringIO(), doctest.DocTestRunner(optionflags=OPTIONS)
            runner.run(test, out=output.write)
            assert not runner.failures, output.getvalue()
