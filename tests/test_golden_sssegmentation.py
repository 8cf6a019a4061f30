"""The six VOC systems equal the reference: outputs, losses, gradients and one training step."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.golden import VOC, Golden, differences, golden, images, labels, weights
from deeplab_keras.convert import sssegmentation
from deeplab_keras.convert.transfer import dump_weights, load_weights, slots
from deeplab_keras.models.segmentor import build_segmentor, with_auxiliary_output
from deeplab_keras.training.losses import SegmentationLoss
from deeplab_keras.training.optimizers import MomentumSGD
from deeplab_keras.zoo import registry as zoo

System = tuple[Golden, keras.Model]
MORE = VOC[1:3] + VOC[5:]  # their training steps are the slow lane's


def load(name: str) -> System:
    """Returns a model with the golden weights, without dropout."""
    keras.backend.clear_session()
    values, config = golden(name), zoo.get_config(name).replace(dropout_rate=0.0)
    model = build_segmentor(config)
    load_weights(model, weights(values), sssegmentation.rules(config))
    return values, model


@pytest.fixture(scope="module", params=VOC)
def system(request) -> System:
    return load(request.param)


@pytest.fixture
def float64() -> Iterator[None]:
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def test_names_and_order_are_the_reference_s(system):
    values, model = system
    config = zoo.get_config(values.name)
    assert list(dump_weights(model, sssegmentation.rules(config))) == list(values.tensors)


def test_outputs(system):
    values, model = system
    outputs = {"logits": model.get_layer("logits").output, "final": model.output}
    if any(kind == "aux" for kind, *_ in values.outputs()):
        outputs["aux"] = model.get_layer("auxiliary_logits").output
    view = keras.Model(model.input, outputs)
    for height, width in values.sizes:
        ours = {
            kind: np.asarray(out)
            for kind, out in view(images(height, width).astype(np.float32)).items()
        }
        assert ours["final"].shape == (1, height, width, 21)
        ours["argmax"] = ours["final"].argmax(-1)
        for kind, h, w, step, expected in values.outputs():
            if (h, w) != (height, width):
                continue
            found = ours[kind][:, ::step, ::step]
            assert found.shape == expected.shape
            if kind == "argmax":
                print(f"{values.name} {h}x{w} argmax: {np.mean(found == expected):.4%} equal")
                assert np.mean(found == expected) >= 0.999
            else:
                print(
                    f"{values.name} {h}x{w} {kind}: largest difference "
                    f"{np.abs(found - expected).max():.1e}"
                )
                np.testing.assert_allclose(
                    found, expected, rtol=0, atol=2e-4, err_msg=f"{kind} at {h}x{w}"
                )


def test_two_tensors_swapped_in_the_file_give_other_logits():
    values, tensors = golden(VOC[0]), weights(golden(VOC[0]))
    one, other = (f"backbone_net.layer5.{block}.conv.1.conv.weight" for block in (1, 2))
    assert tensors[one].shape == tensors[other].shape
    tensors[one], tensors[other] = tensors[other], tensors[one]
    config = zoo.get_config(VOC[0])
    model = build_segmentor(config)
    load_weights(model, tensors, sssegmentation.rules(config))
    view = keras.Model(model.input, model.get_layer("logits").output)
    kind, height, width, step, expected = next(
        row for row in values.outputs() if row[0] == "logits"
    )
    found = np.asarray(view(images(height, width).astype(np.float32)))[:, ::step, ::step]
    assert np.abs(found - expected).max() > 0.1 * np.std(expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in MORE else name for name in VOC]
)
def test_one_training_step(name):
    """Float32 gradients differ by a few percent if an activation crosses a kink.

    With one thread instead of two, the reference differs from its own golden values by as much
    (docs/results.md).
    """
    values, model = load(name)
    losses, gradients, after = training_step(values, model)
    expected = values.train_step
    report(name, "float32", losses, gradients, after, expected)
    assert losses == pytest.approx(expected["losses"], abs=1e-4)
    assert gradients == pytest.approx(expected["gradient_l2"], rel=0.06, abs=1e-5)
    assert np.median(relative(gradients, expected["gradient_l2"])) < 0.01
    assert after == pytest.approx(expected["after_step_l2"], rel=2e-3)
    assert np.quantile(relative(after, expected["after_step_l2"]), 0.98) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", VOC)
def test_one_training_step_in_double_precision(name, float64):
    """Without rounding noise, all gradients and all weights after the step equal the reference."""
    values, model = load(name)
    losses, gradients, after = training_step(values, model)
    expected = values.train_step_float64
    report(name, "float64", losses, gradients, after, expected)
    assert losses == pytest.approx(expected["losses"], rel=1e-12)
    assert gradients == pytest.approx(
        expected["gradient_l2"], rel=1e-7, abs=1e-9
    )  # nine digits are written down
    assert after == pytest.approx(expected["after_step_l2"], rel=1e-7)


def report(name: str, precision: str, *parts: dict) -> None:
    """Prints the largest and median relative difference, with an absolute floor of 1e-6."""
    losses, gradients, after, expected = parts
    print(
        f"{name} {precision}: losses {differences(losses, expected['losses'], 0)}, "
        f"gradients {differences(gradients, expected['gradient_l2'])}, "
        f"entries after the step {differences(after, expected['after_step_l2'])}"
    )


def training_step(
    values: Golden, model: keras.Model
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Returns losses, and norms of gradients and of the state after a step, by reference name."""
    height, width = values.train_size
    trained, loss = with_auxiliary_output(model), SegmentationLoss()
    truth = tf.constant(labels(height, width))
    with tf.GradientTape() as tape:
        outputs = trained(
            images(height, width, seed=11, count=2).astype(model.input.dtype), training=True
        )
        terms = {"loss_cls": tf.reshape(loss(truth, outputs["logits"]), ())}
        if "auxiliary_logits" in outputs:
            terms["loss_aux"] = 0.4 * tf.reshape(loss(truth, outputs["auxiliary_logits"]), ())
        terms["loss_total"] = sum(terms.values())
    rules = sssegmentation.rules(zoo.get_config(values.name))
    source = {slot.variable.path: slot.source for slot in slots(model, rules)}
    variables = trained.trainable_variables
    gradients = tape.gradient(terms["loss_total"], [v.value for v in variables])
    MomentumSGD(values.train_step["learning_rate"], momentum=0.9, weight_decay=5e-4).apply(
        gradients, variables
    )
    return (
        {name: float(value) for name, value in terms.items()},
        {source[v.path]: norm(g) for v, g in zip(variables, gradients, strict=True)},
        {name: norm(tensor) for name, tensor in dump_weights(model, rules).items()},
    )


def norm(values: object) -> float:
    return float(np.linalg.norm(np.asarray(values, np.float64)))


def relative(found: dict[str, float], expected: dict[str, float]) -> list[float]:
    return [abs(found[name] - value) / value for name, value in expected.items()]
