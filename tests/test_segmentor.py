"""A segmentor behaves like any Keras model: fit, eager inference, save and load, clone, export."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import ROOT, label_blocks, noise

import deeplab_keras as dk
from deeplab_keras.checkpoints.folder import named_weights
from deeplab_keras.config import UserError
from deeplab_keras.evaluation.metrics import ConfusionMatrix, MeanIoU
from deeplab_keras.models.layers import BatchNormalization, Normalize, ResizeTo
from deeplab_keras.models.segmentor import AuxiliaryOutputs, Segmentor, build_segmentor
from deeplab_keras.training.losses import make_loss
from deeplab_keras.training.optimizers import MomentumSGD, make_schedule
from deeplab_keras.zoo.official import official_config

NARROW = dk.ModelConfig(
    head="fcn",
    depth_multiplier=0.1,
    head_channels=8,
    auxiliary_channels=8,
    num_classes=3,
    dropout_rate=0.0,
    output_stride=32,
)
AUXILIARY = NARROW.replace(auxiliary_head=True)
OFFICIAL = official_config(depth_multiplier=0.35, output_stride=32).replace(num_classes=3)
KINDS = {
    "auxiliary": AUXILIARY,
    "lraspp": NARROW.replace(
        head="lraspp", backbone="mobilenet_v3_small_seg", depth_multiplier=0.35
    ),
    "pyramid": OFFICIAL.replace(image_pyramid=(0.5, 1.0)),
    "quantization_aware": AUXILIARY.replace(quantization_aware=True),
}
SIZE = (33, 47)
IMAGES = noise(2, *SIZE, 3)
LABELS = label_blocks(2, *SIZE, classes=3, ignore_label=255, block=5)


@pytest.fixture(autouse=True)
def fresh_names() -> Iterator[None]:
    keras.utils.set_random_seed(3)
    yield
    keras.backend.clear_session()


def loss_of(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean softmax cross-entropy over the pixels that are not 255, in NumPy."""
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    logarithm = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    valid = labels != 255
    picked = np.take_along_axis(logarithm, np.where(valid, labels, 0)[..., None], -1)[..., 0]
    return -float(picked[valid].mean())


def small(scales: bool = False, auxiliary: bool = True) -> Segmentor:
    """A segmentor of three convolutions, with the layer names of `build_segmentor`."""
    image = keras.Input((*SIZE, 3), name="image")
    x = Normalize((120.0,) * 3, (60.0,) * 3, name="normalize")(image)
    x = keras.layers.Conv2D(4, 3, 4, activation="relu", name="stem_conv")(x)
    logits = keras.layers.Conv2D(3, 1, name="logits")(x)
    output = ResizeTo(name="resized_logits")([logits, image])
    if auxiliary:
        y = BatchNormalization(freeze_statistics=True, name="auxiliary_bn")(x)
        scores = keras.layers.Conv2D(3, 1, name="auxiliary_logits")(y)
        names = {"auxiliary_logits": 0.4, **({"logits_0.50": 1.0} if scales else {})}
        inputs = [output, scores, *([logits] if scales else [])]
        output = AuxiliaryOutputs(names, name="segmentation")(inputs)
    return Segmentor(image, output, name="small")


def with_drawn_weights(config: dk.ModelConfig) -> Segmentor:
    """The network with weights and statistics that differ from those of new layers."""
    model, random = build_segmentor(config, SIZE), np.random.default_rng(0)
    for weight in model.weights:
        spread = random.uniform(0.9, 1.1, weight.shape)
        first = keras.ops.convert_to_numpy(weight)
        weight.assign(first * spread + 0.01 * random.uniform(0, 1, weight.shape))
    return model


# --- fit ---


