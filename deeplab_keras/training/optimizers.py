"""Optimizers with per-variable rules, as in the reference projects, and learning rate schedules.

They run on every Keras backend. The rules are regular expressions that are searched for in a
variable's path, `<layer>/<variable>`, such as `block3_depthwise_conv/kernel`. The backbone's layers
are named `stem_*`, `block<i>_*` and `last_*`. All other layers belong to the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from deeplab_keras.config import TrainConfig, UserError, number, unknown_option

__all__ = [
    "Adam",
    "AdamW",
    "Lion",
    "MomentumSGD",
    "SlowStart",
    "make_optimizer",
    "make_schedule",
    "multiplier",
    "official_multipliers",
]

BACKBONE = r"(^|/)(stem|block\d+|last)_"
# Variables that are not convolution kernels, and depthwise kernels: the official DeepLab does not
# decay them (docs/reference/official_deeplab.md#weight-decay).
NOT_CONV_KERNELS = (r"(?<!kernel)$", r"depthwise")
# Parts of the layer names of every head's last layers, which can have a larger learning rate or
# start from random weights.
CLASSIFIERS = ("logits",)
OFFICIAL_LAST_LAYERS = (
    "logits",
    "image_pooling",
    "aspp",
    "concat_projection",
    "decoder",
    "meta_architecture",
)
LAST_LAYERS = (*OFFICIAL_LAST_LAYERS, "auxiliary", "fcn", "psp", "bottleneck", "branch")


def multiplier(path: str, multipliers: Mapping[str, float]) -> float:
    """Returns the learning rate factor of a variable: the product over all matching patterns.

    Args:
        path: Path of the variable, such as "logits/bias".
        multipliers: Factor by regular expression, which is searched for in the path.

    Returns:
        The factor, 1.0 if no pattern matches.

    Example:
        >>> rules = {r"bias$": 2.0, "logits": 10.0}
        >>> dk.optimizers.multiplier("logits/bias", rules)
        20.0
        >>> dk.optimizers.multiplier("stem_conv/kernel", rules)
        1.0
    """
    factor = 1.0
    for pattern, value in multipliers.items():
        if re.search(pattern, path):
            factor *= value
    return factor


def official_multipliers(
    last_layers: Sequence[str], last_layer_multiplier: float = 1.0, bias_multiplier: float = 2.0
) -> dict[str, float]:
    """Returns the learning rate factors of the official DeepLab, for biases and last layers.

    A bias of a last layer gets the product of both factors. See
    docs/reference/official_deeplab.md#gradient-multipliers. The patterns match the official
    variable names (`logits/semantic/biases`) and ours (`logits/bias`).

    Args:
        last_layers: Layer names or parts of them: `CLASSIFIERS`, or `LAST_LAYERS` for the whole
            head.
        last_layer_multiplier: Factor of the last layers.
        bias_multiplier: Factor of all biases.

    Returns:
        Factor by regular expression, as the `learning_rate_multipliers` of the optimizers. Factors
        of 1 are left out.

    Example:
        >>> dk.optimizers.official_multipliers(["logits"], last_layer_multiplier=10.0)
        {'bias(es)?$': 2.0, 'logits': 10.0}
    """
    rules = {
        r"bias(es)?$": bias_multiplier,
        "|".join(map(re.escape, last_layers)): last_layer_multiplier,
    }
    return {pattern: factor for pattern, factor in rules.items() if pattern and factor != 1}


class _Rules(keras.optimizers.Optimizer):
    """Mixin for Keras optimizers: learning rate factors and weight decay by variable path.

    Coupled weight decay (L2, `coupled=True`) is added to the gradient, as in torch and TF1.
    Decoupled weight decay subtracts `rate * decay * weight` from the weight, where `rate` is the
    variable's own learning rate. Keras only has decoupled weight decay.
    """

    coupled = True

    def __init__(
        self,
        *args: Any,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        no_weight_decay: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        rate = args[0] if args else kwargs.get("learning_rate")
        if isinstance(rate, int | float | str):  # not a schedule or a callable
            number(rate, float, "learning_rate", low=0)
        if kwargs.get("weight_decay") is not None:
            number(kwargs["weight_decay"], float, "weight_decay", low=0)
        super().__init__(*args, **kwargs)
        self.learning_rate_multipliers = dict(learning_rate_multipliers or {})
        for pattern, factor in self.learning_rate_multipliers.items():
            _check_pattern(pattern, "learning_rate_multipliers")
            number(factor, float, f"learning_rate_multipliers[{pattern!r}]", low=0)
        if isinstance(no_weight_decay, str):
            raise UserError(
                f"no_weight_decay must be a list of regular expressions. Received: "
                f"no_weight_decay={no_weight_decay!r}"
            )
        self.no_weight_decay = tuple(no_weight_decay)
        for pattern in self.no_weight_decay:
            _check_pattern(pattern, "no_weight_decay")

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the optimizer's state, and looks up the factor and decay of each variable."""
        if self.built:
            return
        super().build(variables)
        # By index, because under tf.distribute `update_step` gets raw variables without a path.
        self._multipliers = [
            multiplier(variable.path, self.learning_rate_multipliers) for variable in variables
        ]
        self._decays = [self._decay(variable) for variable in variables]

    def _decay(self, variable: Any) -> float:
        if not self.weight_decay or any(
            re.search(pattern, variable.path) for pattern in self.no_weight_decay
        ):
            return 0.0
        return self.weight_decay if self._use_weight_decay(variable) else 0.0

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Does nothing, because `update_step` applies weight decay."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable with its own learning rate and weight decay."""
        index = self._get_variable_index(variable)
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype) * self._multipliers[index]
        decay = self._decays[index]
        if decay and self.coupled:
            gradient = gradient + decay * ops.convert_to_tensor(variable)
        elif decay:
            self.assign_sub(variable, ops.convert_to_tensor(variable) * (rate * decay))
        super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the optimizer."""
        config = super().get_config()
        multipliers = dict(self.learning_rate_multipliers)
        return {
            **config,
            "learning_rate_multipliers": multipliers,
            "no_weight_decay": list(self.no_weight_decay),
        }


def _check_pattern(pattern: Any, name: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(
            f"{name}: {pattern!r} is not a regular expression ({error}); escape names with "
            "re.escape"
        ) from error


class _Momentum(keras.optimizers.Optimizer):
    """SGD with momentum: v <- momentum v + g; w <- w - rate v.

    In Keras' SGD, v contains the learning rate, so it differs whenever the rate changes.
    """

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.9, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = number(momentum, float, "momentum", low=0, below=1)

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._velocities = (
            self.add_optimizer_variables(variables, "momentum") if self.momentum else []
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if self.momentum:
            velocity = self._velocities[self._get_variable_index(variable)]
            gradient = ops.convert_to_tensor(velocity) * self.momentum + gradient
            self.assign(velocity, gradient)
        self.assign_sub(variable, gradient * learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}


@keras.saving.register_keras_serializable(package="deeplab_keras")
class MomentumSGD(_Rules, _Momentum):
    """SGD with momentum and coupled weight decay.

    It takes the same steps as torch.optim.SGD and TF1's MomentumOptimizer. A weight `w` with the
    gradient `g` and the velocity `v`, which starts at 0, is updated as follows:

        g <- g + weight_decay * w
        v <- momentum * v + g
        w <- w - learning_rate * multiplier * v

    Args:
        learning_rate: A float or a schedule.
        momentum: Share of the velocity that is kept at each step. 0 turns momentum off.
        weight_decay: L2 factor, or `None` for no weight decay.
        learning_rate_multipliers: Factor on the learning rate by regular expression. A factor
            applies to the variables in whose path the expression is found (`re.search`). If several
            match, their factors are multiplied.
        no_weight_decay: Regular expressions for the paths of variables without weight decay.
            `exclude_from_weight_decay` also works.
        **kwargs: The other arguments of a Keras optimizer, such as `clipnorm`, `global_clipnorm`
            and `clipvalue` (applied before weight decay is added), `use_ema` and `ema_momentum`.

    Example:
        >>> rules = {"logits": 10.0}
        >>> optimizer = dk.optimizers.MomentumSGD(
        ...     0.1, momentum=0.9, weight_decay=1e-4, learning_rate_multipliers=rules
        ... )
        >>> weight = keras.Variable([1.0], name="kernel")
        >>> optimizer.apply([np.array([2.0])], [weight])  # 1 - 0.1 * (2 + 1e-4 * 1)
        >>> round(float(weight[0]), 6)
        0.79999
    """


@keras.saving.register_keras_serializable(package="deeplab_keras")
class Adam(_Rules, keras.optimizers.Adam):
    """Keras' Adam with coupled weight decay, as in torch.optim.Adam.

    Args:
        *args: The arguments of `keras.optimizers.Adam`.
        learning_rate_multipliers: See `MomentumSGD`.
        no_weight_decay: See `MomentumSGD`.
        **kwargs: The keyword arguments of `keras.optimizers.Adam`.

    Example:
        >>> optimizer = dk.optimizers.Adam(
        ...     1e-3, weight_decay=1e-4, no_weight_decay=[r"bias$", "_bn/"]
        ... )
        >>> model = dk.load_model("runs/demo")
        >>> model.compile(optimizer=optimizer, loss=dk.losses.make_loss())
    """


@keras.saving.register_keras_serializable(package="deeplab_keras")
class AdamW(_Rules, keras.optimizers.AdamW):
    """Keras' AdamW with per-variable rules; its decoupled decay uses the variable's own rate.

    Args:
        *args: The arguments of `keras.optimizers.AdamW`.
        learning_rate_multipliers: See `MomentumSGD`.
        no_weight_decay: See `MomentumSGD`.
        **kwargs: The keyword arguments of `keras.optimizers.AdamW`.

    Example:
        >>> optimizer = dk.optimizers.AdamW(
        ...     1e-3, weight_decay=0.01, learning_rate_multipliers={"^logits": 10.0}
        ... )
        >>> model = dk.load_model("runs/demo")
        >>> model.compile(optimizer=optimizer, loss=dk.losses.make_loss())
    """

    coupled = False


@keras.saving.register_keras_serializable(package="deeplab_keras")
class Lion(_Rules, keras.optimizers.Lion):
    """Keras' Lion (Chen et al., arXiv:2302.06675) with per-variable rules and decoupled decay.

    Args:
        *args: The arguments of `keras.optimizers.Lion`.
        learning_rate_multipliers: See `MomentumSGD`.
        no_weight_decay: See `MomentumSGD`.
        **kwargs: The keyword arguments of `keras.optimizers.Lion`.

    Example:
        >>> optimizer = dk.optimizers.Lion(1e-4, weight_decay=0.1, no_weight_decay=[r"bias$"])
        >>> model = dk.load_model("runs/demo")
        >>> model.compile(optimizer=optimizer, loss=dk.losses.make_loss())
    """

    coupled = False


OPTIMIZERS = {"momentum": MomentumSGD, "adam": Adam, "adamw": AdamW, "lion": Lion}


@keras.saving.register_keras_serializable(package="deeplab_keras")
class SlowStart(LearningRateSchedule):
    """A schedule with a linear warm-up or a constant slow start before another schedule.

    Args:
        schedule: The schedule that follows. Its step 0 is step `steps` of the run.
        steps: Length of the start in steps.
        start_rate: Learning rate at step 0.
        linear: Whether the rate then increases linearly to the first rate of `schedule`. If
            `False`, it stays at `start_rate`.

    Example:
        >>> poly = keras.optimizers.schedules.PolynomialDecay(0.1, 100)
        >>> schedule = dk.optimizers.SlowStart(poly, steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10)]
        [0.0, 0.05, 0.1]
    """

    def __init__(
        self,
        schedule: LearningRateSchedule,
        steps: int,
        start_rate: float = 0.0,
        linear: bool = True,
    ) -> None:
        self.schedule = schedule
        self.steps = steps
        self.start_rate = start_rate
        self.linear = linear

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate of a 0-based step."""
        step = ops.cast(step, "float32")
        before = ops.convert_to_tensor(self.start_rate, "float32")
        if self.linear:
            before = before + (self.schedule(0) - before) * (step / self.steps)
        return ops.where(
            step < self.steps, before, self.schedule(ops.maximum(step - self.steps, 0.0))
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the schedule."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {
            "schedule": schedule,
            "steps": self.steps,
            "start_rate": self.start_rate,
            "linear": self.linear,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SlowStart:
        """Creates the schedule from the arguments that `get_config` returned."""
        return cls(
            **{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])}
        )


