"""Official DeepLab networks: outputs of the official TF1 graphs, and small golden cases."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from contracts import as_command_line, raises_line
from official_golden import (
    GOLDEN,
    LOCAL,
    MODELS,
    SMALL,
    golden_config,
    manifest,
    merged_logits,
    small_case,
)

from deeplab_keras.config import EvalConfig
from deeplab_keras.convert.official_deeplab import load_official
from deeplab_keras.convert.official_files import read_source
from deeplab_keras.inference import Predictor
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor, with_auxiliary_output
from deeplab_keras.zoo.official import OFFICIAL, OFFICIAL_MIOU, RELEASES, official_config

TOLERANCE = 3e-4  # of a tensor's standard deviation


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std())


def block_output(model: keras.Model, block: int) -> str:
    names = {layer.name for layer in model.layers}
    return f"block{block}_add" if f"block{block}_add" in names else f"block{block}_project_bn"


@pytest.mark.shared
@pytest.mark.parametrize("name", MODELS)
def test_the_official_graph_s_outputs(name):
    told, config = manifest(name), golden_config(name)
    model = build_segmentor(config, tuple(told["crop_size"]))
    load_official(model, config, read_source(GOLDEN / name).tensors, origin=name)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == told["n_params"]
    lraspp = config.head == "lraspp"
    blocks = (
        17
        if config.backbone == "mobilenet_v2"
        else {"mobilenet_v3_large_seg": 15, "mobilenet_v3_small_seg": 11}[config.backbone]
    )
    layers = {
        f"mean_layer_{block + 1}": block_output(model, block) for block in range(1, blocks + 1)
    }
    layers |= {
        "mean_layer_1": "stem_act",
        "backbone": "last_act" if lraspp else layers["mean_layer_18"],
        "aspp_out": "gate_multiply" if lraspp else "aspp_project_act",
        "merged_logits": "logits",
    }
    outputs = {key: model.get_layer(layer).output for key, layer in layers.items()} | {
        "final": model.output
    }
    with np.load(GOLDEN / name / "golden.npz") as golden:
        found = keras.Model(model.input, outputs).predict(
            golden["image"].astype(np.float32), verbose=0
        )
        for key in layers:  # in this order: the first layer that is off is where an error starts
            value = found[key].mean((1, 2)) if key.startswith("mean_") else found[key]
            assert error(value, golden[key]) < TOLERANCE, key
        assert np.mean(found["final"].argmax(-1) == golden["pred_upsampled_logits_argmax"]) >= 0.999
        probabilities = golden["pred_upsampled_logits_prob_every16"]
        # The probabilities of the two large images are stored in half precision, whose last digit
        # is 2^-11.
        atol = 2**-11 if np.array_equal(probabilities, probabilities.astype(np.float16)) else 1e-4
        np.testing.assert_allclose(
            softmax(found["final"])[:, ::16, ::16], probabilities, rtol=0, atol=atol
        )
    keras.backend.clear_session()


@pytest.mark.shared
@pytest.mark.slow  # .ci/run has it too
@pytest.mark.parametrize(
    "scales, method, keys",
    [
        (
            (0.5, 1.0, 1.5),
            "max",
            {f"logits_{s}": f"pyramid_max_logits_{s}" for s in ("0.50", "1.00", "1.50")}
            | {"merged_logits": "pyramid_max_merged_logits"},
        ),
        ((0.5, 1.0), "avg", {"merged_logits": "pyramid_avg_merged"}),
    ],
)
def test_the_official_image_pyramid(scales, method, keys):
    config = golden_config("mnv2_dm10_os16").replace(image_pyramid=scales, merge_method=method)
    model = build_segmentor(config, (257, 257))
    load_official(model, config, read_source(GOLDEN / "mnv2_dm10_os16").tensors, origin="golden")
    outputs = {key: model.get_layer(key).output for key in keys}
    with np.load(GOLDEN / "mnv2_dm10_os16" / "golden.npz") as golden:
        found = keras.Model(model.input, outputs).predict(
            golden["image"].astype(np.float32), verbose=0
        )
        for key, expected in keys.items():
            assert error(found[key], golden[expected]) < TOLERANCE, key


@pytest.mark.shared
def test_official_multi_scale_and_flip():
    config = golden_config("mnv2_dm10_os16")
    model = build_segmentor(config)
    load_official(model, config, read_source(GOLDEN / "mnv2_dm10_os16").tensors, origin="golden")
    evaluation = EvalConfig(
        inference="official",
        eval_crop_size=(257, 257),
        eval_scales=(0.5, 1.0, 1.25),
        add_flipped_images=True,
    )
    predictor = Predictor(model, evaluation)
    with np.load(GOLDEN / "mnv2_dm10_os16" / "golden.npz") as golden:
        image = golden["image"][0]
        assert np.mean(predictor(image) == golden["ms_flip_argmax"][0]) >= 0.999
        found = predictor.probabilities(image)[None, ::16, ::16]
        np.testing.assert_allclose(found, golden["ms_flip_prob_every16"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_are_still_what_was_right(name):
    model, _, images = small_case(name)
    with np.load(LOCAL / "networks.npz") as golden:
        assert error(merged_logits(model, images), golden[name]) < TOLERANCE
    keras.backend.clear_session()


def test_every_scale_of_a_pyramid_has_its_own_loss():
    config = SMALL["mnv2_dm05_os16"][0].replace(image_pyramid=(0.5, 1.0))
    outputs = with_auxiliary_output(build_segmentor(config, (64, 49))).output
    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {
        name: (None, 64, 49, 5) for name in ("logits", "logits_0.50", "logits_1.00")
    }


# depth multiplier -> trainable parameters of the default network with 21 classes
# (docs/reference/official_deeplab.md#depth-multiplier)
@pytest.mark.parametrize("multiplier, parameters", [(0.35, 440913), (1.4, 3873617)])
def test_parameters_at_every_depth_multiplier(multiplier, parameters):
    model = build_segmentor(official_config(depth_multiplier=multiplier), (33, 33))
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == parameters


# Multiply-adds in billions from the zoo's table. It excludes TF1's padding around dilated
# convolutions, at most 0.6 %.
@pytest.mark.parametrize(
    "name, size, reported",
    [
        ("deeplabv3_mnv2_dm05_pascal_trainval", (513, 513), 2.826),
        ("deeplabv3_mnv2_ade20k_train", (257, 257), 1.539),
        ("deeplab_mnv3_small_cityscapes_trainfine", (769, 769), 0.561),
    ],
)
def test_multiply_adds_of_released_models(name, size, reported):
    assert count_multiply_adds(build_segmentor(OFFICIAL[name], size)) / 1e9 == pytest.approx(
        reported, rel=6e-3
    )


def test_edgetpu_costs_what_slim_reports():
    # slim's README: 990 million multiply-adds at 224x224 and 4.0 million parameters, including
    # the classifier.
    config = official_config("mobilenet_edgetpu", output_stride=32)
    model = build_segmentor(config, (224, 224))
    backbone = [layer for layer in model.layers if layer.name.startswith(("stem", "block", "last"))]
    parameters = sum(int(np.prod(v.shape)) for layer in backbone for v in layer.trainable_variables)
    assert parameters + 1280 * 1001 + 1001 == pytest.approx(4.0e6, rel=0.03)
    part = keras.Model(model.input, model.get_layer("last_act").output)
    assert count_multiply_adds(part) == pytest.approx(990e6, rel=0.03)
    assert model.get_layer("block14_project_bn").output.shape[-1] == 96
    assert "block14_add" not in [layer.name for layer in model.layers], "layer 15 has no residual"


def test_releases_are_complete():
    assert set(OFFICIAL_MIOU) == set(OFFICIAL) == set(RELEASES)
    for name, release in RELEASES.items():
        assert release.file.startswith(f"{name}_20") and release.url.endswith(release.file)
        head = (
            "lraspp" if "mnv3" in name else "deeplab_v3_plus" if "ade20k" in name else "deeplab_v3"
        )
        assert release.config.head == head


@pytest.mark.parametrize(
    "flags, message",
    [
        (dict(model_variant="xception_65"), "unknown --model_variant"),
        (
            dict(decoder_output_stride=(2,)),
            "--decoder_output_stride=2: for mobilenet_v2 it must be one of 4, 8, 16",
        ),
        (dict(model_variant="mobilenet_edgetpu", decoder_output_stride=(4,)), "no decoder"),
        (dict(aspp_with_squeeze_and_excitation=True), "LR-ASPP"),
        (dict(decoder_output_is_logits=True), "requires --aspp_with_squeeze_and_excitation"),
        (dict(logits_kernel_size=3), "--logits_kernel_size=3"),
        (dict(output_stride=4), "--output_stride=4"),
    ],
)
def test_flags_that_build_no_official_network(flags, message):
    with raises_line(message) as caught:
        official_config(**flags)
    assert "\n" not in as_command_line(caught.value)
