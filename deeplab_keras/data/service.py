"""Batches made on other machines: TensorFlow's tf.data service, for input that one trainer's host cannot keep up with.

A dispatcher deals out the steps, workers make their batches, the trainer takes what comes. Each
batch is the one that the numbered stream has at its step; only their order is the workers'.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from deeplab_keras.config import UserError

SCHEME = "grpc://"
PATIENCE = 5.0  # seconds to wait for the dispatcher's answer


def distribute(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """The elements of a dataset made by the service at `address`: each once, those of its first source dealt out.

    Raises:
        UserError: nobody answers there.
    """
    require_answer(address, "data_service")
    mode = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    return dataset.apply(
        tf.data.experimental.service.distribute(processing_mode=mode, service=address)
    )


def require_answer(address: str, field: str) -> None:
    """Raises UserError for what is no address, grpc://HOST:PORT, and where nobody listens."""
    host, _, port = address.removeprefix(SCHEME).rpartition(":")
    if not address.startswith(SCHEME) or not host or not port.isdecimal():
        raise UserError(
            f"`{field}={address}`: grpc://HOST:PORT, the dispatcher's address, as it printed it"
        )
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise UserError(
            f"`{field}={address}`: nobody answers there ({reason}); "
            "start a dispatcher: python scripts/data_service.py --role=dispatcher"
        ) from error


def require_portable(load: Callable[[tf.Tensor], Any], dataset: str) -> None:
    """Raises UserError where loading calls Python, which is not to be had on the service's workers."""
    graph = (
        tf.function(load, autograph=False)
        .get_concrete_function(tf.TensorSpec([], tf.int64))
        .graph.as_graph_def()
    )
    operations = {node.op for node in graph.node} | {
        node.op for body in graph.library.function for node in body.node_def
    }
    if operations & {"PyFunc", "PyFuncStateless", "EagerPyFunc"}:
        raise UserError(
            f"`data_service`: {dataset} is read by Python (drawn scenes, archives, palette masks, "
            "`cache`), which the "
            "service's workers cannot run; make records of it: python scripts/build_tfrecords.py"
        )


def start_dispatcher(port: int) -> Any:
    """A dispatcher on this machine; port 0 takes a free one.

    Raises:
        UserError: it cannot listen there.
    """
    _require_free(port)
    return tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(port=port)
    )


def start_worker(dispatcher: str, port: int, host: str) -> Any:
    """A worker on this machine.

    Args:
        dispatcher: its address, grpc://HOST:PORT.
        port: 0 takes a free one.
        host: this machine's name, as the trainer reaches it.

    Raises:
        UserError: the dispatcher does not answer, or the worker cannot listen there.
    """
    require_answer(dispatcher, "dispatcher")
    _require_free(port)
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher.removeprefix(SCHEME),
        worker_address=f"{host}:%port%",
        port=port,
    )
    return tf.data.experimental.service.WorkerServer(config)


def _require_free(port: int) -> None:
    """Raises UserError where somebody listens at a port; gRPC would listen there too, and half of the calls would go astray."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"`port={port}`: cannot listen there ({error.strerror}); give another one"
            ) from error


def serve(server: Any) -> None:
    """Waits until the process is interrupted."""
    try:
        while True:
            time.sleep(3600)
    finally:
        server._stop()
