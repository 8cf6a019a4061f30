"""The running statistics of batch norm: warm-up, warnings, recalibration and diagnosis."""

from __future__ import annotations

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, raises_line, script
from toy import toy_config

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import (
    NORMALIZATIONS,
    DataConfig,
    EvalConfig,
    TrainConfig,
)
from deeplab_keras.convert.conversion import dataset_info
from deeplab_keras.convert.initial import start_config
from deeplab_keras.data import pipeline
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.models.layers import BatchNormalization, warm_up
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training import statistics, validation

pytestmark = pytest.mark.usefixtures("toy_backbone")
SMALL = toy_config(head="fcn", head_channels=8, output_stride=32, num_classes=3)


def norms(model: keras.Model) -> list[BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, BatchNormalization)]


# --- Warming up ---


def test_the_share_of_the_old_statistics():
    shares = [float(warm_up(0.9997, updates)) for updates in (0, 1, 8, 229, 10**6)]
    np.testing.assert_allclose(shares, [1 / 10, 2 / 11, 9 / 18, 230 / 239, 0.9997], rtol=1e-6)
    assert float(warm_up(0.9, 229)) == pytest.approx(0.9), "at most the momentum"


@pytest.mark.parametrize("fused", [True, False])
def test_a_layer_uses_its_share(fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(BatchNormalization, "_can_fuse", lambda self: False)
    layer, updates = BatchNormalization(momentum=0.9997), tf.Variable(0)
    layer.share = lambda momentum: warm_up(momentum, updates)
    call, mean, variance = tf.function(lambda x: layer(x, training=True)), np.zeros(4), np.ones(4)
    batches = np.random.default_rng(0).normal(3, 2, (5, 6, 5, 5, 4)).astype(np.float32)
    for step, batch in enumerate(batches):
        call(tf.constant(batch))
        updates.assign_add(1)
        share = min(0.9997, (1 + step) / (10 + step))
        mean = share * mean + (1 - share) * batch.mean((0, 1, 2))
        variance = share * variance + (1 - share) * batch.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)
    assert abs(mean - 3).max() < 0.5, "without warm-up, the mean would be 0.005"


def test_fresh_layers_are_found_and_warm_up():
    model = build_segmentor(SMALL)
    assert statistics.find_fresh(model).tolist() == [1] * len(norms(model))
    norms(model)[2].moving_mean.assign(norms(model)[2].moving_mean + 0.5)
    norms(model)[4].moving_variance.assign(norms(model)[4].moving_variance * 2)
    fresh = statistics.find_fresh(model)
    assert np.flatnonzero(fresh == 0).tolist() == [2, 4]
    statistics.warm_up_fresh(model, fresh, lambda: tf.constant(0))
    assert [layer.share is not None for layer in norms(model)] == fresh.astype(bool).tolist()
    assert float(norms(model)[0].share(0.9997)) == pytest.approx(0.1)


def batch_statistics(
    flags: list[str], weights: dict[str, np.ndarray], steps: int
) -> list[dict[str, np.ndarray]]:
    """Returns the batch statistics of each step, from a network with momentum 0."""
    command = script("train.py").parse(*flags)
    data, config = command.config(DataConfig), command.model_config()
    source = open_dataset(data, "train")
    config = config.replace(
        num_classes=source.info.num_classes,
        backbone_bn_momentum=0.0,
        head_bn_momentum=0.0,
        dropout_rate=0.0,
    )
    model, found = build_segmentor(config), []
    folder.assign_weights(model, weights, "the checkpoint")
    batches = pipeline.train_dataset(source, data, NORMALIZATIONS[config.normalization][0])
    for images, _ in batches.take(steps):
        model(images, training=True)
        found.append(
            {
                name: value
                for name, value in folder.named_weights(model).items()
                if "/moving_" in name
            }
        )
    return found


@pytest.mark.slow
def test_fresh_statistics_warm_up_also_in_a_resumed_run(tiny_flags, tiny_run, tmp_path):
    """The backbone's statistics come from a checkpoint, those of the head are fresh.

    The weights do not change, so the statistics depend on the batches only.
    """
    momenta = ["--backbone_bn_momentum=0.997", "--head_bn_momentum=0.9997"]
    flags = [
        *tiny_flags,
        *momenta,
        f"--tf_initial_checkpoint={tiny_run}",
        "--initialize_last_layer=false",
        "--base_learning_rate=1e-30",
        "--end_learning_rate=0",
        "--dropout_rate=0",
        "--summary_images=0",
        "--nohtml_report",
        "--training_number_of_steps=4",
    ]
    run = tmp_path / "run"
    assert script("train.py")(*flags, f"--train_logdir={run}", "--strategy=none") == 0
    first, last = (run / folder.STEPS / f"step_{step:08d}" for step in (2, 4))
    found = folder.read_weights(last)
    start = folder.read_weights(folder.find_checkpoint(tiny_run))
    seen = batch_statistics(flags, found, 4)
    for name in seen[0]:
        backbone = name.startswith(("stem", "block", "last"))
        value = start[name] if backbone else np.full_like(start[name], "variance" in name)
        for step, batch in enumerate(seen):
            share = 0.997 if backbone else min(0.9997, (1 + step) / (10 + step))
            value = share * value + (1 - share) * batch[name]
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    (last / folder.WEIGHTS).unlink()  # so steps 3 and 4 are repeated
    assert script("train.py")(*flags, f"--train_logdir={run}", "--strategy=none") == 0
    again = folder.read_weights(last)
    assert all(np.array_equal(found[name], again[name]) for name in found)
    assert first.exists()


