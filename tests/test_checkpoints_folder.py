"""Checkpoint folders with impossible contents, and one written by an older version."""

from __future__ import annotations

import json
import math
import pathlib

import keras
import numpy as np
import pytest
from contracts import SHARED, as_command_line, raises_line

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.inference import Predictor
from deeplab_keras.models.segmentor import build_segmentor

CONFIG = ModelConfig(
    head="fcn", depth_multiplier=0.25, head_channels=8, output_stride=32, num_classes=3
)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build_segmentor(CONFIG)


@pytest.fixture
def checkpoint(model, tmp_path) -> pathlib.Path:
    """A checkpoint without hashes, as written by older versions, whose files tests may change."""
    path = folder.save_checkpoint(
        tmp_path / "c",
        model,
        CONFIG,
        info_for_classes("beach", ("sand", "sea", "sky")),
        metrics={"miou": 0.5},
    )
    (path / folder.HASHES).unlink()
    return path


def change(path: pathlib.Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as caught:
        folder.load_checkpoint(path)
    message = as_command_line(caught.value)
    assert (
        "\n" not in message and message.count(str(path)) == 1 and message.endswith(folder.ANOTHER)
    ), message
    return message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_names": 3}, "class_names must be a list of strings. Received: 3"),
        ({"class_names": ["sand", "sea", None]}, "class_names must be a list of strings"),
        ({"class_names": ["sand"], "palette": [[0, 0, 0]]}, "has 1 class; at least 2 are required"),
        (
            {"palette": [[0, 0, 0], [1, 1], [2, 2, 2]]},
            "palette must be a list of [red, green, blue]",
        ),
        ({"palette": [[0, 0, 0], [1, 1, 256], [2, 2, 2]]}, "a color outside 0..255"),
        ({"palette": [[0, 0, 0]]}, "has 3 classes but 1 colors"),
        ({"ignore_label": "255"}, "ignore_label must be a whole number"),
    ],
)
def test_the_error_about_impossible_classes_names_the_file(values, message, checkpoint):
    change(checkpoint / folder.DATASET, **values)
    found = refused(checkpoint)
    assert found.startswith(f"{checkpoint / folder.DATASET}: dataset 'beach'") and message in found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "unicorn"}, "unicorn"),
        ({"num_classes": "three"}, "three"),
        ({"colour": 3}, "colour"),
        (
            {"head_channels": 10**30},
            "damaged or not a model's config",
        ),  # found only when the network is built
    ],
)
def test_the_error_about_an_impossible_config_names_the_file(values, message, checkpoint):
    change(checkpoint / folder.CONFIG, **values)
    found = refused(checkpoint)
    assert found.startswith(f"{checkpoint / folder.CONFIG}: ") and message in found


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", [folder.CONFIG, folder.METRICS])
def test_a_number_that_is_not_finite_is_refused(name, value, checkpoint):
    path = checkpoint / name
    path.write_text(
        path.read_text().rstrip().removesuffix("}").rstrip().rstrip(",")
        + f', "depth_multiplier": {value}}}'
    )
    assert refused(checkpoint).startswith(f"{path}: damaged or not ")


@pytest.mark.parametrize(
    "content", ["[0.5]", "0.5", "null", '"miou"', "", "{", '{"miou": 0.5} {}', "[" * 100_000]
)
def test_damaged_scores_are_refused(content, checkpoint):
    (checkpoint / folder.METRICS).write_text(content)
    assert refused(checkpoint).startswith(
        f"{checkpoint / folder.METRICS}: damaged or not a checkpoint's scores"
    )


def test_scores_that_are_not_finite_are_not_saved(model, tmp_path):
    info = info_for_classes("beach", ("a", "b", "c"))
    with raises_line("c: metrics that are NaN or infinite cannot be saved"):
        folder.save_checkpoint(tmp_path / "c", model, CONFIG, info, metrics={"miou": math.nan})
    assert not (tmp_path / "c").exists()


def test_the_classes_must_be_as_many_as_the_model_s(model, tmp_path):
    with raises_line("info has 2 classes, and the model 3; give the classes"):
        folder.save_checkpoint(tmp_path / "c", model, CONFIG, info_for_classes("b", ("a", "b")))
    assert not (tmp_path / "c").exists()


@pytest.mark.shared
def test_a_checkpoint_of_format_0_still_predicts_the_same_labels():
    """The checkpoint and the expected labels were written by version 0 of the format."""
    expected = np.load(SHARED / "compat" / "expected.npz")
    predictor = Predictor(folder.load_checkpoint(SHARED / "compat" / "checkpoint_0").model)
    assert expected["labels"].shape == (4, 160, 160) and len(np.unique(expected["labels"])) > 2
    for image, labels in zip(expected["images"], expected["labels"], strict=True):
        np.testing.assert_array_equal(predictor(image), labels)
