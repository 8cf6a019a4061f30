"""Conversion of foreign weights: strict, with one-line errors, and in both directions.

These tests do not need PyTorch.
"""

from __future__ import annotations

import re
import zlib

import keras
import numpy as np
import pytest
from contracts import as_command_line, noise, raises_line, script

from benchmarks.golden import golden, weights
from deeplab_keras.checkpoints.folder import (
    check_replaceable,
    load_checkpoint,
    read_config,
    read_info,
    save_checkpoint,
)
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert import conversion as convert
from deeplab_keras.convert import keras_applications, official_deeplab, sssegmentation, torchvision
from deeplab_keras.convert.transfer import dump_weights, load_weights, prove, slots
from deeplab_keras.data.datasets.voc2012 import VOC2012
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo import registry as zoo

SMALL, FCN = "lrasppnet_mobilenetv3sos8_voc", "fcn_mobilenetv2os8_voc"


@pytest.fixture
def pth(monkeypatch):
    """Replaces `read_pth`; the returned dict is the content of every file."""
    content: dict[str, np.ndarray] = {}
    monkeypatch.setattr(convert, "read_pth", lambda path: dict(content))
    return content


def read(
    path: str = "a.pth", name: str = SMALL, skip_mismatched_classifiers: bool = False, **changes
):
    config = zoo.get_config(name).replace(**changes)
    return convert.convert(
        "sssegmentation", path, config, skip_mismatched_classifiers=skip_mismatched_classifiers
    )


def test_only_counters_are_ignored(pth):
    pth.update(weights(golden(SMALL)) | {"aspp_conv.1.num_batches_tracked": np.array(7)})
    _, proof = read()
    assert (len(proof.rows), proof.ignored, proof.skipped_layers) == (
        231,
        ("aspp_conv.1.num_batches_tracked",),
        (),
    )
    pth["aspp_conv.2.weight"] = np.zeros(3)
    with raises_line(r"a.pth does not fit .* \(1 unexpected: aspp_conv.2.weight\)"):
        read()


def test_another_system_is_named(pth):
    pth.update(weights(golden(FCN)))
    with pytest.raises(UserError) as error:
        read()
    message = as_command_line(error.value)
    assert (
        "; it seems to be SSSegmentation's fcn_mobilenetv2os8, 21 classes; give "
        "--model=fcn_mobilenetv2os8_voc (" in message
    )
    assert "\n" not in message
    assert "229 missing: backbone_net.layer0.conv.weight" in message and "and 219 more" in message


def test_another_number_of_classes_is_an_error_by_default(pth):
    pth.update(weights(golden(SMALL), num_classes=19))
    with raises_line(
        "19 classes; .*2 of another shape: decoder.1.weight 19x128x1x1 instead of 21",
    ) as error:
        read()
    expected = (
        "give --model=lrasppnet_mobilenetv3sos8_cityscapes, or also --num_classes to start "
        "with new classifiers ("
    )
    assert expected in as_command_line(error.value)
    model, proof = read(skip_mismatched_classifiers=True, num_classes=11)
    assert proof.skipped_layers == ("logits",) and len(proof.rows) == 229
    assert "Not loaded, with initial weights: logits" in str(proof)
    kernel = dump_weights(model, sssegmentation.rules(zoo.get_config(SMALL)))["aspp_conv.0.weight"]
    assert np.array_equal(kernel, pth["aspp_conv.0.weight"])
    assert read(skip_mismatched_classifiers=True, num_classes=19)[1].skipped_layers == ()


def test_only_the_two_classifiers_are_skipped(pth):
    pth.update(weights(golden(FCN)))
    assert read(name=FCN, skip_mismatched_classifiers=True, num_classes=11)[1].skipped_layers == (
        "logits",
        "auxiliary_logits",
    )
    pth["decoder.3.weight"] = np.zeros((256, 512, 3, 3), np.float32)
    with raises_line("1 of another shape: decoder.3.weight 256x512x3x3 instead of 512x512x3x3"):
        read(name=FCN, skip_mismatched_classifiers=True, num_classes=11)


def test_an_imagenet_file_fills_the_backbone(pth):
    state = weights(golden(SMALL))
    pth.update(
        {
            k.replace("backbone_net", "backbone"): v
            for k, v in state.items()
            if k.startswith("backbone_net")
        }
    )
    pth["classifier.head.fc.weight"] = np.zeros((1000, 1024))
    _, proof = read()
    assert len(proof.rows) == 34 * 4 + 52 + 18 and proof.ignored == ("classifier.head.fc.weight",)
    assert (
        all(not layer.startswith(("stem", "block", "last")) for layer in proof.skipped_layers)
        and "logits" in proof.skipped_layers
    )


