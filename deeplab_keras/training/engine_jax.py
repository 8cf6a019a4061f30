"""Training on JAX, see `engine.Engine`. TensorFlow only prepares the batches, on the CPU."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import keras
import numpy as np
from jax import numpy as jnp

from deeplab_keras.config import OptionError, TrainConfig, UserError
from deeplab_keras.models.layers import PACKAGE
from deeplab_keras.training.step import Tensors, TrainedModel

OUT_OF_MEMORY = jax.errors.JaxRuntimeError
ALWAYS_COMPILED = True
SMALLEST_CAPABILITY = 8.0  # of an NVIDIA GPU with bfloat16
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def check(training: TrainConfig) -> None:
    """See `engine.Engine`."""
    if training.strategy == "multi_worker":
        raise OptionError(
            "strategy",
            training.strategy,
            "requires Keras' TensorFlow backend",
            hint="set KERAS_BACKEND=tensorflow, or give 'auto', which uses all devices of this "
            "machine",
        )
    device = jax.devices()[0]
    if training.precision not in precisions(device):
        raise OptionError(
            "precision",
            training.precision,
            f"is not supported by this device, {device.device_kind}",
            hint=f"give {' or '.join(precisions(device))}",
        )
    if training.deterministic and device.platform == "gpu":
        flags = os.environ.get("XLA_FLAGS", "")
        if DETERMINISTIC not in flags.split():
            raise UserError(
                f"`deterministic=True` requires the environment variable XLA_FLAGS={DETERMINISTIC} "
                f"on a GPU with JAX. Received: XLA_FLAGS={flags}; set it before you start the run"
            )


def precisions(device: jax.Device) -> tuple[str, ...]:
    """Returns the values of `TrainConfig.precision` that a device computes with."""
    capability = getattr(device, "compute_capability", None)
    if device.platform == "tpu":
        return "float32", "mixed_bfloat16"
    if device.platform == "gpu" and capability and float(capability) < SMALLEST_CAPABILITY:
        return "float32", "mixed_float16"
    return "float32", "mixed_bfloat16", "mixed_float16"


class Devices:
    """The devices of a run, which share each batch.

    Arrays are global: sums over a batch are sums over all devices.

    Attributes:
        num_replicas_in_sync: The number of devices.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.num_replicas_in_sync = len(names)
        self._distribution = (
            keras.distribution.DataParallel(devices=list(names)) if len(names) > 1 else None
        )

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Context in which variables are created on all devices, and `fit` distributes batches."""
        if self._distribution is None:
            yield
            return
        with self._distribution.scope():
            yield


def make_strategy(name: str) -> Devices:
    """See `engine.Engine`."""
    names = keras.distribution.list_devices()
    return Devices(names[:1] if name == "none" else names)


def fit_scope(strategy: Devices) -> contextlib.AbstractContextManager[None]:
    """See `engine.Engine`."""
    return strategy.scope()


def compiled(
    function: Callable[[Any], Any], variables: Sequence[keras.Variable]
) -> Callable[[Any], Any]:
    """See `engine.Engine`."""
    variables = list(variables)

    @jax.jit
    def stateless(values: Tensors, argument: Any) -> tuple[Any, Tensors]:
        with keras.StatelessScope(list(zip(variables, values, strict=True))) as scope:
            result = function(argument)
        return result, [scope.get_current_value(variable) for variable in variables]

    def call(argument: Any) -> Any:
        result, values = stateless(_values(variables), np.asarray(argument))
        _assign(variables, values)
        return result

    return call


def copies(values: Tensors) -> Tensors:
    """See `engine.Engine`."""
    return [jnp.copy(value) for value in values]


def average(values: Tensors, averages: Tensors, momentum: float) -> Tensors:
    """See `engine.Engine`."""
    return _average(averages, values, np.float32(momentum))


@jax.jit(donate_argnums=0)
def _average(averages: Tensors, values: Tensors, momentum: Any) -> Tensors:
    result = []
    for average, value in zip(averages, values, strict=True):
        share = momentum.astype(average.dtype)
        result.append(share * average + (1 - share) * value)
    return result


def read_counts(variable: keras.Variable) -> np.ndarray:
    """See `engine.Engine`."""
    return keras.ops.convert_to_numpy(variable)


def write_counts(variable: keras.Variable, counts: np.ndarray) -> None:
    """See `engine.Engine`."""
    variable.assign(counts)


def start_profiler(folder: pathlib.Path) -> None:
    """See `engine.Engine`."""
    jax.profiler.start_trace(str(folder))


def stop_profiler() -> None:
    """See `engine.Engine`."""
    jax.profiler.stop_trace()


@keras.saving.register_keras_serializable(PACKAGE)
class JaxModel(TrainedModel):
    """A `TrainedModel` on JAX, whose step is a function from state to state."""

    # Place of each variable in the state that `fit` keeps outside the variables.
    _places: dict[int, tuple[str, int]] | None = None

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """The variables of the model that are not trained, and those of its teacher.

        They are part of the state that `fit` passes to the compiled step. Otherwise the teacher's
        weights would be constants of the program.
        """
        return [*super().non_trainable_variables, *self._teacher_variables]

    @property
    def _teacher_variables(self) -> list[keras.Variable]:
        return [] if self.teacher is None else self.teacher.model.variables

    def sync(self) -> None:
        self.jax_state_sync()

    def current_values(self, variables: Sequence[keras.Variable]) -> Tensors:
        if self._jax_state_synced:
            return super().current_values(variables)
        if self._places is None:
            groups = ("trainable_variables", "non_trainable_variables")
            self._places = {
                id(variable): (group, index)
                for group in groups
                for index, variable in enumerate(getattr(self, group))
            }
        places = [self._places[id(variable)] for variable in variables]
        return [self._jax_state[group][index] for group, index in places]

    def train_step(self, state: tuple[Tensors, ...], data: tuple[Any, Any]) -> tuple[Any, Any]:
        """Returns the metrics, the loss and the gradient norm, and the state after the step."""
        groups = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )
        pairs = [
            pair
            for variables, values in zip(groups, state, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with keras.StatelessScope(pairs) as scope:
            loss, gradients, metrics = self._gradients(*data)
            norm = self._norm(gradients)
            self._update(self._checked(gradients, loss, norm))
            logs = self._logs(metrics, loss, norm)
        after = [[scope.get_current_value(variable) for variable in group] for group in groups]
        return logs, tuple(after)

    def _gradients(self, images: Any, labels: Any) -> tuple[Any, Tensors, dict[str, Any]]:
        """Returns the loss, the gradients and the metrics.

        Assigns the new statistics of batch norm, random states and counts of the metrics.
        """
        trained = self.trained_variables
        changing = [*super().non_trainable_variables, *self.metrics_variables]
        fixed = [*self.trainable_variables, *self._teacher_variables, *self.optimizer.variables]
        fixed_pairs = list(zip(fixed, _values(fixed), strict=True))

        def objective(weights: Tensors, state: Tensors, batch: tuple[Any, ...]) -> Any:
            images, labels, share = batch
            pairs = zip([*trained, *changing], [*weights, *state], strict=True)
            with keras.StatelessScope([*fixed_pairs, *pairs]) as scope:
                scaled, loss, outputs = self._forward(
                    images, labels, share, self._teacher_logits(images)
                )
                metrics = self.compute_metrics(images, labels, outputs)
                state = [scope.get_current_value(variable) for variable in changing]
            return scaled, (jnp.asarray(loss, keras.config.floatx()), metrics, state)

        gradient = jax.value_and_grad(objective, has_aux=True)
        weights, state = _values(trained), _values(changing)
        if self.parts == 1:
            (_, found), gradients = gradient(weights, state, (images, labels, 1.0))
            loss, metrics, state = found
        else:

            def add(sums: Any, batch: tuple[Any, ...]) -> tuple[Any, Any]:
                total, gradients, state = sums
                (_, (loss, metrics, state)), found = gradient(weights, state, batch)
                gradients = [a + b for a, b in zip(gradients, found, strict=True)]
                return (total + loss, gradients, state), metrics

            zeros = jnp.zeros((), keras.config.floatx()), [jnp.zeros_like(w) for w in weights]
            parts = self._split(images), self._split(labels), self._shares(labels)
            (loss, gradients, state), every = jax.lax.scan(add, (*zeros, state), parts)
            metrics = {name: values[-1] for name, values in every.items()}
        _assign(changing, state)
        return loss, gradients, metrics

    def _update(self, gradients: Tensors) -> None:
        trained, own = self.trained_variables, self.optimizer.variables
        weights, state = self.optimizer.stateless_apply(_values(own), gradients, _values(trained))
        _assign(trained, weights)
        _assign(own, state)

    def _split(self, batch: Any) -> Any:
        """Returns the parts of a batch, `[parts, images, ...]`; the devices share each part."""
        parts = jnp.reshape(batch, (self.parts, -1, *batch.shape[1:]))
        distribution = keras.distribution.distribution()
        if distribution is None:
            return parts
        axes = (None, distribution.batch_dim_name, *[None] * (batch.ndim - 1))
        layout = keras.distribution.TensorLayout(axes, distribution.device_mesh)
        return keras.distribution.distribute_tensor(parts, layout)

    def _norm(self, gradients: Tensors) -> Any:
        """Returns the norm of the gradient over all weights, without the loss scale."""
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(gradient)) for gradient in gradients))
        return norm / self.optimizer.dynamic_scale.value if self._scales_loss else norm


def _values(variables: Sequence[keras.Variable]) -> Tensors:
    return [variable.value for variable in variables]


def _assign(variables: Sequence[keras.Variable], values: Tensors) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


Model = JaxModel
