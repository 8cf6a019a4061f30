"""The eighteen systems: names, parameter counts and multiply-adds of the reference.

See docs/reference/sssegmentation.md#parameters-and-multiply-adds.
"""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from contracts import raises_line

from deeplab_keras.config import ModelConfig
from deeplab_keras.models.multiply_adds import count_multiply_adds, is_auxiliary
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo import registry as zoo

# System -> parameters, of them in the auxiliary head, running statistics, GMACs at 512x512,
# reported mIoU.
TABLE = {
    "fcn_mobilenetv2os8_voc": (6112554, 454165, 34624, 23.418, 59.89),
    "pspnet_mobilenetv2os8_voc": (13848874, 454165, 37696, 52.417, 68.40),
    "deeplabv3_mobilenetv2os8_voc": (18830634, 454165, 38720, 74.823, 70.08),
    "deeplabv3plus_mobilenetv2os8_voc": (15472986, 454165, 44928, 68.054, 70.04),
    "lrasppnet_mobilenetv3sos8_voc": (1141173, 0, 13136, 4.243, 62.13),
    "lrasppnet_mobilenetv3los8_voc": (3284933, 0, 25424, 8.642, 67.90),
    "fcn_mobilenetv2os8_ade20k": (6244908, 520342, 34624, 23.688, 30.85),
    "pspnet_mobilenetv2os8_ade20k": (13981228, 520342, 37696, 52.688, 35.09),
    "deeplabv3_mobilenetv2os8_ade20k": (18962988, 520342, 38720, 75.094, 37.55),
    "deeplabv3plus_mobilenetv2os8_ade20k": (15605340, 520342, 44928, 69.137, 37.66),
    "lrasppnet_mobilenetv3sos8_ade20k": (1157814, 0, 13136, 5.325, 26.09),
    "lrasppnet_mobilenetv3los8_ade20k": (3301574, 0, 25424, 9.724, 30.06),
    "fcn_mobilenetv2os8_cityscapes": (6110502, 453139, 34624, 23.414, 70.77),
    "pspnet_mobilenetv2os8_cityscapes": (13846822, 453139, 37696, 52.413, 73.64),
    "deeplabv3_mobilenetv2os8_cityscapes": (18828582, 453139, 38720, 74.819, 76.74),
    "deeplabv3plus_mobilenetv2os8_cityscapes": (15470934, 453139, 44928, 68.038, 76.68),
    "lrasppnet_mobilenetv3sos8_cityscapes": (1140915, 0, 13136, 4.226, 65.06),
    "lrasppnet_mobilenetv3los8_cityscapes": (3284675, 0, 25424, 8.626, 69.98),
}


def size(variables: list[keras.Variable]) -> int:
    return sum(int(np.prod(v.shape)) for v in variables)


# The quick lane skips most models that differ from a tested one only in the number of classes.
QUICK = [
    name
    for name in TABLE
    if name.endswith("_voc")
    or name in ("deeplabv3plus_mobilenetv2os8_ade20k", "lrasppnet_mobilenetv3sos8_ade20k")
]


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TABLE],
)
def test_parameters_and_multiply_adds_equal_the_reference(name):
    parameters, auxiliary, statistics, giga_multiply_adds, _ = TABLE[name]
    model = build_segmentor(zoo.get_config(name), (512, 512))
    assert model.name == name
    assert size(model.trainable_weights) == parameters
    assert (
        size([v for layer in model.layers if is_auxiliary(layer) for v in layer.trainable_weights])
        == auxiliary
    )
    assert size(model.non_trainable_weights) == statistics
    assert round(count_multiply_adds(model) / 1e9, 3) == giga_multiply_adds
    keras.backend.clear_session()


def test_the_eighteen_systems_are_listed_with_the_reported_scores():
    assert [name for name in zoo.list_models() if name in TABLE] == list(TABLE)
    assert {name: zoo.reported(name) for name in TABLE} == {
        name: row[-1] for name, row in TABLE.items()
    }
    assert set(zoo.REPORTED_MIOU) <= set(zoo.list_models())


@pytest.mark.parametrize("name", zoo.list_models())
def test_a_config_has_its_name_and_survives_json(name):
    config = zoo.get_config(name)
    assert config.name == name
    assert ModelConfig.from_dict(json.loads(config.to_json())) == config


def test_an_unknown_name_suggests_the_nearest():
    with raises_line("'fcn_mobilenetv2os8_vic'; did you mean 'fcn_mobilenetv2os8_voc'"):
        zoo.get_config("fcn_mobilenetv2os8_vic")


def test_multiply_adds_need_a_size():
    with raises_line("input_size"):
        count_multiply_adds(
            build_segmentor(ModelConfig(head="fcn", head_channels=8, depth_multiplier=0.25))
        )
