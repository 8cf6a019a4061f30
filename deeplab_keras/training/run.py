"""The state of a run: progress, averaged weights, saving and restoring, stopping on SIGTERM."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
from collections.abc import Iterator, Mapping
from types import FrameType, MappingProxyType
from typing import Any

import keras
import numpy as np

from deeplab_keras.checkpoints import folder
from deeplab_keras.checkpoints.workdir import Workdir
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation.classes import check_classes
from deeplab_keras.evaluation.metrics import MeanIoU
from deeplab_keras.evaluation.report import Report
from deeplab_keras.models.layers import BatchNormalization
from deeplab_keras.training.engine import Engine
from deeplab_keras.training.meter import Meter
from deeplab_keras.training.step import TrainedModel
from deeplab_keras.training.teacher import Teacher

logger = logging.getLogger(__name__)


class StopRequested(Exception):
    """SIGTERM arrived during work that can be interrupted."""


@dataclasses.dataclass
class Run:
    """The state of a run, shared by its callbacks.

    Attributes:
        model: The segmentor.
        engine: What the run needs from Keras' backend.
        config: The model's architecture.
        info: The dataset's classes.
        optimizer: The optimizer, whose state is saved too.
        workdir: The folder of the run.
        total_steps: Length of the run in steps.
        batch_size: Number of images per step.
        metric: Mean IoU of the training batches since the last evaluation.
        average_momentum: Momentum of the averaged weights. 0 turns averaging off.
        teacher: The network whose class probabilities are learned too.
        step: Number of steps taken so far.
        best_miou: Best mIoU of all evaluations so far, -1 before the first one.
        stale_rounds: Number of consecutive evaluations without a new best mIoU.
        loss_sum: Sum of the losses of the steps since the last evaluation.
        steps_in_round: Number of steps since the last evaluation.
        row: Training loss, training mIoU and images per second of the last complete round.
        last_report: Report of the last evaluation.
        stop_requested: Whether SIGTERM arrived.
        averages: Averaged weights by name, on the device.
        fresh_statistics: 1 for each batch norm layer whose running statistics were initialized with
            mean 0 and variance 1, else 0. `None` if not known yet.
        counts_of_workers: The metric's counts of all workers, int64 `[num_classes, num_classes]`.
            `None` with a single worker.
        meter: Measures the time and energy of all starts of the run.
    """

    model: keras.Model
    engine: Engine
    config: ModelConfig
    info: DatasetInfo
    optimizer: keras.optimizers.Optimizer
    workdir: Workdir
    total_steps: int
    batch_size: int
    metric: MeanIoU
    average_momentum: float = 0.0
    teacher: Teacher | None = None
    step: int = 0
    best_miou: float = -1.0
    stale_rounds: int = 0
    loss_sum: float = 0.0
    steps_in_round: int = 0
    row: dict[str, float] = dataclasses.field(default_factory=dict)
    last_report: Report | None = None
    stop_requested: bool = False
    averages: dict[str, Any] = dataclasses.field(default_factory=dict)
    fresh_statistics: np.ndarray | None = None
    counts_of_workers: np.ndarray | None = None
    meter: Meter = dataclasses.field(default_factory=Meter)
    _interruptible: bool = False
    _restored_counts: np.ndarray | None = None

    @property
    def loss(self) -> float:
        """Mean loss of the steps since the last evaluation."""
        return self.loss_sum / max(self.steps_in_round, 1)

    def start_round(self) -> None:
        """Resets the mean loss. The metric is reset by the owner of the trained model."""
        self.loss_sum, self.steps_in_round, self._restored_counts = 0.0, 0, None

    def restore_counts(self) -> None:
        """Restores the metric's counts from the checkpoint, once after the run was resumed."""
        if self._restored_counts is not None:
            self.engine.write_counts(self.metric.matrix, self._restored_counts.sum(0))
            self._restored_counts = None

    def learning_rate(self) -> float:
        """Returns the learning rate of the last step."""
        # Loss scaling wraps the optimizer.
        rate = getattr(self.optimizer, "inner_optimizer", self.optimizer)._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            return float(rate(max(self.step - 1, 0)))
        return float(rate)

    # --- Averaged weights ---

    def start_averages(self) -> None:
        """Starts averaging all weights and the statistics of batch norm, if it is turned on.

        Keras does not average the statistics, so its averaged weights are evaluated with the
        statistics of other weights. On CamVid after 10 epochs, this gave mIoU 0.10, where the
        weights without averaging had 0.61. Averaged statistics suit the averaged weights as long as
        the weights change little within the averaging window. `recalibrate_batch_norm` measures
        them instead (docs/results.md compares both).
        """
        if not self.average_momentum:
            return
        variables = folder.model_variables(self.model)
        copies = self.engine.copies([variable.value for variable in variables.values()])
        self.averages = dict(zip(variables, copies, strict=True))

    def update_averages(self, trained: TrainedModel) -> None:
        """Updates the averages with the current weights.

        The momentum is smaller in the first steps, so that the initial weights are soon forgotten.

        Args:
            trained: The model that `fit` trains, which shares the variables of `model`.
        """
        if self.averages:
            momentum = min(self.average_momentum, (1 + self.step) / (10 + self.step))
            variables = folder.model_variables(self.model)
            values = trained.current_values([variables[name] for name in self.averages])
            averages = self.engine.average(values, list(self.averages.values()), momentum)
            self.averages = dict(zip(self.averages, averages, strict=True))

    def weights(self) -> dict[str, np.ndarray]:
        """Returns the weights to evaluate and save: the averages, if they are turned on."""
        averages = {
            name: keras.ops.convert_to_numpy(average) for name, average in self.averages.items()
        }
        return {**folder.named_weights(self.model), **averages}

    @contextlib.contextmanager
    def averaged(
        self, statistics: Mapping[str, np.ndarray] = MappingProxyType({})
    ) -> Iterator[None]:
        """Context in which the model has the averaged weights and the given statistics.

        Args:
            statistics: Statistics of batch norm by weight name. The others stay the same.
        """
        variables, raw = folder.model_variables(self.model), {}
        for name, value in {**self.averages, **statistics}.items():
            raw[name] = keras.ops.convert_to_numpy(variables[name])
            variables[name].assign(value)
        try:
            yield
        finally:
            for name, value in raw.items():
                variables[name].assign(value)

    # --- Saving and resuming ---

    def random_states(self) -> list[keras.Variable]:
        """Returns the random states of the dropout layers, in the model's order.

        They are saved by position: their names depend on how many generators the process has
        created before.
        """
        return [variable for variable in self.model.variables if "seed_generator" in variable.path]

    def save(self) -> None:
        """Writes a training checkpoint of this step."""
        saved = (("optimizer", self.optimizer.variables), ("random", self.random_states()))
        state = {
            f"{kind}/{index}": keras.ops.convert_to_numpy(variable)
            for kind, variables in saved
            for index, variable in enumerate(variables)
        }
        if self.averages:
            state |= {
                f"raw/{name}": value for name, value in folder.named_weights(self.model).items()
            }
        state |= {"step": np.int64(self.step), "stale_rounds": np.int64(self.stale_rounds)}
        state |= {"best_miou": np.float64(self.best_miou)}
        counts = self.counts_of_workers
        if counts is None:
            counts = self.engine.read_counts(self.metric.matrix).astype(np.int64)
        state |= {
            "round/loss_sum": np.float64(self.loss_sum),
            "round/steps": np.int64(self.steps_in_round),
        }
        state |= {"round/counts": counts[None]}
        if self.fresh_statistics is not None:
            state["fresh_statistics"] = self.fresh_statistics
        state |= {f"row/{name}": np.float64(value) for name, value in self.row.items()}
        state |= self.meter.state()
        self.workdir.save_step(
            self.step, self.model, self.config, self.info, weights=self.weights(), state=state
        )

    def restore(self) -> bool:
        """Resumes from the latest intact training checkpoint.

        Returns:
            Whether the workdir has a training checkpoint.

        Raises:
            UserError: If all checkpoints are damaged, or if the run has different classes or a
                different architecture.
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
        folder.assign_weights(self.model, weights, source=str(newest.path))
        self.start_averages()
        if raw:
            folder.assign_weights(self.model, raw, source=str(newest.path))
        self._assign("optimizer", self.optimizer.variables, state)
        self._assign("random", self.random_states(), state)
        self.step, self.best_miou = int(state["step"]), float(state["best_miou"])
        # Checkpoints of older versions had no warm-up, and continue without it.
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
        self.meter.restore(state, finished=self.step >= self.total_steps)
        self._check_best()
        return True

    def _check_best(self) -> None:
        """Resets the best mIoU if the best model cannot be read, so that the next replaces it."""
        if self.best_miou < 0:
            return
        try:
            folder.read_weights(self.workdir.path / folder.BEST)
        except UserError as error:
            logger.warning("%s; the model of the next evaluation will replace it", error)
            self.best_miou = -1.0

    def _assign(
        self, kind: str, variables: list[keras.Variable], state: dict[str, np.ndarray]
    ) -> None:
        found = [state.get(f"{kind}/{index}") for index in range(len(variables) + 1)]
        expected = [tuple(variable.shape) for variable in variables]
        shapes = [None if value is None else tuple(value.shape) for value in found]
        for index, (shape, other) in enumerate(zip(shapes, [*expected, None], strict=True)):
            if shape != other:
                raise UserError(
                    f"`train_logdir={self.workdir.path}`: the {kind} state of its checkpoints does "
                    f"not match this version (variable {index}); use a new folder, and this one as "
                    "`tf_initial_checkpoint`"
                )
        for variable, value in zip(variables, found[:-1], strict=True):
            variable.assign(value)

    # --- Stopping ---

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context in which SIGTERM raises `StopRequested` immediately.

        For work that changes nothing in the state of the run.
        """
        self._interruptible = True
        try:
            if self.stop_requested:
                raise StopRequested
            yield
        finally:
            self._interruptible = False

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGTERM: the run ends after the current step, which is saved."""
        self.stop_requested = True
        if self._interruptible:
            raise StopRequested


@contextlib.contextmanager
def stop_on_sigterm(run: Run) -> Iterator[None]:
    """Context in which SIGTERM ends the run after the current step, which is saved.

    Preemptible machines send SIGTERM before they are shut down.
    """
    try:
        previous = signal.signal(signal.SIGTERM, run.request_stop)
    except ValueError:  # only the main thread can handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
