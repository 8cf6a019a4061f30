"""Optimizers compared with NumPy versions of torch's and TF1's, and schedules with formulas.

The file runs on any Keras backend. tests/test_losses.py runs it again on JAX.
"""

from __future__ import annotations

import json
import pathlib

import keras
import numpy as np
import pytest
from contracts import raises_line

from deeplab_keras.config import TrainConfig
from deeplab_keras.training import optimizers

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = {
    "stem_conv/kernel": (3, 3, 2, 4),
    "stem_bn/gamma": (4,),
    "block1_depthwise_conv/kernel": (3, 3, 4, 1),
    "logits/kernel": (1, 1, 4, 3),
    "logits/bias": (3,),
}
STEPS = 6


class Variables:
    """Keras variables with the paths in SHAPES, their float64 copies, and gradients per step."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.variables = []
        for path, shape in SHAPES.items():
            layer, name = path.split("/")
            with keras.name_scope(layer):
                self.variables.append(
                    keras.Variable(rng.normal(size=shape), dtype="float32", name=name)
                )
        assert [v.path for v in self.variables] == list(SHAPES)
        self.start = {v.path: v.numpy().astype(np.float64) for v in self.variables}
        self.gradients = [
            {path: rng.normal(size=shape) for path, shape in SHAPES.items()} for _ in range(STEPS)
        ]

    def step(self, optimizer, i) -> None:
        gradients = [keras.ops.convert_to_tensor(g, "float32") for g in self.gradients[i].values()]
        optimizer.apply(gradients, self.variables)

    def run(self, optimizer, steps=STEPS) -> dict[str, np.ndarray]:
        for i in range(steps):
            self.step(optimizer, i)
        return self.values()

    def values(self) -> dict[str, np.ndarray]:
        return {v.path: v.numpy() for v in self.variables}


def simulate(variables, rates, update):
    """Returns the weights after all steps by path.

    `update(path, weight, gradient, rate, state)` returns the new weight.
    """
    result = {}
    for path, weight in variables.start.items():
        state: dict = {}
        for rate, gradients in zip(rates, variables.gradients, strict=False):
            weight = update(path, weight, gradients[path], rate, state)
        result[path] = weight
    return result


def torch_sgd(momentum=0.9, decay=lambda path: 0.0, factor=lambda path: 1.0):
    """torch.optim.SGD (dampening 0, no Nesterov) with one parameter group per variable."""

    def update(path, weight, gradient, rate, state):
        gradient = gradient + decay(path) * weight
        state["v"] = momentum * state["v"] + gradient if "v" in state else gradient
        return weight - factor(path) * rate * state["v"]

    return update


def torch_adam(
    decay=lambda path: 0.0, factor=lambda path: 1.0, decoupled=False, betas=(0.9, 0.999), eps=1e-7
):
    def update(path, weight, gradient, rate, state):
        rate = rate * factor(path)
        if decoupled:
            weight = weight * (1 - rate * decay(path))
        else:
            gradient = gradient + decay(path) * weight
        t = state["t"] = state.get("t", 0) + 1
        for name, beta, value in (("m", betas[0], gradient), ("v", betas[1], gradient**2)):
            state[name] = beta * state.get(name, 0.0) + (1 - beta) * value
        # Keras adds epsilon before the bias correction: alpha m / (sqrt(v) + eps).
        rate = rate * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        return weight - rate * state["m"] / (np.sqrt(state["v"]) + eps)

    return update


def lion(decay=lambda path: 0.0, factor=lambda path: 1.0, betas=(0.9, 0.99)):
    """Chen et al., arXiv:2302.06675, algorithm 2."""

    def update(path, weight, gradient, rate, state):
        rate, m = rate * factor(path), state.get("m", 0.0)
        state["m"] = betas[1] * m + (1 - betas[1]) * gradient
        return weight - rate * (
            np.sign(betas[0] * m + (1 - betas[0]) * gradient) + decay(path) * weight
        )

    return update


def poly(base, end, total, power=0.9):
    return [(base - end) * (1 - i / total) ** power + end for i in range(total)]


def assert_weights(measured, expected):
    for path, value in expected.items():
        np.testing.assert_allclose(measured[path], value, rtol=2e-5, atol=2e-6, err_msg=path)


# --- Optimizers ---


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_momentum_sgd_is_torch_sgd(momentum):
    """The rate falls to a hundredth in six steps, for which Keras' SGD gives different weights."""
    variables = Variables()
    schedule = optimizers.make_schedule("poly", 0.5, STEPS, end=0.005)
    measured = variables.run(optimizers.MomentumSGD(schedule, momentum=momentum, weight_decay=0.1))
    expected = simulate(
        variables, poly(0.5, 0.005, STEPS), torch_sgd(momentum, decay=lambda path: 0.1)
    )
    assert_weights(measured, expected)
    if momentum:
        other = Variables()
        other.run(keras.optimizers.SGD(schedule, momentum=momentum))
        assert max(abs(other.values()[p] - measured[p]).max() for p in SHAPES) > 0.1


