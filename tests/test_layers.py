"""Layers that Keras lacks or that differ from Keras', compared with their definition in NumPy."""

from __future__ import annotations

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import ROOT, noise

from deeplab_keras.models import layers
from deeplab_keras.models.blocks import make_divisible
from deeplab_keras.models.layers import (
    AdaptiveAveragePooling,
    BatchNormalization,
    Conv2D,
    DepthwiseConv2D,
    Normalize,
    ResizeTo,
    q_sigmoid,
)


def resize_oracle(x: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Bilinear interpolation of `[h, w]` by its formula."""
    axes = []
    for length, target in zip(x.shape, size, strict=True):
        if align_corners:
            positions = np.arange(target) * ((length - 1) / max(target - 1, 1))
        else:
            positions = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
        axes.append(positions)
    rows, columns = (
        np.minimum(np.floor(p).astype(int), n - 1) for p, n in zip(axes, x.shape, strict=True)
    )
    down, right = (np.minimum(i + 1, n - 1) for i, n in zip((rows, columns), x.shape, strict=True))
    fy, fx = (axes[0] - rows)[:, None], axes[1] - columns
    top = x[rows][:, columns] * (1 - fx) + x[rows][:, right] * fx
    bottom = x[down][:, columns] * (1 - fx) + x[down][:, right] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(9, 14), (3, 4), (5, 7), (1, 1), (23, 5)])
def test_resize_equals_the_formula_for_static_and_dynamic_sizes(
    size: tuple[int, int], align_corners: bool
) -> None:
    x = noise(1, 5, 7, 2)
    expected = np.stack(
        [resize_oracle(x[0, ..., c], size, align_corners) for c in range(2)], axis=-1
    )
    layer = ResizeTo(align_corners)
    reference = np.zeros((1, *size, 1), np.float32)
    np.testing.assert_allclose(layer([x, reference])[0], expected, atol=1e-3)
    dynamic = tf.function(
        lambda a, b: layer([a, b]),
        input_signature=[tf.TensorSpec([None, None, None, c]) for c in (2, 1)],
    )
    np.testing.assert_allclose(dynamic(x, reference)[0], expected, atol=1e-3)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(9, 14), (3, 4), (1, 1)])
def test_double_precision_is_kept(size: tuple[int, int], align_corners: bool) -> None:
    """TensorFlow's resize would round to float32."""
    x = noise(1, 5, 7, 2).astype(np.float64) / 3
    expected = np.stack(
        [resize_oracle(x[0, ..., c], size, align_corners) for c in range(2)], axis=-1
    )
    layer = ResizeTo(align_corners, dtype="float64")
    np.testing.assert_allclose(layer([x, np.zeros((1, *size, 1))])[0], expected, rtol=1e-13)
    signature = [tf.TensorSpec([None, None, None, c], tf.float64) for c in (2, 1)]
    dynamic = tf.function(lambda a, b: layer([a, b]), input_signature=signature)
    np.testing.assert_allclose(dynamic(x, np.zeros((1, *size, 1)))[0], expected, rtol=1e-13)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(6, 6), (7, 13), (17, 25), (3, 5)])
def test_adaptive_pooling_averages_overlapping_bins(bins: int, size: tuple[int, int]) -> None:
    x = noise(2, *size, 3)

    def edges(length: int) -> list[tuple[int, int]]:
        return [(i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)]

    expected = [[x[:, a:b, c:d].mean((1, 2)) for c, d in edges(size[1])] for a, b in edges(size[0])]
    np.testing.assert_allclose(
        AdaptiveAveragePooling(bins)(x), np.moveaxis(np.array(expected), 2, 0), rtol=1e-5
    )


