"""One training as it goes: how far it is, its averaged weights, saving and going on, and being told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, MappingProxyType

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation.classes import check_classes
from deeplab_keras.evaluation.metrics import MeanIoU
from deeplab_keras.evaluation.report import Report
from deeplab_keras.models.layers import BatchNormalization


class Stopped(Exception):
    """SIGTERM came while the run was doing what can be left off."""


@dataclasses.dataclass
class Run:
    """One training as its callbacks see it: the model, where it is saved, and how far it is.

    Attributes:
        model: the segmentor.
        config: its architecture.
        info: its classes.
        optimizer: its state is saved too.
        workdir: where the run is kept.
        total_steps: its length.
        batch_size: images a step.
        metric: counts the training batches' pixels since the last evaluation.
        average_momentum: of the averaged weights; 0: there are none.
        step: steps that were taken.
        best_miou: of all evaluations so far.
        stale_rounds: evaluations in a row that were not better than the best before them.
        loss_sum: of the steps since the last evaluation.
        steps_in_round: their number.
        row: training loss and mIoU of the round that ends with this step, and images/s in it.
        last_report: the last evaluation.
        stop_requested: SIGTERM came.
        averages: averaged weights by name.
        fresh_statistics: for each batch norm 1 where its running statistics started fresh; None:
            not known yet.
    """

    model: keras.Model
    config: ModelConfig
    info: DatasetInfo
    optimizer: keras.optimizers.Optimizer
    workdir: Workdir
    total_steps: int
    batch_size: int
    metric: MeanIoU
    average_momentum: float = 0.0
    step: int = 0
    best_miou: float = -1.0
    stale_rounds: int = 0
    loss_sum: float = 0.0
    steps_in_round: int = 0
    row: dict[str, float] = dataclasses.field(default_factory=dict)
    last_report: Report | None = None
    stop_requested: bool = False
    averages: dict[str, tf.Variable] = dataclasses.field(default_factory=dict)
    fresh_statistics: np.ndarray | None = None
    _may_be_left: bool = False
    _restored_counts: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """Mean loss of the steps since the last evaluation."""
        return self.loss_sum / max(self.steps_in_round, 1)

    def start_round(self) -> None:
        """Starts the means over the steps of a round; the metric is reset by whoever owns the trained model."""
        self.loss_sum, self.steps_in_round, self._restored_counts = 0.0, 0, None

    def restore_counts(self) -> None:
        """Once after a restart, gives the metric the counts that the checkpoint holds."""
        if self._restored_counts is not None:
            for part, counts in zip(
                _replicas(self.metric.matrix), self._restored_counts, strict=False
            ):
                part.assign(counts)
            self._restored_counts = None

    def learning_rate(self) -> float:
        """The rate that the last step used."""
        rate = getattr(
            self.optimizer, "inner_optimizer", self.optimizer
        )._learning_rate  # inner: under loss scaling
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return float(rate(max(self.step - 1, 0)))
        return float(rate)

    # --- Averaged weights ---

    def start_averages(self) -> None:
        """From now on, with --ema_momentum, keeps a running average of all weights, the statistics of batch norm included.

        Keras' own averages leave these out, so that they are evaluated with the statistics of other
        weights (measured on CamVid after 10 passes: mIoU 0.10 where the weights themselves have
        0.61). Averaged statistics are those of the averaged weights as long as the weights move
        little within the average's window; --recalibrate_batch_norm measures them instead
        (docs/results.md compares the two).
        """
        if not self.average_momentum:
            return
        variables = folder.model_variables(self.model)
        self.averages = {
            name: tf.Variable(v.value, trainable=False, name="average")
            for name, v in variables.items()
        }

    def update_averages(self) -> None:
        """Takes the present weights into the averages; the first steps' count less for long than momentum would have it."""
        if self.averages:
            momentum = min(self.average_momentum, (1 + self.step) / (10 + self.step))
            variables = folder.model_variables(self.model)
            _average(
                [variables[name].value for name in self.averages],
                list(self.averages.values()),
                tf.constant(momentum),
            )

    def weights(self) -> dict[str, np.ndarray]:
        """The weights to evaluate and to use: averaged ones where there are some."""
        averages = {name: average.numpy() for name, average in self.averages.items()}
        return {**folder.named_weights(self.model), **averages}

    @contextlib.contextmanager
    def averaged(
        self, statistics: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> Iterator[None]:
        """Within the block the model has its averaged weights and, where they are given, these statistics of batch norm."""
        variables, raw = folder.model_variables(self.model), {}
        for name, value in {**self.averages, **statistics}.items():
            raw[name] = keras.ops.convert_to_numpy(variables[name])
            variables[name].assign(value)
        try:
            yield
        finally:
            for name, value in raw.items():
                variables[name].assign(value)

    # --- Saving and going on ---

    def random_states(self) -> list[keras.Variable]:
        """The states of the dropout layers' random generators, in order; their names say how many were made before."""
        return [variable for variable in self.model.variables if "seed_generator" in variable.path]

    def save(self) -> None:
        """Writes a training checkpoint of this step."""
        state = {f"optimizer/{i}": v.numpy() for i, v in enumerate(self.optimizer.variables)}
        state |= {f"random/{i}": v.numpy() for i, v in enumerate(self.random_states())}
        if self.averages:
            state |= {
                f"raw/{name}": value for name, value in folder.named_weights(self.model).items()
            }
        state |= {"step": np.int64(self.step), "stale_rounds": np.int64(self.stale_rounds)}
        state |= {"best_miou": np.float64(self.best_miou)}
        counts = np.stack([part.numpy() for part in _replicas(self.metric.matrix)])
        state |= {
            "round/loss_sum": np.float64(self.loss_sum),
            "round/steps": np.int64(self.steps_in_round),
        }
        state |= {"round/counts": counts}
        if self.fresh_statistics is not None:
            state["fresh_statistics"] = self.fresh_statistics
        state |= {f"row/{name}": np.float64(value) for name, value in self.row.items()}
        self.workdir.save_step(
            self.step, self.model, self.config, self.info, weights=self.weights(), state=state
        )

    def restore(self) -> bool:
        """Resumes from the newest training checkpoint that is intact; False where there is none at all.

        Raises:
            UserError: all of them are damaged, or the run has its classes in another order or
                another architecture.
        """
        newest = self.workdir.newest()
        if newest is None:
            return False
        check_classes(str(newest.path), newest.info, self.info)
        weights, state = newest.weights, newest.state
        raw = {
            name.removeprefix("raw/"): value
            for name, value in state.items()
            if name.startswith("raw/")
        }
        folder.assign_weights(self.model, raw or weights, source=str(newest.path))
        self.start_averages()
        for name, average in self.averages.items():
            average.assign(weights[name])
        self._assign("optimizer", self.optimizer.variables, state)
        self._assign("random", self.random_states(), state)
        self.step, self.best_miou = int(state["step"]), float(state["best_miou"])
        # A checkpoint of an older version had no warm-up, and continues without it.
        norms = [layer for layer in self.model.layers if isinstance(layer, BatchNormalization)]
        self.fresh_statistics = state.get("fresh_statistics", np.zeros(len(norms), np.uint8))
        self.stale_rounds = int(state.get("stale_rounds", 0))
        self.row = {
            name.removeprefix("row/"): float(value)
            for name, value in state.items()
            if name.startswith("row/")
        }
        self.loss_sum, self.steps_in_round = (
            float(state.get("round/loss_sum", 0.0)),
            int(state.get("round/steps", 0)),
        )
        self._restored_counts = state.get("round/counts")
        self._check_best()
        return True

    def _check_best(self) -> None:
        """Where the best model so far is lost, the next evaluation's takes its place."""
        if self.best_miou < 0:
            return
        try:
            folder.read_weights(self.workdir.path / folder.BEST)
        except UserError as error:
            logging.warning("%s; the model of the next evaluation takes its place", error)
            self.best_miou = -1.0

    def _assign(
        self, kind: str, variables: list[keras.Variable], state: dict[str, np.ndarray]
    ) -> None:
        for index, variable in enumerate(variables):
            value = state.get(f"{kind}/{index}")
            if value is None or tuple(value.shape) != tuple(variable.shape):
                raise UserError(
                    f"`train_logdir={self.workdir.path}`: its checkpoints have another {kind} "
                    "state than this version of the "
                    f"program (number {index}); give another folder, and this one as "
                    "`initial_checkpoint`"
                )
            variable.assign(value)

    # --- Being told to stop ---

    @contextlib.contextmanager
    def may_be_left(self) -> Iterator[None]:
        """Within the block, which changes nothing that is kept, SIGTERM raises `Stopped` at once."""
        self._may_be_left = True
        try:
            if self.stop_requested:
                raise Stopped
            yield
        finally:
            self._may_be_left = False

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM: the training ends when the step is done and saved."""
        self.stop_requested = True
        if self._may_be_left:
            raise Stopped


def _replicas(variable: keras.Variable) -> Sequence[tf.Variable]:
    """The variable of each of this process' replicas."""
    return getattr(variable.value, "values", None) or [variable.value]


@tf.function
def _average(values: list[tf.Tensor], averages: list[tf.Variable], momentum: tf.Tensor) -> None:
    for value, average in zip(values, averages, strict=True):
        share = tf.cast(momentum, average.dtype)
        average.assign(share * average + (1 - share) * value)


@contextlib.contextmanager
def stop_on_sigterm(run: Run) -> Iterator[None]:
    """Within the block SIGTERM (a preempted machine) lets the step end, saves it and ends the training."""
    try:
        before = signal.signal(signal.SIGTERM, run.request_stop)
    except ValueError:  # not in the main thread, where signals cannot be caught
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