@pytest.mark.parametrize("scales", [False, True])
def test_fit_trains_every_output_with_its_weight(scales) -> None:
    model = small(scales)
    outputs = keras.Model(model.input, model.training_outputs)(IMAGES)
    losses = {name: loss_of(np.asarray(scores), LABELS) for name, scores in outputs.items()}
    weights = {"logits": 1.0, "auxiliary_logits": 0.4} | ({"logits_0.50": 1.0} if scales else {})
    assert losses.keys() == weights.keys()
    before = named_weights(model)
    model.compile(MomentumSGD(0.1), loss=make_loss(), metrics=[MeanIoU(3)], jit_compile=False)
    assert model.evaluate(IMAGES, LABELS, verbose=0)[0] == pytest.approx(losses["logits"], rel=1e-4)
    found = model.fit(IMAGES, LABELS, verbose=0).history
    expected = sum(weights[name] * loss for name, loss in losses.items())
    assert found["loss"] == pytest.approx([expected], rel=1e-4)
    oracle = MeanIoU(3)
    oracle.update_state(LABELS, np.asarray(outputs["logits"]))
    assert found["miou"] == pytest.approx([float(oracle.result())], abs=1e-6)
    moved = {name for name, value in named_weights(model).items() if np.any(value != before[name])}
    assert {"auxiliary_logits/kernel", "stem_conv/kernel", "logits/kernel"} <= moved


