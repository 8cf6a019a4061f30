"""Quantization-aware training: the rounding beside plain NumPy, the gradient through it, and the network that has it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import noise, ramp

from deeplab_keras.checkpoints.folder import assign_weights, load_checkpoint, named_weights, save_checkpoint
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.quantization import MOMENTUM, Quantized, round_kernel, round_within, without_ranges
from deeplab_keras.segmentor import build_segmentor

SIZE = (33, 49)
SMALL = ModelConfig(
    num_classes=4, depth_multiplier=0.35, head_channels=16, decoder_filters=16, dropout_rate=0.0, output_stride=16,
    low_level_channels=(8,), low_level_features=("c2",), backbone_bn_momentum=0.5, head_bn_momentum=0.5,
)  # fmt: skip
AWARE = SMALL.replace(quantization_aware=True)
V3 = SMALL.replace(backbone="mobilenet_v3_small", depth_multiplier=1.0, head="lraspp", low_level_features=("c2", "c1"),
                   low_level_channels=(8, 8), quantization_aware=True)  # fmt: skip


# === Rounding ===


def int8_grid(low, high):
    """The 256 values of an int8 tensor: scale and whole zero point as TFLite chooses them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = np.round(-128 - low / scale)
    return (np.arange(-128, 128) - zero) * scale


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 6.0), (-2.5, -0.5), (0.3, 0.9), (-0.1, 300.0)])
def test_values_round_to_the_nearest_of_256_and_are_cut_off(low, high):
    x = np.sort(np.random.default_rng(0).uniform(low - 1, high + 1, 4000)).astype("float32")
    found = keras.ops.convert_to_numpy(round_within(x, np.float32(low), np.float32(high)))
    grid = int8_grid(low, high)
    nearest = np.abs(x[:, None] - grid[None]).min(1)
    np.testing.assert_allclose(np.abs(found - x), nearest, atol=1e-4 * np.ptp(grid))
    assert np.abs(found[:, None] - grid[None]).min(1).max() < 1e-4 * np.ptp(grid) and len(np.unique(found)) > 100
    zero = keras.ops.convert_to_numpy(round_within(np.zeros(1, "float32"), np.float32(low), np.float32(high)))
    assert zero == 0, "padding stays exactly 0"


@pytest.mark.parametrize("depthwise, shape", [(False, (3, 3, 5, 7)), (True, (3, 3, 5, 2)), (False, (1, 1, 4, 3))])
def test_kernels_round_channel_by_channel_and_symmetrically(depthwise, shape):
    kernel = np.random.default_rng(1).normal(0, 1, shape).astype("float32")
    kernel *= np.geomspace(0.01, 100, shape[-1]).astype("float32")
    kernel[..., -1] = 0  # a dead channel stays one
    found = keras.ops.convert_to_numpy(round_kernel(kernel, depthwise))
    axes = (0, 1) if depthwise else (0, 1, 2)
    scale = np.maximum(np.abs(kernel).max(axes, keepdims=True), 1e-30) / 127
    np.testing.assert_allclose(found, np.round(kernel / scale) * scale, atol=1e-5 * np.abs(kernel).max(), rtol=1e-4)
    for channel in range(shape[-1] - 1):
        assert np.abs(found[..., channel] / kernel[..., channel] - 1).min() < 1e-3, "each channel has its own scale"


