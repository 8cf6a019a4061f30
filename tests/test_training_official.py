"""Training with the official DeepLab's flags, compared with steps by the official rules."""

from __future__ import annotations

import csv
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line, script

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import NORMALIZATIONS, DataConfig, ModelConfig, TrainConfig
from deeplab_keras.convert.conversion import dataset_info
from deeplab_keras.convert.initial import initialize
from deeplab_keras.data import pipeline
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.heads import HEADS
from deeplab_keras.models.layer_groups import layers_in_group
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.optimizers import LAST_LAYERS

OFFICIAL = [
    "--flagfile=configs/base/official.flags", "--dropout_rate=0", "--strategy=none",
    "--summary_images=0", "--eval_crop_size=64,64", "--save_interval_steps=1", "--head=deeplab_v3",
    "--train_samples=4", "--eval_samples=1",
    # Its batch norm gets one value per image, which would amplify rounding differences.
    "--add_image_level_feature=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def start(tiny_flags, tmp_path_factory):
    """An initial checkpoint with weights that differ from those of the seed, and its flags."""
    decoder_flags = ("--decoder_filters", "--low_level_channels")
    flags = [flag for flag in tiny_flags if not flag.startswith(decoder_flags)]
    flags += [*OFFICIAL, "--train_batch_size=4"]
    command = script("train.py").parse(*flags)
    config = command.model_config().replace(num_classes=8)
    info = open_dataset(command.config(DataConfig), "train").info
    model = build_segmentor(config.replace(num_classes=info.num_classes), (64, 64))
    draw_weights(model)
    path = tmp_path_factory.mktemp("start") / "checkpoint"
    folder.save_checkpoint(path, model, config.replace(num_classes=info.num_classes), info)
    return path, [*flags, f"--tf_initial_checkpoint={path}"]


def draw_weights(model: keras.Model) -> None:
    """Draws weights and statistics with which activations and gradients keep their scale."""
    random = np.random.default_rng(5)
    for name, variable in folder.model_variables(model).items():
        kind, shape = name.split("/")[1], variable.shape
        if kind in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.5, 1.5, shape))
        else:
            fan_in = np.prod(shape[:2]) if "depthwise" in name else np.prod(shape[:-1])
            variable.assign(
                random.standard_normal(shape) * (np.sqrt(2 / fan_in) if kind == "kernel" else 0.1)
            )


def train(
    flags: list[str], workdir: pathlib.Path, steps: int
) -> tuple[dict[str, np.ndarray], list[dict[str, str]]]:
    """Returns the weights after the last step, and the rows of training.csv."""
    flags = [
        *flags,
        f"--training_number_of_steps={steps}",
        "--eval_interval_epochs=1",
        f"--train_logdir={workdir}",
    ]
    assert script("train.py")(*flags) == 0
    rows = list(csv.DictReader((workdir / "training.csv").read_text().splitlines()))
    return folder.read_weights(folder.step_folders(workdir)[-1]), rows


def official_loss(labels, logits, weights, share):
    """Computes the loss of utils/train_utils.py in the official DeepLab.

    It weights the pixels, keeps the hardest `share` of all, and divides by those with a loss.
    """
    labels = tf.reshape(labels, [-1])
    one_hot = tf.one_hot(labels, logits.shape[-1])
    pixel = tf.nn.softmax_cross_entropy_with_logits(
        one_hot, tf.reshape(logits, [-1, logits.shape[-1]])
    )
    pixel *= tf.reduce_sum(one_hot * tf.constant(weights, tf.float32), -1) * tf.cast(
        labels != 255, tf.float32
    )
    if share == 1:
        return tf.reduce_sum(pixel) / tf.reduce_sum(tf.cast(labels != 255, tf.float32))
    top, _ = tf.math.top_k(pixel, int(share * float(pixel.shape[0])), sorted=False)
    return tf.reduce_sum(top) / tf.reduce_sum(tf.cast(top != 0, tf.float32))


