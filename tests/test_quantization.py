"""Quantization-aware training: the rounding compared with NumPy, its gradient, and networks."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import noise, raises_line, ramp

from deeplab_keras.checkpoints.folder import (
    assign_weights,
    load_checkpoint,
    named_weights,
    save_checkpoint,
)
from deeplab_keras.config import ModelConfig
from deeplab_keras.convert.initial import initialize
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.models.layers import BatchNormalization, Conv2D, Normalize, ResizeTo
from deeplab_keras.models.quantization import (
    MOMENTUM,
    Quantized,
    quantized,
    round_kernel,
    round_within,
    without_ranges,
)
from deeplab_keras.models.segmentor import build_segmentor

SIZE = (33, 49)
SMALL = ModelConfig(
    num_classes=4,
    depth_multiplier=0.35,
    head_channels=16,
    decoder_filters=16,
    dropout_rate=0.0,
    output_stride=16,
    low_level_channels=(8,),
    low_level_features=("c2",),
    backbone_bn_momentum=0.5,
    head_bn_momentum=0.5,
)
AWARE = SMALL.replace(quantization_aware=True)


# === Rounding ===


def int8_grid(low, high):
    """The 256 values of an int8 tensor, with TFLite's scale and integer zero point."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = np.round(-128 - low / scale)
    return (np.arange(-128, 128) - zero) * scale


@pytest.mark.parametrize(
    "low, high", [(-1.0, 3.0), (0.0, 6.0), (-2.5, -0.5), (0.3, 0.9), (-0.1, 300.0)]
)
def test_values_round_to_the_nearest_of_256_and_are_clipped(low, high):
    x = np.sort(np.random.default_rng(0).uniform(low - 1, high + 1, 4000)).astype("float32")
    found = keras.ops.convert_to_numpy(round_within(x, np.float32(low), np.float32(high)))
    grid = int8_grid(low, high)
    nearest = np.abs(x[:, None] - grid[None]).min(1)
    np.testing.assert_allclose(np.abs(found - x), nearest, atol=1e-4 * np.ptp(grid))
    assert (
        np.abs(found[:, None] - grid[None]).min(1).max() < 1e-4 * np.ptp(grid)
        and len(np.unique(found)) > 100
    )
    zero = keras.ops.convert_to_numpy(
        round_within(np.zeros(1, "float32"), np.float32(low), np.float32(high))
    )
    assert zero == 0, "padding must stay exactly 0"


@pytest.mark.parametrize(
    "depthwise, shape", [(False, (3, 3, 5, 7)), (True, (3, 3, 5, 2)), (False, (1, 1, 4, 3))]
)
def test_kernels_round_channel_by_channel_and_symmetrically(depthwise, shape):
    kernel = np.random.default_rng(1).normal(0, 1, shape).astype("float32")
    kernel *= np.geomspace(0.01, 100, shape[-1]).astype("float32")
    kernel[..., -1] = 0  # a channel of zeros stays 0
    found = keras.ops.convert_to_numpy(round_kernel(kernel, depthwise))
    axes = (0, 1) if depthwise else (0, 1, 2)
    scale = np.maximum(np.abs(kernel).max(axes, keepdims=True), 1e-30) / 127
    np.testing.assert_allclose(
        found, np.round(kernel / scale) * scale, atol=1e-5 * np.abs(kernel).max(), rtol=1e-4
    )
    for channel in range(shape[-1] - 1):
        assert np.abs(found[..., channel] / kernel[..., channel] - 1).min() < 1e-3, (
            "each channel has its own scale"
        )


def test_batch_norm_may_be_folded_before_or_after():
    random = np.random.default_rng(2)
    kernel, factor = (
        random.normal(0, 1, (3, 3, 4, 6)).astype("float32"),
        random.uniform(-2, 2, 6).astype("float32"),
    )
    before = keras.ops.convert_to_numpy(round_kernel(kernel * factor, False))
    after = keras.ops.convert_to_numpy(round_kernel(kernel, False)) * factor
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_the_gradient_passes_through_and_is_0_where_a_value_was_clipped():
    x = tf.constant(np.linspace(-2.03, 4.05, 61).astype("float32"))
    kernel = tf.constant(np.random.default_rng(3).normal(0, 1, (3, 3, 2, 4)).astype("float32"))
    weight, kernel_weight = (
        tf.constant(noise(61), tf.float32),
        tf.constant(noise(3, 3, 2, 4), tf.float32),
    )
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        total = tf.reduce_sum(weight * round_within(x, np.float32(-1), np.float32(3)))
        total += tf.reduce_sum(kernel_weight * round_kernel(kernel, False))
    by_x, by_kernel = tape.gradient(total, [x, kernel])
    inside = (x.numpy() > -1.01) & (x.numpy() < 3.01)
    np.testing.assert_allclose(by_x, weight.numpy() * inside)
    np.testing.assert_allclose(by_kernel, kernel_weight)


# === A layer ===


