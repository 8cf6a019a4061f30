"""Training on several machines: the same step as `fit` takes, in a loop of our own, which Keras' fit does not offer there.

Every worker loads its own part of each batch. Only the chief has the run's folder: it evaluates,
saves and is resumed; when a training starts or goes on, the others get everything from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.training.cluster import Cluster
from deeplab_keras.training.run import Run
from deeplab_keras.training.statistics import find_fresh
from deeplab_keras.training.step import TrainedModel, sum_over_replicas

LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError,
    tf.errors.DeadlineExceededError,
)  # fmt: skip


def make_strategy(cluster: Cluster) -> tf.distribute.Strategy:
    """TensorFlow's strategy over the cluster that TF_CONFIG names, all of whose workers are there.

    Raises:
        UserError: TensorFlow was in use before, when it is too late.
    """
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise UserError(
            "`strategy='multi_worker'`: TensorFlow has computed something before; start the "
            "training first thing in a new process"
        ) from error


def chiefs_values(
    strategy: tf.distribute.Strategy, arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """The chief's values of arrays that have equal shapes on all workers; waits for all of them."""
    # Double precision holds all that there is exactly: float32, step numbers, 32-bit random states.
    flat = np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])

    def on_replica(vector: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return sum_over_replicas(
            tf.where(context.replica_id_in_sync_group == 0, vector, tf.zeros_like(vector))
        )

    @tf.function
    def everywhere(vector: tf.Tensor) -> Any:
        return strategy.run(on_replica, (vector,))

    found = strategy.experimental_local_results(everywhere(tf.constant(flat)))[0].numpy()
    parts = np.split(found, np.cumsum([array.size for array in arrays])[:-1])
    return [
        part.reshape(array.shape).astype(array.dtype)
        for part, array in zip(parts, arrays, strict=True)
    ]


def share_start(strategy: tf.distribute.Strategy, run: Run) -> None:
    """Every worker's weights, optimizer state, random state, step and fresh statistics become the chief's."""
    state = [*run.model.variables, *run.optimizer.variables]
    variables = list({id(variable): variable for variable in state}.values())
    fresh = find_fresh(run.model) if run.fresh_statistics is None else run.fresh_statistics
    arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
    *values, step, run.fresh_statistics = chiefs_values(
        strategy, [*arrays, np.array([run.step]), fresh]
    )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    run.step = int(step[0])


def fit(
    strategy: tf.distribute.Strategy,
    trained: TrainedModel,
    batches: tf.data.Dataset,
    run: Run,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Takes the steps that are left, in step with the other workers.

    Args:
        strategy: over all workers.
        trained: the model, compiled under the strategy.
        batches: this worker's part of each batch.
        run: the training; on the other workers than the chief one that is kept nowhere.
        callbacks: the chief's; the other workers have none.

    Raises:
        UserError: another worker has gone.
    """
    local = len(strategy.extended.worker_devices)

    def on_replica(batch: Any, stop: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        # The identity is computed on the replica's device; a sum must know where its terms are.
        return trained.train_step(batch), sum_over_replicas(tf.identity(stop))

    @tf.function
    def step(batch: Any, stop: tf.Tensor) -> Any:
        return strategy.run(on_replica, (batch, stop))

    size = next(iter(tf.nest.flatten(batches.element_spec))).shape[0] // local
    # Of a stream that may end the workers would ask each other before every step whether it has.
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    stream = batches.rebatch(size, drop_remainder=True).apply(endless)
    batches = strategy.distribute_datasets_from_function(lambda _: stream)
    for callback in callbacks:
        callback.set_model(trained)
        callback.on_train_begin()
    trained.stop_training = False
    try:
        for number, batch in enumerate(batches):
            # Whoever wants to stop says so with its next step, after which all do.
            for callback in callbacks:
                callback.on_train_batch_begin(number)
            wants = tf.constant(float(trained.stop_training or run.stop_requested))
            logs, stops = tf.nest.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], step(batch, wants)
            )
            if trained.stop_training:
                break  # the step before is saved; this one only told the others
            run.stop_requested = run.stop_requested or bool(stops)
            if not callbacks:
                run.step += 1
            for callback in callbacks:
                callback.on_train_batch_end(number, logs)
            if stops or run.step >= run.total_steps:
                break
        chiefs_values(strategy, [np.zeros(1)])  # nobody leaves before the chief has saved
    except LOST as error:
        raise UserError(
            f"another worker has gone, after step {run.step} (its own output says why); end this "
            "training on all workers and "
            "give the same command again on each: it goes on from the newest checkpoint"
        ) from error
