"""Inference on images of any size, with models whose output is known for every pixel."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import noise, raises_line, ramp
from data_files import png16
from PIL import Image

from deeplab_keras.config import EvalConfig, ModelConfig
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.inference import (
    Predictor,
    as_image,
    open_image,
    predict_logits,
    resized_size,
    tensors,
    window_starts,
)
from deeplab_keras.inference.exported import ABOUT, ExportedNetwork, Runtime
from deeplab_keras.inference.keras_network import KerasNetwork

CLASSES = 5


def pointwise_model(
    size: tuple[int | None, int | None] = (None, None), channels: int = 3
) -> keras.Model:
    """A model whose logits of a pixel depend only on that pixel."""
    image = keras.Input((*size, channels))
    layer = keras.layers.Conv2D(CLASSES, 1, activation="tanh")
    model = keras.Model(image, layer(keras.layers.Rescaling(1 / 127.5, -1)(image)))
    weights = np.random.default_rng(0).normal(size=(1, 1, channels, CLASSES)).astype(np.float32)
    layer.set_weights([2 * weights, np.linspace(-1, 1, CLASSES).astype(np.float32)])
    return model


def wide_model() -> keras.Model:
    """A model whose logits depend on an asymmetric 7x7 neighborhood."""
    image = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(CLASSES, 7, padding="same")
    model = keras.Model(image, layer(keras.layers.Rescaling(1 / 127.5, -1)(image)))
    layer.set_weights(
        [
            np.random.default_rng(1).normal(size=(7, 7, 3, CLASSES)).astype(np.float32),
            np.zeros(CLASSES),
        ]
    )
    return model


def run(model: keras.Model, image: np.ndarray) -> np.ndarray:
    """Returns the logits of one image."""
    return model(image[None].astype(np.float32), training=False)[0].numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def half_pixel_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize by definition, `[height, width, channels]`."""
    for axis, target in enumerate(size):
        source = image.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, source - 1)
        share = np.expand_dims(position - low, tuple(i for i in range(3) if i != axis))
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


# --- The network ---


def test_one_trace_serves_all_sizes_and_batches() -> None:
    network = KerasNetwork(wide_model())
    for batch, height, width in [(1, 8, 9), (2, 8, 9), (1, 31, 17), (3, 40, 40)]:
        images = noise(batch, height, width, 3)
        np.testing.assert_allclose(
            predict_logits(network, images), network._compiled(images), rtol=1e-6
        )
    assert network._compiled.experimental_get_tracing_count() == 1


def test_new_weights_take_effect() -> None:
    model = pointwise_model()
    predictor = Predictor(model)
    image = noise(6, 6, 3).astype(np.uint8)
    before = predictor.probabilities(image)
    model.set_weights([-weight for weight in model.get_weights()])
    assert np.abs(predictor.probabilities(image) - before).max() > 0.1


def test_several_outputs_are_refused() -> None:
    image = keras.Input((None, None, 3))
    x = keras.layers.ReLU()(image)
    with raises_line("2 outputs"):
        Predictor(keras.Model(image, [x, x]))


def test_an_image_too_small_for_the_model_is_reported() -> None:
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.AveragePooling2D(9, strides=1)(image))
    with raises_line("cannot take an input of 5x6"):
        Predictor(model)(np.zeros((5, 6, 3), np.uint8))


# --- Whole images ---


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (33, 20)])
def test_labels_are_the_argmax_at_the_images_size(size: tuple[int, int]) -> None:
    model = pointwise_model()
    image = noise(*size, 3).astype(np.uint8)
    logits = run(model, image)
    predictor = Predictor(model)
    labels = predictor(image)
    assert labels.dtype == np.uint8 and labels.shape == size
    assert (labels == logits.argmax(-1)).all()
    np.testing.assert_allclose(predictor.probabilities(image), softmax(logits), atol=1e-6)


def test_fixed_size_model_gets_the_image_resized() -> None:
    image = ramp(1, 21, 34, 3)[0]
    model = pointwise_model((16, 12))
    expected = half_pixel_resize(run(model, half_pixel_resize(image, (16, 12))), (21, 34))
    predictor = Predictor(model)
    np.testing.assert_allclose(predictor.probabilities(image), softmax(expected), atol=1e-5)
    assert (predictor(image) == expected.argmax(-1)).all()


def test_resize_before_the_network() -> None:
    image = ramp(1, 20, 30, 3)[0]
    model = pointwise_model()
    config = EvalConfig(eval_short_side=16, eval_long_side=21)
    expected = half_pixel_resize(run(model, half_pixel_resize(image, (14, 21))), (20, 30))
    np.testing.assert_allclose(predict_logits(model, image[None], config)[0], expected, atol=1e-5)


