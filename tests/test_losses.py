"""Losses compared with NumPy, finite differences, the official numbers, and on two devices.

The file runs on any Keras backend. On TensorFlow, its last test runs it again on JAX, if JAX is
installed.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from contracts import as_command_line, raises_line
from keras import ops

from deeplab_keras.config import UserError
from deeplab_keras.training import losses

GOLDEN = pathlib.Path(__file__).parent / "golden"
IGNORE = 255


# --- Oracles, in float64 ---


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def oracle_pixels(labels, logits, ignore=IGNORE, smoothing=0.0):
    num_classes = logits.shape[-1]
    target = np.eye(num_classes + 1)[
        np.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    ][..., :-1]
    known = target.sum(-1, keepdims=True)
    target = (target * (1 - smoothing) + smoothing / num_classes) * known
    valid = labels != ignore
    return -(target * np.log(softmax(logits))).sum(-1) * valid, valid


def oracle_cross_entropy(labels, logits, weights=None, smoothing=0.0, fraction=None):
    loss, valid = oracle_pixels(labels, logits, smoothing=smoothing)
    if weights is not None:
        loss = loss * np.append(weights, 0.0)[np.where(labels < len(weights), labels, len(weights))]
    if fraction is None:
        return loss.sum() / max(valid.sum(), 1)
    top = np.sort(loss.ravel())[::-1][: int(fraction * loss.size)]
    return top.sum() / max((top != 0).sum(), 1)


def oracle_focal(labels, logits, gamma=2.0):
    loss, valid = oracle_pixels(labels, logits)
    return ((1 - np.exp(-loss)) ** gamma * loss).sum() / valid.sum()


def oracle_dice(labels, logits):
    p, valid = softmax(logits), labels != IGNORE
    scores = []
    for c in np.unique(labels[valid & (labels < logits.shape[-1])]):
        y, q = (labels == c)[valid], p[..., c][valid]
        scores.append((2 * (y * q).sum() + 1) / (y.sum() + q.sum() + 1))
    return 1 - np.mean(scores)


def oracle_lovasz(labels, logits):
    """The Lovász extension of the Jaccard loss of each present class, over the valid pixels."""
    p, valid = softmax(logits), labels != IGNORE
    values = []
    for c in np.unique(labels[valid & (labels < logits.shape[-1])]):
        y, errors = (
            (labels == c)[valid].astype(float),
            np.abs((labels == c)[valid] - p[..., c][valid]),
        )
        order = np.argsort(-errors)
        y = y[order]
        jaccard = 1 - (y.sum() - y.cumsum()) / (y.sum() + (1 - y).cumsum())
        values.append(errors[order] @ np.diff(jaccard, prepend=0.0))
    return np.mean(values)


WEIGHTS = (0.5, 2.0, 0.0, 1.0)
CASES = {
    "cross_entropy": (dict(), oracle_cross_entropy),
    "class weights": (
        dict(class_weights=WEIGHTS),
        lambda y, z: oracle_cross_entropy(y, z, weights=WEIGHTS),
    ),
    "label smoothing": (
        dict(label_smoothing=0.1),
        lambda y, z: oracle_cross_entropy(y, z, smoothing=0.1),
    ),
    "hard pixels": (
        dict(hard_example_fraction=0.3),
        lambda y, z: oracle_cross_entropy(y, z, fraction=0.3),
    ),
    "focal": (dict(terms={"focal": 1.0}), oracle_focal),
    "focal gamma 1": (
        dict(terms={"focal": 1.0}, focal_gamma=1.0),
        lambda y, z: oracle_focal(y, z, 1.0),
    ),
    "dice": (dict(terms={"dice": 1.0}), oracle_dice),
    "lovasz": (dict(terms={"lovasz": 1.0}), oracle_lovasz),
    "sum": (
        dict(terms={"cross_entropy": 1.0, "dice": 0.5}),
        lambda y, z: oracle_cross_entropy(y, z) + 0.5 * oracle_dice(y, z),
    ),
}


def example(seed=0, classes=4, shape=(2, 5, 6), scale=2.0):
    """Noise with a fifth of the pixels ignored, one unknown label, and the last class absent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, shape).astype(np.int32)
    labels[rng.uniform(size=shape) < 0.2] = IGNORE
    labels[0, 0, 0] = classes + 3
    return labels, rng.normal(0, scale, (*shape, classes))


