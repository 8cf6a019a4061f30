"""MediaPipe's ImageSegmenter on exported files gives the labels of `Predictor`."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from contracts import SHARED, script
from PIL import Image
from test_export import ALIGNED, CLASSES, LRASPP, SIZE, lively

from deeplab_keras.export import export_model, images
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import open_interpreter

pytestmark = [pytest.mark.package("mediapipe"), pytest.mark.slow]
KINDS = ["tflite", "tflite_float16", "tflite_dynamic", "tflite_int8"]
VOC = SHARED / "data/voc2012_sample/VOCdevkit/VOC2012/JPEGImages"


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """An ImageSegmenter as in docs/export.md, also with confidence masks."""
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageSegmenterOptions(
        base_options=BaseOptions(model_asset_path=str(path)),
        output_category_mask=True,
        output_confidence_masks=True,
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        yield segmenter


def masks(segmenter: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and the confidences `[height, width, classes]` of a uint8 image."""
    import mediapipe

    picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image)
    result = segmenter.segment(picture)  # owns the memory of its masks
    confidences = [mask.numpy_view().reshape(image.shape[:2]) for mask in result.confidence_masks]
    labels = result.category_mask.numpy_view().reshape(image.shape[:2])
    return labels.copy(), np.stack(confidences, -1)


def scores(path: pathlib.Path, image: np.ndarray) -> np.ndarray:
    """Returns the file's logits `[height, width, classes]` for an image of its input size."""
    run = open_interpreter(path, 1).get_signature_runner()
    dtype = run.get_input_details()["image"]["dtype"]
    return run(image=image[None].astype(dtype))["logits"][0]


def enlarged(logits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resizes logits with aligned corners, as `ProcessForCategoryMaskCpu` of MediaPipe does."""
    return tf.compat.v1.image.resize_bilinear(logits[None], size, align_corners=True)[0].numpy()


@pytest.fixture(scope="module")
def checkpoint():
    return lively(LRASPP)


def test_every_kind_gives_the_labels_of_the_predictor(checkpoint, tmp_path):
    pictures = images.synthetic_images(SIZE, 3, 16)
    files = export_model(
        checkpoint,
        tmp_path,
        formats=KINDS,
        input_size=SIZE,
        output="logits",
        representative_images=pictures,
        log=lambda line: None,
    )
    for file in files:
        predictor = Predictor(file.path)
        with opened(file.path) as segmenter:
            assert segmenter.labels == list(CLASSES)
            for picture in pictures[:3]:
                labels, confidences = masks(segmenter, picture)
                np.testing.assert_array_equal(labels, predictor(picture), err_msg=file.kind)
                assert len(np.unique(labels)) >= 3
                expected = tf.nn.softmax(scores(file.path, picture)).numpy()
                np.testing.assert_allclose(confidences, expected, atol=1e-6)


@pytest.mark.parametrize("aligned", [False, True])
def test_small_outputs_are_enlarged_with_aligned_corners(
    checkpoint, toy_backbone, tmp_path, aligned
):
    """Equal to `Predictor` only if the network has aligned corners too."""
    path = tmp_path / "model.tflite"
    export_model(
        lively(ALIGNED) if aligned else checkpoint,
        path,
        formats=["tflite"],
        input_size=SIZE,
        output="logits",
        output_at="head",
        log=lambda line: None,
    )
    (picture,) = images.synthetic_images(SIZE, 3, 1)
    with opened(path) as segmenter:
        labels, _ = masks(segmenter, picture)
    expected = enlarged(scores(path, picture), SIZE).argmax(-1)
    assert (labels == expected).mean() >= 0.999 and len(np.unique(labels)) >= 3
    share = (labels == Predictor(path)(picture)).mean()
    print(f"{100 * share:.2f} % of the labels are those of Predictor")
    assert (share >= 0.999) == aligned


def test_labels_alone_are_taken_for_scores(checkpoint, tmp_path):
    """The reason for the line that the export prints."""
    path = tmp_path / "model.tflite"
    export_model(checkpoint, path, formats=["tflite"], input_size=SIZE, log=lambda line: None)
    (picture,) = images.synthetic_images(SIZE, 3, 1)
    with opened(path) as segmenter:
        labels, confidences = masks(segmenter, picture)
    assert confidences.shape == (*SIZE, SIZE[1]), "a class per column"
    assert (labels == Predictor(path)(picture)).mean() < 0.5


@pytest.mark.shared
def test_photos_of_another_size(tmp_path):
    """MediaPipe resizes them without half-pixel centers, which explains the difference."""
    weights = SHARED / "weights/deeplabv3_mnv2_dm05_257/deeplabv3.tflite"
    assert (
        script("convert_checkpoint.py")(
            "--source=official_deeplab",
            "--model=deeplabv3_mnv2_dm05_pascal_trainaug",
            "--output_stride=8",
            f"--output={tmp_path / 'checkpoint'}",
            f"--checkpoint={weights}",
        )
        == 0
    )
    path, size = tmp_path / "model.tflite", (257, 257)
    export_model(
        tmp_path / "checkpoint", path, formats=["tflite"], input_size=size, output="logits"
    )
    predictor = Predictor(path)
    with opened(path) as segmenter:
        for photo in sorted(VOC.glob("*.jpg")):
            with Image.open(photo) as picture:
                image = np.asarray(picture.convert("RGB"))
            resized = images.resize(image, size)
            at_size, _ = masks(segmenter, resized)
            np.testing.assert_array_equal(at_size, predictor(resized))

            labels, _ = masks(segmenter, image)
            same = (labels == predictor(image)).mean()
            legacy = tf.compat.v1.image.resize_bilinear(image[None].astype(np.float32), size)
            expected = enlarged(scores(path, legacy[0].numpy()), image.shape[:2]).argmax(-1)
            explained = (labels == expected).mean()
            print(
                f"{photo.name}: {100 * same:.2f} % of the labels are those of Predictor, "
                f"{100 * explained:.2f} % with MediaPipe's resize"
            )
            assert len(np.unique(labels)) > 1 and same >= 0.96 and explained >= 0.995
