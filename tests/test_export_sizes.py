"""The input size of an export: its default, and how images of other sizes get it."""

from __future__ import annotations

import json
import logging
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, raises_line
from test_export import CLASSES, SIZE, TOY, agreement, lively
from test_export_at_head import bilinear, head_scores, nearest

from deeplab_keras import export
from deeplab_keras.config import EvalConfig, ExportConfig
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.export import check, images, request
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import packed_files
from deeplab_keras.inference.resizing import letterbox_size
from deeplab_keras.models.segmentor import build_segmentor

TALL = (120, 70)
SHOWN = (65, 38)  # where an image of this size is in a letterbox of SIZE, (65, 97)
COLOR = (123.675, 116.28, 103.53)  # ImageNet's mean, which the network normalizes to 0


@pytest.fixture(scope="module")
def source(toy_backbone):
    return lively(TOY)


@pytest.fixture(scope="module")
def tall():
    return images.synthetic_images(TALL, 3, 1)[0]


class Split:
    """A split whose images have the given sizes."""

    info = info_for_classes("test", CLASSES)

    def __init__(self, *sizes: tuple[int, int]) -> None:
        self.sizes, self.names = sizes, tuple(map(str, range(len(sizes))))

    def __len__(self) -> int:
        return len(self.sizes)

    def load(self, index):
        image = images.synthetic_images(self.sizes[index], 3, index + 1)[index]
        return image, (image[..., 0] % len(CLASSES)).astype(np.uint8)


# === The default ===


def test_the_default_is_the_most_common_size(source, tmp_path, caplog):
    split = Split((40, 56), (48, 72), (48, 72), (64, 64), (48, 72))
    with caplog.at_level(logging.INFO):
        (file,) = export.export_model(
            source, tmp_path / "a.tflite", formats=["tflite"], check_images=split, checked=0
        )
    assert "input size 48x72: the most common size is 48x72, of 3 of 5 images" in caplog.messages
    assert file.input_size == (48, 72) == Predictor(file.path).network.input_size
    assert json.loads(packed_files(file.path)["model.json"])["input_size"] == [48, 72]
    # Of images of this size, nothing is lost; the two others are compared at their own.
    assert file.label_agreement >= 0.999
    own = file.compared.own_size
    assert (own.images, own.stretched) == (2, 2)
    (explicit,) = export.export_model(
        source, tmp_path / "b.tflite", formats=["tflite"], input_size=(48, 72), check_images=split
    )
    assert explicit.path.read_bytes() == file.path.read_bytes()


def test_the_default_comes_from_all_kinds_of_images(source, tmp_path, toy_backbone):
    for index, size in enumerate([(48, 72), (40, 40), (48, 72)]):
        picture = images.synthetic_images(size, 3, 1)[0]
        tf.io.write_file(str(tmp_path / f"{index}.png"), tf.io.encode_png(picture))
    model = Exportable.of(source)
    assert request.usual_size(tmp_path, model) == (48, 72)
    assert request.usual_size(images.synthetic_images((33, 41), 3), model) == (33, 41)
    assert request.usual_size(None, model) is None
    fixed = Exportable.of(build_segmentor(TOY, (33, 65)))
    assert request.usual_size(tmp_path, fixed) == request.usual_size(None, fixed) == (33, 65)


def test_the_default_is_a_size_that_the_network_takes(source, caplog):
    config = TOY.replace(image_pooling_size=(7, 3), image_pooling_stride=(1, 1))
    windowed = Exportable.of(lively(config))
    with caplog.at_level(logging.INFO):
        height, width = request.usual_size(Split((40, 200)), windowed)
    assert (height, width) == (6 * TOY.output_stride + 1, 200)
    request.check_size(windowed, (height, width))
    with raises_line("is too small for --image_pooling_size=7,3"):
        request.check_size(windowed, (height - 1, width))
    assert f"input size {height}x200: the most common size is 40x200, of 1 of 1 images; the " in (
        caplog.text
    )


@pytest.mark.parametrize("kind", ["tflite", "saved_model"])
def test_images_smaller_than_the_pooling_window_are_checked_enlarged(kind, tmp_path, toy_backbone):
    """Such as the photos of VOC and the official models, whose window needs 385 pixels."""
    config = TOY.replace(image_pooling_size=(7, 3), image_pooling_stride=(1, 1))
    smallest = 6 * TOY.output_stride + 1
    split = Split((smallest - 9, 72), (smallest, 72))
    (file,) = export.export_model(
        lively(config),
        tmp_path / "out",
        formats=[kind],
        input_size=(smallest + 9, 72),
        check_images=split,
        checked=0,
    )
    assert file.compared.images == 2 and file.label_agreement >= 0.999
    assert kind == "saved_model" or file.compared.own_size.images == 1


def test_without_images_there_is_no_default(source, tmp_path):
    with raises_line(
        "--formats=tflite needs --input_size=HEIGHT,WIDTH, the fixed size of its input; without "
        "it, the most common size of the images of the check is used, and there are none"
    ) as error:
        export.export_model(source, tmp_path / "out", formats=["saved_model", "tflite"])
    assert "\n" not in as_command_line(error.value)
    assert not (tmp_path / "out").exists()


