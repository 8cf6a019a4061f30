"""Statistics of batch norm that was folded into the convolutions, restored from images."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
import official_graphs
import pytest
import tensorflow as tf
from contracts import SHARED, noise, raises_line, script
from official_golden import LRASPP, drawn_tensors
from PIL import Image
from toy import toy_config

from deeplab_keras.convert import official_deeplab, restoring
from deeplab_keras.convert.conversion import convert
from deeplab_keras.convert.pictures import MIN_IMAGES, find_for_statistics
from deeplab_keras.convert.restoring import restore_batch_norm
from deeplab_keras.inference import Predictor
from deeplab_keras.models.layers import BatchNormalization
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.official import OFFICIAL, official_config

pytestmark = pytest.mark.usefixtures("toy_backbone")
TINY = toy_config(
    head="deeplab_v3", head_channels=8, output_stride=16, num_classes=3, atrous_rates=()
)
SIZES = [(33, 49), (40, 32)]


def norms(model: keras.Model) -> list[BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, BatchNormalization)]


def fold(model: keras.Model) -> keras.Model:
    """Gives each batch norm a random factor and offset, and trivial statistics."""
    random = np.random.default_rng(3)
    for layer in norms(model):
        shape = layer.gamma.shape
        factor, offset = random.uniform(0.5, 1.5, shape), random.normal(0, 0.3, shape)
        trivial = np.zeros(shape), np.full(shape, 1 - layer.epsilon)
        layer.set_weights([factor, offset, *trivial])
    return model


def pictures(sizes=SIZES, count: int = MIN_IMAGES) -> list[np.ndarray]:
    """Noise of another brightness and contrast in each image."""
    shapes = [sizes[index % len(sizes)] for index in range(count)]
    return [
        (noise(*size, 3, seed=index) * (0.3 + 0.04 * index)).astype(np.uint8)
        for index, size in enumerate(shapes)
    ]


def inputs(model: keras.Model, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    """All inputs of each layer, float64 `[positions, channels]`."""
    part = keras.Model(model.input, {layer.name: layer.input for layer in norms(model)})
    found = [part(image[None].astype(np.float32)) for image in images]
    return {
        name: np.concatenate(
            [np.asarray(x[name]).reshape(-1, x[name].shape[-1]) for x in found]
        ).astype(np.float64)
        for name in found[0]
    }


def test_the_statistics_are_those_of_one_large_batch_and_the_layers_compute_the_same():
    model, images = fold(build_segmentor(TINY)), pictures()
    expected = inputs(model, images)
    scale = {layer.name: np.asarray(layer.gamma) for layer in norms(model)}
    offset = {layer.name: np.asarray(layer.beta) for layer in norms(model)}
    before = [np.asarray(model(image[None].astype(np.float32))) for image in images]
    restored = restore_batch_norm(model, TINY, images, origin="test")
    assert (restored.layers, restored.kept, restored.images) == (len(norms(model)), 0, MIN_IMAGES)
    for layer in norms(model):
        x = expected[layer.name]
        np.testing.assert_allclose(layer.moving_mean, x.mean(0), rtol=2e-5, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, x.var(0, ddof=1), rtol=2e-5)
        factor = np.asarray(layer.gamma) / np.sqrt(
            np.asarray(layer.moving_variance) + layer.epsilon
        )
        np.testing.assert_allclose(factor, scale[layer.name], rtol=1e-5)
        at_mean = offset[layer.name] + scale[layer.name] * np.asarray(layer.moving_mean)
        np.testing.assert_allclose(layer.beta, at_mean, rtol=1e-5, atol=1e-5)
    for image, old in zip(images, before, strict=True):
        new = np.asarray(model(image[None].astype(np.float32)))
        np.testing.assert_allclose(new, old, atol=1e-5 * np.abs(old).max())
    assert restored.labels == 1 and 0 <= restored.logits < 1e-5


def test_a_training_step_normalizes_as_before():
    model, images = fold(build_segmentor(TINY.replace(dropout_rate=0.0))), pictures(SIZES[:1])
    batch = np.stack(images).astype(np.float32)
    folded = np.asarray(model(batch, training=True))
    for layer in norms(model):  # the call has updated the statistics
        layer.moving_mean.assign(np.zeros(layer.gamma.shape))
        layer.moving_variance.assign(np.full(layer.gamma.shape, 1 - layer.epsilon))
    expected = np.asarray(model(batch, training=False))
    restore_batch_norm(model, TINY, images, origin="test")
    # The batch is normalized with its biased variance.
    np.testing.assert_allclose(
        np.asarray(model(batch, training=True)), expected, atol=0.05 * expected.std()
    )
    assert np.abs(folded - expected).mean() > 0.5 * expected.std(), (
        "the test would see no difference"
    )


def test_constant_channels_keep_their_variance():
    model, images = fold(build_segmentor(TINY)), pictures()
    layer, kernel = model.get_layer("block1_bn"), model.get_layer("block1_conv").kernel
    values = np.asarray(kernel).copy()
    values[..., 2] = 0
    kernel.assign(values)
    gamma = float(layer.gamma[2])
    restored = restore_batch_norm(model, TINY, images, origin="test")
    assert restored.constant == 1 and f"1 of {restored.channels} channels are constant" in str(
        restored
    )
    assert float(layer.gamma[2]) == pytest.approx(gamma, rel=1e-6)
    assert float(layer.moving_variance[2]) == pytest.approx(1 - layer.epsilon)


def test_layers_with_statistics_are_not_touched():
    model, images = fold(build_segmentor(TINY)), pictures()
    layer = model.get_layer("stem_bn")
    layer.moving_mean.assign(np.linspace(-1, 1, layer.moving_mean.shape[0]))
    fresh = model.get_layer("aspp_project_bn")
    loaded = [layer.name for layer in norms(model) if layer is not fresh]
    before = [layer.get_weights(), fresh.get_weights()]
    restored = restore_batch_norm(model, TINY, images, origin="test", loaded=loaded)
    assert (restored.kept, restored.layers) == (1, len(norms(model)) - 2)
    for old, new in zip(before, [layer.get_weights(), fresh.get_weights()], strict=True):
        for a, b in zip(old, new, strict=True):
            np.testing.assert_array_equal(a, b)


def test_images_get_a_size_that_the_network_takes(monkeypatch):
    config = toy_config(
        head="lraspp", output_stride=32, num_classes=3, head_channels=8, image_pooling_size=(2, 3)
    )
    model = fold(build_segmentor(config))
    monkeypatch.setattr(restoring, "LARGEST_SIDE", 80)
    small, large = np.full((20, 90, 3), 9, np.uint8), np.full((100, 160, 3), 9, np.uint8)
    first, second = restoring._prepared(model, config, [small, large])
    assert first.shape == (1, 33, 80, 3) and second.shape == (1, 50, 80, 3)
    np.testing.assert_allclose(first[0, :18], 9, atol=1e-5)
    padding = np.broadcast_to(model.pad_value, (15, 80, 3))
    np.testing.assert_allclose(first[0, 18:], padding, rtol=1e-6)


def test_of_many_images_some_are_used(monkeypatch):
    monkeypatch.setattr("deeplab_keras.convert.pictures.MAX_IMAGES", 17)
    found = find_for_statistics(np.arange(100))
    assert len(found) == 17 and found[0] == 0 and found[-1] == 99


# === Conversions ===


@pytest.fixture(scope="module")
def official():
    config = official_config(
        "mobilenet_v3_small_seg",
        **LRASPP
        | dict(
            image_pooling_crop_size=(33, 65), image_pooling_stride=(1, 2), aspp_convs_filters=16
        ),
    )
    return config, drawn_tensors(build_segmentor(config), config)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    path = tmp_path / "images" / "more"
    path.mkdir(parents=True)
    for index, image in enumerate(pictures([(65, 97)])):
        Image.fromarray(image).save(path / f"{index}.png")
    return path.parent


@pytest.mark.slow
@pytest.mark.parametrize("classes", [5, 3])
def test_a_folded_graph_is_restored_and_still_agrees(official, folder, tmp_path, classes):
    config, tensors = official
    path = tmp_path / "graph.pb"
    graph = official_graphs.frozen(
        tensors, (65, 97), fold=True, output_stride=16, pool=((3, 5), (1, 2))
    )
    path.write_bytes(graph.SerializeToString())
    model, proof = convert(
        "official_deeplab",
        str(path),
        config.replace(num_classes=classes),
        skip_mismatched_classifiers=True,
        restore_batch_norm=folder,
    )
    count = len(norms(model))
    assert f"statistics of {count} folded batch norm layers were measured on 16 images" in str(
        proof
    )
    again = "Then the frozen graph and the model were run again: 100.0000 % of the labels are equal"
    assert (again in str(proof)) is (classes == 5)
    assert not any(restoring.is_folded(layer) for layer in norms(model))


@pytest.mark.slow
def test_a_checkpoint_with_trivial_statistics_by_the_script(official, folder, tmp_path, capsys):
    config, tensors = official
    trivial = {
        name: {"moving_mean": np.zeros_like, "moving_variance": np.ones_like}[kind](value)
        if (kind := name.rpartition("/")[2]).startswith("moving")
        else value
        for name, value in tensors.items()
    }
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "model.ckpt"),
        tensor_names=list(trivial),
        shape_and_slices=[""] * len(trivial),
        tensors=list(trivial.values()),
    )
    status = script("convert_checkpoint.py")(
        "--source=official_deeplab",
        "--model=deeplab_mnv3_small_cityscapes_trainfine",
        "--num_classes=5",
        "--output_stride=16",
        "--aspp_convs_filters=16",
        "--image_pooling_crop_size=33,65",
        "--image_pooling_stride=1,2",
        f"--checkpoint={tmp_path / 'model.ckpt'}",
        f"--restore_batch_norm={folder}",
        f"--output={tmp_path / 'converted'}",
    )
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "folded batch norm layers were measured on 16 images" in printed.out
    weights = np.load(tmp_path / "converted" / "weights.npz")
    assert weights["stem_bn/moving_mean"].any()
    np.testing.assert_array_equal(weights["stem_conv/kernel"], tensors["MobilenetV3/Conv/weights"])


# === Bad input ===


def test_too_few_images_or_none(folder, tmp_path):
    model = fold(build_segmentor(TINY))
    (folder / "more" / "7.png").unlink()
    with raises_line("--restore_batch_norm=.*images: 15 images, but .*; give at least 16, such"):
        restore_batch_norm(model, TINY, folder, origin="test")
    with raises_line("--restore_batch_norm: 3 images, but image pooling has one value per image"):
        restore_batch_norm(model, TINY, pictures()[:3], origin="test")
    with raises_line("--restore_batch_norm=.*nowhere: no such folder; give one with images"):
        official_deeplab.load(model, TINY, "a.pb", restore_batch_norm=tmp_path / "nowhere")


def test_images_that_cannot_be_used(folder):
    model = fold(build_segmentor(TINY))
    with raises_line(r"of shape \(33, 49\) and dtype uint8; must be uint8 \[height, width, 3\]"):
        restore_batch_norm(model, TINY, [image[..., 0] for image in pictures()], origin="test")
    with raises_line(r"--restore_batch_norm: .* dtype float64; must be uint8"):
        restore_batch_norm(model, TINY, [image / 255 for image in pictures()], origin="test")
    (folder / "more" / "7.png").write_bytes(b"no image")
    with raises_line(r"7\.png: cannot be decoded \(not an image\); replace or remove it$"):
        restore_batch_norm(model, TINY, folder, origin="test")


def test_a_folder_is_checked_before_the_network_is_built(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("deeplab_keras.convert.conversion.build_segmentor", None)
    monkeypatch.setattr("deeplab_keras.cli.commands.convert_checkpoint.load_keras", None)
    (folder / "more" / "7.png").unlink()
    for option, images, message in [
        ("restore_batch_norm", folder, "15 images, but"),
        ("restore_batch_norm", tmp_path / "nowhere", "no such folder"),
        ("check_photos", tmp_path / "nowhere", "no such folder"),
    ]:
        with raises_line(f"--{option}=.*{message}"):
            convert("official_deeplab", "a.tflite", TINY, **{option: images})
    (folder / "more" / "7.png").write_bytes(b"no image")
    with raises_line(r"7\.png: cannot be decoded"):
        convert("official_deeplab", "a.tflite", TINY, restore_batch_norm=folder)
    flags = ["--source=official_deeplab", "--model=deeplabv3_mnv2_dm05_pascal_trainval"]
    flags += ["--checkpoint=a.tflite", "--output=b", f"--restore_batch_norm={folder}"]
    assert script("convert_checkpoint.py")(*flags) == 1
    assert "7.png: cannot be decoded" in capsys.readouterr().err


def test_weights_that_have_statistics(official, tmp_path):
    model = fold(build_segmentor(TINY))
    for layer in norms(model):
        layer.moving_variance.assign(np.linspace(1, 2, layer.gamma.shape[0]))
    with raises_line("model.ckpt: none of its 8 batch norm layers is folded.*; omit --restore"):
        restore_batch_norm(model, TINY, pictures(), origin="model.ckpt")
    with raises_line("--restore_batch_norm: weights of --source=torchvision have the statistics"):
        convert("torchvision", "a.pth", TINY, restore_batch_norm=pictures())


def test_a_network_that_would_compute_something_else(monkeypatch):
    model = fold(build_segmentor(TINY))
    rewrite = restoring._rewrite

    def wrong(layer, moments):
        return rewrite(layer, dataclasses.replace(moments, mean=moments.mean * np.float64(1e30)))

    monkeypatch.setattr(restoring, "_rewrite", wrong)
    with raises_line("test: its batch norm cannot be restored in float32.* omit --restore"):
        restore_batch_norm(model, TINY, pictures(), origin="test")


def test_only_conversions_to_this_project_restore(capsys):
    status = script("convert_checkpoint.py")(
        "--to=sssegmentation", "--checkpoint_dir=a", "--output=b", "--restore_batch_norm=c"
    )
    assert status == 1 and "--restore_batch_norm cannot be combined with --to" in (
        capsys.readouterr().err
    )


# === The real VOC model ===


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_voc_model_computes_the_same_labels():
    config = OFFICIAL["deeplabv3_mnv2_pascal_trainval"]
    path = str(SHARED / "weights" / "deeplabv3_mnv2_pascal_trainval")
    images = SHARED / "data" / "camvid" / "images" / "val"
    folded, _ = convert("official_deeplab", path, config)
    restored, proof = convert(
        "official_deeplab", path, config, restore_batch_norm=sorted(images.glob("*.jpg"))[:16]
    )
    assert "54 folded batch norm layers" in str(proof)
    equal = []
    for file in sorted((SHARED / "data" / "voc2012_sample").rglob("JPEGImages/*.jpg")):
        image = np.asarray(Image.open(file))
        equal.append(Predictor(restored)(image) == Predictor(folded)(image))
    assert np.concatenate([labels.ravel() for labels in equal]).mean() >= 0.9999 and len(equal) == 4
