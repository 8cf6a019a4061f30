"""Prepares batches on other machines with TensorFlow's tf.data service.

This helps if the machine that trains cannot prepare batches fast enough. A dispatcher distributes
the steps to workers, which prepare the batches. Each batch is the same as without the service, but
the order of the batches depends on the workers.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from deeplab_keras.config import UserError, number

SCHEME = "grpc://"
PATIENCE = 5.0  # seconds to wait for the dispatcher's answer


def distribute(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """Returns a dataset whose elements are prepared by the service at `address`, each once.

    The elements of the dataset's first source are distributed to the workers.

    Args:
        dataset: The dataset.
        address: The address of the dispatcher, grpc://HOST:PORT.

    Raises:
        UserError: The dispatcher does not respond.
    """
    require_answer(address, "data_service")
    mode = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    return dataset.apply(
        tf.data.experimental.service.distribute(processing_mode=mode, service=address)
    )


def require_answer(address: str, field: str) -> None:
    """Raises `UserError` if an address is not grpc://HOST:PORT or does not respond.

    Args:
        address: The address.
        field: The name of the option, for messages.
    """
    host, _, port = address.removeprefix(SCHEME).rpartition(":")
    if not address.startswith(SCHEME) or not host or not port.isdecimal():
        raise UserError(
            f"`{field}={address}`: must be grpc://HOST:PORT, the address that the dispatcher prints"
        )
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise UserError(
            f"`{field}={address}`: no response ({reason}); start a dispatcher: "
            "`python scripts/data_service.py` --role=dispatcher"
        ) from error


def require_portable(load: Callable[[tf.Tensor], Any], dataset: str) -> None:
    """Raises `UserError` if `load` calls Python code, which the service's workers cannot run."""
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
            f"`data_service`: {dataset} is read by Python code (synthetic images, archives, "
            "palette masks, `cache`), which the service's workers cannot run; convert it to "
            "records: `python scripts/build_tfrecords.py`"
        )


def start_dispatcher(port: int) -> Any:
    """Starts a dispatcher on this machine.

    Args:
        port: The port; 0: any free port.

    Raises:
        UserError: The port is not available.
    """
    _require_free(port)
    return tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(port=port)
    )


def start_worker(dispatcher: str, port: int, host: str) -> Any:
    """Starts a worker on this machine.

    Args:
        dispatcher: The address of the dispatcher, grpc://HOST:PORT.
        port: The port; 0: any free port.
        host: The name of this machine at which the trainer can reach it.

    Raises:
        UserError: The dispatcher does not respond, or the port is not available.
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
    """Raises `UserError` if a port is in use.

    gRPC would share the port with the other process, and half of the calls would get lost.
    """
    number(port, int, "port", low=0, high=65535)
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"`port={port}`: cannot be opened ({error.strerror}); give another port"
            ) from error


def serve(server: Any) -> None:
    """Waits until the process is interrupted."""
    try:
        while True:
            time.sleep(3600)
    finally:
        server._stop()