def test_momentum_uses_the_current_rate():
    """A gradient of 1 at rate 0.1, then 0 at 0.01: the second step is 0.009 (Keras' SGD: 0.09).

    See docs/reference/official_deeplab.md#momentum.
    """
    weight = keras.Variable([0.0], name="w")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.1, 0.01])
    optimizer = optimizers.MomentumSGD(schedule, momentum=0.9)
    moves = []
    for gradient in (1.0, 0.0):
        before = float(weight.numpy()[0])
        optimizer.apply([keras.ops.convert_to_tensor([gradient])], [weight])
        moves.append(float(weight.numpy()[0]) - before)
    assert moves == pytest.approx([-0.1, -0.009])


RULES = {"^stem_": 0.1, "bias$": 2.0, "^logits/": 10.0}


def factor(path):
    return {
        "stem_conv/kernel": 0.1,
        "stem_bn/gamma": 0.1,
        "logits/kernel": 10.0,
        "logits/bias": 20.0,
    }.get(path, 1.0)


def decay(path):
    """Decays convolution kernels only, without depthwise kernels."""
    return 0.1 if path in ("stem_conv/kernel", "logits/kernel") else 0.0


@pytest.mark.parametrize(
    "kind, oracle",
    [
        (optimizers.MomentumSGD, torch_sgd(0.9, decay, factor)),
        (optimizers.Adam, torch_adam(decay, factor)),
        (optimizers.AdamW, torch_adam(decay, factor, decoupled=True)),
        (optimizers.Lion, lion(decay, factor)),
    ],
)
def test_rules_by_path(kind, oracle):
    variables = Variables()
    schedule = optimizers.make_schedule("poly", 0.01, STEPS)
    optimizer = kind(
        schedule,
        weight_decay=0.1,
        learning_rate_multipliers=RULES,
        no_weight_decay=optimizers.NOT_CONV_KERNELS,
    )
    assert_weights(variables.run(optimizer), simulate(variables, poly(0.01, 0.0, STEPS), oracle))


