"""SSSegmentation's test protocol: one resize of the image, one resize of the logits back.

See docs/reference/sssegmentation.md#test-input and
docs/reference/sssegmentation.md#inference-and-metric.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from contracts import noise, raises_line

from deeplab_keras.config import EvalConfig, ModelConfig
from deeplab_keras.inference import Predictor, resized_size
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.layers import ResizeTo
from deeplab_keras.models.segmentor import AuxiliaryOutputs, build_segmentor


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes like torch's align_corners=False and OpenCV's INTER_LINEAR, without antialiasing."""
    image = image.astype(np.float64)
    for axis in (0, 1):
        length = image.shape[axis]
        places = np.clip((np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5, 0, length - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, length - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((375, 500), 512, (512, 683)),
        ((500, 333), 512, (769, 512)),
        ((1024, 2048), 1024, (1024, 2048)),
        ((400, 2200), 512, (372, 2048)),
        ((683, 512), 512, (683, 512)),
    ],
)
def test_the_size_of_the_network_s_input(size, short, expected):
    config = EvalConfig(eval_short_side=short, eval_long_side=2048)
    assert resized_size(size, config) == expected
    factor = min(2048 / max(size), short / min(size))
    assert expected == tuple(int(length * factor + 0.5) for length in size)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def network(align_corners: bool = False) -> keras.Model:
    """The last layers of a segmentor: scores at an eighth of the image's size, and the resize."""
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3))
    weights = keras.initializers.RandomNormal(stddev=0.002)
    scores = keras.layers.Conv2D(
        5, 8, 8, padding="same", kernel_initializer=weights, name="logits"
    )(image)
    return keras.Model(image, ResizeTo(align_corners, name="resized_logits")([scores, image]))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seen", [(96, 144), (50, 75), (64, 96)])
def test_logits_are_resized_once_to_the_image_s_size(seen, flip):
    model = network()
    head = keras.Model(model.input, model.get_layer("logits").output)
    image = noise(64, 96, 3).astype(np.uint8)

    def logits(view: np.ndarray) -> np.ndarray:
        return bilinear(
            np.asarray(head(bilinear(view, seen)[None].astype(np.float32)))[0], (64, 96)
        )

    expected = softmax(logits(image))
    if flip:
        expected = (expected + softmax(logits(image[:, ::-1]))[:, ::-1]) / 2
    assert expected.max() > 0.6, "the classes are to differ"
    config = EvalConfig(eval_short_side=min(seen), eval_long_side=1000, add_flipped_images=flip)
    np.testing.assert_allclose(Predictor(model, config).probabilities(image), expected, atol=1e-4)
    if seen != (64, 96) and not flip:
        twice = softmax(
            bilinear(np.asarray(model(bilinear(image, seen)[None].astype(np.float32)))[0], (64, 96))
        )
        assert np.abs(twice - expected).max() > 0.01, "resizing twice is to be seen"


def test_which_models_end_with_a_half_pixel_resize():
    small = ModelConfig(head="fcn", num_classes=5, depth_multiplier=0.25, head_channels=8)
    assert KerasNetwork(build_segmentor(small.replace(auxiliary_head=True))).ends_with_resize
    assert not KerasNetwork(network(align_corners=True)).ends_with_resize
    image = keras.Input((None, None, 3))
    assert not KerasNetwork(keras.Model(image, keras.layers.Conv2D(5, 1)(image))).ends_with_resize


def segmentor(size: tuple[int, int] | None = None, kind: str = "") -> keras.Model:
    """The last layers of a segmentor with their names, on a single convolution."""
    keras.utils.set_random_seed(1)
    image = keras.Input((*(size or (None, None)), 3))
    weights = keras.initializers.RandomNormal(stddev=0.002)
    scores = keras.layers.Conv2D(6, 8, 8, padding="same", kernel_initializer=weights, name="logits")
    logits = scores(image)
    output = resized = ResizeTo(name="resized_logits")([logits, image])
    if kind == "auxiliary":
        output = AuxiliaryOutputs({"auxiliary_logits": 0.4}, name="segmentation")(
            [resized, keras.layers.Conv2D(6, 1, name="auxiliary_logits")(resized)]
        )
    return keras.Model(image, output)


