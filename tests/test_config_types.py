"""Configs and dataset descriptions refuse values of the wrong type in one line."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
import pickle
import re

import numpy as np
import pytest

from deeplab_keras.config import (
    CONVENTIONS,
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    UserError,
)
from deeplab_keras.config.backbones import BACKBONES
from deeplab_keras.config.heads import HEADS
from deeplab_keras.data.info import DatasetInfo


@pytest.mark.parametrize(
    "config", [ModelConfig, DataConfig, TrainConfig, EvalConfig, ExportConfig, PredictConfig]
)
def test_the_docstring_of_a_config_lists_its_fields(config):
    """Once each, with the default, between the description and the example."""
    title = "Attributes" if config is ModelConfig else "Args"
    description, _, rest = config.__doc__.partition(f"\n    {title}:\n")
    arguments, _, example = rest.partition("\n    Example:\n")
    assert description.strip() and ">>>" in example
    listed = re.findall(r"^        (\w+): \S", arguments, re.MULTILINE)
    assert listed == [field.name for field in dataclasses.fields(config) if field.metadata]
    assert max(map(len, config.__doc__.splitlines())) <= 100


def test_a_documented_default():
    words = " ".join((EvalConfig.__doc__ or "").split())
    assert "One of 'whole', 'slide', 'official'. Default: 'whole'." in words


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"num_classes": "21"},
            "num_classes must be a whole number (int), not str. Received: num_classes='21'",
        ),
        (
            {"num_classes": 2.5},
            "num_classes must be a whole number (int), not float. Received: num_classes=2.5",
        ),
        (
            {"num_classes": None},
            "num_classes must be a whole number (int), not NoneType. Received: num_classes=None",
        ),
        (
            {"num_classes": True},
            "num_classes must be a whole number (int), not bool. Received: num_classes=True",
        ),
        (
            {"output_stride": [16]},
            "output_stride must be a whole number (int), not list. Received: output_stride=[16]",
        ),
        (
            {"depth_multiplier": "1.0"},
            "depth_multiplier must be a number (float), not str. Received: depth_multiplier='1.0'",
        ),
        (
            {"depth_multiplier": float("nan")},
            "depth_multiplier must be a finite number. Received: depth_multiplier=nan",
        ),
        ({"atrous_rates": 6}, "atrous_rates must be a list, not int. Received: atrous_rates=6"),
        (
            {"atrous_rates": "6,12,18"},
            "atrous_rates must be a list, not str. Received: atrous_rates='6,12,18'",
        ),
        (
            {"atrous_rates": [6, "12"]},
            "atrous_rates must be a list whose elements are each a whole number. Received: "
            "atrous_rates=[6, '12']",
        ),
        (
            {"auxiliary_head": 1},
            "auxiliary_head must be True or False (bool), not int. Received: auxiliary_head=1",
        ),
        ({"head": {"a": 1}}, "head must be text (str), not dict. Received: head={'a': 1}"),
        ({"head": ["fcn"]}, "head must be text (str), not list. Received: head=['fcn']"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_another_type_is_refused_in_one_line(changes, line):
    for make in (
        lambda: ModelConfig(**changes),
        lambda: ModelConfig().replace(**changes),
        lambda: ModelConfig.from_dict(changes),
    ):
        with pytest.raises(UserError) as caught:
            make()
        assert str(caught.value) == line


def test_what_means_the_same_becomes_the_fields_own_type():
    config = ModelConfig(
        num_classes=np.int64(5),
        depth_multiplier=np.float32(0.5),
        atrous_rates=[np.int32(6), 12],
        auxiliary_head=np.True_,
    )
    assert config == ModelConfig(
        num_classes=5, depth_multiplier=0.5, atrous_rates=(6, 12), auxiliary_head=True
    )
    assert [
        type(value)
        for value in (config.num_classes, config.depth_multiplier, config.auxiliary_head)
    ] == [int, float, bool]
    assert ModelConfig.from_json(config.to_json()) == config
    assert (
        ModelConfig(depth_multiplier=1).to_json()
        == ModelConfig(depth_multiplier=1).replace().to_json()
    )
    data = DataConfig(dataset="folder", dataset_dir=pathlib.Path("a") / "b")
    assert data.dataset_dir == "a/b" and DataConfig.from_json(data.to_json()) == data
    assert TrainConfig().training_number_of_steps is None or isinstance(
        TrainConfig().training_number_of_steps, int
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"class_names": 3}, "dataset 'd': class_names must be a list of strings. Received: 3"),
        (
            {"class_names": "ab"},
            "dataset 'd': class_names must be a list of strings. Received: ab",
        ),
        (
            {"class_names": [1, 2]},
            "dataset 'd': class_names must be a list of strings. Received: [1, 2]",
        ),
        (
            {"palette": "red"},
            "dataset 'd': palette must be a list of [red, green, blue]. Received: red",
        ),
        (
            {"palette": [[1, 2], [3, 4]]},
            "dataset 'd': palette must be a list of [red, green, blue]. Received: [[1, 2], [3, 4]]",
        ),
        (
            {"palette": [[0.5, 0, 0]] * 2},
            "dataset 'd': palette must be a list of [red, green, blue]. Received: [[0.5, 0, 0], "
            "[0.5, 0, 0]]",
        ),
        (
            {"ignore_label": "none"},
            "dataset 'd': ignore_label must be a whole number. Received: 'none'",
        ),
        (
            {"ignore_label": None},
            "dataset 'd': ignore_label must be a whole number. Received: 'None'",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_description_of_classes_of_another_type(changes, line):
    good = {
        "name": "d",
        "class_names": ["a", "b"],
        "palette": [[0, 0, 0], [1, 1, 1]],
        "ignore_label": 255,
    }
    assert DatasetInfo.from_dict(good).num_classes == 2
    with pytest.raises(UserError) as caught:
        DatasetInfo.from_dict(good | changes)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: ModelConfig(head="fcn", atrous_rates=(6, 12)),
            "atrous_rates: the head fcn has no such option; deeplab_v3, deeplab_v3_plus have it",
        ),
        (
            lambda: ModelConfig(head="deeplab_v3", aspp_output_convs=1).replace(pool_scales=(1, 2)),
            "pool_scales: the head deeplab_v3 has no such option; psp has it",
        ),
        (
            lambda: ModelConfig.from_dict(
                {"head": "psp", "head_channels": 8, "image_pooling_bias": True}
            ),
            "image_pooling_bias: the head psp has no such option; lraspp has it",
        ),
        (
            lambda: ModelConfig(backbone="mobilenet_v9"),
            "unknown backbone 'mobilenet_v9'; did you mean 'mobilenet_v2'? known: "
            + ", ".join(sorted(BACKBONES)),
        ),
        (
            lambda: ModelConfig(head="lrasp"),
            "unknown head 'lrasp'; did you mean 'lraspp'? known: " + ", ".join(sorted(HEADS)),
        ),
    ],
)
def test_an_option_of_another_part_is_refused(make, line):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == line


def test_replacing_the_head_keeps_the_options_that_both_heads_have():
    config = ModelConfig(head="deeplab_v3", head_channels=96, dropout_rate=0.3, padding="same")
    other = config.replace(head="psp", num_classes=3)
    assert other == ModelConfig(
        head="psp", head_channels=96, dropout_rate=0.3, padding="same", num_classes=3
    )
    back = other.replace(head="deeplab_v3", num_classes=21)
    assert back == config and hash(back) == hash(config)
    with pytest.raises(AttributeError, match="ModelConfig has no option 'pool_scales'"):
        _ = config.pool_scales


@pytest.mark.parametrize("change", [{"head": "psp"}, {"backbone": "mobilenet_v3_small"}])
def test_a_named_model_with_another_part_has_no_name(change):
    config = ModelConfig(name="mine", head="deeplab_v3")
    assert config.replace(**change).name == ""
    assert config.replace(**change, name="other").name == "other"
    assert config.replace(head="deeplab_v3", output_stride=16).name == "mine"


def test_checkpoints_of_older_versions_list_the_options_of_every_head():
    old = ModelConfig(head="fcn").to_dict() | {"pool_scales": [1, 2], "decoder_filters": 7}
    assert ModelConfig.from_saved(old) == ModelConfig(head="fcn")
    with pytest.raises(UserError, match="unknown ModelConfig field 'decoder_filter'"):
        ModelConfig.from_saved(old | {"decoder_filter": 7})


def test_conventions_are_a_part_whose_options_can_be_given_too():
    official = CONVENTIONS["official_deeplab"]
    config = ModelConfig(conventions=official, channel_divisor=8)
    assert config.conventions == official.replace(channel_divisor=8)
    assert ModelConfig().replace(conventions=official).conventions == official


@pytest.mark.parametrize(
    "options",
    [
        {"backbone_bn_epsilon": -1.0},
        {"head_bn_epsilon": float("inf")},
        {"backbone_bn_momentum": 2.0},
        {"head_channels": 0},
        {"decoder_filters": -1},
        {"auxiliary_channels": 0},
        {"low_level_channels": (0,)},
        {"low_level_channels": (8, 8)},
        {"low_level_features": (), "low_level_channels": ()},
        {"head": "psp", "pool_scales": (0,)},
        {"head": "psp", "pool_scales": (1, 1)},
        {"image_pyramid": (1e9,)},
        {"num_classes": 10**10},
        {"name": "a/b"},
        {"conventions": "official_deeplab"},
    ],
    ids=str,
)
def test_networks_that_cannot_exist_are_refused(options):
    with pytest.raises(UserError, match=rf"^{list(options)[-1]} must|^{list(options)[0]} must"):
        ModelConfig(**options)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_json_that_is_not_an_object_is_refused(text):
    with pytest.raises(UserError, match="^DataConfig: not valid|^DataConfig must be made from"):
        DataConfig.from_json(text)


def test_errors_are_copied_and_pickled_with_their_data():
    with pytest.raises(UserError) as caught:
        ModelConfig(output_stride=7)
    for error in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert type(error) is type(caught.value) and str(error) == str(caught.value)
        assert (error.field, error.value, error.hint) == ("output_stride", 7, "")


def test_a_line_break_in_a_value_does_not_break_the_line():
    assert str(UserError("a\nb: no such file")) == r"a\nb: no such file"
