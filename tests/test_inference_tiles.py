"""Large images: strips of scores and tiles, compared with the whole image at once."""

from __future__ import annotations

import tracemalloc

import keras
import numpy as np
import pytest
from contracts import noise, raises_line, ramp
from PIL import Image
from test_inference import CLASSES, pointwise_model, run, softmax, wide_model
from toy import toy_config

from deeplab_keras.config import EvalConfig
from deeplab_keras.inference import Predictor, arrays, predict_tiles, tensors
from deeplab_keras.inference import logits as logits_module
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.inference.logits import predict_labels, predict_logits
from deeplab_keras.inference.tiles import spans
from deeplab_keras.inference.windows import WindowRows, slide
from deeplab_keras.models.segmentor import build_segmentor

pytestmark = pytest.mark.usefixtures("toy_backbone")

# --- Strips ---


@pytest.mark.parametrize(
    "source, size",
    [
        ((5, 7), (31, 40)),
        ((31, 40), (12, 9)),
        ((6, 8), (6, 20)),
        ((6, 8), (20, 8)),
        ((1, 1), (9, 4)),
    ],
)
@pytest.mark.parametrize("arithmetic, atol", [(tensors, 1e-4), (arrays, 0)])
def test_rows_of_a_resize(source, size, arithmetic, atol):
    x = noise(2, *source, 3)
    whole = np.asarray(arithmetic.resize(x, size))
    for top, bottom in [(0, size[0]), (0, 1), (2, 5), (size[0] - 1, size[0])]:
        np.testing.assert_allclose(
            arithmetic.resize_rows(x, size, top, bottom), whole[:, top:bottom], rtol=0, atol=atol
        )


@pytest.mark.parametrize(
    "config",
    [
        EvalConfig(),
        EvalConfig(eval_scales=(0.5, 1.0), add_flipped_images=True),
        EvalConfig(eval_short_side=13),
        EvalConfig(inference="slide", eval_crop_size=(9, 9)),
    ],
    ids=["plain", "scales", "short side", "slide"],
)
@pytest.mark.parametrize("model", [wide_model, pointwise_model])
def test_labels_in_strips_equal_the_labels_at_once(monkeypatch, config, model):
    images = noise(2, 23, 31, 3).astype(np.uint8)
    network = KerasNetwork(model())
    scores = predict_logits(network, images, config).numpy()
    for lines in (1, 5, 22):
        monkeypatch.setattr(logits_module, "STRIP_BYTES", 4 * 2 * lines * 31 * CLASSES)
        labels, confidence = predict_labels(network, images, config, with_confidence=True)
        assert labels.dtype == np.int32 and (labels == scores.argmax(-1)).all()
        np.testing.assert_allclose(confidence, softmax(scores).max(-1), atol=1e-5)
        assert predict_labels(network, images, config)[1] is None


def test_the_logits_of_a_segmentor_stay_small_until_the_strips(monkeypatch):
    """Omitting the model's last resize does not change the labels."""
    small = toy_config(output_stride=16, head="fcn", head_channels=8, num_classes=7)
    network = KerasNetwork(build_segmentor(small))
    image = ramp(1, 65, 90, 3).astype(np.uint8)
    expected = network(image.astype(np.float32)).numpy().argmax(-1)
    monkeypatch.setattr(logits_module, "STRIP_BYTES", 4 * 10 * 90 * 7)
    calls = []
    monkeypatch.setattr(
        KerasNetwork, "__call__", lambda self, x: calls.append(self) or self._compiled(x)
    )
    assert (predict_labels(network, image, EvalConfig())[0] == expected).mean() > 0.999
    assert calls == [network.before_resize]