def test_resized_sizes() -> None:
    config = EvalConfig(eval_short_side=512, eval_long_side=2048)
    assert resized_size((375, 500), config) == (512, 683)
    assert resized_size((500, 333), config) == (769, 512)
    assert resized_size((1024, 2048), config.replace(eval_short_side=1024)) == (1024, 2048)
    assert resized_size((100, 1000), config) == (205, 2048)  # the limit of the long side
    assert resized_size((375, 500), EvalConfig()) == (375, 500)


# --- Scales and flip ---


def test_flip_averages_probabilities() -> None:
    model, image = wide_model(), noise(9, 14, 3)
    logits, mirrored = (run(model, x) for x in (image, image[:, ::-1]))
    expected = (softmax(logits) + softmax(mirrored[:, ::-1])) / 2
    predictor = Predictor(model, EvalConfig(add_flipped_images=True))
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-5)
    assert (predictor(image) == expected.argmax(-1)).all()
    np.testing.assert_allclose(
        predictor.probabilities(image[:, ::-1]), predictor.probabilities(image)[:, ::-1], atol=1e-5
    )


def test_scales_average_probabilities() -> None:
    model, image = wide_model(), ramp(1, 12, 18, 3)[0]
    expected = [
        softmax(half_pixel_resize(run(model, half_pixel_resize(image, size)), (12, 18)))
        for size in [(6, 9), (12, 18), (15, 22)]
    ]
    config = EvalConfig(eval_scales=(0.5, 1.0, 1.25))
    probabilities = Predictor(model, config).probabilities(image)
    np.testing.assert_allclose(probabilities, np.mean(expected, axis=0), atol=1e-4)
    np.testing.assert_allclose(
        np.exp(predict_logits(model, image[None], config)[0]), probabilities, atol=1e-5
    )


def test_scales_of_a_fixed_size_model_are_refused() -> None:
    with raises_line("--eval_scales=0.5,1.0.*16x12"):
        Predictor(pointwise_model((16, 12)), EvalConfig(eval_scales=(0.5, 1.0)))(
            np.zeros((20, 20, 3), np.uint8)
        )


# --- Sliding window ---


def slide(**options) -> EvalConfig:
    return EvalConfig(inference="slide", **options)


@pytest.mark.parametrize("size", [(8, 8), (21, 34), (5, 30), (3, 4)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_of_a_pointwise_model_equal_the_whole_image(
    size: tuple[int, int], batch_size: int
) -> None:
    model, images = pointwise_model(), noise(2, *size, 3)
    config = slide(eval_crop_size=(8, 10), eval_stride=(3, 7), eval_batch_size=batch_size)
    np.testing.assert_allclose(
        predict_logits(model, images, config), predict_logits(model, images), atol=1e-5
    )


def test_one_window_equals_the_whole_image() -> None:
    model, images = wide_model(), noise(1, 11, 13, 3)
    np.testing.assert_allclose(
        predict_logits(model, images, slide(eval_crop_size=(11, 13))),
        predict_logits(model, images),
        atol=1e-5,
    )


def test_overlapping_windows_are_averaged() -> None:
    model, image = wide_model(), noise(10, 16, 3)
    total, count = np.zeros((10, 16, CLASSES)), np.zeros((10, 16, 1))
    for y in (0, 4):
        for x in (0, 5, 8):
            part = np.s_[y : y + 6, x : x + 8]
            total[part] += run(model, image[part])
            count[part] += 1
    config = slide(eval_crop_size=(6, 8), eval_stride=(4, 5))
    np.testing.assert_allclose(
        predict_logits(model, image[None], config)[0], total / count, atol=1e-4
    )


def test_default_stride_is_two_thirds_of_the_window() -> None:
    model, images = wide_model(), noise(1, 30, 30, 3)
    implied, given = (
        slide(eval_crop_size=(12, 9)),
        slide(eval_crop_size=(12, 9), eval_stride=(8, 6)),
    )
    np.testing.assert_array_equal(
        predict_logits(model, images, implied), predict_logits(model, images, given)
    )


def test_fixed_size_model_slides_with_its_own_window() -> None:
    fixed, free = pointwise_model((8, 6)), pointwise_model()
    free.set_weights(fixed.get_weights())
    image = noise(20, 31, 3)[None]
    np.testing.assert_allclose(
        predict_logits(fixed, image, slide()), predict_logits(free, image), atol=1e-5
    )
    assert predict_logits(fixed, image[:, :3], slide()).shape == (
        1,
        3,
        31,
        CLASSES,
    )  # an image lower than the window


def test_windows_cover_every_pixel() -> None:
    assert window_starts(10, 4, 3) == [0, 3, 6]
    assert window_starts(11, 4, 3) == [0, 3, 6, 7]
    assert window_starts(4, 4, 3) == [0]


def test_gaps_between_windows_are_refused() -> None:
    with raises_line("--eval_stride=9,4 leaves gaps"):
        predict_logits(
            pointwise_model(), noise(1, 20, 20, 3), slide(eval_crop_size=(8, 8), eval_stride=(9, 4))
        )


# --- Images ---


def test_equivalent_images() -> None:
    predictor = Predictor(wide_model())
    gray = noise(9, 11).astype(np.uint8)
    rgb = np.repeat(gray[..., None], 3, -1)
    expected = predictor(rgb)
    alpha = np.full((9, 11, 1), 7, np.uint8)
    same = [
        gray,
        gray[..., None],
        np.concatenate([rgb, alpha], -1),
        rgb.astype(np.int64),
        rgb.astype(np.float64),
        rgb.tolist(),
        np.asfortranarray(rgb)[::-1][::-1],
        Image.fromarray(gray),
        Image.fromarray(rgb).convert("RGBA"),
        Image.fromarray(gray).convert("P"),
        tf.constant(rgb),
    ]
    for image in same:
        np.testing.assert_array_equal(predictor(image), expected)


def test_a_gray_model() -> None:
    predictor = Predictor(pointwise_model(channels=1))
    gray = noise(5, 6).astype(np.uint8)
    np.testing.assert_array_equal(predictor(gray), predictor(Image.fromarray(gray)))
    with raises_line("3 channels; the model takes 1"):
        predictor(np.zeros((5, 6, 3), np.uint8))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.uint8), r"shape \(2, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
        (
            np.full((4, 4, 3), 300, np.uint16),
            "300 to 300; must be 0 to 255; divide 16-bit values by 257",
        ),
        (Image.fromarray(np.full((4, 4), 300, np.uint16)), "divide 16-bit values by 257"),
        (np.full((4, 4, 3), -1), "-1 to -1"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.full((4, 4, 3), 0.5), "multiply by 255"),
        ("photo.jpg", "shape"),
    ],
)
def test_invalid_images_are_reported(image, message: str) -> None:
    with raises_line(message):
        as_image(image)


