"""The contract of backbones, heads and segmentors, for every combination and output stride."""

from __future__ import annotations

import itertools
import re

import keras
import numpy as np
import pytest
from contracts import as_command_line, noise, raises_line
from toy import toy_config

from deeplab_keras.config import CONVENTIONS, OUTPUT_STRIDES, ModelConfig, UserError
from deeplab_keras.config import backbones as config_backbones
from deeplab_keras.config import heads as config_heads
from deeplab_keras.inference import Predictor
from deeplab_keras.models.backbones import BACKBONES, build_backbone
from deeplab_keras.models.heads import HEADS
from deeplab_keras.models.segmentor import build_segmentor, check_input_size, with_auxiliary_output
from deeplab_keras.zoo import registry as zoo

pytestmark = pytest.mark.usefixtures("toy_backbone")
NARROW_OPTIONS = dict(
    depth_multiplier=0.25,
    head_channels=8,
    decoder_filters=8,
    auxiliary_channels=8,
    low_level_channels=(8,),
    num_classes=5,
    dropout_rate=0.0,
)
NARROW = ModelConfig(**NARROW_OPTIONS)
TOY = toy_config(**NARROW_OPTIONS)
CHANNELS = {
    "mobilenet_v2": (16, 24, 32, 96, 320),
    "mobilenet_v3_large": (16, 24, 40, 112, 960),
    "mobilenet_v3_small": (16, 16, 24, 48, 576),
    "mobilenet_v3_large_seg": (16, 24, 40, 112, 480),
    "mobilenet_v3_small_seg": (16, 16, 24, 48, 288),
    "mobilenet_edgetpu": (16, 32, 48, 96, 1280),
}