POLICIES = ("poly", "cosine", "step", "constant")


def make_schedule(
    policy: str,
    base: float,
    total_steps: int,
    *,
    end: float = 0.0,
    power: float = 0.9,
    warmup_steps: int = 0,
    slow_start_steps: int = 0,
    slow_start_rate: float = 1e-4,
    decay_steps: int | None = None,
    decay_factor: float = 0.1,
    decay_every: int = 2000,
) -> LearningRateSchedule:
    """Creates a learning rate schedule over the steps 0, 1, ..., `total_steps - 1`.

    After the warm-up or slow start, with `i` counted from its end and `D = decay_steps`:

    * "poly": `(base - end) * (1 - min(i, D) / D)^power + end`
    * "cosine": `(base - end) * (1 + cos(pi * min(i, D) / D)) / 2 + end`
    * "step": `base * decay_factor^floor(i / decay_every)`
    * "constant": `base`

    Args:
        policy: "poly", "cosine", "step" or "constant".
        base: Learning rate after the warm-up or slow start.
        total_steps: Length of the run in steps.
        end: Learning rate at the end of "poly" and "cosine".
        power: Exponent of "poly".
        warmup_steps: Number of steps in which the rate increases linearly from 0 to `base`.
        slow_start_steps: Number of steps at the constant `slow_start_rate`, as in the official
            DeepLab. Cannot be combined with `warmup_steps`.
        slow_start_rate: Learning rate of these steps.
        decay_steps: Length of the decay in steps. Defaults to all steps after the start.
        decay_factor: Factor on the rate at each decay of "step".
        decay_every: Number of steps between two decays of "step".

    Returns:
        The schedule, a function of the 0-based step.

    Raises:
        UserError: If the policy is unknown, a number is out of range, or the numbers of steps
            contradict each other.

    Example:
        >>> schedule = dk.optimizers.make_schedule("poly", 0.01, 1000, end=1e-4, warmup_steps=100)
        >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 999)]
        [0.0, 0.005, 0.01, 0.0001]
    """
    number(base, float, "base", low=0)
    number(total_steps, int, "total_steps", low=1)
    for name, value in (("end", end), ("power", power), ("slow_start_rate", slow_start_rate)):
        number(value, float, name, low=0)
    number(decay_factor, float, "decay_factor", above=0)
    for name, steps in (("warmup_steps", warmup_steps), ("slow_start_steps", slow_start_steps)):
        number(steps, int, name, low=0)
    number(decay_every, int, "decay_every", low=1)
    if decay_steps is not None:
        number(decay_steps, int, "decay_steps", low=1)
    if warmup_steps and slow_start_steps:
        raise UserError(
            f"warmup_steps={warmup_steps} and slow_start_steps={slow_start_steps} cannot be "
            "combined; set one of them to 0"
        )
    start = warmup_steps or slow_start_steps
    decay_steps = decay_steps or total_steps - start
    if decay_steps < 1:
        name = "warmup_steps" if warmup_steps else "slow_start_step"
        raise UserError(
            f"`{name}={start}` must be below the length of the run, {total_steps} steps; "
            f"set `{name}=0`, or train longer"
        )
    schedules = keras.optimizers.schedules
    if policy == "poly":
        schedule = schedules.PolynomialDecay(base, decay_steps, end, power)
    elif policy == "cosine":
        schedule = schedules.CosineDecay(base, decay_steps, alpha=end / base)
    elif policy == "step":
        schedule = schedules.ExponentialDecay(base, decay_every, decay_factor, staircase=True)
    elif policy == "constant":
        schedule = schedules.PolynomialDecay(base, decay_steps, base)
    else:
        raise unknown_option("learning_policy", policy, POLICIES)
    if warmup_steps:
        return SlowStart(schedule, warmup_steps)
    return (
        SlowStart(schedule, slow_start_steps, slow_start_rate, linear=False)
        if slow_start_steps
        else schedule
    )