def test_an_initial_checkpoint_does_not_set_the_momentums(tmp_path):
    path = tmp_path / "checkpoint"
    config = SMALL.replace(
        backbone_bn_momentum=0.997, head_bn_momentum=0.9997, dropout_rate=0.2, align_corners=True
    )
    folder.save_checkpoint(path, build_segmentor(config), config, dataset_info(config))
    assert start_config(str(path)) == config.replace(backbone_bn_momentum=0.9, head_bn_momentum=0.9)
    assert folder.load_checkpoint(path).config == config, "outside of training, they are kept"
    asked = (
        script("train.py").parse("--head_bn_momentum=0.99").model_config(start_config(str(path)))
    )
    assert (asked.backbone_bn_momentum, asked.head_bn_momentum) == (0.9, 0.99)
    named = (
        script("train.py")
        .parse("--model=deeplabv3_mnv2_pascal_trainval")
        .model_config(start_config(str(path)))
    )
    assert (named.backbone_bn_momentum, named.head_bn_momentum) == (0.997, 0.9997)


@pytest.mark.parametrize(
    ("momentum", "steps", "fresh", "message"),
    [
        (0.9997, 368, 0, "after 368 steps, .* (90% at momentum 0.9997)"),
        (0.997, 500, 0, "(22% at momentum 0.997)"),
        (0.9997, 368, 1, None),  # warms up
        (0.997, 2000, 0, None),  # 0.2 %
        (0.9, 4, 0, None),  # the usual momentum
    ],
)
def test_a_warning_for_a_momentum_too_large_for_the_run(momentum, steps, fresh, message, capsys):
    model = build_segmentor(SMALL.replace(backbone_bn_momentum=momentum, head_bn_momentum=momentum))
    warnings = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            statistics.logger, "warning", lambda text, *values: warnings.append(text % values)
        )
        statistics.warn_of_lag(model, np.full(len(norms(model)), fresh), steps)
    assert len(warnings) == (message is not None)
    assert message is None or message.split(".*")[-1].strip() in warnings[0]


def test_a_warning_for_frozen_fresh_statistics():
    model, warnings = build_segmentor(SMALL), []
    for layer in norms(model):
        layer.freeze_statistics = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            statistics.logger, "warning", lambda text, *values: warnings.append(text % values)
        )
        statistics.warn_of_lag(model, np.eye(1, len(norms(model)), dtype=np.uint8)[0], 10**6)
    assert (
        len(warnings) == 1
        and "1 batch norm layers are not initialized from the checkpoint and keep mean 0 and "
        "variance 1 (stem_bn, ...)"
        in warnings[0]
    )


# --- Measuring ---


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    """Weights whose statistics are far from those of the images below."""
    return folder.named_weights(build_segmentor(SMALL))


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, 64, 64, 3)).astype(np.float32)


def test_inference_with_measured_statistics_equals_training(drawn):
    """On one batch, after converting the unbiased variances to the biased ones of training."""
    batch = images(8)
    model = build_segmentor(SMALL.replace(dropout_rate=0.0), (64, 64))
    folder.assign_weights(model, drawn, "drawn")
    expected = model(batch, training=True).numpy()
    folder.assign_weights(model, drawn, "drawn")
    before = model(batch, training=False).numpy()
    found = statistics.measure(SMALL, drawn, [layer.name for layer in norms(model)], [batch])
    assert found.keys() == {name for name in drawn if "/moving_" in name}
    for layer in norms(model):
        count = len(batch) * layer.input.shape[1] * layer.input.shape[2]
        found[f"{layer.name}/moving_variance"] = (
            found[f"{layer.name}/moving_variance"] * (count - 1) / count
        )
    folder.assign_weights(model, {**drawn, **found}, "measured")
    after = model(batch, training=False).numpy()
    assert abs(before - expected).max() > 0.5 * expected.std()
    np.testing.assert_allclose(after, expected, atol=1e-3 * expected.std())


def test_measured_statistics_are_the_mean_over_the_batches(drawn):
    """Compared with NumPy, for the first batch norm, whose input does not depend on another."""
    batches = [images(4, 1), images(2, 2), images(3, 3)]
    model = build_segmentor(SMALL)
    folder.assign_weights(model, drawn, "drawn")
    stem = keras.Model(model.input, model.get_layer("stem_bn").input)
    outputs = [stem(batch).numpy() for batch in batches]
    found = statistics.measure(SMALL, drawn, ["stem_bn"], [(batch, None) for batch in batches])
    assert set(found) == {"stem_bn/moving_mean", "stem_bn/moving_variance"}
    means = np.mean([y.mean((0, 1, 2)) for y in outputs], 0)
    np.testing.assert_allclose(found["stem_bn/moving_mean"], means, rtol=1e-3, atol=1e-5)
    variances = np.mean([y.var((0, 1, 2), ddof=1) for y in outputs], 0)
    np.testing.assert_allclose(found["stem_bn/moving_variance"], variances, rtol=1e-3)