def value_and_gradient(function, x):
    x = ops.convert_to_tensor(x, dtype="float32")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return float(value), ops.convert_to_numpy(tape.gradient(value, x))
    import jax

    value, gradient = jax.jit(jax.value_and_grad(function))(x)
    return float(value), np.asarray(gradient)


def finite_differences(function, x, eps=1e-6):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += eps
        down[i] -= eps
        gradient[i] = (function(up) - function(down)) / (2 * eps)
    return gradient


# --- Values and gradients ---


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case):
    options, oracle = CASES[case]
    labels, logits = example()
    loss = losses.SegmentationLoss(**options)
    value, gradient = value_and_gradient(lambda x: loss(labels, x), logits)
    np.testing.assert_allclose(value, oracle(labels, logits), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, finite_differences(lambda z: oracle(labels, z), logits), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_no_valid_pixel_is_zero_not_nan(case):
    labels, logits = example()
    loss = losses.SegmentationLoss(**CASES[case][0])
    value, gradient = value_and_gradient(lambda x: loss(np.full_like(labels, IGNORE), x), logits)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("case", CASES)
def test_stable_at_large_logits(case):
    labels, logits = example(scale=1e4)
    value, gradient = value_and_gradient(
        lambda x: losses.SegmentationLoss(**CASES[case][0])(labels, x), logits
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_nan_logits_are_not_hidden():
    labels, logits = example()
    logits[0, 2, 2, 1] = np.nan
    for options, _ in CASES.values():
        assert np.isnan(float(losses.SegmentationLoss(**options)(labels * 0, logits)))


def test_pixel_cross_entropy():
    labels, logits = example()
    for ignore in (IGNORE, 0):
        loss, valid = losses.pixel_cross_entropy(
            labels, ops.convert_to_tensor(logits, "float32"), ignore
        )
        expected, expected_valid = oracle_pixels(labels, logits, ignore)
        np.testing.assert_allclose(ops.convert_to_numpy(loss), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(ops.convert_to_numpy(valid), expected_valid)
    loss, valid = ops.convert_to_numpy(loss), ops.convert_to_numpy(valid)
    assert loss[0, 0, 0] == 0 and valid[0, 0, 0], (
        "a label outside the classes costs nothing and counts"
    )


def test_label_types_and_ranks():
    labels, logits = example()
    labels[0, 0, 0] = 1
    expected = float(losses.SegmentationLoss()(labels, logits))
    for other in (labels.astype(np.uint8), labels.astype(np.float32), labels[..., None]):
        assert float(losses.SegmentationLoss()(other, logits)) == expected
    negative = np.where(labels == IGNORE, -100, labels)
    assert float(losses.SegmentationLoss(ignore_label=-100)(negative, logits)) == expected


def test_hard_pixels_at_any_fraction_and_with_ties():
    labels, logits = example(3)
    logits[1] = logits[0]
    labels[1] = labels[0]
    for fraction in np.linspace(0.05, 0.999, 23):
        value = float(
            losses.SegmentationLoss(hard_example_fraction=float(fraction))(labels, logits)
        )
        assert value == pytest.approx(
            oracle_cross_entropy(labels, logits, fraction=fraction), rel=1e-5
        ), fraction


def test_hard_pixels_ramp():
    labels, logits = example()
    variable = keras.Variable(0, dtype="int32", trainable=False)
    options = dict(hard_example_fraction=0.25, hard_example_mining_step=100)
    by_variable = losses.SegmentationLoss(**options, step=variable)
    by_callable = losses.SegmentationLoss(**options, step=lambda: variable)
    for step, fraction in ((0, 1.0), (50, 0.625), (99, 0.2575), (100, 0.25), (300, 0.25)):
        variable.assign(step)
        # At fraction 1, the divisor is still the number of pixels with a loss, not of valid ones.
        expected = pytest.approx(oracle_cross_entropy(labels, logits, fraction=fraction), rel=1e-5)
        assert (
            float(by_variable(labels, logits)) == expected
            and float(by_callable(labels, logits)) == expected
        )


def test_replica_sums():
    """With `sum_over_replicas`, the losses of two halves add up to the loss of the whole."""
    labels, logits = example(5, shape=(4, 5, 6))
    labels[:2, :, 1:] = IGNORE  # replica 0 has far fewer valid pixels
    for terms in (
        {"cross_entropy": 1.0},
        {"focal": 1.0},
        {"dice": 1.0},
        {"cross_entropy": 1.0, "dice": 0.5},
    ):
        sent: list[list] = [[], []]
        for half in range(2):
            record = losses.SegmentationLoss(
                terms, sum_over_replicas=lambda x, own=sent[half]: own.append(x) or x
            )
            record(labels[2 * half : 2 * half + 2], logits[2 * half : 2 * half + 2])
        total = 0.0
        for half in range(2):
            sums = iter([a + b for a, b in zip(*sent, strict=True)])
            loss = losses.SegmentationLoss(terms, sum_over_replicas=lambda x, sums=sums: next(sums))
            total += float(loss(labels[2 * half : 2 * half + 2], logits[2 * half : 2 * half + 2]))
        assert total == pytest.approx(
            float(losses.SegmentationLoss(terms)(labels, logits)), rel=1e-5
        ), terms


# --- Distillation ---


def oracle_distillation(labels, logits, teacher_logits, temperature):
    p, q = softmax(teacher_logits / temperature), softmax(logits / temperature)
    known = (labels >= 0) & (labels < logits.shape[-1])
    divergences = (p * (np.log(p) - np.log(q))).sum(-1) * known
    return temperature**2 * divergences.sum() / max((labels != IGNORE).sum(), 1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_and_its_gradient(temperature):
    """The gradient is `temperature (q - p)` over the number of valid pixels."""
    (labels, logits), (_, teacher_logits) = example(), example(1)
    as_float32 = teacher_logits.astype("float32")
    value, gradient = value_and_gradient(
        lambda z: losses.distillation(labels, z, as_float32, temperature), logits
    )
    expected = oracle_distillation(labels, logits, teacher_logits, temperature)
    assert value == pytest.approx(expected, rel=1e-5) and expected > 0.1
    difference = softmax(logits / temperature) - softmax(teacher_logits / temperature)
    known = (labels < logits.shape[-1])[..., None]
    np.testing.assert_allclose(
        gradient, temperature * difference * known / (labels != IGNORE).sum(), atol=1e-7
    )


def test_no_gradient_flows_to_the_teacher():
    labels, logits = example()
    _, gradient = value_and_gradient(lambda z: losses.distillation(labels, z, z / 2), logits)
    known = (labels < logits.shape[-1])[..., None]
    expected = (softmax(logits) - softmax(logits / 2)) * known / (labels != IGNORE).sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-7)


def test_distillation_of_equal_logits_and_without_valid_pixels_is_zero():
    labels, logits = example(scale=50)
    logits = logits.astype("float32")
    for given, teacher_logits in ((labels, logits), (np.full_like(labels, IGNORE), -logits)):
        value, gradient = value_and_gradient(
            lambda z, y=given, t=teacher_logits: losses.distillation(y, z, t, 2.0), logits
        )
        assert value == pytest.approx(0, abs=1e-7) and np.abs(gradient).max() < 1e-7


def test_distillation_is_stable_and_does_not_hide_nan():
    labels, logits = example(scale=1e4)
    teacher_logits = example(1, scale=1e4)[1].astype("float32")
    value, gradient = value_and_gradient(
        lambda z: losses.distillation(labels, z, teacher_logits, 2.0), logits
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    teacher_logits[1, 2, 2, 1] = np.nan
    logits = logits.astype("float32")
    assert np.isnan(float(losses.distillation(labels * 0, logits, teacher_logits)))


def test_replica_sums_of_distillation():
    """The losses of two halves, each with its share of the pixels, add up to that of the whole."""
    labels, logits = example(shape=(4, 5, 6))
    logits, teacher_logits = logits.astype("float32"), logits[::-1].astype("float32")
    labels[:2, :, 1:] = IGNORE
    count, whole = (labels != IGNORE).sum(), losses.distillation(labels, logits, teacher_logits)
    parts = [
        losses.distillation(*half, sum_over_replicas=lambda _: np.float32(count))
        for half in zip(*(np.split(x, 2) for x in (labels, logits, teacher_logits)), strict=True)
    ]
    assert float(parts[0] + parts[1]) == pytest.approx(float(whole), rel=1e-5)


def test_distillation_refuses_other_shapes_and_temperatures():
    labels, logits = example()
    with raises_line("same shape. Received: .2, 5, 6, 4. and .1, 5, 6, 4."):
        losses.distillation(labels, logits, logits[:1])
    for temperature in (0.5, float("nan"), "2"):
        with raises_line("temperature must be"):
            losses.distillation(labels, logits, logits, temperature)


# --- The official numbers ---


def align_corners(x, height, width):
    def matrix(n_in, n_out):
        position = np.arange(n_out) * (n_in - 1) / (n_out - 1)
        return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n_in)))

    return np.einsum("yh,xw,bhwc->byxc", matrix(x.shape[1], height), matrix(x.shape[2], width), x)


def test_official_losses():
    golden = json.loads((GOLDEN / "official_components_loss.json").read_text())
    arrays = np.load(GOLDEN / "official_components_loss.npz")
    expected, weights = golden["losses"], golden["weights"]
    labels, small = arrays["labels"], arrays["logits"]
    logits = align_corners(small, *labels.shape[1:3])

    def loss(labels=labels, logits=logits, **options):
        return float(losses.SegmentationLoss(**options)(labels, logits))

    def ramp(step):
        return loss(hard_example_fraction=0.25, hard_example_mining_step=100, step=lambda: step)

    measured = {
        "plain": loss(),
        "weighted": loss(class_weights=weights),
        "scalar_half": loss(class_weights=[0.5] * 5),
        "no_upsample": loss(labels[:, ::4, ::4], small),
        "topk25": loss(hard_example_fraction=0.25),
        "topk25_step100_at0": ramp(0),
        "topk25_step100_at50": ramp(50),
        "topk25_step100_at200": ramp(200),
        "topk25_weighted": loss(hard_example_fraction=0.25, class_weights=weights),
        "ignore0": loss(np.where(labels == IGNORE, 0, labels), ignore_label=0),
        "all_ignored": loss(np.full_like(labels, IGNORE)),
        "out_of_range_label_7_not_ignored": loss(np.where(labels == IGNORE, 7, labels)),
    }
    assert measured == pytest.approx(expected, rel=1e-5)


# --- Invalid arguments ---


def test_make_loss():
    assert losses.parse_terms(" cross_entropy + 0.5*dice ") == {"cross_entropy": 1.0, "dice": 0.5}
    with raises_line(r"'cross_entropy\+'"):  # the whole text, not the empty name after the plus
        losses.parse_terms("cross_entropy+")
    loss = losses.make_loss("2*focal+lovasz", ignore_label=0, focal_gamma=3.0)
    assert (loss.terms, loss.ignore_label, loss.focal_gamma) == (
        {"focal": 2.0, "lovasz": 1.0},
        0,
        3.0,
    )
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    labels, logits = example()
    assert (
        float(again(labels, logits)) == float(loss(labels, logits))
        and again.get_config() == loss.get_config()
    )


@pytest.mark.parametrize(
    "spec, part",
    [
        ("dicee", "did you mean 'dice'"),
        ("", "known: cross_entropy"),
        ("x*dice", "factor above 0"),
        ("-1*dice", "factor above 0"),
        ("nan*dice", "factor above 0"),
        ("dice+dice", "each term once"),
    ],
)
def test_bad_specification(spec, part):
    with pytest.raises(UserError) as error:
        losses.make_loss(spec)
    assert part in as_command_line(error.value) and "\n" not in as_command_line(error.value)


def test_bad_options():
    labels, logits = example()
    for options in (
        dict(class_weights=[-1.0]),
        dict(label_smoothing=1.0),
        dict(hard_example_fraction=0.0),
        dict(hard_example_mining_step=5),
        dict(focal_gamma=0.5),
        dict(focal_gamma=float("nan")),
        dict(class_weights={0: 1.0, 1: 5.0}),
        dict(class_weights="123"),
        dict(class_weights=[1.0, float("nan")]),
        dict(class_weights=[1.0, float("inf")]),
        dict(ignore_label=1.5),
        dict(terms="dice"),
        dict(terms={}),
        dict(terms={"dice": float("nan")}),
        dict(terms={"dice": -1.0}),
        dict(hard_example_mining_step=-1, hard_example_fraction=0.5),
    ):
        with raises_line(next(iter(options))):
            losses.SegmentationLoss(**options)
    weights = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    as_array, as_list = (losses.SegmentationLoss(class_weights=w) for w in (weights, [1, 2, 3, 4]))
    assert float(as_array(labels, logits)) == float(as_list(labels, logits))
    with raises_line("class_weights has 3 values, but the model has 4 classes"):
        losses.SegmentationLoss(class_weights=[1.0] * 3)(labels, logits)
    with raises_line("differ in height or width"):
        losses.SegmentationLoss()(labels[:, ::2], logits)
    with raises_line("sample_weight"):
        losses.SegmentationLoss()(labels, logits, sample_weight=np.ones(2))


# --- Keras' fit on one device and on two; other backends ---

REPLICAS = """
import os, sys
import numpy as np, tensorflow as tf, keras
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           [tf.config.LogicalDeviceConfiguration()] * 2)
from deeplab_keras.training import losses, optimizers

def sum_over_replicas(value):
    context = tf.distribute.get_replica_context()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)

rng = np.random.default_rng(0)
images = rng.normal(size=(20, 8, 8, 3)).astype("float32")
labels = rng.integers(0, 3, (20, 8, 8)).astype("int32")
for i in range(20):  # of four images, replica 0 gets two with 1 valid row, replica 1 two with 7
    labels[i, 1 if i % 4 < 2 else 7:] = 255
labels[4:6] = 255  # replica 0 has no valid pixel in one step

class Steps(keras.callbacks.Callback):
    def __init__(self): super().__init__(); self.losses = []
    def on_train_batch_begin(self, batch, logs=None): self.model.reset_metrics()
    def on_train_batch_end(self, batch, logs): self.losses.append(logs["loss"])

def train(strategy):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        x = keras.Input((8, 8, 3))
        y = keras.layers.Conv2D(4, 3, padding="same", name="stem_conv")(x)
        y = keras.layers.BatchNormalization(synchronized=True, name="stem_bn")(y)
        c5 = keras.layers.ReLU()(y)
        names = "logits", "auxiliary_logits"
        model = keras.Model(x, [keras.layers.Conv2D(3, 1, name=name)(c5) for name in names])
        optimizer = optimizers.MomentumSGD(
            optimizers.make_schedule("poly", 0.1, 10, end=0.001), momentum=0.9, weight_decay=1e-2,
            learning_rate_multipliers={"^stem_": 0.5}, use_ema=True, ema_momentum=0.9)
        loss = losses.make_loss("cross_entropy+0.2*focal+0.5*dice",
                                sum_over_replicas=sum_over_replicas)
        model.compile(optimizer, loss=[loss, loss], loss_weights=[1.0, 0.4], jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((images, (labels, labels))).batch(4)
    steps = Steps()
    model.fit(batches, epochs=1, verbose=0, callbacks=[steps])
    averaged, state = ([v.numpy() for v in x] for x in (model.weights, optimizer.variables))
    return steps.losses, averaged, state, model.evaluate(batches, verbose=0)[0]

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
one, other = train(tf.distribute.get_strategy()), train(two)
assert len(one[0]) == 5
for name, x, y in zip(("losses", "weights", "optimizer", "evaluate"), one, other):
    pairs = zip(tf.nest.flatten(x), tf.nest.flatten(y))
    difference = max(float(np.abs(u - v).max()) for u, v in pairs)
    print(name, difference)
    assert difference < 1e-5, f"{name} differ by {difference}"

# Without `sum_over_replicas`, the loss is the mean of the replicas' means.
each = [float(losses.make_loss()(labels[i:i + 1], np.zeros((1, 8, 8, 3)))) for i in (0, 4)]
def on_replica():
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return losses.make_loss()(labels[:1] if replica == 0 else labels[4:5], tf.zeros((1, 8, 8, 3)))
run = two.run(on_replica)
total = sum(float(v) for v in two.experimental_local_results(run))
assert abs(total - sum(each) / 2) < 1e-6, (total, each)
print("equal")
"""


def run_python(*arguments):
    root = pathlib.Path(__file__).parent.parent
    env = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="-1")
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=env, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")
def test_two_replicas_equal_one():
    """Five steps of `fit` with different valid pixels, synchronized batch norm and two outputs."""
    result = run_python("-c", REPLICAS)
    assert result.returncode == 0 and "equal" in result.stdout, result.stderr[-3000:]
