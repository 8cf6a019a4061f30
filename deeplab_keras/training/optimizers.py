"""Optimizers in the form of the references, with rules by variable path, and learning-rate schedules.

Everything here is Keras alone, so it runs on every Keras backend. A variable's path is
`<layer>/<variable>`, such as `block3_depthwise_conv/kernel`; the backbone's layers are `stem_*`,
`block<i>_*` and `last_*`, all others are the head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from deeplab_keras.config import TrainConfig, UserError, unknown_option

BACKBONE = r"(^|/)(stem|block\d+|last)_"
# No weight decay for variables that match one of these patterns: everything but convolution kernels,
# and depthwise kernels (docs/reference/official_deeplab.md#weight-decay).
NOT_CONV_KERNELS = (r"(?<!kernel)$", r"depthwise")
# Parts of the layers' names of every head: the last layers, which can get a larger rate or start
# fresh. The first row is the official DeepLab's.
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
    """The factor on a variable's learning rate: the product over all patterns found in its path."""
    factor = 1.0
    for pattern, value in multipliers.items():
        if re.search(pattern, path):
            factor *= value
    return factor


def official_multipliers(
    last_layers: Sequence[str], last_layer_multiplier: float = 1.0, bias_multiplier: float = 2.0
) -> dict[str, float]:
    """Learning-rate factors of the official DeepLab: one for biases, one for last layers, their product for both.

    See docs/reference/official_deeplab.md#gradient-multipliers. The patterns match the official
    variable names (`logits/semantic/biases`) and ours (`logits/bias`).

    Args:
        last_layers: layer names or parts of them: `CLASSIFIERS`, or `LAST_LAYERS` for the whole
            head.
        last_layer_multiplier: factor of the last layers.
        bias_multiplier: factor of all biases.
    """
    rules = {
        r"bias(es)?$": bias_multiplier,
        "|".join(map(re.escape, last_layers)): last_layer_multiplier,
    }
    return {pattern: factor for pattern, factor in rules.items() if pattern and factor != 1}