def test_exclude_from_weight_decay():
    variables = Variables()
    optimizer = optimizers.MomentumSGD(0.01, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(
        var_list=[variables.variables[0]], var_names=["bias", "gamma"]
    )
    kept = ("block1_depthwise_conv/kernel", "logits/kernel")
    oracle = torch_sgd(0.9, lambda path: 0.1 if path in kept else 0.0)
    assert_weights(variables.run(optimizer), simulate(variables, [0.01] * STEPS, oracle))


def test_clipping_comes_before_the_decay():
    variables = Variables()
    for gradients in variables.gradients:
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        gradients.update({path: g * min(1.0, 2.0 / norm) for path, g in gradients.items()})
    expected = simulate(variables, [0.1] * STEPS, torch_sgd(0.9, lambda path: 0.1))
    measured = Variables().run(optimizers.MomentumSGD(0.1, weight_decay=0.1, global_clipnorm=2.0))
    assert_weights(measured, expected)


def test_moving_average_of_the_weights():
    variables = Variables()
    optimizer = optimizers.MomentumSGD(0.1, use_ema=True, ema_momentum=0.8)
    average: dict = {}
    for i in range(STEPS):
        variables.step(optimizer, i)
        now = variables.values()
        average = {path: 0.8 * average.get(path, now[path]) + 0.2 * now[path] for path in now}
    optimizer.finalize_variable_values(variables.variables)
    assert_weights(variables.values(), average)


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS.values())
def test_config_and_state_rebuild_the_optimizer(kind):
    """Three steps, and three in a new optimizer with the same config and state, equal six."""
    options = dict(
        weight_decay=0.1, learning_rate_multipliers=RULES, no_weight_decay=["bias$"], use_ema=True
    )
    make = lambda: kind(optimizers.make_schedule("poly", 0.1, STEPS, warmup_steps=2), **options)  # noqa: E731
    expected = Variables().run(make())
    variables = Variables()
    first = make()
    variables.run(first, 3)
    config = json.loads(json.dumps(keras.optimizers.serialize(first)))
    second = keras.optimizers.deserialize(config)
    second.build(variables.variables)
    names = [v.path.split("/", 1)[1] for v in first.variables]
    assert names == [v.path.split("/", 1)[1] for v in second.variables] and len(set(names)) == len(
        names
    )
    for old, new in zip(first.variables, second.variables, strict=True):
        new.assign(old)
    for i in range(3, STEPS):
        variables.step(second, i)
    for path, value in variables.values().items():
        np.testing.assert_array_equal(value, expected[path])