@pytest.mark.slow
def test_measured_statistics_are_saved_with_the_best_model_only(tiny_flags, tmp_path):
    flags = [
        *tiny_flags,
        "--training_number_of_steps=2",
        "--summary_images=0",
        "--nohtml_report",
        "--strategy=none",
    ]
    assert (
        script("train.py")(
            *flags,
            f"--train_logdir={tmp_path}",
            "--recalibrate_batch_norm=3",
            "--head_bn_momentum=0.99",
        )
        == 0
    )
    last, best = folder.step_folders(tmp_path)[-1], tmp_path / folder.BEST
    raw, used = folder.read_weights(last), folder.read_weights(best)
    different = {name for name in raw if not np.array_equal(raw[name], used[name])}
    assert different == {name for name in raw if "/moving_" in name}
    command = script("train.py").parse(*flags)
    data, config = command.config(DataConfig), folder.read_config(best)
    batches = pipeline.train_dataset(
        open_dataset(data, "train"), data, NORMALIZATIONS["imagenet"][0]
    ).take(3)
    names = {name.split("/")[0] for name in different}
    for name, value in statistics.measure(config, raw, names, batches).items():
        np.testing.assert_allclose(used[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_frozen_statistics_cannot_be_measured():
    with raises_line(
        "--recalibrate_batch_norm cannot be combined with --fine_tune_batch_norm=false"
    ):
        TrainConfig(recalibrate_batch_norm=5, fine_tune_batch_norm=False)


# --- The diagnosis ---


def diagnosis(
    monkeypatch, *, trained: float, running: float, measured: float, on_training: float, **training
) -> tuple[str, int]:
    """Returns the diagnosis for these mIoUs, and the number of evaluations that it took."""
    calls = []

    class Run:
        row, step, total_steps, model = {"train_miou": trained}, 5, 10, build_segmentor(SMALL)

        def averaged(self, found):
            self.measured = bool(found)
            return self

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

    run = Run()

    def evaluate(network, source, config, **options):
        calls.append(source)
        return types.SimpleNamespace(
            miou=on_training if source == "train" * 9 else measured if run.measured else running
        )

    monkeypatch.setattr(validation, "evaluate", evaluate)
    found = validation.Validation(
        run,
        "val" * 9,
        EvalConfig(),
        TrainConfig(**training),
        DataConfig(),
        "train" * 9,
        lambda batches: {"x": batches},
    )
    report = types.SimpleNamespace(miou=running)
    text = found.diagnose(report)
    assert "\n" not in text and (not text or not found.diagnose(report)), (
        "a run gets one diagnosis before its end"
    )
    return text, len(calls)


def test_a_gap_caused_by_statistics(monkeypatch):
    text, evaluations = diagnosis(
        monkeypatch, trained=0.73, running=0.22, measured=0.70, on_training=0.2
    )
    text = as_command_line(text)
    assert text.startswith(
        "validation mIoU is 0.2200, but training mIoU is 0.7300, because the running statistics of "
        "batch norm lag"
    )
    assert (
        "with statistics measured on 20 training batches, validation mIoU is 0.7000" in text
        and "--recalibrate_batch_norm=20" in text
    )
    assert evaluations == 2


def test_a_run_prints_the_diagnosis_with_flags(monkeypatch, tiny_flags, tmp_path, capsys):
    monkeypatch.setattr(
        validation.Validation, "diagnose", lambda self, report: "try `recalibrate_batch_norm=20`"
    )
    assert script("train.py")(*tiny_flags, f"--train_logdir={tmp_path / 'run'}") == 0
    captured = capsys.readouterr()
    assert "warning: try --recalibrate_batch_norm=20" in captured.out + captured.err


def test_a_gap_with_other_causes(monkeypatch):
    text, _ = diagnosis(monkeypatch, trained=0.73, running=0.22, measured=0.24, on_training=0.71)
    assert (
        "training images evaluated like validation images have mIoU 0.7100: the model overfits"
        in text
    )
    text, _ = diagnosis(monkeypatch, trained=0.73, running=0.22, measured=0.24, on_training=0.30)
    assert "0.3000: inference differs from training" in text and "statistics" not in text
    text, _ = diagnosis(
        monkeypatch,
        trained=0.73,
        running=0.22,
        measured=0.72,
        on_training=0.71,
        fine_tune_batch_norm=False,
    )
    assert "--recalibrate" not in text, (
        "if training uses the running statistics too, they are not the cause"
    )


@pytest.mark.parametrize(("trained", "running"), [(0.5, 0.41), (0.4, 0.6), (float("nan"), 0.1)])
def test_without_a_gap_there_is_no_diagnosis(trained, running, monkeypatch):
    found = diagnosis(monkeypatch, trained=trained, running=running, measured=0.9, on_training=0.9)
    assert found == ("", 0)
