"""The engine of the converters: strict, exact in both directions, and proven."""

from __future__ import annotations

import dataclasses
import re

import keras
import numpy as np
import pytest
from contracts import ROOT, as_command_line, raises_line

from deeplab_keras.config import UserError
from deeplab_keras.convert import transfer
from deeplab_keras.convert.identify import SIGNATURES, advice, identify
from deeplab_keras.convert.transfer import TF1_SLIM, TORCH, Rules, dump_weights, load_weights, prove
from deeplab_keras.zoo import registry as zoo

RULES = Rules(
    {
        "net.first": "stem_conv",
        "net.layer{n}.deep": "block{n}_depthwise_conv",
        "net.layer{n}.norm": "block{n}_depthwise_bn",
        **{f"net.layer{n}.point": f"block{n}_project_conv" for n in (1, 12)},
        "net.unused{n}": "absent{n}_conv",
        "decoder.1": "logits",
    },
    TORCH,
    ignored=(r".*\.num_batches_tracked", "counter"),
)


@pytest.fixture
def model() -> keras.Model:
    x = image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="stem_conv")(x)
    for block in (1, 12):
        x = keras.layers.DepthwiseConv2D(3, use_bias=False, name=f"block{block}_depthwise_conv")(x)
        x = keras.layers.BatchNormalization(name=f"block{block}_depthwise_bn")(x)
        x = keras.layers.Conv2D(4, 1, use_bias=False, name=f"block{block}_project_conv")(x)
        x = keras.layers.Dropout(0.1)(x)
    return keras.Model(image, keras.layers.Conv2D(5, 1, name="logits")(x), name="small")