def ceil_divide(length: int, stride: int) -> int:
    return -(-length // stride)


def contract(config: ModelConfig, size: tuple[int, int]) -> None:
    """Checks the names, shapes and dtype of a segmentor, and that its output is not constant."""
    model = build_segmentor(config)
    image = noise(2, *size, config.input_channels)
    logits = model(image, training=False)
    assert logits.shape == (2, *size, config.num_classes) and logits.dtype == "float32"
    assert np.isfinite(logits).all()
    before = keras.Model(model.input, model.get_layer("logits").output)(image)
    assert before.shape[-1] == config.num_classes
    fixed = build_segmentor(config, size, batch_size=2)
    assert [v.path for v in fixed.weights] == [v.path for v in model.weights]
    fixed.set_weights(model.get_weights())
    np.testing.assert_allclose(fixed(image), logits, atol=1e-4)
    assert np.std(logits, axis=(0, 1, 2)).min() > 0


@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_features_have_the_contracts_strides(backbone: str, output_stride: int) -> None:
    config = NARROW.replace(backbone=backbone, output_stride=output_stride, padding="symmetric")
    height, width = (64, 131) if output_stride == 16 else (65, 98)  # odd and even, both ways
    features = build_backbone(keras.Input((height, width, 3)), config)
    for level in range(1, 6):
        stride = min(2**level, output_stride)
        expected = (ceil_divide(height, stride), ceil_divide(width, stride))
        assert features[f"c{level}"].shape[1:3] == expected, (backbone, level)


def test_parts_are_registered_with_their_options_and_with_their_layers() -> None:
    assert set(config_backbones.BACKBONES) == set(BACKBONES), (
        "config/backbones.py and models/backbones/__init__.py must have the same names"
    )
    assert set(config_heads.HEADS) == set(HEADS), (
        "config/heads.py and models/heads/__init__.py must have the same names"
    )
    assert {*CHANNELS, "toy"} == set(BACKBONES), "CHANNELS must have every backbone"


def test_a_head_that_reads_features_that_the_backbone_does_not_have(monkeypatch) -> None:
    monkeypatch.setitem(HEADS, "fcn", lambda features, config: features["c9"])
    with raises_line(
        "the backbone toy has no features 'c9', which the head reads; it has c1, stem, c2"
    ):
        build_segmentor(TOY.replace(head="fcn"))


@pytest.mark.parametrize("backbone", CHANNELS)
def test_features_have_the_papers_channels(backbone: str) -> None:
    features = build_backbone(keras.Input((None, None, 3)), ModelConfig(backbone=backbone))
    assert tuple(features[f"c{i}"].shape[-1] for i in range(1, 6)) == CHANNELS[backbone]


@pytest.mark.parametrize(
    ("head", "output_stride", "size"),
    [
        (h, s, z)
        for (h, s), z in zip(
            itertools.product(HEADS, OUTPUT_STRIDES),
            itertools.cycle([(65, 97), (64, 96), (70, 51), (33, 128)]),
        )
    ],
)
def test_every_head_keeps_the_contract(
    head: str, output_stride: int, size: tuple[int, int]
) -> None:
    """With a backbone of five convolutions. The golden tests and the slow lane use the others."""
    contract(
        TOY.replace(head=head, output_stride=output_stride, auxiliary_head=head == "fcn"), size
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head", "output_stride"), list(itertools.product(BACKBONES, HEADS, OUTPUT_STRIDES))
)
def test_every_backbone_with_every_head(backbone: str, head: str, output_stride: int) -> None:
    conventions = CONVENTIONS["sssegmentation_v3" if "v3" in backbone else "sssegmentation_v2"]
    for size in ((65, 97), (64, 96)):
        contract(
            NARROW.replace(
                backbone=backbone, head=head, output_stride=output_stride, conventions=conventions
            ),
            size,
        )


@pytest.mark.parametrize(
    ("backbone", "channels"), [(name, 1 + 3 * (place % 2)) for place, name in enumerate(BACKBONES)]
)
def test_any_number_of_input_channels(backbone: str, channels: int) -> None:
    config = NARROW.replace(
        backbone=backbone, input_channels=channels, normalization="unit_range", output_stride=32
    )
    image = keras.Input((64, 65, channels))
    model = keras.Model(image, build_backbone(image, config)["c5"])
    x = noise(1, 64, 65, channels) / 255
    plain = np.asarray(model(x))
    assert plain.shape[1:3] == (2, 3)
    for channel in range(channels):  # each channel affects the result
        changed = x.copy()
        changed[..., channel] = 1 - changed[..., channel]
        assert np.abs(np.asarray(model(changed)) - plain).max() > 1e-4 * np.abs(plain).max()


@pytest.mark.parametrize(
    "name", ["deeplabv3plus_mobilenetv2os8_voc", "lrasppnet_mobilenetv3sos8_voc"]
)
def test_the_initial_weights_are_those_of_pytorch(name: str) -> None:
    """Kernels and biases are uniform in ±1 / sqrt(fan-in), batch norm is the identity.

    See docs/reference/sssegmentation.md#head-initialization.
    """
    keras.utils.set_random_seed(0)
    model = build_segmentor(zoo.get_config(name))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            values = [float(np.ptp(weight)) + float(weight[0]) for weight in layer.weights]
            assert values == [1, 0, 0, 1], (
                layer.name
            )  # gamma, beta, mean, variance, equal for all channels
        for weight in (
            layer.weights
            if isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))
            else ()
        ):
            shape = layer.kernel.shape
            limit = (
                np.prod(shape[:2] if isinstance(layer, keras.layers.DepthwiseConv2D) else shape[:3])
                ** -0.5
            )
            values = keras.ops.convert_to_numpy(weight)
            assert np.abs(values).max() <= limit * (1 + 1e-6), weight.path
            if values.size > 500:
                assert np.std(values) == pytest.approx(limit / 3**0.5, rel=0.1), weight.path
                assert np.abs(values).max() > 0.95 * limit, weight.path


def test_dropout_drops_whole_channels() -> None:
    model = build_segmentor(
        zoo.get_config("fcn_mobilenetv2os8_voc").replace(head_channels=64, auxiliary_channels=64)
    )
    for name in ("logits_dropout", "auxiliary_logits_dropout"):
        layer = model.get_layer(name)
        assert layer.rate == 0.1
        dropped = np.asarray(layer(np.ones((8, 3, 4, 64), np.float32), training=True))
        assert np.ptp(dropped, axis=(1, 2)).max() == 0, name
        assert 0.02 < np.mean(dropped == 0) < 0.25 and dropped.max() == pytest.approx(1 / 0.9)


@pytest.mark.slow
def test_every_second_pixel_of_stride_8_is_stride_16() -> None:
    # With dilation after the block that loses its stride, and with odd sizes, where all padding is
    # symmetric, both compute the same sums ("algorithme à trous"). Squeeze-and-excite is left out,
    # because it would average over different pixels.
    config = ModelConfig(depth_multiplier=0.35, dilation_placement="after", padding="same")
    image = keras.Input((129, 97, 3))
    models = {
        s: keras.Model(image, build_backbone(image, config.replace(output_stride=s))["c5"])
        for s in OUTPUT_STRIDES
    }
    for model in models.values():
        model.set_weights(models[32].get_weights())
    x = noise(1, 129, 97, 3) / 127.5 - 1
    dense, middle, coarse = (np.asarray(models[s](x)) for s in OUTPUT_STRIDES)
    assert np.std(coarse) > 0
    np.testing.assert_allclose(dense[:, ::2, ::2], middle, atol=1e-4 * np.std(coarse))
    np.testing.assert_allclose(middle[:, ::2, ::2], coarse, atol=1e-4 * np.std(coarse))