def official_steps(
    path, flags, rates, *, weights, shares, last_layer=1, freeze=False, clip=np.inf
) -> dict[str, np.ndarray]:
    """Returns the weights after steps by the official rules.

    Momentum 0.9 with the current rate, L2 4e-5 on convolution kernels, twice the rate for biases.
    Gradients are clipped before weight decay is added.
    """
    command = script("train.py").parse(*flags)
    data, training = command.config(DataConfig), command.config(TrainConfig)
    loaded = folder.load_checkpoint(path)
    model, config = loaded.model, loaded.config
    for layer in model.layers:
        if hasattr(layer, "freeze_statistics"):
            layer.freeze_statistics = freeze
    batches = iter(
        pipeline.train_dataset(
            open_dataset(data, "train"), data, NORMALIZATIONS[config.normalization][0]
        )
    )
    velocity: dict[str, np.ndarray] = {}
    assert training.momentum == 0.9
    for rate, share in zip(rates, shares, strict=True):
        images, labels = next(batches)
        with tf.GradientTape() as tape:
            loss = official_loss(labels, model(images, training=True), weights, share)
        gradients = [
            gradient.numpy() for gradient in tape.gradient(loss, model.trainable_variables)
        ]
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        assert clip == np.inf or norm > 1.5 * clip, "the test must clip"
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            name = folder.weight_name(variable)
            gradient = gradient * min(1, clip / norm)
            if name.endswith("/kernel") and "depthwise" not in name:
                gradient = gradient + 4e-5 * variable.numpy()
            factor = (2 if name.endswith("bias") else 1) * (
                last_layer if name.startswith(("logits", "aspp", "image")) else 1
            )
            velocity[name] = 0.9 * velocity.get(name, 0) + factor * gradient
            variable.assign(variable.numpy() - rate * velocity[name])
    return folder.named_weights(model)


def assert_same_moves(found, expected, start) -> None:
    """Checks the change of every weight.

    The tolerance is 1e-3 of the largest change in its tensor, plus the rounding of float32.
    """
    moved = 0
    for name, value in expected.items():
        move = np.abs(value - start[name]).max()
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=1e-3 * move + 2e-7 * np.abs(value).max(), err_msg=name
        )
        moved += move > 0
    assert moved > 0.9 * len(expected)


@pytest.mark.slow
def test_a_run_with_every_official_flag(start, tmp_path):
    """Slow start, step decay, hard pixel mining with a ramp, class and last layer weights."""
    path, flags = start
    classes = len(folder.read_info(path).class_names)
    weights = np.linspace(0.5, 2, classes).round(2).tolist()
    flags = [
        *flags,
        "--learning_policy=step",
        "--learning_rate_decay_factor=0.5",
        "--learning_rate_decay_step=1",
        "--base_learning_rate=2e-5",
        "--slow_start_step=1",
        "--slow_start_learning_rate=3e-6",
        "--top_k_percent_pixels=0.25",
        "--hard_example_mining_step=2",
        "--last_layer_gradient_multiplier=10",
        f"--label_weights={','.join(map(str, weights))}",
    ]
    found, rows = train(flags, tmp_path / "run", 3)
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(
        [3e-6, 2e-5, 1e-5], rel=1e-4
    )
    expected = official_steps(
        path,
        flags,
        [3e-6, 2e-5, 1e-5],
        weights=weights,
        shares=[0.9999999, 0.625, 0.25],
        last_layer=10,
    )
    assert_same_moves(found, expected, folder.read_weights(path))


@pytest.mark.slow
def test_a_fine_tuning_with_frozen_statistics(start, tmp_path):
    """As in the official trainval recipes: gamma and beta are trained, the statistics are frozen.

    Also clips gradients and splits each batch into two parts, which makes no difference without
    batch statistics.
    """
    path, flags = start
    classes = len(folder.read_info(path).class_names)
    flags = [*flags, "--fine_tune_batch_norm=false", "--base_learning_rate=1e-4", "--decay_steps=2"]
    flags += ["--clip_gradient_norm=0.5", "--gradient_accumulation_steps=2"]
    found, rows = train(flags, tmp_path / "run", 2)
    rates = [1e-4, 1e-4 * 0.5**0.9]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates, rel=1e-4)
    expected = official_steps(
        path, flags, rates, weights=[1] * classes, shares=[1, 1], freeze=True, clip=0.5
    )
    before = folder.read_weights(path)
    statistics = [name for name in before if "/moving_" in name]
    assert statistics and all(np.array_equal(found[name], before[name]) for name in statistics)
    trained = {name: value for name, value in expected.items() if name not in statistics}
    assert_same_moves(found, trained, before)


