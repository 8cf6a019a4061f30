"""SSSegmentation's test protocol: one resize to the network, one resize of the logits back (its spec, sections 7.2 and 9)."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from contracts import noise

from deeplab_keras.config import EvalConfig, ModelConfig
from deeplab_keras.inference import Network, Predictor, resized_size
from deeplab_keras.layers import ResizeTo
from deeplab_keras.segmentor import build_segmentor


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Half-pixel centres, edges repeated, no antialiasing: torch's align_corners=False and OpenCV's INTER_LINEAR."""
    image = image.astype(np.float64)
    for axis in (0, 1):
        length = image.shape[axis]
        places = np.clip((np.arange(size[axis]) + 0.5) * length / size[axis] - 0.5, 0, length - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, length - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


@pytest.mark.parametrize(("size", "short", "expected"), [
    ((375, 500), 512, (512, 683)), ((500, 333), 512, (769, 512)), ((1024, 2048), 1024, (1024, 2048)),
    ((400, 2200), 512, (372, 2048)), ((683, 512), 512, (683, 512)),
])  # fmt: skip
def test_the_size_that_the_network_sees(size, short, expected):
    config = EvalConfig(eval_short_side=short, eval_long_side=2048)
    assert resized_size(size, config) == expected
    factor = min(2048 / max(size), short / min(size))
    assert expected == tuple(int(length * factor + 0.5) for length in size)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def network(align_corners: bool = False) -> keras.Model:
    """Class scores at an eighth of the image's size, resized to it: a segmentor's layers without the network."""
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 3))
    weights = keras.initializers.RandomNormal(stddev=0.002)
    scores = keras.layers.Conv2D(5, 8, 8, padding="same", kernel_initializer=weights, name="logits")(image)
    return keras.Model(image, ResizeTo(align_corners, name="resized_logits")([scores, image]))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seen", [(96, 144), (50, 75), (64, 96)])
def test_logits_go_to_the_image_s_size_in_one_resize(seen, flip):
    model = network()
    head = keras.Model(model.input, model.get_layer("logits").output)
    image = noise(64, 96, 3).astype(np.uint8)

    def logits(view: np.ndarray) -> np.ndarray:
        return bilinear(np.asarray(head(bilinear(view, seen)[None].astype(np.float32)))[0], (64, 96))

    expected = softmax(logits(image))
    if flip:
        expected = (expected + softmax(logits(image[:, ::-1]))[:, ::-1]) / 2
    assert expected.max() > 0.6, "the classes are to differ"
    config = EvalConfig(eval_short_side=min(seen), eval_long_side=1000, add_flipped_images=flip)
    np.testing.assert_allclose(Predictor(model, config).probabilities(image), expected, atol=1e-4)
    if seen != (64, 96) and not flip:
        twice = softmax(bilinear(np.asarray(model(bilinear(image, seen)[None].astype(np.float32)))[0], (64, 96)))
        assert np.abs(twice - expected).max() > 0.01, "resizing twice is to be seen"


def test_which_models_end_with_a_half_pixel_resize():
    small = ModelConfig(head="fcn", num_classes=5, depth_multiplier=0.25, head_channels=8)
    assert Network(build_segmentor(small.replace(auxiliary_head=True))).ends_with_resize
    assert not Network(network(align_corners=True)).ends_with_resize
    image = keras.Input((None, None, 3))
    assert not Network(keras.Model(image, keras.layers.Conv2D(5, 1)(image))).ends_with_resize