def test_the_training_view_shares_weights_and_adds_the_auxiliary_output() -> None:
    model = build_segmentor(TOY.replace(head="fcn", auxiliary_head=True, output_stride=32))
    view = with_auxiliary_output(model)
    image = noise(1, 64, 70, 3)
    outputs = view(image)
    assert set(outputs) == {"logits", "auxiliary_logits"}
    assert outputs["auxiliary_logits"].shape == (1, 64, 70, 5)
    np.testing.assert_allclose(outputs["logits"], model(image), atol=1e-5)
    assert {id(v) for v in view.weights} == {id(v) for v in model.weights}


def test_uint8_images_give_the_same_logits() -> None:
    model = build_segmentor(TOY.replace(head="fcn", output_stride=32))
    image = noise(1, 64, 64, 3).astype(np.uint8)
    np.testing.assert_allclose(
        model.predict(image, verbose=0),
        model.predict(image.astype(np.float32), verbose=0),
        atol=1e-5,
    )


def test_mixed_precision_keeps_logits_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_segmentor(TOY.replace(output_stride=32))
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("logits").compute_dtype == "float32"
    assert model.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert model(noise(1, 64, 64, 3)).dtype == "float32"


def test_an_input_below_the_pooling_window_names_the_smallest_size() -> None:
    config = ModelConfig(head="lraspp", low_level_channels=(), image_pooling_size=(49, 49))
    check_input_size(config, 385, 385)
    with raises_line(
        "384x500 is too small .* the smallest is 385x385; .*--image_pooling_size=48,63",
    ):
        build_segmentor(config, (384, 500))


@pytest.mark.parametrize("how", ["call", "predict", "Predictor"])
def test_a_model_for_any_size_refuses_an_image_below_the_window(how: str) -> None:
    config = TOY.replace(
        head="lraspp", low_level_channels=(), image_pooling_size=(4, 5), output_stride=32
    )
    model = build_segmentor(config)
    calls = {
        "call": model,
        "predict": model.predict,
        "Predictor": lambda image: Predictor(model)(image[0]),
    }
    with pytest.raises(UserError) as error:
        calls[how](noise(1, 96, 160, 3))
    assert np.isfinite(calls[how](noise(1, 97, 129, 3))).all()
    assert re.fullmatch(
        r"input size 96x160 is too small for --image_pooling_size=4,5 at --output_stride=32: the "
        r"smallest is 97x129; "
        r"use a larger size, --image_pooling_size=3,5, or --image_pooling_size= \(empty\) for "
        r"global pooling",
        as_command_line(error.value),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "mobilenet_v4"}, "unknown --model_variant .*mobilenet_v2"),
        ({"head": "deeplabv3"}, "did you mean 'deeplab_v3'"),
        (
            {"low_level_features": ("c9",)},
            "--low_level_features must be features of mobilenet_v2: c1, .* Received: "
            "--low_level_features=c9",
        ),
    ],
)
def test_unknown_parts_are_named(changes: dict[str, object], message: str) -> None:
    with raises_line(message):
        build_segmentor(NARROW.replace(**changes))


@pytest.mark.parametrize("size", [513, (0, 5), (65,), (33, None)])
def test_an_invalid_input_size_is_refused(size: object) -> None:
    with raises_line(r"input_size must be \(height, width\), .* Received: input_size="):
        build_segmentor(NARROW, size)


def test_a_name_instead_of_a_config_is_refused() -> None:
    with raises_line(
        r"config must be a ModelConfig. Received: config='fcn_mobilenetv2os8_voc'; "
        r"use get_config\(NAME\)"
    ):
        build_segmentor("fcn_mobilenetv2os8_voc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_stride": 4}, "--output_stride must be 8, 16 or 32. Received: --output_stride=4"),
        ({"num_classes": 0}, "--num_classes=0"),
        ({"padding": "valid"}, "unknown --padding 'valid'"),
        ({"input_channels": 1}, "--normalization=unit_range"),
        ({"colour": 1}, "unknown ModelConfig field 'colour'"),
    ],
)
def test_invalid_configs_are_refused(changes: dict[str, object], message: str) -> None:
    with raises_line(message):
        NARROW.replace(**changes)


def test_a_config_survives_json() -> None:
    assert ModelConfig.from_json(NARROW.to_json()) == NARROW