def test_ranges_follow_the_batches_in_training_only():
    layer = Quantized(keras.layers.Add(name="sum"))
    batches = [[ramp(2, 5, 6, 3) * scale, noise(2, 5, 6, 3) - scale] for scale in (1, 7, 2)]
    layer.build([batches[0][0].shape] * 2)
    np.testing.assert_allclose(
        layer(batches[0], training=False), batches[0][0] + batches[0][1], rtol=1e-6
    )
    assert not layer.batches.numpy().any(), "without a range, nothing is rounded"
    lows, highs = [], []
    for batch in batches:
        layer(batch, training=True)
        lows.append([x.min() for x in batch])
        highs.append([x.max() for x in batch])
    np.testing.assert_allclose(
        layer.low, np.mean(lows, 0), rtol=1e-5
    )  # the first batches have equal weights
    np.testing.assert_allclose(layer.high, np.mean(highs, 0), rtol=1e-5)
    layer.batches.assign([1e6, 1e6])
    expected = MOMENTUM * np.mean(highs, 0) + (1 - MOMENTUM) * np.array(highs[0])
    layer(batches[0], training=True)
    np.testing.assert_allclose(layer.high, expected, rtol=1e-5)
    before = layer.high.numpy()
    layer(batches[1], training=False)
    np.testing.assert_array_equal(layer.high, before)


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_a_convolution_computes_with_rounded_inputs_and_kernels(kind):
    inner = (
        keras.layers.DepthwiseConv2D(3, padding="same", name=kind)
        if kind == "depthwise"
        else keras.layers.Conv2D(4, 3, strides=2, padding="same", name=kind)
    )
    layer, x = Quantized(inner), noise(2, 9, 8, 3)
    layer(x, training=True)
    inner.bias.assign(noise(*inner.bias.shape))
    found = layer(x, training=False)
    exact = keras.ops.convert_to_numpy(inner(x))
    kernel = inner.kernel.numpy()
    inner.kernel.assign(round_kernel(kernel, kind == "depthwise"))
    expected = inner(round_within(x, x.min(), x.max()))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(exact - found).max() > 1e-3, "rounding must have an effect"
    assert layer.name == inner.name and {
        v.path.split("/")[-1] for v in layer.trainable_variables
    } == {"kernel", "bias"}


# === The network ===


def small(channels=8):
    """A network with each kind of layer: convolution, batch norm, residual, hard-swish, resize."""
    image = keras.Input((*SIZE, 3), name="image")
    x = y = Normalize((127.5,), (127.5,), name="normalize")(image)
    for name, layer in (
        (
            "stem_conv",
            Conv2D(channels, 3, strides=2, padding="same", use_bias=False, name="stem_conv"),
        ),
        (
            "depthwise_conv",
            keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise_conv"),
        ),
    ):
        y = x
        x = BatchNormalization(momentum=0.5, name=f"{name}_bn")(layer(x))
        x = (
            keras.layers.ReLU(6, name="relu")(x)
            if name == "stem_conv"
            else keras.layers.Activation("hard_silu", name="swish")(x)
        )
    x = keras.layers.Add(name="block_add")([x, y])
    x = Conv2D(4, 1, name="logits")(x)
    return keras.Model(image, ResizeTo(name="resized_logits")([x, image]), name="small")


@pytest.fixture(scope="module")
def trained_ranges():
    keras.utils.set_random_seed(0)
    plain = small()
    model = quantized(plain)
    assign_weights(model, {**named_weights(model), **named_weights(plain)}, "test")
    batch = np.concatenate([noise(2, *SIZE, 3), ramp(2, *SIZE, 3)])
    for _ in range(4):
        model(batch, training=True)
    return model, plain, batch


def test_the_network_keeps_its_layer_names_and_almost_its_outputs(trained_ranges):
    model, plain, batch = trained_ranges
    assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers]
    # It raises an error if the names differ.
    assign_weights(plain, without_ranges(named_weights(model)), "test")
    found, expected = model.predict_on_batch(batch), plain.predict_on_batch(batch)
    error = np.abs(found - expected).mean() / expected.std()
    assert 1e-4 < error < 0.05
    wrapped = {layer.name for layer in model.layers if isinstance(layer, Quantized)}
    assert wrapped == {
        "stem_conv",
        "depthwise_conv",
        "swish",
        "block_add",
        "logits",
        "resized_logits",
    }, "a fused ReLU must not be quantized"


def test_saving_and_loading_keeps_the_ranges(trained_ranges, tmp_path):
    model, _, batch = trained_ranges
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(batch), model.predict_on_batch(batch))
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in loaded.layers)


@pytest.mark.slow
def test_training_lowers_the_loss(trained_ranges):
    model, _, batch = trained_ranges
    labels = (batch[..., 0] > 127).astype("int32") + 2 * (batch[..., 1] > 127)
    model.compile(
        keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    losses = [float(model.train_on_batch(batch, labels)) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_checkpoint_has_the_ranges_and_can_start_from_one_without(tmp_path):
    info = info_for_classes("test", ("a", "b", "c", "d"))
    plain, aware = build_segmentor(SMALL), build_segmentor(AWARE)
    save_checkpoint(tmp_path / "plain", plain, SMALL, info)
    initialize(aware, AWARE, str(tmp_path / "plain"))
    np.testing.assert_array_equal(
        aware.get_layer("logits").layer.kernel, plain.get_layer("logits").kernel
    )
    batch = np.concatenate([noise(1, *SIZE, 3), ramp(1, *SIZE, 3)])
    aware(batch, training=True)
    save_checkpoint(tmp_path / "aware", aware, AWARE, info)
    again = load_checkpoint(tmp_path / "aware").model
    np.testing.assert_array_equal(again.predict_on_batch(batch), aware.predict_on_batch(batch))
    assert again.get_layer("logits").high.numpy() > 0
    initialize(plain, SMALL, str(tmp_path / "aware"))  # the other direction
    np.testing.assert_array_equal(
        plain.get_layer("stem_bn").moving_mean, aware.get_layer("stem_bn").moving_mean
    )


def test_a_pyramid_is_refused():
    with raises_line(
        "--image_pyramid cannot be combined with --quantization_aware. Received: "
        "--image_pyramid=0.5,1"
    ):
        AWARE.replace(image_pyramid=(0.5, 1))