@pytest.mark.parametrize("synchronized", [False, True])
@pytest.mark.parametrize("fused", [True, False])
def test_batch_norm_normalizes_with_the_biased_and_averages_the_unbiased_variance(
    synchronized: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fused:
        monkeypatch.setattr(BatchNormalization, "_can_fuse", lambda self: False)
    x = noise(2, 3, 2, 4) / 50
    layer = BatchNormalization(momentum=0.9, epsilon=1e-3, synchronized=synchronized)
    layer.build(x.shape)
    layer.gamma.assign([1.0, 2.0, 0.5, 1.5])
    layer.beta.assign([0.0, -1.0, 1.0, 0.5])
    mean, biased = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(biased + 1e-3) * layer.gamma.numpy() + layer.beta.numpy()
    np.testing.assert_allclose(layer(x, training=True), expected, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * biased * 12 / 11, rtol=1e-5)


def test_batch_norm_of_one_value_per_channel_is_finite() -> None:
    layer = BatchNormalization()
    layer(noise(1, 1, 1, 3), training=True)
    assert np.isfinite(layer.moving_variance).all()


def test_batch_norm_gradients_equal_those_of_keras() -> None:
    x, weight = tf.constant(noise(2, 5, 4, 3)), tf.constant(noise(2, 5, 4, 3, seed=1))
    gradients = []
    for layer in (BatchNormalization(epsilon=1e-3), keras.layers.BatchNormalization(epsilon=1e-3)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * weight)
        gradients.append(tape.gradient(loss, [x, *[v.value for v in layer.trainable_variables]]))
    for ours, keras_own in zip(*gradients, strict=True):
        np.testing.assert_allclose(
            ours, keras_own, rtol=1e-3, atol=1e-3 * float(tf.reduce_max(tf.abs(keras_own)))
        )


def test_frozen_statistics_do_not_change_while_gamma_and_beta_are_trained() -> None:
    layer, x = BatchNormalization(freeze_statistics=True), noise(2, 3, 3, 4)
    with tf.GradientTape() as tape:
        output = layer(x, training=True)
        loss = tf.reduce_sum(output**2)
    np.testing.assert_allclose(output, layer(x, training=False))
    assert np.all(layer.moving_mean.numpy() == 0) and np.all(layer.moving_variance.numpy() == 1)
    assert all(
        np.abs(g).max() > 0 for g in tape.gradient(loss, [layer.gamma.value, layer.beta.value])
    )


@pytest.mark.parametrize("options", [{}, {"padding": "valid"}, {"kernel_size": (2, 3)}])
@pytest.mark.parametrize("rate", [2, 5, (12, 3)])
@pytest.mark.parametrize("native", [True, False])
def test_dilation_equals_keras_in_value_and_gradient(monkeypatch, native, rate, options) -> None:
    """With TensorFlow's gradient, and with ours where TensorFlow has none."""
    if not native:
        monkeypatch.setattr(layers, "_has_dilation_gradient", lambda: False)
    options = {"kernel_size": 3, "padding": "same", "dilation_rate": rate, **options}
    x = tf.constant(noise(2, 27, 29, 3) / 255)
    results = []
    for cls in (Conv2D, keras.layers.Conv2D):
        layer = cls(4, **options, use_bias=False)
        layer.build(x.shape)
        layer.kernel.assign(noise(*layer.kernel.shape, seed=1) / 255 - 0.5)

        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])], autograph=False)
        def step(x, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                loss = tf.reduce_sum(y * y)
            return y, *tape.gradient(loss, [x, layer.kernel.value])

        results.append(step(x))
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


def value_and_gradients(layer: keras.layers.Layer, x: tf.Tensor) -> list[tf.Tensor]:
    """Returns a layer's output for fixed weights, and the gradients of the sum of its squares."""
    layer.build(x.shape)
    for index, variable in enumerate(layer.trainable_variables):
        variable.assign(noise(*variable.shape, seed=1 + index) / 255 - 0.5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(y * y)
    variables = [variable.value for variable in layer.trainable_variables]
    return [y, *tape.gradient(loss, [x, *variables])]


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 5, "strides": 2, "use_bias": True, "activation": "relu"},
        {"kernel_size": (2, 3), "dilation_rate": 3},
        {"kernel_size": 4, "strides": 3},
        {"kernel_size": 3, "depth_multiplier": 2},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_depthwise_convolution_as_a_sum_of_products(monkeypatch, options, padding, dtype) -> None:
    """The value and the gradients equal those of Keras' layer."""
    monkeypatch.setattr(layers, "_on_jax_cpu", lambda: True)
    x = tf.constant(noise(2, 16, 13, 3) / 255, dtype)
    options = {"padding": padding, "dtype": dtype, "use_bias": False, **options}
    results = [
        value_and_gradients(cls(**options), x)
        for cls in (DepthwiseConv2D, keras.layers.DepthwiseConv2D)
    ]
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for ours, plain in zip(*results, strict=True):
        assert ours.dtype == plain.dtype
        np.testing.assert_allclose(ours, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"groups": 3}])
