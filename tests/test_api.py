"""What `import deeplab_keras as dk` offers."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
from contracts import noise, raises_line

import deeplab_keras as dk
from deeplab_keras.checkpoints.folder import named_weights

SMALL = dk.ModelConfig(
    head="fcn", depth_multiplier=0.25, head_channels=8, output_stride=32, num_classes=3
)
INFO = dk.data.DatasetInfo(
    name="made", class_names=("sand", "sea", "sky"), palette=((0, 0, 0), (0, 0, 9), (0, 9, 0))
)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return dk.build_segmentor(SMALL, input_size=(64, 64))


def test_every_public_name_can_be_used():
    assert dir(dk) == sorted(dk.__all__)
    for name in dk.__all__:
        assert getattr(dk, name) is getattr(dk, name)
    with pytest.raises(AttributeError, match="has no attribute 'los'"):
        _ = dk.los


@pytest.mark.parametrize(
    ("namespace", "names"),
    [
        (dk.losses, ("make_loss", "SegmentationLoss")),
        (dk.metrics, ("MeanIoU", "ConfusionMatrix")),
        (dk.optimizers, ("make_optimizer", "make_schedule", "MomentumSGD")),
        (dk.data, ("open_dataset", "train_dataset", "check_dataset", "DatasetInfo", "Source")),
        (dk.visualization, ("panel", "save_png", "colorize")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_namespaces_have_what_the_documentation_names(namespace, names):
    assert all(callable(getattr(namespace, name)) for name in names)


def test_modules_are_the_same_under_their_old_names():
    from deeplab_keras.checkpoints.convert import convert

    from deeplab_keras import losses, zoo_official
    from deeplab_keras.convert.conversion import convert as moved
    from deeplab_keras.zoo import official

    assert losses is dk.losses and zoo_official is official and convert is moved


def test_weights_of_a_checkpoint(model, tmp_path):
    dk.save_checkpoint(tmp_path / "checkpoint", model, SMALL, INFO)
    copy = dk.build_segmentor(SMALL, weights=tmp_path / "checkpoint")
    ours, theirs = named_weights(copy), named_weights(model)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())


def test_weights_for_other_classes_leave_the_classifiers_random(model, tmp_path, caplog):
    dk.save_checkpoint(tmp_path / "checkpoint", model, SMALL, INFO)
    other = dk.build_segmentor(SMALL.replace(num_classes=5), weights=tmp_path / "checkpoint")
    ours, theirs = named_weights(other), named_weights(model)
    different = {n for n, value in ours.items() if not np.array_equal(value, theirs[n])}
    assert {name.partition("/")[0] for name in different} == {"logits"}


def test_weights_that_there_are_not(tmp_path):
    with raises_line("nowhere"):
        dk.build_segmentor(SMALL, weights=tmp_path / "nowhere")


def test_a_name_of_the_zoo_in_place_of_a_config():
    with raises_line(
        "unknown model 'fcn_mobilenetv2os8_vok'; did you mean 'fcn_mobilenetv2os8_voc'"
    ):
        dk.build_segmentor("fcn_mobilenetv2os8_vok")


def test_a_keras_file_is_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = dk.load_model(tmp_path / "model.keras")
    image = noise(1, 64, 64, 3)
    np.testing.assert_array_equal(loaded(image), model(image))
    (tmp_path / "cut.keras").write_bytes((tmp_path / "model.keras").read_bytes()[:2000])
    with raises_line(r"cut\.keras: .*; save it again"):
        dk.load_model(tmp_path / "cut.keras")
    with raises_line(r"none\.keras: .*"):
        dk.load_model(tmp_path / "none.keras")
    with raises_line("--input_size=(32, 32|32,32): .* has the input size it was saved with"):
        dk.load_model(tmp_path / "model.keras", input_size=(32, 32))


def test_importing_leaves_the_log_alone():
    assert logging.getLogger().level == logging.WARNING


# === Wrong arguments ===


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m: dk.train("fcn", dk.DataConfig(), dk.TrainConfig()), "--model must be a ModelC"),
        (lambda m: dk.train(SMALL, dk.DataConfig(), dk.EvalConfig()), "--training must be a Train"),
        (lambda m: dk.evaluate(m, "val"), "--source must be a dataset .* not str"),
        (
            lambda m: dk.evaluate("runs/x", dk.open_dataset(dk.DataConfig(), "val")),
            "^runs/x: no such",
        ),
        (lambda m: dk.evaluate(3, dk.open_dataset(dk.DataConfig(), "val")), "keras.Model, not int"),
        (lambda m: dk.Predictor(m, dk.EvalConfig), "must be an EvalConfig, not the class EvalC"),
        (lambda m: dk.Predictor(m, "whole"), "--config must be an EvalConfig, not str"),
        (lambda m: dk.Predictor(None), "--model must be a keras.Model, not NoneType"),
        (lambda m: dk.predict(None), "--config must be a PredictConfig, not NoneType"),
        (lambda m: dk.open_dataset("synthetic", "val"), "--config must be a DataConfig, not str"),
        (lambda m: dk.open_dataset(dk.DataConfig(), ["val"]), "--split must be a str, not list"),
        (lambda m: dk.get_config(3), "unknown model 3; known: "),
        (lambda m: dk.get_config(["a"]), r"unknown model \['a'\]; known: "),
        (lambda m: dk.build_segmentor(SMALL, (True, 64)), "must be .height, width."),
        (lambda m: dk.build_segmentor(SMALL, batch_size=0), "batch_size must be a whole number"),
        (
            lambda m: dk.build_segmentor(SMALL, weights=3),
            "--weights must be a path or a name, not int",
        ),
        (lambda m: dk.load_model(None), "--source must be a path or a name, not NoneType"),
        (lambda m: dk.audit_labels(m, None), "--source must be a dataset .* not NoneType"),
        (lambda m: dk.load_model("absent.keras"), "absent.keras: no such file"),
        (lambda m: dk.load_model("/"), "^/: not a checkpoint"),
        (
            lambda m: dk.export_model("a", "b", ["tflite"]),
            "--config must be an ExportConfig, not l",
        ),
        (lambda m: dk.export_model("a", "b", checkpoint_dir="c"), "first argument"),
        (
            lambda m: dk.save_checkpoint("a", m, SMALL.replace(num_classes=4), INFO),
            "--num_classes=4: the model has 3 classes",
        ),
    ],
)
def test_wrong_arguments_get_one_line(call, line, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises_line(line):
        call(model)
    assert list(tmp_path.iterdir()) == []