def test_batch_norm_may_be_folded_before_or_after():
    random = np.random.default_rng(2)
    kernel, factor = random.normal(0, 1, (3, 3, 4, 6)).astype("float32"), random.uniform(-2, 2, 6).astype("float32")
    before = keras.ops.convert_to_numpy(round_kernel(kernel * factor, False))
    after = keras.ops.convert_to_numpy(round_kernel(kernel, False)) * factor
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_the_gradient_passes_through_and_is_0_where_a_value_was_cut_off():
    x = tf.constant(np.linspace(-2.03, 4.05, 61).astype("float32"))
    kernel = tf.constant(np.random.default_rng(3).normal(0, 1, (3, 3, 2, 4)).astype("float32"))
    weight, kernel_weight = tf.constant(noise(61), tf.float32), tf.constant(noise(3, 3, 2, 4), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        total = tf.reduce_sum(weight * round_within(x, np.float32(-1), np.float32(3)))
        total += tf.reduce_sum(kernel_weight * round_kernel(kernel, False))
    by_x, by_kernel = tape.gradient(total, [x, kernel])
    inside = (x.numpy() > -1.01) & (x.numpy() < 3.01)
    np.testing.assert_allclose(by_x, weight.numpy() * inside)
    np.testing.assert_allclose(by_kernel, kernel_weight)


# === A layer ===


def test_ranges_follow_the_batches_in_training_alone():
    layer = Quantized(keras.layers.Add(name="sum"))
    batches = [[ramp(2, 5, 6, 3) * scale, noise(2, 5, 6, 3) - scale] for scale in (1, 7, 2)]
    layer.build([batches[0][0].shape] * 2)
    np.testing.assert_allclose(layer(batches[0], training=False), batches[0][0] + batches[0][1], rtol=1e-6)
    assert not layer.batches.numpy().any(), "until a range is known, nothing is rounded"
    lows, highs = [], []
    for batch in batches:
        layer(batch, training=True)
        lows.append([x.min() for x in batch])
        highs.append([x.max() for x in batch])
    np.testing.assert_allclose(layer.low, np.mean(lows, 0), rtol=1e-5)  # the first batches count alike
    np.testing.assert_allclose(layer.high, np.mean(highs, 0), rtol=1e-5)
    layer.batches.assign([1e6, 1e6])
    expected = MOMENTUM * np.mean(highs, 0) + (1 - MOMENTUM) * np.array(highs[0])
    layer(batches[0], training=True)
    np.testing.assert_allclose(layer.high, expected, rtol=1e-5)
    before = layer.high.numpy()
    layer(batches[1], training=False)
    np.testing.assert_array_equal(layer.high, before)


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_a_convolution_sees_rounded_inputs_and_kernels(kind):
    inner = keras.layers.DepthwiseConv2D(3, padding="same", name=kind) if kind == "depthwise" else keras.layers.Conv2D(
        4, 3, strides=2, padding="same", name=kind
    )  # fmt: skip
    layer, x = Quantized(inner), noise(2, 9, 8, 3)
    layer(x, training=True)
    inner.bias.assign(noise(*inner.bias.shape))
    found = layer(x, training=False)
    exact = keras.ops.convert_to_numpy(inner(x))
    kernel = inner.kernel.numpy()
    inner.kernel.assign(round_kernel(kernel, kind == "depthwise"))
    expected = inner(round_within(x, x.min(), x.max()))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(exact - found).max() > 1e-3, "rounding must show"
    assert layer.name == inner.name and {v.path.split("/")[-1] for v in layer.trainable_variables} == {"kernel", "bias"}


# === The network ===


@pytest.fixture(scope="module")
def trained_ranges():
    keras.utils.set_random_seed(0)
    model = build_segmentor(AWARE)
    batch = np.concatenate([noise(2, *SIZE, 3), ramp(2, *SIZE, 3)])
    for _ in range(3):
        model(batch, training=True)
    return model, batch


@pytest.mark.parametrize("config", [AWARE, V3], ids=["v2", "v3"])
def test_the_network_keeps_its_weights_names_and_nearly_its_answers(config):
    keras.utils.set_random_seed(0)
    aware, plain = build_segmentor(config), build_segmentor(config.replace(quantization_aware=False))
    weights = named_weights(plain)
    assert set(without_ranges(named_weights(aware))) == set(weights)
    assert set(named_weights(aware)) > set(weights)
    batch = np.concatenate([noise(2, *SIZE, 3), ramp(2, *SIZE, 3)])
    assign_weights(aware, {**named_weights(aware), **weights}, "test")
    for _ in range(4):
        aware(batch, training=True)
    assign_weights(plain, without_ranges(named_weights(aware)), "test")  # the statistics of batch norm went on
    found, expected = aware.predict_on_batch(batch), plain.predict_on_batch(batch)
    error = np.abs(found - expected).mean() / expected.std()
    assert 1e-4 < error < 0.3
    wrapped = {layer.name for layer in aware.layers if isinstance(layer, Quantized)}
    assert {"logits", "resized_logits", "block2_expand_conv", "block2_depthwise_conv"} <= wrapped
    assert any(name.endswith("_add") for name in wrapped)
    if config is V3:  # a fused ReLU is rounded by whoever reads it, a hard-swish reads rounded values itself
        acts = {layer.name for layer in aware.layers if isinstance(layer, keras.layers.Activation)}
        assert not acts and "last_act" in wrapped


def test_it_is_saved_and_loaded_with_its_ranges(trained_ranges, tmp_path):
    model, batch = trained_ranges
    expected = model.predict_on_batch(batch)
    save_checkpoint(tmp_path / "run", model, AWARE, info_for_classes("test", ("a", "b", "c", "d")))
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "run").model.predict_on_batch(batch), expected)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").predict_on_batch(batch), expected)


def test_training_lowers_the_loss(trained_ranges):
    model, batch = trained_ranges
    labels = (batch[..., 0] > 127).astype("int32") + 2 * (batch[..., 1] > 127)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = [float(model.train_on_batch(batch, labels)) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    ranges = [layer.high.numpy() for layer in model.layers if isinstance(layer, Quantized)]
    assert all(np.isfinite(value).all() for value in ranges)


def test_a_pyramid_is_refused():
    with pytest.raises(UserError, match="--image_pyramid=0.5,1: not together with --quantization_aware"):
        AWARE.replace(image_pyramid=(0.5, 1))