def test_more_than_256_classes_need_int32_labels() -> None:
    image = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(300, 1, kernel_initializer="zeros")
    model = keras.Model(image, layer(image))
    layer.bias.assign(np.arange(300) == 290)
    labels = Predictor(model)(np.zeros((2, 3, 3), np.uint8))
    assert labels.dtype == np.int32 and (labels == 290).all()


def test_image_files(tmp_path) -> None:
    rgb = noise(5, 8, 3).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 256 + 77).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(open_image(tmp_path / "rgb.png"), rgb)
    np.testing.assert_array_equal(open_image(tmp_path / "alpha.png"), rgb)
    np.testing.assert_array_equal(open_image(tmp_path / "deep.png"), np.repeat(rgb[..., :1], 3, -1))
    np.testing.assert_array_equal(open_image(tmp_path / "turned.png"), np.rot90(rgb, -1))


def test_damaged_image_files_are_reported(tmp_path) -> None:
    Image.fromarray(noise(50, 80, 3).astype(np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    (tmp_path / "text.jpg").write_text("no picture")
    for name, message in [
        ("cut.png", "cannot be read"),
        ("text.jpg", "not an image"),
        ("none.png", "No such file"),
    ]:
        with raises_line(f"{name}.*{message}"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("classes", [2, 19, tensors.MOST_CLASSES + 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 37, 53), (1, 300, 437)])
@pytest.mark.parametrize("sizes", [0, tensors.MOST_SIZES], ids=["blocks", "own programs"])
def test_the_compiled_decision_equals_numpy(classes, shape, sizes, monkeypatch):
    monkeypatch.setattr(tensors, "MOST_SIZES", sizes)
    monkeypatch.setattr(tensors, "_sizes", set())
    logits = (
        np.random.default_rng(0).integers(-9, 9, (*shape, classes)).astype(np.float32)
    )  # with ties, for which the first class wins
    labels, confidence = tensors.decide(logits, with_confidence=True)
    exact = logits.astype(np.float64)
    expected = 1 / np.exp(exact - exact.max(-1, keepdims=True)).sum(-1)
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    np.testing.assert_allclose(confidence, expected, rtol=1e-5)
    np.testing.assert_array_equal(tensors.decide(logits)[0], labels)


@pytest.mark.parametrize("with_confidence", [False, True])
def test_many_sizes_do_not_retrace(with_confidence, monkeypatch):
    """TensorFlow warns about functions that it traces repeatedly."""
    monkeypatch.setattr(tensors, "_sizes", set())
    for side in range(2, 2 + tensors.MOST_SIZES + 1):
        tensors.decide(noise(1, side, side, 3), with_confidence)
    assert (
        tensors._CONFIDENT_BLOCK if with_confidence else tensors._LABELS_BLOCK
    ).experimental_get_tracing_count() == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("avif"), MemoryError(), RecursionError(), SyntaxError("x"), KeyError("x")],
)
def test_all_errors_of_a_decoder_become_one_line(error, tmp_path, monkeypatch):
    def broken(path):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with raises_line("x.avif: ") as told:
        open_image(tmp_path / "x.avif")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_dark_16_bit_files_are_refused(tmp_path, channels):
    gray = np.linspace(0, 4000, 20 * 30).reshape(20, 30).astype(np.uint16)
    dark, bright = (np.stack([values] * channels, -1).squeeze() for values in (gray, gray * 16))
    png16(tmp_path / "dark.png", dark)
    png16(tmp_path / "bright.png", bright)
    with raises_line(
        "dark.png: .*16 bits per channel but only values up to 4000, which are black in 8 bits",
    ):
        open_image(tmp_path / "dark.png")
    np.testing.assert_array_equal(
        open_image(tmp_path / "bright.png"), np.stack([gray * 16 >> 8] * 3, -1)
    )


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path):
    """Pillow does not verify the checksums of pixel data."""
    for name, seed in (("photo", 0), ("other", 1)):
        Image.fromarray(noise(20, 30, 3, seed=seed).astype(np.uint8)).save(
            tmp_path / f"{name}.png", compress_level=0
        )
    data, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("photo", "other"))
    start, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    assert open_image(tmp_path / "photo.png").shape == (20, 30, 3) and len(data) == len(other)
    (tmp_path / "photo.png").write_bytes(data[:start] + other[start:end] + data[end:])
    with raises_line("photo.png: cannot be read .*checksum .* is wrong"):
        open_image(tmp_path / "photo.png")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_exported_file_with_non_finite_scores_is_refused(value):
    info = info_for_classes("mine", ("a", "b"))
    about = json.dumps({"model": ModelConfig(num_classes=2).to_dict(), "dataset": info.to_dict()})
    scores = np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2) - 15
    runtime = Runtime(np.float32, (4, 4), {ABOUT: about}, lambda images: scores, None)
    predictor = Predictor(ExportedNetwork("model.onnx", runtime))
    np.testing.assert_array_equal(predictor(np.zeros((4, 4, 3), np.uint8)), np.ones((4, 4)))
    scores[0, 2, 3, 1] = value
    with raises_line(
        "^model.onnx: outputs class scores that are NaN or infinite, so it may be damaged",
    ):
        predictor(np.zeros((4, 4, 3), np.uint8))