def test_the_loss_weight_scales_the_gradient_of_the_auxiliary_head() -> None:
    model, moves = small(), {}
    start = model.get_weights()
    for weight in (0.4, 0.8):
        model.set_weights(start)
        model.auxiliary_loss_weights["auxiliary_logits"] = weight
        model.compile(keras.optimizers.SGD(0.1), loss=make_loss(), jit_compile=False)
        before = named_weights(model)
        model.train_on_batch(IMAGES, LABELS)
        after = named_weights(model)
        moves[weight] = {
            name: after[name] - before[name]
            for name in ("auxiliary_logits/kernel", "logits/kernel")
        }
    doubled, same = "auxiliary_logits/kernel", "logits/kernel"
    np.testing.assert_allclose(moves[0.8][doubled], 2 * moves[0.4][doubled], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(moves[0.8][same], moves[0.4][same], rtol=1e-3, atol=1e-6)


def test_a_built_segmentor_has_the_outputs_and_weights_of_its_config() -> None:
    model = build_segmentor(AUXILIARY.replace(image_pyramid=(0.5, 1.0)), SIZE)
    assert model.auxiliary_loss_weights == {
        "logits_0.50": 1.0,
        "logits_1.00": 1.0,
        "auxiliary_logits": 0.4,
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in model.training_outputs.items()}
    assert shapes == dict.fromkeys(("logits", *model.auxiliary_loss_weights), (None, *SIZE, 3))


def test_training_mode_outside_of_a_training_step_returns_logits() -> None:
    model, other = small(), small()
    assert model(IMAGES, training=True).shape == (2, *SIZE, 3)
    with model.training_step():
        assert set(model(IMAGES, training=True)) == {"logits", "auxiliary_logits"}
        assert model(IMAGES).shape == other(IMAGES, training=True).shape == (2, *SIZE, 3)


# --- Inference does not compute auxiliary outputs ---


@pytest.mark.parametrize("how", ["eager", "traced", "predict", "evaluate"])
def test_inference_never_calls_the_auxiliary_layers(how, monkeypatch) -> None:
    model = small()
    model.compile("sgd", loss=make_loss(), jit_compile=False)
    kind, called = type(model.get_layer("auxiliary_logits")), []
    call = kind.call

    def recorded(layer, *arguments, **keywords):
        called.append(layer.name)
        return call(layer, *arguments, **keywords)

    monkeypatch.setattr(kind, "call", recorded)
    {
        "eager": lambda: model(IMAGES),
        "traced": lambda: tf.function(model)(IMAGES),
        "predict": lambda: model.predict(IMAGES, verbose=0),
        "evaluate": lambda: model.evaluate(IMAGES, LABELS, verbose=0),
    }[how]()
    assert "logits" in called and not [name for name in called if name.startswith("auxiliary")]
    called.clear()
    model(IMAGES, training=True)
    assert {"logits", "auxiliary_logits"} <= set(called)


def test_a_pyramid_without_scale_1_does_not_compute_it(monkeypatch) -> None:
    model = build_segmentor(OFFICIAL.replace(image_pyramid=(0.5, 1.5), merge_method="avg"), SIZE)
    kind, calls = type(model.get_layer("stem_conv")), []
    call = kind.call
    monkeypatch.setattr(
        kind, "call", lambda layer, x: (calls.append((layer.name, x.shape[1])), call(layer, x))[1]
    )
    model(IMAGES)
    assert sorted(size for name, size in calls if name == "stem_conv") == [17, 49]  # 0.5, 1.5
    loaded = Segmentor.from_config(model.get_config())
    scores = [m.get_layer("logits").output.shape for m in (model, loaded)]
    assert scores[0] == scores[1] == (None, 2, 2, 3)  # the scores of the image at scale 1


# --- Saved, loaded, cloned, exported ---

LOAD = """
    import sys
    import numpy as np
    import deeplab_keras
    import keras
    from deeplab_keras.checkpoints.folder import named_weights
    for path in sys.argv[1:]:
        model = keras.models.load_model(path + ".keras")
        with np.load(path + ".npz") as expected:
            found = model(expected["images"])
            assert type(model).__name__ == "Segmentor"
            np.testing.assert_allclose(found, expected["logits"], rtol=0, atol=1e-5, err_msg=path)
            assert list(named_weights(model)) == list(expected["names"]), path
        keras.backend.clear_session()
    print("equal:", len(sys.argv) - 1)
    """


def load_in_a_new_process(paths: list[pathlib.Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD), *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and f"equal: {len(paths)}" in done.stdout, done.stderr[-3000:]


def save(model: keras.Model, path: pathlib.Path, images: np.ndarray) -> pathlib.Path:
    model.save(f"{path}.keras")
    np.savez(
        path, images=images, logits=np.asarray(model(images)), names=list(named_weights(model))
    )
    return path


@pytest.mark.slow  # test_backends.py loads a model in a new process in the quick lane
def test_models_are_cloned_and_loaded_in_a_new_process(tmp_path) -> None:
    paths = []
    for kind, config in KINDS.items():
        model = with_drawn_weights(config)
        paths.append(save(model, tmp_path / kind, IMAGES))
        logits = model(IMAGES)
        assert float(np.std(logits)) > 0
        if kind != "lraspp":
            copy = keras.models.clone_model(model)
            copy.set_weights(model.get_weights())
            assert type(copy) is Segmentor and copy.pad_value == model.pad_value
            assert copy.auxiliary_loss_weights == model.auxiliary_loss_weights
            assert set(copy.training_outputs) == set(model.training_outputs)
            np.testing.assert_allclose(copy(IMAGES), logits, atol=1e-5)
        keras.backend.clear_session()
    load_in_a_new_process(paths)


@pytest.mark.slow
def test_every_model_of_the_zoo_loads_in_a_new_process(tmp_path) -> None:
    paths = []
    for name in dk.list_models():
        images = noise(1, 65, 81, 3)
        config = dk.get_config(name)
        if config.image_pooling_window:  # larger than these images
            config = config.replace(image_pooling_crop_size=(33, 33))
        model = build_segmentor(config)
        paths.append(save(model, tmp_path / name, images))
        keras.backend.clear_session()
    assert len(paths) == 33
    load_in_a_new_process(paths)


@pytest.mark.slow
def test_a_loaded_model_continues_its_training(tmp_path) -> None:
    """Loading restores the optimizer and the loss with their schedules, and the metric."""
    model = small()
    model.auxiliary_loss_weights["auxiliary_logits"] = 0.25
    model.compile(
        MomentumSGD(
            make_schedule("poly", 0.1, 10, warmup_steps=2),
            weight_decay=1e-3,
            learning_rate_multipliers={"logits": 2.0},
        ),
        loss=make_loss(
            "cross_entropy+0.5*dice",
            class_weights=[1, 2, 3],
            hard_example_fraction=0.25,
            hard_example_mining_step=4,
        ),
        metrics=[MeanIoU(3)],
        jit_compile=False,
    )
    model.fit(IMAGES, LABELS, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(loaded, Segmentor)
    assert loaded.auxiliary_loss_weights == {"auxiliary_logits": 0.25}
    again = [m.fit(IMAGES, LABELS, epochs=3, verbose=0).history for m in (model, loaded)]
    for name in ("loss", "miou"):
        np.testing.assert_allclose(again[1][name], again[0][name], rtol=1e-4)
    assert again[0]["loss"][0] != again[0]["loss"][1]


def test_keras_export_writes_a_saved_model(tmp_path) -> None:
    model = small()
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(saved.serve(tf.constant(IMAGES)), model(IMAGES), atol=1e-4)


# --- Loss and metric ---


def test_mining_uses_the_steps_of_the_compiled_model() -> None:
    """Over 2 steps, the share goes from 1 to 0.25. With a rate of 0, nothing else changes."""
    model = small(auxiliary=False)
    options = dict(hard_example_fraction=0.25, hard_example_mining_step=2)
    loss = make_loss(**options)
    with pytest.raises(UserError, match="hard_example_mining_step=2 requires the training step"):
        loss(LABELS, np.zeros((2, *SIZE, 3), np.float32))
    logits = model(IMAGES)
    model.compile(keras.optimizers.SGD(0.0), loss=loss, jit_compile=False)
    found = []
    for _ in range(4):
        model.reset_metrics()  # Keras logs the mean since the last reset
        found.append(model.train_on_batch(IMAGES, LABELS))
    expected = [
        float(make_loss(**options, step=lambda step=step: step)(LABELS, logits))
        for step in (0, 1, 2, 3)
    ]
    assert expected[0] < expected[1] < expected[2] == expected[3]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_loss_is_restored_from_its_config() -> None:
    options = dict(
        ignore_label=7,
        class_weights=(1.0, 2.0),
        label_smoothing=0.1,
        hard_example_fraction=0.5,
        hard_example_mining_step=9,
        focal_gamma=3.0,
        name="mine",
    )
    loss = make_loss("focal+0.5*lovasz", **options)
    copy = keras.losses.deserialize(keras.losses.serialize(loss))
    assert copy.terms == {"focal": 1.0, "lovasz": 0.5}
    assert {name: getattr(copy, name) for name in options} == options
    assert copy.get_config() == loss.get_config()


def test_sample_weights_are_refused() -> None:
    logits = np.zeros((2, *SIZE, 3), np.float32)
    messages = []
    for function in (make_loss(), MeanIoU(3)):
        with pytest.raises(UserError, match="sample_weight is not supported") as error:
            function(LABELS, logits, sample_weight=np.ones(2))
        messages.append(str(error.value))
    assert messages[0] == messages[1] and "\n" not in messages[0]
    assert ConfusionMatrix is MeanIoU and MeanIoU(3).name == "miou"


def test_the_pad_value_normalizes_to_zero() -> None:
    assert small().pad_value == (120.0,) * 3
    for config, expected in (
        (NARROW, (123.675, 116.28, 103.53)),
        (NARROW.replace(normalization="none"), (0.0, 0.0, 0.0)),
        (NARROW.replace(normalization="unit_range", input_channels=4), (127.5,) * 4),
    ):
        model = build_segmentor(config, (64, 64))
        assert model.pad_value == expected
        if config.normalization != "none":
            image = np.full((1, 64, 64, config.input_channels), model.pad_value, np.float32)
            np.testing.assert_allclose(model.get_layer("normalize")(image), 0, atol=1e-6)
