"""A convolution computed map by map equals the one over concatenated maps, with its gradient."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import registered, toy_config

from deeplab_keras import build_segmentor, get_config
from deeplab_keras.checkpoints.folder import assign_weights, named_weights
from deeplab_keras.models.concat_conv import ConcatConv2D
from deeplab_keras.models.layers import resize_bilinear


def plain(maps, resized, layer):
    """The operations of the papers: resize, concatenate, convolve."""
    size = next(tuple(x.shape[1:3]) for place, x in enumerate(maps) if place not in resized)
    same_size = [
        resize_bilinear(x, size, layer.align_corners) if place in resized else x
        for place, x in enumerate(maps)
    ]
    y = tf.nn.conv2d(tf.concat(same_size, -1), layer.kernel, 1, "SAME")
    return y + layer.bias if layer.use_bias else y


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bins=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    kernel=st.sampled_from([(3, 3), (1, 3), (5, 1), (1, 1)]),
    first=st.booleans(),
    align=st.booleans(),
    bias=st.booleans(),
)
def test_value_and_gradient(size, bins, kernel, first, align, bias):
    rng = np.random.default_rng(0)
    maps = [tf.constant(rng.normal(size=(2, b, b + 1, 3)), tf.float32) for b in bins]
    whole = [tf.constant(rng.normal(size=(2, *size, channels)), tf.float32) for channels in (4, 2)]
    resized = tuple(range(len(bins))) if first else tuple(range(2, 2 + len(bins)))
    maps = [*maps, *whole] if first else [*whole, *maps]
    layer = ConcatConv2D(
        5,
        kernel,
        resized=resized,
        align_corners=align,
        use_bias=bias,
        bias_initializer="random_normal",
    )
    layer.build([x.shape for x in maps])
    weights = [weight.value for weight in layer.weights]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(maps)
        found, expected = layer(maps), plain(maps, resized, layer)
        pull = tf.constant(rng.normal(size=found.shape), tf.float32)
        found_loss, expected_loss = tf.reduce_sum(found * pull), tf.reduce_sum(expected * pull)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    ours, theirs = (tape.gradient(loss, [*maps, *weights]) for loss in (found_loss, expected_loss))
    for mine, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            mine, reference, atol=5e-5 * max(1.0, float(tf.reduce_max(tf.abs(reference))))
        )


def test_the_layer_is_restored_from_its_config():
    layer = ConcatConv2D(4, 3, resized=(1,), align_corners=True, use_bias=False, name="project")
    copy = ConcatConv2D.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config() and copy.resized == (1,)
    assert layer.compute_output_shape([(None, 9, 7, 5), (None, 1, 1, 3)]) == (None, 9, 7, 4)


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_maps_can_be_concatenated(align_corners):
    options = dict(resized=(1,), align_corners=align_corners)
    maps = [noise(2, 9, 7, 5), noise(2, 3, 2, 3)]
    whole = ConcatConv2D(4, 3, concatenated=True, **options)
    mapwise = ConcatConv2D(4, 3, **options)
    expected = whole(maps)
    mapwise.build([x.shape for x in maps])
    mapwise.set_weights(whole.get_weights())
    np.testing.assert_allclose(mapwise(maps), expected, atol=1e-4 * np.ptp(expected))
    assert ConcatConv2D.from_config(whole.get_config()).concatenated


def draw_weights(model: keras.Model) -> None:
    """Draws weights and statistics with which every branch affects the result."""
    rng = np.random.default_rng(3)
    for variable in model.weights:
        noise = rng.normal(size=variable.shape) * 0.3
        if variable.name == "moving_variance" or variable.name == "gamma":
            variable.assign(np.exp(noise))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(noise)


SMALL = dict(
    backbone="toy", depth_multiplier=0.25, num_classes=5, head_channels=16, dropout_rate=0.0
)
with registered():
    NETWORKS = {
        "psp": get_config("pspnet_mobilenetv2os8_voc").replace(**SMALL),
        "deeplab_v3": get_config("deeplabv3_mobilenetv2os8_voc").replace(**SMALL),
        "deeplab_v3_plus": get_config("deeplabv3plus_mobilenetv2os8_voc").replace(
            **SMALL, decoder_filters=8
        ),
        "aligned corners, window pooling first": toy_config(
            **SMALL,
            head="deeplab_v3",
            align_corners=True,
            image_pooling_first=True,
            image_pooling_size=(3, 4),
        ),
    }


@pytest.mark.usefixtures("toy_backbone")
@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_networks_agree_with_and_without_concatenation(config):
    model, concatenated = build_segmentor(config), build_segmentor(config.replace(branchwise=False))
    assert any(isinstance(layer, ConcatConv2D) for layer in model.layers)
    assert not any(isinstance(layer, ConcatConv2D) for layer in concatenated.layers)
    draw_weights(model)
    assign_weights(concatenated, named_weights(model), "here")
    images = np.random.default_rng(0).integers(0, 256, (2, 65, 90, 3)).astype(np.float32)
    found, expected = model.predict(images, verbose=0), concatenated.predict(images, verbose=0)
    assert expected.std(axis=(1, 2)).min() > 1e-3, "the outputs must not be constant"
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_half_precision_does_not_round_the_sums_of_enlarged_maps():
    maps = [tf.random.stateless_normal((1, length, length, 8), (1, length)) for length in (12, 2)]
    exact = ConcatConv2D(4, 3, resized=(1,))
    half = ConcatConv2D(4, 3, resized=(1,), dtype="mixed_bfloat16")
    for layer in (exact, half):
        layer.build([x.shape for x in maps])
    half.set_weights(exact.get_weights())
    found = half([tf.cast(x, tf.bfloat16) for x in maps])
    assert found.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(found, tf.float32), exact(maps), atol=0.06)