# --- Several images, and the first call ---


def test_paths_batches_and_lists(tmp_path):
    predictor = Predictor(wide_model())
    images = [noise(*size, 3, seed=size[0]).astype(np.uint8) for size in ((9, 11), (20, 7))]
    expected = [predictor(image) for image in images]
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(predictor(path), expected[0])
        np.testing.assert_array_equal(
            predictor.probabilities(path), predictor.probabilities(images[0])
        )
    mixed = predictor([tmp_path / "a.png", images[1], Image.fromarray(images[0])])
    for found, wanted in zip(mixed, [*expected, expected[0]], strict=True):
        np.testing.assert_array_equal(found, wanted)
    batch = np.stack([images[0], images[0][::-1]])
    np.testing.assert_array_equal(predictor(batch), predictor.predict_batch(batch))
    assert predictor(tuple(images))[1].shape == (20, 7)
    with raises_line("none.png: cannot be read"):
        predictor([images[0], tmp_path / "none.png"])
    with raises_line(r"image of shape \(0,\)"):
        predictor([])


def test_warm_up_runs_each_size_once(monkeypatch):
    monkeypatch.setattr(tensors, "_sizes", set())
    predictor, seen = Predictor(wide_model()), []
    run = KerasNetwork._logits
    monkeypatch.setattr(
        KerasNetwork, "_logits", lambda self, x: seen.append(tuple(x.shape)) or run(self, x)
    )
    predictor.warm_up([(9, 11), (20, 7)], batch_size=2)
    predictor.warm_up((5, 6))
    assert seen == [(2, 9, 11, 3), (2, 20, 7, 3), (1, 5, 6, 3)]
    assert tensors._sizes == {(2 * 99, CLASSES), (2 * 140, CLASSES), (30, CLASSES)}
    assert predictor.network._compiled.experimental_get_tracing_count() == 1
    Predictor(pointwise_model((16, 12))).warm_up()
    assert seen[-1] == (1, 16, 12, 3)
    for sizes, batch in (((), 1), ([(3, 0)], 1), ([3], 1), ([(2, 3, 4)], 1), ((5, 6), 0)):
        with raises_line(r"give the sizes of your images, such as \[\(480, 640\)\]"):
            predictor.warm_up(sizes, batch_size=batch)