class _Rules(keras.optimizers.Optimizer):
    """Mixed into a Keras optimizer: learning-rate factors and weight decay by variable path.

    The L2 form of weight decay (`coupled`) is added to the gradient, as torch and TF1 do it; the
    other one takes rate * decay * weight off the weight, with the variable's own rate. Keras itself
    has only the second.
    """

    coupled = True

    def __init__(
        self,
        *args: Any,
        learning_rate_multipliers: Mapping[str, float] | None = None,
        no_weight_decay: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.learning_rate_multipliers = dict(learning_rate_multipliers or {})
        self.no_weight_decay = tuple(no_weight_decay)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state, in the order of the variables, and looks up each variable's factor and decay."""
        if self.built:
            return
        super().build(variables)
        # By index: under tf.distribute the update sees raw variables, which have no path.
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
        """Nothing: `update_step` decays."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable, with its own rate and decay."""
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
        """Arguments that rebuild the optimizer."""
        config = super().get_config()
        multipliers = dict(self.learning_rate_multipliers)
        return {
            **config,
            "learning_rate_multipliers": multipliers,
            "no_weight_decay": list(self.no_weight_decay),
        }


class _Momentum(keras.optimizers.Optimizer):
    """v <- momentum v + g; w <- w - rate v. Keras' SGD holds the rate in v, which differs whenever the rate changes."""

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.9, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum

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
    """SGD with momentum as torch.optim.SGD and TF1's MomentumOptimizer have it, and coupled weight decay.

    g <- g + weight_decay w;  v <- momentum v + g (v is g at the first step);  w <- w - rate
    multiplier v.

    Args:
        learning_rate: a float or a schedule.
        momentum: share of the velocity that is kept; 0: no velocity.
        weight_decay: L2 factor.
        learning_rate_multipliers: pattern -> factor on the rate of variables in whose path it is
            found (`re.search`); several that match multiply.
        no_weight_decay: patterns of paths that are not decayed; `exclude_from_weight_decay` works
            too.
        **kwargs: clipnorm, global_clipnorm, clipvalue (before the decay is added), use_ema,
            ema_momentum and the other arguments of every Keras optimizer.
    """


@keras.saving.register_keras_serializable(package="deeplab_keras")
class Adam(_Rules, keras.optimizers.Adam):
    """Keras' Adam with coupled weight decay, as torch.optim.Adam has it, and the rules of `MomentumSGD`."""


@keras.saving.register_keras_serializable(package="deeplab_keras")
class AdamW(_Rules, keras.optimizers.AdamW):
    """Keras' AdamW (decoupled decay, by the variable's own rate) with the rules of `MomentumSGD`."""

    coupled = False


@keras.saving.register_keras_serializable(package="deeplab_keras")
class Lion(_Rules, keras.optimizers.Lion):
    """Keras' Lion (Chen et al., arXiv:2302.06675; decoupled decay) with the rules of `MomentumSGD`."""

    coupled = False


OPTIMIZERS = {"momentum": MomentumSGD, "adam": Adam, "adamw": AdamW, "lion": Lion}


@keras.saving.register_keras_serializable(package="deeplab_keras")
class SlowStart(LearningRateSchedule):
    """A schedule that begins `steps` later; before, a constant rate or a straight line up to the schedule's first rate.

    Args:
        schedule: what follows; its step 0 is step `steps` of the training.
        steps: length of the start.
        start_rate: learning rate at step 0.
        linear: True: climbs from there; False: stays there.
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
        """The learning rate of a 0-based step."""
        step = ops.cast(step, "float32")
        before = ops.convert_to_tensor(self.start_rate, "float32")
        if self.linear:
            before = before + (self.schedule(0) - before) * (step / self.steps)
        return ops.where(
            step < self.steps, before, self.schedule(ops.maximum(step - self.steps, 0.0))
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the schedule."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {
            "schedule": schedule,
            "steps": self.steps,
            "start_rate": self.start_rate,
            "linear": self.linear,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SlowStart:
        """The schedule of `get_config`'s arguments."""
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
    """The learning rate of each step i = 0, 1, ..., total_steps - 1, as it is when the step is taken.

    After the warm-up or slow start, with i counted from there and D = `decay_steps`:

    * poly: (base - end) (1 - min(i, D) / D)^power + end
    * cosine: (base - end) (1 + cos(pi min(i, D) / D)) / 2 + end
    * step: base decay_factor^floor(i / decay_every)
    * constant: base

    Args:
        policy: one of `POLICIES`.
        base: learning rate at the start.
        total_steps: length of the training.
        end: rate at the end of poly and cosine.
        power: exponent of poly.
        warmup_steps: steps in which the rate climbs linearly from 0 to base.
        slow_start_steps: steps at the constant `slow_start_rate` (official DeepLab); in place of a
            warm-up.
        slow_start_rate: rate of these steps.
        decay_steps: length of the decay; None: all steps that are left after the start.
        decay_factor: factor of step.
        decay_every: steps between two falls of step.

    Raises:
        UserError: an unknown policy, or numbers that contradict each other.
    """
    if warmup_steps and slow_start_steps:
        raise UserError(
            f"warmup_steps={warmup_steps} and slow_start_steps={slow_start_steps}: give one of them"
        )
    start = warmup_steps or slow_start_steps
    decay_steps = decay_steps or total_steps - start
    if decay_steps < 1:
        name = "warmup_steps" if warmup_steps else "slow_start_step"
        raise UserError(
            f"`{name}={start}` leaves none of the training's {total_steps} steps: make it shorter"
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
    """The optimizer of a configuration, with its learning-rate schedule over `total_steps` steps.

    Args:
        config: what to build.
        total_steps: length of the training.

    Raises:
        UserError: see `make_schedule`.
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