def make_optimizer(config: TrainConfig, total_steps: int) -> keras.optimizers.Optimizer:
    """Creates the optimizer of a config, with a learning rate schedule over `total_steps` steps.

    Args:
        config: The optimizer's type, learning rates, schedule and weight decay.
        total_steps: Length of the run in steps.

    Returns:
        The optimizer.

    Raises:
        UserError: See `make_schedule`.

    Example:
        >>> config = dk.TrainConfig(optimizer="adamw", base_learning_rate=1e-3)
        >>> optimizer = dk.optimizers.make_optimizer(config, total_steps=1000)
        >>> type(optimizer).__name__
        'AdamW'
    """
    last_layers = CLASSIFIERS if config.last_layers_contain_logits_only else LAST_LAYERS
    rules = official_multipliers(
        last_layers, config.last_layer_gradient_multiplier, config.bias_learning_rate_multiplier
    )
    if config.backbone_learning_rate_multiplier != 1:
        rules[BACKBONE] = config.backbone_learning_rate_multiplier
    options: dict[str, Any] = {
        "learning_rate": _schedule(config, total_steps),
        "weight_decay": config.weight_decay,
        "learning_rate_multipliers": rules,
        "no_weight_decay": () if config.weight_decay_on_all else NOT_CONV_KERNELS,
    }
    if config.optimizer == "momentum":
        options["momentum"] = config.momentum
    elif config.optimizer in ("adam", "adamw"):
        options["epsilon"] = config.adam_epsilon
    return OPTIMIZERS[config.optimizer](**options)


def _schedule(config: TrainConfig, total_steps: int) -> LearningRateSchedule:
    if config.adam_learning_rate is not None:
        return make_schedule("constant", config.adam_learning_rate, total_steps)
    base = config.base_learning_rate
    return make_schedule(
        config.learning_policy,
        base,
        total_steps,
        end=base / 100 if config.end_learning_rate is None else config.end_learning_rate,
        power=config.learning_power,
        warmup_steps=config.warmup_steps,
        slow_start_steps=config.slow_start_step,
        slow_start_rate=config.slow_start_learning_rate,
        decay_steps=config.decay_steps or None,
        decay_factor=config.learning_rate_decay_factor,
        decay_every=config.learning_rate_decay_step,
    )