def file_for(model: keras.Model, rules: Rules = RULES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    slots = transfer.slots(model, rules)
    values = {
        slot.source: random.normal(size=slot.source_shape).astype(np.float32) for slot in slots
    }
    return {
        name: np.abs(value) if name.endswith(("running_var", "moving_variance")) else value
        for name, value in values.items()
    }


def test_names_and_axes_of_torch(model):
    source = file_for(model)
    assert {name: tensor.shape for name, tensor in source.items() if "layer1." not in name} == {
        "net.first.weight": (4, 3, 3, 3),
        "net.layer12.deep.weight": (4, 1, 3, 3),
        **{
            f"net.layer12.norm.{part}": (4,)
            for part in ("weight", "bias", "running_mean", "running_var")
        },
        "net.layer12.point.weight": (4, 4, 1, 1),
        "decoder.1.weight": (5, 4, 1, 1),
        "decoder.1.bias": (5,),
    }
    load_weights(model, source, RULES)
    kernel = keras.ops.convert_to_numpy(model.get_layer("stem_conv").kernel)  # HWIO against OIHW
    assert kernel[2, 0, 1, 3] == source["net.first.weight"][3, 1, 2, 0]
    kernel = keras.ops.convert_to_numpy(
        model.get_layer("block12_depthwise_conv").kernel
    )  # HWC1 against C1HW
    assert kernel[2, 0, 1, 0] == source["net.layer12.deep.weight"][1, 0, 2, 0]
    variance = keras.ops.convert_to_numpy(model.get_layer("block12_depthwise_bn").moving_variance)
    assert np.array_equal(variance, source["net.layer12.norm.running_var"])


def test_the_opposite_direction_is_bit_exact(model):
    source = file_for(model)
    load_weights(model, source, RULES)
    back = dump_weights(model, RULES)
    assert list(back) == list(source)
    assert all(back[name].tobytes() == tensor.tobytes() for name, tensor in source.items())


def test_names_of_tf1(model):
    rules = dataclasses.replace(RULES, dialect=TF1_SLIM)
    source = file_for(model, rules)
    assert source["net.layer1.deep/depthwise_weights"].shape == (3, 3, 4, 1)
    assert {
        "net.first/weights",
        "net.layer1.norm/moving_variance",
        "decoder.1/biases",
    } <= source.keys()
    load_weights(model, source, rules)
    assert np.array_equal(
        keras.ops.convert_to_numpy(model.get_layer("stem_conv").kernel), source["net.first/weights"]
    )


def test_the_proof_lists_all_tensors(model):
    source = file_for(model) | {
        "net.first.num_batches_tracked": np.int64(3),
        "counter": np.zeros(2),
    }
    source["net.layer1.norm.weight"] = source["net.layer12.norm.weight"] = np.ones(4, np.float32)
    proof = load_weights(model, source, RULES)
    assert len(proof.rows) == 15 and proof.max_difference == 0
    assert proof.alike == ("net.layer1.norm.weight", "net.layer12.norm.weight")
    assert proof.ignored == ("net.first.num_batches_tracked", "counter")
    assert "15 tensors with 269 values" in str(proof) and "bit for bit" in str(proof)
    row = next(
        line for line in proof.table().splitlines() if line.startswith("net.layer12.deep.weight")
    )
    assert (
        row.split()
        == "net.layer12.deep.weight 4x1x3x3 -> block12_depthwise_conv/kernel |difference| 0".split()
    )


@pytest.mark.parametrize("first, second", [("point", "point"), ("norm", "norm")])
def test_two_swapped_tensors_fail_the_proof(model, first, second):
    source = file_for(model)
    load_weights(model, source, RULES)
    one, other = (
        next(s for s in transfer.slots(model, RULES) if s.source.startswith(name))
        for name in (f"net.layer1.{first}", f"net.layer12.{second}")
    )
    values = one.read(), other.read()
    assert values[0].shape == values[1].shape
    other.write(values[0])
    one.write(values[1])
    with pytest.raises(
        RuntimeError, match=f"net.layer1.{first}.weight, net.layer12.{second}.weight do not have"
    ):
        prove(model, source, RULES)


def test_a_transfer_that_skips_a_tensor_fails(model, monkeypatch):
    write = transfer.Slot.write
    monkeypatch.setattr(
        transfer.Slot, "write", lambda s, v: None if s.source == "decoder.1.bias" else write(s, v)
    )
    with pytest.raises(RuntimeError, match="decoder.1.bias"):
        load_weights(model, file_for(model), RULES)


def test_mismatches_are_listed_and_nothing_is_assigned(model):
    source, before = file_for(model), dump_weights(model, RULES)
    del source["net.first.weight"]
    source["net.layer3.point.weight"] = np.zeros((4, 4, 1, 1), np.float32)
    source["decoder.1.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError) as error:
        load_weights(model, source, RULES, origin="a.pth")
    names = ", ".join(list(source)[:3])
    assert as_command_line(error.value) == (
        f"a.pth does not fit small; its format is unknown, with tensors named {names}, ... "
        "(1 missing: net.first.weight; 1 unexpected: net.layer3.point.weight; "
        "1 of another shape: decoder.1.bias 7 instead of 5)"
    )
    assert all(
        np.array_equal(before[name], tensor) for name, tensor in dump_weights(model, RULES).items()
    )


def test_the_error_names_a_layer_that_the_source_lacks(model):
    rules = dataclasses.replace(
        RULES, layers={k: v for k, v in RULES.layers.items() if v != "stem_conv"}
    )
    with raises_line("layer stem_conv of small has no counterpart"):
        load_weights(model, {}, rules)


def test_skipped_layers_keep_their_weights(model):
    source, before = file_for(model), dump_weights(model, RULES)
    source["decoder.1.weight"], source["decoder.1.bias"] = np.zeros((7, 4, 1, 1)), np.zeros(7)
    proof = load_weights(model, source, RULES, skip_layers=("logits",))
    after = dump_weights(model, RULES)
    assert proof.skipped_layers == (
        "logits",
    ) and "Not loaded, with initial weights: logits" in str(proof)
    assert np.array_equal(after["decoder.1.weight"], before["decoder.1.weight"])
    assert np.array_equal(after["net.first.weight"], source["net.first.weight"])


def test_rules_for_a_group_of_layers(model):
    rules = dataclasses.replace(RULES, group="backbone", ignored=("classifier.*",))
    source = file_for(model, rules) | {"classifier.weight": np.zeros(3)}
    before = dump_weights(model, RULES)
    proof = load_weights(model, source, rules)
    assert len(proof.rows) == 13 and proof.ignored == ("classifier.weight",)
    assert np.array_equal(
        dump_weights(model, RULES)["decoder.1.weight"], before["decoder.1.weight"]
    )
    del source["net.first.weight"]
    with raises_line("1 missing: net.first.weight"):
        load_weights(model, source, rules)


def test_one_source_for_two_variables_is_refused(model):
    rules = dataclasses.replace(RULES, layers={"net.layer1.deep": "stem_conv", **RULES.layers})
    with pytest.raises(ValueError, match="several variables"):
        transfer.slots(model, rules)


@pytest.mark.parametrize(
    "identity, model, expected",
    [
        (
            "SSSegmentation's pspnet_mobilenetv2os8, 150 classes",
            "fcn_mobilenetv2os8_voc",
            "give --model=pspnet_mobilenetv2os8_ade20k",
        ),
        (
            "SSSegmentation's deeplabv3plus_mobilenetv2os8, 7 classes",
            "deeplabv3_mobilenetv2os8_voc",
            "give --model=deeplabv3plus_mobilenetv2os8_voc --num_classes=7",
        ),
        ("SSSegmentation's fcn_mobilenetv2os8, 21 classes", "fcn_mobilenetv2os8_voc", ""),
        (
            "torchvision's lraspp_mobilenet_v3_large, 21 classes",
            "fcn_mobilenetv2os8_voc",
            "give --flagfile=configs/base/torchvision_lraspp_mobilenet_v3_large.flags",
        ),
        (
            "OpenMMLab's MobileNetV3 classifier",
            "fcn_mobilenetv2os8_voc",
            "give a model with its --model_variant",
        ),
        (
            "torchvision's classifier mobilenet_v2",
            "small",
            "give a model with its --model_variant",
        ),
        ("an official DeepLab model on MobileNetV2", "small", ""),
        ("", "small", ""),
    ],
)
def test_the_advice_names_existing_models_and_files(identity, model, expected):
    assert as_command_line(advice(identity, model)) == expected
    for name in re.findall(r"--model=(\w+)", expected):
        assert name in zoo.list_models()
    for path in re.findall(r"--flagfile=(\S+)", expected):
        assert (ROOT / path).exists()


def test_identify_returns_the_number_of_classes():
    names = {
        "backbone_net.conv1.conv.weight": (32, 3, 3, 3),
        "aspp_net.x": (1,),
        "decoder.1.bias": (19,),
    }
    assert identify(names) == "SSSegmentation's deeplabv3_mobilenetv2os8, 19 classes"
    assert identify({**names, "shortcut.0.weight": (48, 24, 1, 1)}).startswith(
        "SSSegmentation's deeplabv3plus"
    )
    assert identify({"something": (1,)}) == ""
    for what, beginnings in SIGNATURES.items():
        assert identify({beginning + "weight": (1,) for beginning in beginnings}).startswith(what)