def test_a_pointwise_convolution_as_a_matrix_product(monkeypatch, options) -> None:
    """The value and the gradients equal those of Keras' layer."""
    monkeypatch.setattr(layers, "_on_jax_cpu", lambda: True)
    x = tf.constant(noise(2, 5, 7, 6) / 255)
    results = [
        value_and_gradients(cls(9, 1, **options), x) for cls in (Conv2D, keras.layers.Conv2D)
    ]
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


def test_depthwise_sums_in_half_precision_are_float32(monkeypatch) -> None:
    """256 + 8 x 1 is 264. Summed one by one in bfloat16, it stays 256."""
    monkeypatch.setattr(layers, "_on_jax_cpu", lambda: True)
    layer = DepthwiseConv2D(3, padding="valid", use_bias=False, dtype="bfloat16")
    layer.build((1, 3, 3, 1))
    layer.kernel.assign(np.where(np.arange(9) == 0, 256, 1).reshape(3, 3, 1, 1))
    found = layer(tf.ones((1, 3, 3, 1)))
    assert found.dtype == tf.bfloat16
    assert float(found[0, 0, 0, 0]) == 264


def test_a_dilated_network_trains_and_is_exported_without_onednn(tmp_path) -> None:
    """TensorFlow does not use oneDNN on processors without VNNI instructions.

    The variable turns it off on every processor.
    """
    program = """
import sys
import keras, numpy as np, tensorflow as tf
from deeplab_keras.export.graph import freeze
from deeplab_keras.models.layers import Conv2D, _has_dilation_gradient

image = keras.Input((None, None, 3))
model = keras.Model(image, Conv2D(4, 3, padding="same", dilation_rate=2)(image))
x = tf.random.normal((1, 9, 9, 3))
model.compile("sgd", "mse")
model.fit(x, tf.zeros((1, 9, 9, 4)), verbose=0)
model.export(sys.argv[1], verbose=False)
loaded = tf.saved_model.load(sys.argv[1])
np.testing.assert_array_equal(loaded.serve(x), model(x))
frozen = freeze(model, (1, 9, 9, 3), tf.float32, ["logits"])
tflite = tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert()
names = [op["op_name"] for op in tf.lite.Interpreter(model_content=tflite)._get_ops_details()]
print(names, _has_dilation_gradient())
"""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith("['CONV_2D'] False"), run.stdout + run.stderr[-2000:]


def test_normalize_and_the_gate_equal_their_formulas() -> None:
    x = noise(1, 2, 3, 3)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    np.testing.assert_allclose(Normalize(mean, std)(x), (x - mean) / std, atol=1e-6)
    np.testing.assert_allclose(
        q_sigmoid(np.array([-4.0, 0.0, 1.0, 9.0], np.float32)),
        [0, 0.50001, 0.66668, 1.00002],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("value", "divisor", "expected"),
    [(18, 8, 24), (30, 8, 32), (33.6, 8, 32), (11.2, 1, 11), (3, 8, 8)],
)
def test_make_divisible_never_loses_a_tenth(value: float, divisor: int, expected: int) -> None:
    assert make_divisible(value, divisor) == expected
