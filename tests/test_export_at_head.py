"""Files whose outputs have the size of the head's class scores, enlarged like in the network."""

from __future__ import annotations

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line
from test_export import ALIGNED, CLASSES, SIZE, TOY, agreement, lively

from deeplab_keras import export
from deeplab_keras.export import images
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import open_interpreter, packed_files
from deeplab_keras.inference.resizing import enlarge_labels

HEAD = (17, 25)  # the decoder's features at stride 4 of SIZE, 65x97
OTHER = (80, 120)


def weights(before: int, after: int, align_corners: bool) -> np.ndarray:
    """The weights of a bilinear resize of one side, float64 `[after, before]`, by definition."""
    found = np.zeros((after, before))
    for index in range(after):
        place = (
            index * (before - 1) / (after - 1)
            if align_corners
            else min(max((index + 0.5) * before / after - 0.5, 0), before - 1)
        )
        low = int(place)
        found[index, low] += 1 - (place - low)
        found[index, min(low + 1, before - 1)] += place - low
    return found


def bilinear(scores: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Resizes `[height, width, classes]`, in float64."""
    rows, columns = (
        weights(before, after, align_corners)
        for before, after in zip(scores.shape[:2], size, strict=True)
    )
    return np.einsum("ih,hwc,jw->ijc", rows, scores.astype(np.float64), columns)


def nearest(labels: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Resizes `[height, width]`: of both neighbors that with the larger weight, or the later."""
    rows, columns = (
        before - 1 - weights(before, after, align_corners)[:, ::-1].argmax(1)
        for before, after in zip(labels.shape, size, strict=True)
    )
    return labels[np.ix_(rows, columns)]


@pytest.fixture(scope="module", params=["half_pixel", "aligned"])
def source(request, toy_backbone):
    return lively(ALIGNED if request.param == "aligned" else TOY)


@pytest.fixture(scope="module")
def pictures():
    return images.synthetic_images(SIZE, 3, 3)


def head_scores(source, picture: np.ndarray) -> np.ndarray:
    """What Keras computes before the last resize, `[*HEAD, classes]`."""
    head = keras.Model(source.model.input, source.model.get_layer("logits").output)
    return head.predict_on_batch(picture[None].astype(np.float32))[0]


def test_logits_are_enlarged_like_in_the_network(source, pictures, tmp_path):
    path, align = tmp_path / "small.tflite", source.config.align_corners
    (file,) = export.export_model(
        source,
        path,
        formats=["tflite"],
        input_size=SIZE,
        output="both",
        output_at="head",
        check_images=[*pictures, *images.synthetic_images(OTHER, 3, 2)],
        log=lambda line: None,
    )
    assert file.label_agreement >= 0.999 and file.classes >= 3 and file.max_logit_difference < 1e-3
    assert "% of labels agree with Keras (5 classes) after bilinear enlargement of the 17x25" in (
        str(file)
    )
    about = json.loads(packed_files(path)["model.json"])
    assert (about["output_at"], about["align_corners"]) == ("head", align)

    picture, predictor = pictures[0], Predictor(path)
    run = open_interpreter(path, 2).get_signature_runner()
    outputs = run(image=picture[None].astype(np.float32))
    scores = head_scores(source, picture)
    assert scores.shape == (*HEAD, len(CLASSES)) and outputs["labels"].shape == (1, *HEAD)
    np.testing.assert_allclose(outputs["logits"][0], scores, atol=1e-4 * np.ptp(scores))
    np.testing.assert_array_equal(outputs["labels"], outputs["logits"].argmax(-1))

    expected = bilinear(scores, SIZE, align).argmax(-1).astype(np.uint8)
    assert agreement(predictor(picture), expected) >= 0.999
    assert agreement(predictor(picture), Predictor(source.model)(picture)) >= 0.999
    other_grid = bilinear(scores, SIZE, not align).argmax(-1).astype(np.uint8)
    assert agreement(other_grid, expected) < 0.99, "the two grids must be told apart"
    labels, confidence = predictor.labels_and_confidence(np.stack(pictures))
    assert agreement(labels[0], expected) >= 0.999
    probabilities = tf.nn.softmax(bilinear(scores, SIZE, align)).numpy().max(-1)
    np.testing.assert_allclose(confidence[0], probabilities, atol=1e-4)

    # An image of another size: a network with half-pixel centers resizes its scores only once.
    other = images.synthetic_images(OTHER, 3, 1)[0]
    scores = head_scores(source, tf.image.resize(other, SIZE).numpy())
    if align:
        scores = bilinear(scores, SIZE, True)
    expected = bilinear(scores, OTHER, False).argmax(-1).astype(np.uint8)
    assert agreement(predictor(other), expected) >= 0.999
    assert file.compared.own_size.label_agreement == pytest.approx(
        np.mean(
            [
                agreement(predictor(image), Predictor(source.model)(image))
                for image in images.synthetic_images(OTHER, 3, 2)
            ]
        )
    )


@pytest.mark.slow
def test_labels_are_enlarged_by_nearest_neighbor(source, pictures, tmp_path):
    path, align = tmp_path / "labels.tflite", source.config.align_corners
    (file,) = export.export_model(
        source,
        path,
        formats=["tflite"],
        input_size=SIZE,
        output_at="head",
        label_type="uint8",
        check_images=pictures,
        log=lambda line: None,
    )
    small = [head_scores(source, picture).argmax(-1).astype(np.uint8) for picture in pictures]
    large = [nearest(labels, SIZE, align) for labels in small]
    predictor = Predictor(path)
    assert agreement(predictor(pictures[0]), large[0]) >= 0.999
    assert agreement(nearest(small[0], SIZE, not align), large[0]) < 0.99
    of_keras = [Predictor(source.model)(picture) for picture in pictures]
    enlarged = np.mean([agreement(a, b) for a, b in zip(large, of_keras, strict=True)])
    assert file.label_agreement == pytest.approx(enlarged, abs=1e-3) and enlarged < 0.995
    assert file.compared.at_head >= 0.999, "this share has to meet `min_agreement`"
    assert "% of the 17x25 labels agree with Keras (5 classes), " in str(file)
    assert "% after enlargement by nearest neighbor" in str(file)
    other = images.synthetic_images(OTHER, 3, 1)[0]
    labels = head_scores(source, tf.image.resize(other, SIZE).numpy()).argmax(-1).astype(np.uint8)
    expected = nearest(nearest(labels, SIZE, align), OTHER, False)
    assert agreement(predictor(other), expected) >= 0.999

    # A file of a later version may have outputs of another size.
    files = packed_files(path)
    with zipfile.ZipFile(path) as archive:
        start = min(entry.header_offset for entry in archive.infolist())
    files["model.json"] = files["model.json"].replace('at": "head"', 'at": "elsewhere"')
    path.write_bytes(export.tflite.pack(path.read_bytes()[:start], files))
    with raises_line("labels.tflite: damaged or not an export: its model.json .*elsewhere"):
        Predictor(path)


@pytest.mark.slow  # .ci/run has it too
def test_a_saved_model_takes_any_size(source, tmp_path):
    (file,) = export.export_model(
        source,
        tmp_path,
        formats=["saved_model"],
        output="logits",
        output_at="head",
        log=lambda line: None,
        overwrite=True,
    )
    assert file.label_agreement >= 0.999 and file.classes >= 3
    batch = np.stack(images.synthetic_images(OTHER, 3, 2))
    found = Predictor(file.path).predict_batch(batch)
    assert agreement(found, Predictor(source.model).predict_batch(batch)) >= 0.999


@pytest.mark.package("onnxruntime")
def test_onnx_files_are_enlarged_too(source, pictures, tmp_path):
    (file,) = export.export_model(
        source,
        tmp_path / "small.onnx",
        formats=["onnx"],
        input_size=SIZE,
        output="logits",
        output_at="head",
        log=lambda line: None,
    )
    assert file.label_agreement >= 0.999 and file.classes >= 3
    expected = bilinear(head_scores(source, pictures[0]), SIZE, source.config.align_corners)
    found = Predictor(file.path)(pictures[0])
    assert agreement(found, expected.argmax(-1).astype(np.uint8)) >= 0.999


@pytest.mark.slow
def test_an_image_pyramid_is_merged_before_the_outputs(toy_backbone, tmp_path):
    source = lively(ALIGNED.replace(image_pyramid=(0.5, 1.0)))
    (file,) = export.export_model(
        source,
        tmp_path / "small.tflite",
        formats=["tflite"],
        input_size=SIZE,
        output="logits",
        output_at="head",
        log=lambda line: None,
    )
    assert file.label_agreement >= 0.999 and file.compared.output_size == HEAD


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("after", [(5, 9), (33, 40), (129, 65), (12, 8)])
def test_labels_keep_the_nearest_sample(after, align_corners):
    labels = np.random.default_rng(0).integers(0, 99, (2, 5, 9))
    found = enlarge_labels(labels, after, align_corners)
    for one, expected in zip(found, labels, strict=True):
        np.testing.assert_array_equal(one, nearest(expected, after, align_corners))
    if not align_corners:
        reference = tf.image.resize(labels[..., None], after, "nearest")[..., 0]
        np.testing.assert_array_equal(found, reference)


def test_what_has_no_head_is_refused(toy_backbone, tmp_path):
    source = lively(TOY)
    own = keras.layers.Activation("relu", name="own")
    changed = dataclasses.replace(
        source, model=keras.Model(source.model.input, own(source.model.output))
    )
    with raises_line("--output_at=head: the model .* does not end with the resize of its class"):
        export.export_model(
            changed, tmp_path / "out", formats=["tflite"], input_size=SIZE, output_at="head"
        )
    with raises_line("unknown --output_at 'middle'"):
        export.export_model(source, tmp_path / "out", output_at="middle")
    assert not (tmp_path / "out").exists()