def test_trains_under_fit():
    """Compiled, with the paths of a real model, and loaded from a .keras file."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    model = keras.Model(
        x, keras.layers.Dense(1, name="logits")(keras.layers.Dense(8, "relu", name="stem_dense")(x))
    )
    optimizer = optimizers.MomentumSGD(0.01, learning_rate_multipliers={optimizers.BACKBONE: 0.0})
    model.compile(optimizer, loss="mse", jit_compile=False)
    images = np.random.default_rng(0).normal(size=(32, 4))
    before = [v.numpy() for v in model.trainable_variables]
    history = model.fit(
        images, images.sum(1, keepdims=True), epochs=8, batch_size=8, verbose=0
    ).history["loss"]
    changed = [
        bool((v.numpy() != b).any()) for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert history[-1] < 0.8 * history[0] and changed == [False, False, True, True]


# --- Schedules ---


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_poly_of_sssegmentation():
    schedule = optimizers.make_schedule("poly", 0.01, 39660, end=1e-4)
    assert rates(schedule, [0, 20000]) == pytest.approx([0.01, 0.0053643], abs=5e-8)
    assert rates(schedule, [39659]) == pytest.approx([1.00720e-4], rel=5e-6)


OFFICIAL = {
    "poly": dict(policy="poly"),
    "poly_slow100": dict(policy="poly", slow_start_steps=100),
    "poly_decay1000_end1e-5": dict(policy="poly", decay_steps=1000, end=1e-5),
    "step": dict(policy="step"),
    "cosine": dict(policy="cosine"),
}


@pytest.mark.parametrize("case", OFFICIAL)
def test_official_schedules(case):
    golden = json.loads((GOLDEN / "official_components_lr.json").read_text())[case]
    schedule = optimizers.make_schedule(base=0.007, total_steps=30000, **OFFICIAL[case])
    measured = rates(schedule, [int(step) for step in golden])
    np.testing.assert_allclose(
        measured, list(golden.values()), rtol=2e-5, atol=1e-10 if case == "cosine" else 0
    )


def test_official_linear_slow_start():
    golden = json.loads((GOLDEN / "official_components_lr.json").read_text())["poly_slow100_linear"]
    schedule = optimizers.SlowStart(optimizers.make_schedule("poly", 0.007, 29900), 100, 1e-4)
    np.testing.assert_allclose(
        rates(schedule, [int(step) for step in golden]), list(golden.values()), rtol=2e-5
    )


@pytest.mark.parametrize("policy", optimizers.POLICIES)
def test_schedules_against_their_formulas(policy):
    total, warmup, base, end = 50, 10, 0.2, 0.02
    formulas = {
        "poly": lambda i: (base - end) * (1 - i / 40) ** 0.7 + end,
        "cosine": lambda i: (base - end) * (1 + np.cos(np.pi * i / 40)) / 2 + end,
        "step": lambda i: base * 0.5 ** (i // 15),
        "constant": lambda i: base,
    }
    schedule = optimizers.make_schedule(
        policy,
        base,
        total,
        end=end,
        power=0.7,
        warmup_steps=warmup,
        decay_factor=0.5,
        decay_every=15,
    )
    expected = [
        base * i / warmup if i < warmup else formulas[policy](i - warmup) for i in range(total)
    ]
    assert rates(schedule, range(total)) == pytest.approx(expected, rel=1e-5)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert rates(again, range(total)) == rates(schedule, range(total))


def test_bad_schedules():
    with raises_line("did you mean 'poly'"):
        optimizers.make_schedule("polly", 0.1, 10)
    with raises_line("must be below the length of the run, 10 steps"):
        optimizers.make_schedule("poly", 0.1, 10, warmup_steps=10)
    for options, message in (
        (dict(base=float("nan")), "base must be a finite number"),
        (dict(base=-0.1), "base must be at least 0"),
        (dict(total_steps=0), "total_steps must be at least 1. Received: --total_steps=0"),
        (dict(total_steps=1.5), "total_steps must be a whole number"),
        (dict(end=-1.0), "end must be at least 0"),
        (dict(power=float("inf")), "power must be a finite number"),
        (dict(decay_every=0), "decay_every must be at least 1"),
    ):
        with raises_line(message):
            optimizers.make_schedule(
                **{"policy": "poly", "base": 0.1, "total_steps": 10, **options}
            )
    with raises_line("warmup_steps=1 and slow_start_steps=1 cannot be combined"):
        optimizers.make_schedule("poly", 0.1, 10, warmup_steps=1, slow_start_steps=1)


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS.values())
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(learning_rate=float("nan")), "learning_rate must be a finite number"),
        (dict(learning_rate=-0.1), "learning_rate must be at least 0"),
        (dict(learning_rate="0.1"), "learning_rate must be a number"),
        (dict(weight_decay=float("inf")), "weight_decay must be a finite number"),
        (dict(weight_decay=-1e-4), "weight_decay must be at least 0"),
        (dict(learning_rate_multipliers={"(": 2.0}), "'\\(' is not a regular expression"),
        (dict(learning_rate_multipliers={"a": float("nan")}), "must be a finite number"),
        (dict(no_weight_decay="bias"), "must be a list of regular expressions"),
    ],
)
def test_bad_arguments_of_optimizers(kind, options, message):
    with raises_line(message):
        kind(**options)


# --- From names and configs ---


@pytest.mark.parametrize("model", ["mnv2", "lraspp"])
@pytest.mark.parametrize("logits_only", [True, False])
def test_official_gradient_multipliers(model, logits_only):
    golden = json.loads((GOLDEN / "official_components_multipliers.json").read_text())[model]
    expected = golden[f"mult_x10_logits_only_{logits_only}"]
    last_layers = ("logits",) if logits_only else optimizers.OFFICIAL_LAST_LAYERS
    rules = optimizers.official_multipliers(last_layers, 10.0)
    # The golden table does not have the variables whose multiplier is 1.
    names = {
        *expected,
        *(f"{scope}/weights" for scope in golden["reg"]),
        *golden["excluded_logits_only_False"],
    }
    for name in names:
        assert optimizers.multiplier(name, rules) == expected.get(name, 1.0), name
        ours = name.replace("weights", "kernel").replace("biases", "bias").replace("BatchNorm/", "")
        assert optimizers.multiplier(ours, rules) == expected.get(name, 1.0), ours
    assert optimizers.multiplier("logits/bias", optimizers.official_multipliers(())) == 2.0


def test_optimizer_of_a_config():
    default = optimizers.make_optimizer(TrainConfig(), 39660)
    assert isinstance(default, optimizers.MomentumSGD)
    assert (default.momentum, default.weight_decay, default.no_weight_decay) == (0.9, 5e-4, ())
    assert rates(default._learning_rate, [0, 39659]) == pytest.approx([0.01, 1.0072e-4], rel=5e-6)

    config = TrainConfig(
        optimizer="adamw",
        base_learning_rate=1e-3,
        learning_policy="cosine",
        end_learning_rate=0.0,
        warmup_steps=5,
        backbone_learning_rate_multiplier=0.1,
        weight_decay=0.05,
        weight_decay_on_all=False,
    )
    optimizer = optimizers.make_optimizer(config, 100)
    assert isinstance(optimizer, optimizers.AdamW)
    assert rates(optimizer._learning_rate, [0, 5, 100]) == pytest.approx([0.0, 1e-3, 0.0])
    optimizer.build(Variables().variables)
    assert optimizer._multipliers == pytest.approx([0.1, 0.1, 0.1, 1.0, 1.0])
    assert optimizer._decays == pytest.approx([0.05, 0.0, 0.0, 0.05, 0.0])
    assert isinstance(optimizers.make_optimizer(TrainConfig(optimizer="adam"), 10), optimizers.Adam)


def test_official_rates_of_a_config():
    config = TrainConfig(
        optimizer="adam",
        bias_learning_rate_multiplier=2,
        last_layer_gradient_multiplier=10,
        learning_policy="step",
        learning_rate_decay_factor=0.5,
        learning_rate_decay_step=3,
        base_learning_rate=0.1,
        slow_start_step=2,
        slow_start_learning_rate=0.01,
        adam_epsilon=1e-3,
    )
    optimizer = optimizers.make_optimizer(config, 10)
    assert rates(optimizer._learning_rate, range(9)) == pytest.approx(
        [0.01] * 2 + [0.1] * 3 + [0.05] * 3 + [0.025]
    )
    assert optimizer.epsilon == 1e-3
    optimizer.build(Variables().variables)
    assert optimizer._multipliers == [1, 1, 1, 10, 20]
    constant = optimizers.make_optimizer(config.replace(adam_learning_rate=0.003), 10)
    assert rates(constant._learning_rate, (0, 1, 9)) == pytest.approx([0.003] * 3)
    poly = TrainConfig(
        base_learning_rate=0.1, end_learning_rate=0.0, decay_steps=5, learning_power=1.0
    )
    assert rates(optimizers.make_optimizer(poly, 10)._learning_rate, (0, 4, 5, 9)) == pytest.approx(
        [0.1, 0.02, 0, 0]
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(base_learning_rate=-1.0),
            "--base_learning_rate must be above 0. Received: --base_learning_rate=-1.0",
        ),
        (
            dict(top_k_percent_pixels=25.0),
            "must be above 0 and at most 1 .all pixels.. Received: --top_k_percent_pixels=25.0",
        ),
        (
            dict(learning_rate_decay_step=0),
            "must be at least 1. Received: --learning_rate_decay_step=0",
        ),
        (
            dict(warmup_steps=5, slow_start_step=5),
            "--slow_start_step cannot be combined with --warmup_steps=5",
        ),
        (
            dict(adam_learning_rate=0.001),
            "--adam_learning_rate requires --optimizer=adam; the learning rate of momentum is",
        ),
        (dict(label_weights=(1.0, -1.0)), "--label_weights must be numbers of at least 0"),
        (dict(learning_policy="steps"), "did you mean 'step'"),
    ],
)
def test_invalid_rates_are_refused(options, message):
    with raises_line(message):
        TrainConfig(**options)