# Our backbone -> keras.applications' network, its depth multiplier, whether it has its classifier,
# its last layer of features, our last layer.
APPLICATIONS = {
    "mobilenet_v2": (
        keras.applications.MobileNetV2,
        0.35,
        True,
        "block_16_project_BN",
        "block17_project_bn",
    ),
    "mobilenet_v3_large": (keras.applications.MobileNetV3Large, 1.0, False, "conv_1_bn", "last_bn"),
    "mobilenet_v3_small": (keras.applications.MobileNetV3Small, 0.75, True, "conv_1_bn", "last_bn"),
}


def drawn(variable: keras.Variable) -> np.ndarray:
    """Draws values with which no activation saturates everywhere."""
    random, shape = np.random.default_rng(zlib.crc32(variable.path.encode())), variable.shape
    if variable.name in ("gamma", "moving_variance"):
        return random.uniform(0.5, 1.5, shape)
    fan_in = (
        100
        if len(shape) == 1
        else np.prod(shape[:2] if "depthwise" in variable.path else shape[:-1])
    )
    return (1.6 / fan_in) ** 0.5 * random.standard_normal(shape)


@pytest.mark.slow  # .ci/run has it too
@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_keras_applications_give_the_same_features(backbone, tmp_path, capsys):
    """With their conventions: images in -1..1 (part of V3), TensorFlow's padding, epsilon 0.001."""
    keras.backend.clear_session()
    network, width, include_top, last, our_last = APPLICATIONS[backbone]
    theirs = network((96, 128, 3), alpha=width, include_top=include_top, weights=None)
    for variable in theirs.weights:
        variable.assign(drawn(variable))
    theirs.save_weights(tmp_path / "imagenet.weights.h5")
    flags = f"""--model_variant={backbone} --depth_multiplier={width} --head=fcn
        --aspp_convs_filters=8 --output_stride=32 --normalization=unit_range
        --padding=same --backbone_bn_epsilon=1e-3 --num_classes=3""".split()
    output = (f"--checkpoint={tmp_path}/imagenet.weights.h5", f"--output={tmp_path}/ours")
    assert script("convert_checkpoint.py")("--source=keras_applications", *flags, *output) == 0
    printed = capsys.readouterr().out
    assert (
        "expanded_conv_project/kernel" in printed
        and "-> block1_project_conv/kernel  |difference| 0" in printed
    )
    assert "Not loaded, with initial weights: fcn1_conv, fcn1_bn" in printed

    image = np.random.default_rng(5).uniform(0, 255, (1, 96, 128, 3)).astype(np.float32)
    scaled = image / 127.5 - 1 if backbone == "mobilenet_v2" else image
    expected = np.asarray(keras.Model(theirs.input, theirs.get_layer(last).output)(scaled))
    ours = load_checkpoint(tmp_path / "ours").model
    features = keras.Model(ours.input, ours.get_layer(our_last).output)
    found = np.asarray(features(image))
    assert found.shape == expected.shape and np.std(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.std(expected))

    kernels = [
        layer.kernel
        for layer in ours.layers
        if layer.name in ("block5_project_conv", "block6_project_conv")
    ]
    first, second = (keras.ops.convert_to_numpy(kernel) for kernel in kernels)
    kernels[0].assign(second), kernels[1].assign(first)
    assert np.abs(np.asarray(features(image)) - expected).max() > 0.1 * np.std(expected)


TINY = ModelConfig(head="fcn", head_channels=8, depth_multiplier=0.35)
V3 = TINY.replace(backbone="mobilenet_v3_small", depth_multiplier=1.0)
TORCHVISION = V3.replace(head="deeplab_v3", aspp_output_convs=1, aspp_projection_kernel=1)
GATE = {"image_pooling_batch_norm": False}


