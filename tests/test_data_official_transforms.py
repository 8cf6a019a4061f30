"""The official DeepLab's preprocessing and small components, compared with values of its code."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, label_blocks, noise, raises_line
from official_golden import LOCAL

from deeplab_keras.config import NORMALIZATIONS, DataConfig, EvalConfig
from deeplab_keras.data.augment import official as official_transforms
from deeplab_keras.data.augment.geometry import Draws, scale_factor
from deeplab_keras.data.datasets.ade20k import ADE20K_151
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES
from deeplab_keras.data.info import pascal_palette
from deeplab_keras.evaluation.metrics import Scores
from deeplab_keras.inference import official as official_inference
from deeplab_keras.models.layers import ResizeTo, scale_dimension
from deeplab_keras.zoo.official import OFFICIAL

PREPROCESS = np.load(LOCAL / "preprocess.npz")
RESIZE = np.load(LOCAL / "resize.npz")
CASES = json.loads((LOCAL / "preprocess_meta.json").read_text())
MEAN_PIXEL = json.loads((LOCAL / "mean_pixel.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_evaluation_preprocessing(case):
    settings = CASES[case]
    image, label = PREPROCESS[f"{case}/image"], PREPROCESS[f"{case}/label"][..., 0]
    config = DataConfig(
        min_resize_value=settings.get("min_resize_value"),
        max_resize_value=settings.get("max_resize_value"),
        resize_factor=settings.get("resize_factor"),
    )
    value, ignore = MEAN_PIXEL[settings["model_variant"]], settings.get("ignore_label", 255)
    found, found_label = official_transforms.prepare(
        image, label, settings["crop"], config, value, ignore
    )
    np.testing.assert_allclose(found, PREPROCESS[f"{case}/processed"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found_label, PREPROCESS[f"{case}/out_label"][..., 0])
    # The same with --inference=official.
    if settings["model_variant"].startswith("mobilenet") and ignore == 255:
        evaluation = EvalConfig(
            eval_crop_size=settings["crop"],
            eval_short_side=config.min_resize_value or 0,
            eval_long_side=config.max_resize_value or 0,
            eval_resize_factor=config.resize_factor or 0,
        )
        padded, size = official_inference.prepare(image[None], evaluation, value)
        np.testing.assert_allclose(padded[0], PREPROCESS[f"{case}/processed"], rtol=0, atol=1e-4)
        inner = official_inference.prepare_labels(label[None], size)[0]
        np.testing.assert_array_equal(
            inner, PREPROCESS[f"{case}/out_label"][: size[0], : size[1], 0]
        )


@pytest.mark.parametrize("ratio", [0.5, 1.25])
def test_random_scaling(ratio):
    image, label = PREPROCESS[f"scale_{ratio}/image"], PREPROCESS[f"scale_{ratio}/label"][..., 0]
    found, found_label = official_transforms.scale(image, label, ratio)
    np.testing.assert_allclose(found, PREPROCESS[f"scale_{ratio}/out"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found_label, PREPROCESS[f"scale_{ratio}/out_label"][..., 0])


def test_the_random_scales_are_the_seven_official_ones():
    found = {float(scale_factor(tf.constant(x), 0.5, 2.0, 0.25)) for x in np.linspace(0, 0.999, 50)}
    assert sorted(found) == PREPROCESS["random_scale_support"].tolist()


@pytest.mark.parametrize("size", ["9x13", "8x11", "3x4", "1x1", "5x7", "17x25"])
def test_resizing(size):
    target = tuple(map(int, size.split("x")))
    image = official_transforms.resize_images(RESIZE["x"], target)
    np.testing.assert_allclose(image, RESIZE[f"bil_{size}"], rtol=0, atol=1e-6)
    label = official_transforms.resize_labels(RESIZE["lab"][..., 0], target)
    np.testing.assert_array_equal(label, RESIZE[f"nn_{size}"][..., 0])
    layer = ResizeTo(align_corners=True)([RESIZE["x"], np.zeros((1, *target, 1), np.float32)])
    np.testing.assert_allclose(layer, RESIZE[f"bil_{size}"], rtol=0, atol=1e-6)


def test_resizing_from_one_pixel():
    found = official_transforms.resize_images(RESIZE["one"], RESIZE["bil_from1"].shape[1:3])
    np.testing.assert_array_equal(found, RESIZE["bil_from1"])


def test_scale_dimension():
    cases = json.loads((LOCAL / "scale_dimension.json").read_text())
    for case, expected in cases.items():
        length, scale = case.split("_")
        assert scale_dimension(int(length), float(scale)) == expected, case
        assert int(scale_dimension(tf.constant(int(length)), float(scale))) == expected, case


def test_normalization_maps_the_mean_pixel_to_0():
    for config in OFFICIAL.values():
        assert NORMALIZATIONS[config.normalization][0] == tuple(MEAN_PIXEL[config.backbone])


def test_mean_iou():
    cases = json.loads((LOCAL / "miou.json").read_text())
    for expected, matrix in cases.values():
        assert Scores.from_matrix(np.array(matrix, np.int64)).miou == pytest.approx(
            expected, abs=1e-6
        )


def test_color_maps():
    colors = np.load(LOCAL / "colormaps.npz")
    np.testing.assert_array_equal(pascal_palette(256), colors["pascal"][:256])
    np.testing.assert_array_equal(CITYSCAPES.palette, colors["cityscapes"])
    np.testing.assert_array_equal(ADE20K_151.palette, colors["ade20k"])


def test_training_preprocessing_in_a_graph():
    image, label = (
        noise(40, 60, 3).astype(np.uint8),
        label_blocks(1, 40, 60, classes=5)[0].astype(np.uint8),
    )
    config = DataConfig(
        train_crop_size=(33, 65),
        min_scale_factor=1.0,
        max_scale_factor=1.0,
        preprocessing="official",
    )
    draws = Draws(
        scale=tf.constant(0.3),
        crop=tf.constant([[0.5, 0.9]] * 10),
        flip=tf.constant(0.2),
        photometric=None,
        rare=None,
    )
    call = tf.function(
        lambda x, y: official_transforms.augment(x, y, draws, config, (127.5,) * 3, 255),
        autograph=False,
    )
    found, found_label = call(image, label)
    top = int(0.5 * (40 - 33 + 1))
    expected = np.full((33, 65, 3), 127.5, np.float32)
    expected[:, :60] = image[top : top + 33]
    expected_label = np.full((33, 65), 255)
    expected_label[:, :60] = label[top : top + 33]
    np.testing.assert_allclose(found, expected[:, ::-1], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found_label, expected_label[:, ::-1])


def test_a_cap_requires_a_short_side():
    with raises_line("--max_resize_value=65: requires --min_resize_value"):
        official_transforms.size_in_range((37, 50), None, 65)


def test_an_image_must_fit_into_the_crop():
    with raises_line("37x50 does not fit into --eval_crop_size=33,65") as caught:
        official_inference.prepare(
            noise(1, 37, 50, 3), EvalConfig(eval_crop_size=(33, 65)), (127.5,) * 3
        )
    assert "\n" not in as_command_line(caught.value)


def test_all_keras_versions_of_the_aligned_resize_agree():
    x = noise(1, 5, 7, 3)
    symbolic = keras.Input((None, None, 3))
    reference = keras.Input((None, None, 1))
    model = keras.Model([symbolic, reference], ResizeTo(True, scale=0.5)([symbolic, reference]))
    found = model.predict([x, np.zeros((1, 17, 25, 1), np.float32)], verbose=0)
    np.testing.assert_allclose(
        found, official_transforms.resize_images(x, (9, 13)), rtol=0, atol=1e-4
    )
