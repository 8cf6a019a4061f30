"""Training on several machines.

It takes the same steps as `fit`, but in our own loop, because Keras' fit does not support this
strategy. Every worker loads its own part of each batch. Only the chief writes the run's folder and
evaluates. When a run starts or resumes, the other workers get the entire state from the chief.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.models.layers import sum_over_replicas
from deeplab_keras.training.cluster import Cluster
from deeplab_keras.training.run import Run
from deeplab_keras.training.statistics import find_fresh
from deeplab_keras.training.step import TrainedModel

WORKER_LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError,
    tf.errors.InternalError, tf.errors.DeadlineExceededError,
)  # fmt: skip


def make_strategy(cluster: Cluster) -> tf.distribute.Strategy:
    """Creates TensorFlow's strategy for the cluster in TF_CONFIG. All workers must be running.

    Raises:
        UserError: If TensorFlow has already run operations in this process.
    """
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise UserError(
            "`strategy='multi_worker'` must be set up before TensorFlow runs any operation; start "
            "the run at the beginning of a new process"
        ) from error


def broadcast_from_chief(
    strategy: tf.distribute.Strategy, arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Returns the chief's values of arrays, which must have equal shapes on all workers.

    Waits until all workers have called it.
    """
    # float64 represents all of them exactly: float32, step numbers and 32-bit random states.
    flat = np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])

    def on_replica(vector: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return sum_over_replicas(
            tf.where(context.replica_id_in_sync_group == 0, vector, tf.zeros_like(vector))
        )

    @tf.function
    def broadcast(vector: tf.Tensor) -> Any:
        return strategy.run(on_replica, (vector,))

    values = strategy.experimental_local_results(broadcast(tf.constant(flat)))[0].numpy()
    parts = np.split(values, np.cumsum([array.size for array in arrays])[:-1])
    return [
        part.reshape(array.shape).astype(array.dtype)
        for part, array in zip(parts, arrays, strict=True)
    ]


def sync_with_chief(strategy: tf.distribute.Strategy, run: Run) -> None:
    """Copies the chief's weights, optimizer and random state, step and fresh statistics to all."""
    state = [*run.model.variables, *run.optimizer.variables]
    variables = list({id(variable): variable for variable in state}.values())
    fresh = find_fresh(run.model) if run.fresh_statistics is None else run.fresh_statistics
    arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
    *values, step, run.fresh_statistics = broadcast_from_chief(
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
    """Takes the remaining steps, in sync with the other workers.

    Args:
        strategy: The strategy over all workers.
        trained: The model, compiled under the strategy.
        batches: This worker's part of each batch.
        run: The run. Only the chief's run is saved.
        callbacks: The callbacks of the chief. Empty on the other workers.

    Raises:
        UserError: If the connection to another worker is lost.
    """
    local = len(strategy.extended.worker_devices)

    def on_replica(batch: Any, flags: tf.Tensor) -> tuple[Any, ...]:
        # The identity places the value on the replica's device, which the sum requires.
        stop, starts = tf.unstack(sum_over_replicas(tf.identity(flags)))
        for counts in run.metric.variables:
            counts.assign(counts * keras.ops.cast(starts == 0, counts.dtype))
        logs = trained.train_step(batch)
        matrix = keras.ops.cast(keras.ops.convert_to_tensor(run.metric.matrix), "float64")
        return logs, stop, sum_over_replicas(matrix)

    @tf.function
    def step(batch: Any, flags: tf.Tensor) -> Any:
        return strategy.run(on_replica, (batch, flags))

    size = next(iter(tf.nest.flatten(batches.element_spec))).shape[0] // local
    # If the stream could end, the workers would have to agree before every step on whether it has.
    infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    stream = batches.rebatch(size, drop_remainder=True).apply(infinite)
    batches = strategy.distribute_datasets_from_function(lambda _: stream)
    for callback in callbacks:
        callback.set_model(trained)
        callback.on_train_begin()
    trained.stop_training = False
    try:
        for number, batch in enumerate(batches):
            for callback in callbacks:
                callback.on_train_batch_begin(number)
            # A worker that should stop tells the others in its next step, after which all stop. The
            # chief tells them when a round starts, so that they reset their metrics.
            stop = trained.stop_training or run.stop_requested
            starts = bool(callbacks) and run.steps_in_round == 0
            flags = tf.constant([float(stop), float(starts)])
            logs, stops, counts = tf.nest.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], step(batch, flags)
            )
            run.counts_of_workers = counts.numpy().astype(np.int64)
            if trained.stop_training:
                break  # the previous step is saved; this one only notified the other workers
            run.stop_requested = run.stop_requested or bool(stops)
            if not callbacks:
                run.step += 1
            for callback in callbacks:
                callback.on_train_batch_end(number, logs)
            if stops or run.step >= run.total_steps:
                break
        broadcast_from_chief(strategy, [np.zeros(1)])  # waits until the chief has saved
    except WORKER_LOST as error:
        raise UserError(
            f"lost the connection to another worker after step {run.step}; see the output of that "
            "worker for the reason, stop this run on all workers, and run the same command again "
            "on each to resume from the latest checkpoint"
        ) from error