@pytest.mark.parametrize(
    "table, config, pair",
    [
        (sssegmentation.rules, TINY, ("decoder.0.weight", None)),
        (
            sssegmentation.rules,
            V3,
            (
                "backbone_net.layer5.linear_conv.bn.weight",
                "backbone_net.layer5.linear_conv.bn.bias",
            ),
        ),
        (
            sssegmentation.imagenet_rules,
            TINY,
            ("backbone.layer5.1.conv.0.conv.weight", "backbone.layer5.2.conv.0.conv.weight"),
        ),
        (
            sssegmentation.imagenet_rules,
            V3,
            ("backbone.layer5.se.conv1.conv.weight", "backbone.layer6.se.conv1.conv.weight"),
        ),
        (
            torchvision.imagenet_rules,
            TINY,
            ("features.12.conv.2.weight", "features.13.conv.2.weight"),
        ),
        (
            torchvision.imagenet_rules,
            V3,
            ("features.5.block.2.fc1.weight", "features.6.block.2.fc1.weight"),
        ),
        (
            torchvision.rules,
            TORCHVISION,
            ("classifier.0.convs.1.0.weight", "classifier.0.convs.3.0.weight"),
        ),
        (
            torchvision.rules,
            TORCHVISION.replace(
                head="lraspp", low_level_features=("block3",), low_level_channels=(), **GATE
            ),
            ("backbone.5.block.0.0.weight", "backbone.6.block.0.0.weight"),
        ),
        (
            keras_applications.rules,
            TINY,
            ("block_11_depthwise/kernel", "block_12_depthwise/kernel"),
        ),
        (
            keras_applications.rules,
            V3,
            (
                "expanded_conv_4_squeeze_excite_conv/kernel",
                "expanded_conv_5_squeeze_excite_conv/kernel",
            ),
        ),
        (
            official_deeplab.rules,
            V3.replace(head="deeplab_v3"),
            (
                "MobilenetV3/expanded_conv_9/project/weights",
                "MobilenetV3/expanded_conv_10/project/weights",
            ),
        ),
    ],
)
def test_two_swapped_tensors_fail_the_proof_of_every_converter(table, config, pair):
    keras.backend.clear_session()
    model, rules = build_segmentor(config), table(config)
    random = np.random.default_rng(0)
    source = {
        slot.source: random.normal(size=slot.source_shape).astype(np.float32)
        for slot in slots(model, rules)
    }
    variances = [name for name in source if name.endswith(("running_var", "moving_variance"))]
    source |= {name: np.abs(source[name]) for name in variances}
    proof = load_weights(model, source, rules)
    assert len(proof.rows) == len(source) and not proof.alike
    first, second = ([slot for slot in slots(model, rules) if slot.source == name] for name in pair)
    if not second:  # no other kernel has this shape, so its output channels are reversed
        first[0].write(np.ascontiguousarray(first[0].read()[..., ::-1]))
    else:
        one, other = first[0].read(), second[0].read()
        assert one.shape == other.shape
        first[0].write(other)
        second[0].write(one)
    with pytest.raises(RuntimeError, match="the transfer is wrong"):
        prove(model, source, rules)


def test_every_system_can_be_converted_to_sssegmentation():
    for name, config in zoo.SSSEGMENTATION.items():
        changed = config.replace(name="mine", num_classes=7, dropout_rate=0.0)
        assert convert.find_system(changed, zoo.SSSEGMENTATION, "runs/a") == name


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"output_stride": 16}, "--output_stride=8 (not 16)"),
        ({"backbone_bn_epsilon": 1e-3}, "--backbone_bn_epsilon=1e-05 (not 0.001)"),
        ({"auxiliary_head": False}, "--auxiliary_head=true (not False)"),
    ],
)
def test_a_network_that_sssegmentation_lacks_cannot_be_converted_to_it(changes, expected):
    config = zoo.get_config(FCN).replace(**changes)
    with pytest.raises(UserError) as error:
        convert.find_system(config, zoo.SSSEGMENTATION, "runs/a")
    assert (
        "runs/a" in as_command_line(error.value)
        and "fcn_mobilenetv2os8" in as_command_line(error.value)
        and expected in as_command_line(error.value)
    )


def test_an_unknown_backbone_or_source_is_refused():
    with raises_line(
        "--model_variant=mobilenet_edgetpu: for SSSegmentation's weights it must be one of "
        "mobilenet_v2"
    ):
        sssegmentation.rules(ModelConfig(backbone="mobilenet_edgetpu"))
    with raises_line("unknown --source 'sssegmentatoin'; did you mean 'sssegmentation'"):
        convert.convert("sssegmentatoin", "a.pth", zoo.get_config(FCN))


def test_classes_of_a_converted_model():
    assert convert.dataset_info(zoo.get_config("fcn_mobilenetv2os8_ade20k")).name == "ade20k"
    assert convert.dataset_info(zoo.get_config(FCN)).class_names[15] == "person"
    changed = zoo.get_config(FCN).replace(num_classes=2)
    assert convert.dataset_info(changed).class_names == ("class_0", "class_1")
    assert convert.dataset_info(changed, ("road", "other")).class_names == ("road", "other")
    with raises_line("--class_names: 3 names for --num_classes=2"):
        convert.dataset_info(changed, ("a", "b", "c"))


