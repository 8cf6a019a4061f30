"""The temperature of an export: fitted on a split, folded into the classifiers, and reported."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import raises_line
from test_export import CLASSES, HEADS, SIZE, SMALL, TOY, lively
from toy import toy_config

from deeplab_keras import export
from deeplab_keras.config import EvalConfig, ModelConfig
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.loop import evaluate
from deeplab_keras.export import images
from deeplab_keras.export.calibration import Calibration, classifiers, fit, folded
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import packed_files
from deeplab_keras.models.segmentor import build_segmentor

INFO = info_for_classes("test", CLASSES)
TRUE = 2.5  # the temperature at which the labels of `Drawn` were drawn
TWO_CLASSIFIERS = toy_config(
    **SMALL, head="lraspp", low_level_features=("c2",), low_level_channels=()
)


class Drawn:
    """A split whose labels are drawn from the probabilities of a model at a known temperature."""

    info = INFO

    def __init__(self, model, count: int = 6, temperature: float = TRUE) -> None:
        sizes = [SIZE, (80, 70)]
        self.names = tuple(map(str, range(count)))
        self.pairs = []
        for index, image in enumerate(
            images.synthetic_images(sizes[index % 2], 3, index + 1)[index] for index in range(count)
        ):
            scores = model.predict_on_batch(image[None].astype(np.float32))[0] / temperature
            noise = np.random.default_rng(index).gumbel(size=scores.shape)
            label = (scores + noise).argmax(-1).astype(np.uint8)  # the Gumbel-max trick
            label[:5] = 255
            self.pairs.append((image, label))

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index):
        return self.pairs[index]


def calibration_error(model) -> float:
    details = Details(INFO, boundaries=False)
    report = evaluate(model, calibration_error.split, EvalConfig(), progress=False, details=details)
    return report.expected_calibration_error


def mean_loss(scores, labels, weights, temperature: float) -> float:
    """The negative log-likelihood of a correct class by definition, in float64."""
    powers = np.exp(scores.astype(np.float64) / temperature)
    confidence = powers.max(1) / powers.sum(1)
    seen = np.where(scores.argmax(1) == labels, confidence, 1 - confidence)
    return float((weights * -np.log(seen)).sum() / weights.sum())


def test_the_temperature_has_the_smallest_loss():
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 3, (40_000, 7)).astype(np.float32)
    labels = (scores / TRUE + rng.gumbel(size=scores.shape)).argmax(1)
    ones = np.ones(len(labels))
    found = fit(scores, labels, ones)
    assert found == pytest.approx(TRUE, rel=0.03), "sampling noise only"
    grid = np.linspace(2, 3, 201)
    losses = [mean_loss(scores, labels, ones, value) for value in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], abs=grid[1] - grid[0])
    # A pixel with the weight 3 counts as three pixels.
    labels[:9000] = rng.integers(0, 7, 9000)
    weights = np.where(np.arange(len(labels)) < 9000, 3.0, 1.0)
    repeated = np.repeat(np.arange(len(labels)), weights.astype(int))
    expected = fit(scores[repeated], labels[repeated], np.ones(len(repeated)))
    assert fit(scores, labels, weights) == pytest.approx(expected, rel=1e-3)
    assert expected > 1.1 * fit(scores, labels, ones)


def test_the_error_falls_where_the_likelihood_of_all_classes_is_misleading():
    """The scores of three classes; the second of them is far too low, as after weighted training.

    It is the true class of 21 % of the pixels, and its probability is 3 %. So the likelihood of the
    true classes asks for flatter scores, although the confidence in the first class is correct.
    """
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 0.9, 60_000)
    scores = np.log(np.stack([confidence, (1 - confidence) / 10, 0.9 * (1 - confidence)], 1))
    correct = rng.uniform(size=len(scores)) < confidence
    labels = np.where(correct, 0, np.where(rng.uniform(size=len(scores)) < 0.7, 1, 2))
    assert fit(scores, labels, np.ones(len(labels))) == pytest.approx(1, abs=0.03)

    def of_all_classes(temperature: float) -> float:
        powers = np.exp(scores / temperature)
        return float(-np.log(powers[np.arange(len(labels)), labels] / powers.sum(1)).mean())

    assert of_all_classes(2) < of_all_classes(1)


def test_a_temperature_that_does_not_help_gets_a_warning():
    text = str(Calibration(0.9, 0.0645, 0.0567, 101, 9, 0))
    assert "error 6.45 % instead of 5.67 % on 101 images, 0 labels changed; warning: no low" in text
    assert "warning" not in str(Calibration(0.9, 0.05, 0.0567, 101, 9, 0))


@pytest.mark.parametrize("case", ["one classifier", "two classifiers"])
def test_an_export_is_calibrated(case, toy_backbone, tmp_path, monkeypatch):
    source = lively(TOY if case == "one classifier" else TWO_CLASSIFIERS)
    before = source.model.get_weights()
    split = Drawn(source.model)
    monkeypatch.setattr(calibration_error, "split", split, raising=False)
    lines: list[str] = []
    (file,) = export.export_model(
        source,
        tmp_path / "model.tflite",
        formats=["tflite"],
        input_size=SIZE,
        output="logits",
        calibrate=True,
        check_images=split,
        log=lines.append,
    )
    for old, new in zip(before, source.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    found = file.calibration
    assert found.temperature == pytest.approx(TRUE, rel=0.05)
    assert file.label_agreement >= 0.999 and file.classes >= 3

    # The numbers are those of `evaluate`, on the network before and on its file after.
    assert found.error_before == pytest.approx(calibration_error(source.model), abs=1e-6)
    after = folded(source.model, found.temperature)
    assert found.error == pytest.approx(calibration_error(after), abs=1e-6)
    assert found.error < 0.2 * found.error_before
    assert found.images == 6
    assert found.pixels == sum(int((label != 255).sum()) for _, label in split.pairs)

    # The file has the scores of the network, divided; so the labels are the same.
    picture = images.synthetic_images(SIZE, 3, 1)[0]
    scores = source.model.predict_on_batch(picture[None].astype(np.float32))[0]
    expected = tf.nn.softmax(scores / found.temperature).numpy()
    predictor = Predictor(file.path)
    np.testing.assert_allclose(predictor.probabilities(picture), expected, atol=1e-4)
    changed = 0
    for image, _ in split.pairs:
        pair = [m.predict_on_batch(image[None].astype(np.float32)) for m in (source.model, after)]
        np.testing.assert_allclose(pair[1], pair[0] / found.temperature, atol=1e-4)
        changed += int((pair[0].argmax(-1) != pair[1].argmax(-1)).sum())
    assert found.changed == changed <= 2, "only pixels whose best scores are equal after rounding"

    assert json.loads(packed_files(file.path)["model.json"])["calibration"] == (
        dataclasses.asdict(found)
    )
    assert (
        f"; temperature {found.temperature:.4g}: calibration error {100 * found.error:.2f} % "
        f"instead of {100 * found.error_before:.2f} % on 6 images, {changed} labels changed"
    ) in lines[0]


def test_the_classifiers_of_every_head(toy_backbone):
    def names(config: ModelConfig) -> list[str]:
        return [layer.name for layer in classifiers(build_segmentor(config))]

    assert names(TOY) == ["logits"]
    assert names(TWO_CLASSIFIERS) == ["logits_high", "logits_low"]


@pytest.mark.slow
@pytest.mark.parametrize("head", [*HEADS, "pyramid", "branches"])
def test_folding_divides_the_scores_of_every_head(head, toy_backbone):
    configs = HEADS | {
        "pyramid": toy_config(**SMALL, head="deeplab_v3", image_pyramid=(0.5, 1.0)),
        "branches": toy_config(
            **SMALL,
            head="deeplab_v3",
            aspp_with_batch_norm=False,
            atrous_rates=(6, 12),
            logits_kernel_size=3,
        ),
    }
    model = build_segmentor(configs[head])
    for layer in model.layers:  # otherwise biases are 0
        if layer.name.startswith("logits") and layer.weights:
            layer.bias.assign(np.linspace(-1, 1, len(CLASSES)))
    picture = images.synthetic_images(SIZE, 3, 1)[0][None].astype(np.float32)
    scores = model.predict_on_batch(picture)
    after = folded(model, 0.7).predict_on_batch(picture)
    np.testing.assert_allclose(after, scores / 0.7, atol=1e-4 * np.ptp(scores))


def refused(source, match: str, check_images=None, path="out") -> None:
    with raises_line(match):
        export.export_model(
            source,
            path,
            formats=["tflite"],
            input_size=SIZE,
            calibrate=True,
            check_images=check_images,
        )


def test_mistakes_get_one_line(toy_backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = lively(TOY)
    needs = "--calibrate: needs the labels of a validation split with the classes of the model; "
    refused(source, needs + "give --dataset and --dataset_dir, or omit --calibrate")
    refused(source, needs, images.synthetic_images(SIZE, 3, 2))
    split = Drawn(source.model, 2)
    split.info = info_for_classes("other", ("a", "b", "c", "d", "e"))
    refused(source, needs, split)
    split = Drawn(source.model, 2, temperature=1e-9)  # the model is always right
    refused(
        source, "--calibrate: no temperature from 0.05 to 20 is the best for the .* corr", split
    )
    for _, label in split.pairs:
        label[:] = 255
    refused(source, "--calibrate: every pixel of the 2 images has the ignore label", split)
    own = keras.layers.Activation("relu", name="own")
    changed = dataclasses.replace(
        source, model=keras.Model(source.model.input, own(source.model.output))
    )
    refused(changed, "--calibrate: the class scores .* are not those of its layer 'logits'", split)
    assert list(tmp_path.iterdir()) == []