# --- Tiles ---


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40, 100])
@pytest.mark.parametrize("tile, overlap", [(8, 0), (8, 3), (16, 16)])
def test_spans_keep_each_pixel_once_and_have_equal_lengths(length, tile, overlap):
    found = spans(length, tile, overlap)
    kept = [pixel for span in found for pixel in range(span.kept_start, span.kept_end)]
    assert kept == list(range(length))
    assert {span.end - span.start for span in found} == {min(tile + 2 * overlap, length)}
    for span in found:
        assert 0 <= span.start <= span.kept_start < span.kept_end <= span.end <= length
        assert span.kept_start - span.start >= min(overlap, span.kept_start)
        assert span.end - span.kept_end >= min(overlap, length - span.kept_end)


@pytest.mark.parametrize("size", [(50, 61), (16, 16), (7, 90), (3, 3)])
@pytest.mark.parametrize("as_picture", [False, True])
def test_tiles_equal_the_whole_image_if_the_overlap_is_large_enough(size, as_picture):
    model, image = (
        wide_model(),
        noise(*size, 3).astype(np.uint8),
    )  # a receptive field of three pixels to each side
    expected = run(model, image).argmax(-1)
    predictor = Predictor(model, EvalConfig(eval_batch_size=3))
    given = Image.fromarray(image) if as_picture else image
    done = []
    labels = predict_tiles(
        predictor, given, (16, 16), overlap=3, on_tile=lambda *count: done.append(count)
    )
    assert labels.dtype == np.uint8 and (labels == expected).all()
    tiles = -(-size[0] // 16) * -(-size[1] // 16)
    assert done[-1] == (tiles, tiles)
    if tiles > 4:
        assert (predict_tiles(predictor, given, (16, 16), overlap=1) != expected).any()


def test_a_model_of_fixed_size_gets_tiles_of_that_size():
    image = noise(40, 50, 3).astype(np.uint8)
    free, fixed = pointwise_model(), pointwise_model((20, 24))
    labels = predict_tiles(Predictor(fixed), image, overlap=4)
    assert (labels == run(free, image).argmax(-1)).all()
    with raises_line("--tile_overlap=10 would be empty; give a larger --tile_size"):
        predict_tiles(Predictor(fixed), image, overlap=10)


def test_tiles_of_a_gray_model():
    image = noise(20, 30, 1).astype(np.uint8)
    predictor = Predictor(pointwise_model(channels=1))
    whole = predictor(image)
    assert (predict_tiles(predictor, image, (8, 8), 2) == whole).all()
    assert (predict_tiles(predictor, Image.fromarray(image[..., 0]), (8, 8), 2) == whole).all()


def test_tiles_need_the_memory_of_a_tile():
    """NumPy's memory: labels and a few tiles. All scores would take 60 times as much."""
    layers = [keras.Input((None, None, 3)), keras.layers.Conv2D(64, 1)]
    predictor = Predictor(keras.Sequential(layers), EvalConfig(eval_batch_size=1))
    image = noise(256, 256, 3).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    predict_tiles(predictor, image[:128, :128], (128, 128), 0)
    tracemalloc.start()
    try:
        predict_tiles(predictor, image, (128, 128), 8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < image.nbytes + 2 * 144 * 144 * 64 * 4


# --- Windows by rows ---


def segmentor(align_corners: bool = False) -> keras.Model:
    keras.utils.set_random_seed(3)
    small = toy_config(output_stride=16, head="fcn", head_channels=8, num_classes=6)
    return build_segmentor(small.replace(align_corners=align_corners))


def slide_config(**options) -> EvalConfig:
    return EvalConfig(inference="slide", **options)


def random_slides(count: int):
    """Returns random sizes, windows, strides, scales, flips and rows per strip."""
    random = np.random.default_rng(7)
    for _ in range(count):
        window = random.integers(33, 60, 2)
        stride = [int(random.integers(window[axis] // 2, window[axis] + 1)) for axis in range(2)]
        scales = tuple(
            random.choice([0.5, 0.75, 1.0, 1.3, 2.0], random.integers(1, 3), replace=False).tolist()
        )
        options = dict(
            eval_crop_size=tuple(window.tolist()),
            eval_stride=tuple(stride),
            eval_scales=scales,
            add_flipped_images=bool(random.integers(2)),
            eval_batch_size=int(random.integers(1, 6)),
            eval_short_side=int(random.choice([0, 0, 60])),
        )
        yield tuple(random.integers(30, 130, 2).tolist()), options, int(random.integers(1, 40))


@pytest.mark.parametrize("align_corners", [False, True], ids=["half-pixel", "aligned corners"])
@pytest.mark.parametrize("count", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_windows_by_rows_equal_the_mean_of_all_windows(monkeypatch, align_corners, count):
    """Equal to `slide` up to rounding, with equal labels, also for windows at their full size."""
    network, by_rows = KerasNetwork(segmentor(align_corners)), []
    made = WindowRows.__init__
    monkeypatch.setattr(
        WindowRows,
        "__init__",
        lambda self, *args, **given: by_rows.append(self) or made(self, *args, **given),
    )
    for size, options, lines in random_slides(count):
        images, config = noise(1, *size, 3).astype(np.uint8), slide_config(**options)
        monkeypatch.setattr(logits_module, "STRIP_BYTES", 1 << 28)
        monkeypatch.setattr(logits_module, "SUM_BYTES", 1 << 26)
        scores = predict_logits(network, images, config).numpy()
        at_once, sure = predict_labels(network, images, config, with_confidence=True)
        assert not by_rows and (at_once == scores.argmax(-1)).all()
        monkeypatch.setattr(logits_module, "STRIP_BYTES", 1)
        monkeypatch.setattr(logits_module, "SUM_BYTES", 4 * lines * size[1] * 6)
        labels, confidence = predict_labels(network, images, config, with_confidence=True)
        assert any(rows.smaller for rows in by_rows) or align_corners
        by_rows.clear()
        np.testing.assert_allclose(confidence, sure, atol=1e-5)
        assert (labels == at_once).all(), (size, options)


@pytest.mark.parametrize("mirrored", [False, True])
def test_sums_of_windows_by_rows_are_exact_where_nothing_is_resized(mirrored):
    """Without a last resize, windows are added up in the same order, so sums are bit-identical."""
    network, images = KerasNetwork(wide_model()), noise(2, 90, 31, 3).astype(np.uint8)
    config = slide_config(eval_crop_size=(13, 17), eval_stride=(6, 17), eval_batch_size=5)
    whole = slide(network, images, config)
    rows = WindowRows(network, images, config, mirrored=mirrored)
    assert rows.smaller and rows.shape == whole.shape
    for top, bottom in [(0, 1), (0, 13), (12, 14), (13, 50), (49, 90), (89, 90)]:
        np.testing.assert_array_equal(
            rows.rows(top, bottom), whole[:, top:bottom, :: -1 if mirrored else 1]
        )


def test_dense_windows_without_a_resize_are_added_up_at_once():
    """Keeping them would take more memory than the complete result."""
    config = slide_config(eval_crop_size=(40, 40), eval_stride=(5, 5))
    assert not WindowRows(KerasNetwork(wide_model()), noise(1, 60, 60, 3), config).smaller


@pytest.mark.slow
def test_windows_by_rows_need_the_memory_of_a_few_rows(monkeypatch):
    """NumPy's memory: the labels twice, a third of all scores, and some windows."""
    network = KerasNetwork(segmentor())
    image = noise(1, 150, 32, 3).astype(np.uint8).repeat(10, 1).repeat(16, 2)
    monkeypatch.setattr(logits_module, "STRIP_BYTES", 1 << 20)
    monkeypatch.setattr(logits_module, "SUM_BYTES", 1 << 20)
    config = slide_config(eval_crop_size=(128, 128))
    predict_labels(network, image[:, :128], config)
    tracemalloc.start()
    try:
        predict_labels(network, image, config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * 4 * 6 * image[..., 0].size