@pytest.mark.slow
def test_wide_and_coarse_variants_convert_too(pth):
    """The same table serves depth multipliers and output strides that the reference lacks."""
    config = zoo.get_config("deeplabv3plus_mobilenetv2os8_voc").replace(
        depth_multiplier=0.5,
        output_stride=16,
        head_channels=16,
        decoder_filters=16,
        auxiliary_channels=16,
    )
    model = build_segmentor(config)
    pth.update(dump_weights(model, sssegmentation.rules(config)))
    assert set(golden("deeplabv3plus_mobilenetv2os8_voc").tensors) == set(pth)
    keras.backend.clear_session()
    _, proof = convert.convert("sssegmentation", "a.pth", config)
    assert proof.max_difference == 0 and len(proof.rows) == 334


def test_other_files_are_not_replaced(tmp_path, capsys):
    (tmp_path / "run/best").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    for name, message in (
        ("run", "has other files than a checkpoint's (best)"),
        ("file", "is a file"),
        ("", "has other"),
    ):
        flags = [
            "--source=sssegmentation",
            "--model=lrasppnet_mobilenetv3sos8_voc",
            "--checkpoint=none.pth",
        ]
        assert script("convert_checkpoint.py")(*flags, f"--output={tmp_path / name}") == 1
        assert f"error: {tmp_path / name}: {message}" in capsys.readouterr().err
        with raises_line("give a new folder"):
            save_checkpoint(tmp_path / name, keras.Model(), TINY, VOC2012)
    assert (tmp_path / "run/best").is_dir() and (tmp_path / "file").read_text() == "mine"
    # A checkpoint, an incomplete checkpoint and an empty folder are replaced.
    for existing in ({"weights.npz", "notes.txt"}, {"config.json"}, set()):
        path = tmp_path / str(len(existing))
        path.mkdir()
        for file in existing:
            (path / file).touch()
        check_replaceable(path)


@pytest.mark.slow
def test_the_error_about_a_keras_file_of_another_network_names_the_flag(tmp_path, capsys):
    keras.applications.MobileNetV2(alpha=0.35, include_top=False, weights=None).save_weights(
        tmp_path / "other.weights.h5"
    )
    flags = [
        "--source=keras_applications",
        "--model_variant=mobilenet_v3_small",
        f"--checkpoint={tmp_path}/other.weights.h5",
    ]
    assert (
        script("convert_checkpoint.py")(*flags, "--depth_multiplier=0.75", f"--output={tmp_path}/o")
        == 1
    )
    message = (
        "error: --checkpoint=.*: not the weights of .* MobileNetV3Small at "
        "--depth_multiplier=0.75; .*\n"
    )
    assert re.fullmatch(message, capsys.readouterr().err)


def test_the_error_about_missing_imagenet_weights_lists_the_available_ones(tmp_path, capsys):
    flags = [
        "--source=keras_applications",
        "--model_variant=mobilenet_v3_small",
        "--checkpoint=imagenet",
    ]
    assert (
        script("convert_checkpoint.py")(*flags, "--depth_multiplier=0.6", f"--output={tmp_path}/o")
        == 1
    )
    message = (
        "no ImageNet weights of mobilenet_v3_small for --depth_multiplier=0.6, only for 0.75, 1.0; "
        "give one of these"
    )
    assert f"error: --checkpoint=imagenet: {message}" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused():
    config = TINY
    model = build_segmentor(config)
    table = sssegmentation.rules(config)
    tensors = dump_weights(model, table)
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)
    with raises_line(f"the file: .* values of {name} are NaN or infinite"):
        load_weights(model, tensors, table)


@pytest.mark.parametrize(
    "content", ["[]", '{"name": 3}', '{"name": "x", "class_names": 3, "palette": []}']
)
def test_damaged_classes_get_one_line(content, tmp_path):
    (tmp_path / "dataset.json").write_text(content)
    with raises_line(
        r"dataset\.json: (damaged or not the classes|.*class_names must be a list of strings)",
    ):
        read_info(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_damaged_config_gets_one_line(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with raises_line(r"config\.json: damaged or not a model's config"):
        read_config(tmp_path)


def test_the_error_about_an_unknown_network_lists_its_tensors(pth):
    pth.update(
        {
            "conv1.weight": noise(64, 3, 7, 7),
            "layer1.0.conv1.weight": noise(64, 64, 3, 3),
            "fc.bias": noise(1000),
        }
    )
    with raises_line(
        "its format is unknown, with tensors named conv1.weight, layer1.0.conv1.weight, ",
    ):
        read()