def _with_own_layer(size, kind=""):
    model = segmentor(size, kind)
    return keras.Model(model.input, keras.layers.Conv2D(2, 1, name="own")(model.output))


def _plus_exchanged(size):
    model = segmentor(size)
    return keras.Model(
        model.input, keras.layers.Add()([model.output, keras.ops.flip(3 * model.output, -1)])
    )


def _resized_anew(size):
    model = segmentor(size)
    scores = keras.layers.Conv2D(3, 1)(model.get_layer("logits").output)
    return keras.Model(model.input, ResizeTo(name="resized")([scores, model.input]))


def _maximum_with_another(size):
    model = segmentor(size)
    other = keras.layers.Conv2D(6, 3, padding="same")(keras.layers.Rescaling(1 / 255)(model.input))
    return keras.Model(model.input, keras.layers.Maximum()([model.output, other]))


MODIFIED = {
    "a convolution": _with_own_layer,
    "a convolution behind an auxiliary head": lambda size: _with_own_layer(size, "auxiliary"),
    "a sum with the classes exchanged": _plus_exchanged,
    "another resize": _resized_anew,
    "the maximum with another head": _maximum_with_another,
}


@pytest.mark.parametrize("kind", MODIFIED)
@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((48, 64), EvalConfig()),
        (None, EvalConfig(eval_short_side=40)),
        (None, EvalConfig(eval_scales=(0.5, 1.0))),
        (None, EvalConfig(inference="slide", eval_crop_size=(48, 48))),
        (None, EvalConfig(inference="official", eval_crop_size=(65, 97), add_flipped_images=True)),
    ],
)
def test_layers_after_the_last_resize_take_effect(kind, size, config):
    """Compares with the same model nested in another one, in which no layer has a known name."""
    model = MODIFIED[kind](size)
    image = keras.Input(model.input_shape[1:])  # its layers are in a nested model
    hidden, found = Predictor(keras.Model(image, model(image)), config), Predictor(model, config)
    assert hidden.network.before_resize is hidden.network and not hidden.network.ends_with_resize
    picture = noise(60, 90, 3).astype(np.uint8)
    probabilities = found.probabilities(picture)
    assert probabilities.shape[-1] == model.output_shape[-1]
    np.testing.assert_allclose(probabilities, hidden.probabilities(picture), atol=1e-5)
    np.testing.assert_array_equal(found(picture), probabilities.argmax(-1))


def test_the_layers_of_a_segmentor_are_recognized():
    """Multi-scale inference uses the logits of an image pyramid at scale 1, as in the original."""
    small = ModelConfig(
        head="fcn", num_classes=6, depth_multiplier=0.1, head_channels=8, output_stride=32
    )
    for changes in (
        {"auxiliary_head": True, "align_corners": True},
        {"image_pyramid": (0.5, 1.0)},
        {"image_pyramid": (0.5,)},
    ):
        model = build_segmentor(small.replace(**changes))
        network = KerasNetwork(model)
        assert network.before_resize.model.outputs[0] is model.get_layer("logits").output, changes
        assert not network.ends_with_resize, changes


def test_models_without_logits_are_refused():
    image = keras.Input((None, None, 3))
    for output in (keras.layers.Conv2D(1, 1)(image), keras.layers.GlobalAveragePooling2D()(image)):
        with raises_line("at least 2 classes"):
            KerasNetwork(keras.Model(image, output))

    class Own(keras.Model):
        def call(self, x):
            return x

    with raises_line("has 0 outputs; must be a functional model with a single output"):
        KerasNetwork(Own())