def test_the_warning_suggests_both_remedies():
    own = check.OwnSize(0.84, 8, 8, (320, 480), 0.61, 0.76)
    compared = check.FileAgreement(1.0, 0.9999, 5, 8, 0.7, 0.7, own)
    file = export.ExportedFile(pathlib.Path("x"), "tflite", 1, compared, input_size=(257, 257))
    assert "input_size=209,313 keeps it, and so does resize='letterbox'" in str(file)


# === Letterbox ===


@pytest.mark.parametrize(
    ("size", "limit", "shown"),
    [
        (TALL, SIZE, SHOWN),
        ((320, 480), (257, 257), (171, 257)),
        ((10, 10), (40, 60), (40, 40)),
        ((1000, 1), (64, 64), (64, 1)),
        (SIZE, SIZE, SIZE),
    ],
)
def test_the_aspect_ratio_is_kept(size, limit, shown):
    assert letterbox_size(size, limit) == shown


def in_letterbox(picture: np.ndarray) -> np.ndarray:
    """The float32 input of the network for a picture of the size TALL."""
    canvas = np.full((*SIZE, 3), COLOR, np.float32)
    canvas[: SHOWN[0], : SHOWN[1]] = tf.image.resize(picture, SHOWN).numpy()
    return canvas


@pytest.mark.slow  # .ci/run has it too
@pytest.mark.parametrize("output_at", ["image", "head"])
def test_images_are_letterboxed(source, tall, tmp_path, output_at):
    (file,) = export.export_model(
        source,
        tmp_path / "model.tflite",
        formats=["tflite"],
        input_size=SIZE,
        resize="letterbox",
        output="logits",
        output_at=output_at,
        check_images=[tall, images.synthetic_images(SIZE, 3, 1)[0]],
        log=lambda line: None,
    )
    about = json.loads(packed_files(file.path)["model.json"])
    assert (about["resize"], about["pad_value"]) == ("letterbox", list(COLOR))
    scores = bilinear(head_scores(source, in_letterbox(tall)), SIZE, False)
    shown = scores[: SHOWN[0], : SHOWN[1]]
    expected = bilinear(shown, TALL, False).argmax(-1).astype(np.uint8)
    predictor = Predictor(file.path)
    assert agreement(predictor(tall), expected) >= 0.999
    assert agreement(predictor.predict_batch(np.stack([tall, tall]))[1], expected) >= 0.999
    stretched = source.model.predict_on_batch(tf.image.resize(tall, SIZE)[None].numpy())[0]
    other = bilinear(stretched, TALL, False).argmax(-1).astype(np.uint8)
    assert agreement(other, expected) < 0.99, "a stretched image gives other labels"

    mirrored = head_scores(source, in_letterbox(tall[:, ::-1]))
    mirrored = bilinear(mirrored, SIZE, False)[: SHOWN[0], : SHOWN[1]][:, ::-1]
    powers = [np.exp(bilinear(part, TALL, False)) for part in (shown, mirrored)]
    both = sum(power / power.sum(-1, keepdims=True) for power in powers)
    flips = Predictor(file.path, EvalConfig(add_flipped_images=True))
    assert agreement(flips(tall), both.argmax(-1).astype(np.uint8)) >= 0.999

    own = file.compared.own_size
    assert (own.images, own.stretched) == (1, 0) and "changes the aspect ratio" not in str(file)
    at_own_size = Predictor(source.model)(tall)
    assert own.label_agreement == pytest.approx(agreement(predictor(tall), at_own_size))
    assert file.label_agreement >= 0.999


@pytest.mark.slow
def test_labels_of_the_heads_size_are_letterboxed(source, tall, tmp_path):
    (file,) = export.export_model(
        source,
        tmp_path / "model.tflite",
        formats=["tflite"],
        input_size=SIZE,
        resize="letterbox",
        output_at="head",
        log=lambda line: None,
    )
    labels = head_scores(source, in_letterbox(tall)).argmax(-1).astype(np.uint8)
    shown = nearest(labels, SIZE, False)[: SHOWN[0], : SHOWN[1]]
    assert agreement(Predictor(file.path)(tall), nearest(shown, TALL, False)) >= 0.999


def test_the_check_and_the_ranges_see_letterboxed_images(source, tall):
    fit = request.fit(ExportConfig(input_size=SIZE, resize="letterbox"), Exportable.of(source))
    found = fit.image(tall)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, in_letterbox(tall), atol=0.5)
    many = request.representative([tall] * 16, fit, "tflite_int8")
    np.testing.assert_array_equal(many[0], found)
    labels = fit.labels((tall[..., 0] % 5).astype(np.uint8), 255)
    assert (labels[:, SHOWN[1] :] == 255).all() and labels[: SHOWN[0], : SHOWN[1]].max() < 5

    def labels_of_images(image):
        return (image[..., 0] % 5).astype(np.int64), source.model.predict_on_batch(
            image[None].astype(np.float32)
        )[0]

    network = export.KerasNetwork(source.model)
    truth = (tall[..., 0] % 5).astype(np.uint8)
    counted = check.compare(labels_of_images, network, [tall], fit, [truth], 255)
    assert counted.miou is not None and counted.own_size.stretched == 0
    assert check.compare(labels_of_images, network, [tall], SIZE).own_size.stretched == 1


def test_unknown_ways_to_resize_are_refused(source, tmp_path):
    with raises_line("unknown --resize 'letterboxed'; did you mean 'letterbox'?"):
        export.export_model(source, tmp_path / "out", resize="letterboxed")