# --- The last layers ---


@pytest.mark.parametrize("head", HEADS)
def test_the_last_layers_are_the_whole_head(head):
    """The layers with another learning rate are those that `skip_layers` can select."""
    narrow = dict(depth_multiplier=0.25, head_channels=8, auxiliary_channels=8)
    config = ModelConfig(head=head, auxiliary_head=True, num_classes=3, **narrow)
    model = build_segmentor(config)
    named = {
        layer.name
        for layer in model.layers
        if layer.weights and any(part in layer.name for part in LAST_LAYERS)
    }
    assert named == set(layers_in_group(model, "head"))
    classifiers = {
        name.removeprefix("auxiliary_") for name in layers_in_group(model, "classifiers")
    }
    assert classifiers <= {"logits", "logits_high", "logits_low"}


@pytest.mark.parametrize(
    ("group", "skipped"),
    [
        ("", set()),
        ("head", {"aspp0", "image", "aspp", "logits0", "logits1"}),
        ("classifiers", {"logits0", "logits1"}),
    ],
)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_skipped_layers_keep_their_weights(group, skipped, batch_norm, tmp_path):
    """DeepLab without ASPP has one classifier per rate."""
    config = ModelConfig(
        head="deeplab_v3",
        depth_multiplier=0.25,
        head_channels=8,
        num_classes=3,
        atrous_rates=() if batch_norm else (1, 2),
        aspp_with_batch_norm=batch_norm,
    )
    source, model = build_segmentor(config), build_segmentor(config)
    folder.save_checkpoint(tmp_path / "c", source, config, dataset_info(config))
    before, theirs = folder.named_weights(model), folder.named_weights(source)
    skip_layers = layers_in_group(model, group) if group else ()
    initialize(model, config, str(tmp_path / "c"), skip_layers=skip_layers)
    if batch_norm:
        skipped = {name.rstrip("01") if name.startswith("logits") else name for name in skipped}
    for name, value in folder.named_weights(model).items():
        expected = before if name.split("/")[0].split("_")[0] in skipped else theirs
        assert np.array_equal(value, expected[name]), name


def test_different_classes_reinitialize_the_classifier_of_each_rate(tmp_path):
    config = ModelConfig(
        head="deeplab_v3",
        depth_multiplier=0.25,
        num_classes=3,
        atrous_rates=(1, 2),
        aspp_with_batch_norm=False,
    )
    folder.save_checkpoint(tmp_path / "c", build_segmentor(config), config, dataset_info(config))
    model = build_segmentor(config.replace(num_classes=5))
    initialize(model, config.replace(num_classes=5), str(tmp_path / "c"))
    assert model.get_layer("logits1").kernel.shape[-1] == 5


def test_a_head_with_other_options(tmp_path):
    """A checkpoint of the same head with other layers is refused, and the advice works."""
    config = ModelConfig(head="deeplab_v3", depth_multiplier=0.25, num_classes=3, head_channels=8)
    theirs = config.replace(atrous_rates=(), dropout_rate=0.5)
    path = str(tmp_path / "c")
    folder.save_checkpoint(path, build_segmentor(theirs), theirs, dataset_info(theirs))
    model = build_segmentor(config)
    before = folder.named_weights(model)
    with raises_line(
        r"c: the head deeplab_v3 has --dropout_rate=0.5, --atrous_rates= there and therefore other "
        "layers; use these options, or start the whole head from random weights with "
        "--initialize_last_layer=false and --last_layers_contain_logits_only=false"
    ):
        initialize(model, config, path)
    after = folder.named_weights(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    initialize(model, config, path, skip_layers=layers_in_group(model, "head"))
    trained = build_segmentor(theirs)
    initialize(trained, theirs, path)
    # The checkpoint's own options, which fit, and a width of the backbone that does not.
    other = config.replace(atrous_rates=(), depth_multiplier=0.5)
    with raises_line("the weights do not fit the architecture"):
        initialize(build_segmentor(other), other, path)
