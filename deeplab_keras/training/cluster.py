"""The workers of a run with strategy "multi_worker", and waiting until all of them respond."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator

from deeplab_keras.config import UserError

logger = logging.getLogger(__name__)

EXAMPLE = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", '
    '"index": 0}}'
)
REPLY = b"deeplab_keras\n"
CONNECTION_TIMEOUT = 2.0  # seconds
PAUSE = 0.3  # seconds between two attempts to reach the other workers


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All workers, and the index of this one.

    Attributes:
        hosts: "host:port" of every worker. The first one is the chief, which writes the run's
            folder.
        index: The index of this worker in `hosts`.
    """

    hosts: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> Cluster:
        """Reads TensorFlow's environment variable TF_CONFIG.

        Raises:
            UserError: If the variable is not set or is invalid.
        """
        text = os.environ.get("TF_CONFIG", "")
        hint = (
            "on every worker, set TF_CONFIG to the same hosts and the worker's own index, such as "
            f"{EXAMPLE}"
        )
        if not text:
            raise UserError(
                "`strategy='multi_worker'` requires the environment variable TF_CONFIG, which is "
                "not set",
                hint=hint,
            )
        try:
            config = json.loads(text)
            jobs, task = config["cluster"], config["task"]
            chiefs, workers = list(jobs.get("chief", [])), list(jobs.get("worker", []))
            kind, index = str(task["type"]), int(task["index"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"cannot parse TF_CONFIG={text}", hint=hint) from None
        hosts = tuple(map(str, chiefs + workers))
        place = index + (len(chiefs) if kind == "worker" else 0)
        if kind not in ("chief", "worker") or set(jobs) - {"chief", "worker"}:
            raise UserError(
                "TF_CONFIG may only have tasks of the types 'worker' and 'chief'. Received: "
                f"TF_CONFIG={text}",
                hint=hint,
            )
        if len(chiefs) > 1 or index < 0 or index >= len(jobs.get(kind, [])):
            raise UserError(
                f"the cluster has no {kind} {index}. Received: TF_CONFIG={text}", hint=hint
            )
        if bad := [
            host
            for host in hosts
            if not host.rpartition(":")[0] or not host.rpartition(":")[2].isdigit()
        ]:
            raise UserError(
                f"the hosts in TF_CONFIG must have the form name:port. Received: {bad[0]!r}"
            )
        if len(set(hosts)) < len(hosts):
            raise UserError(
                f"TF_CONFIG must list each host once. Received: TF_CONFIG={text}; use a different "
                "port for each worker"
            )
        return cls(hosts, place)

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes the run's folder."""
        return self.index == 0

    def wait_for_all(self, seconds: float, run: str) -> None:
        """Waits until all workers have exchanged messages with this one.

        TensorFlow's own rendezvous has no timeout and logs nothing. This one runs before it, on the
        same ports.

        Args:
            seconds: The timeout in seconds.
            run: A digest of the settings that all workers must have in common.

        Raises:
            UserError: If a worker does not answer or has different settings, or if this worker's
                port is in use.
        """
        others = {index: host for index, host in enumerate(self.hosts) if index != self.index}
        received: dict[int, str] = {}
        answered: set[int] = set()
        deadline, logged = time.monotonic() + seconds, False
        with self._listening(received):
            while True:
                for index in sorted(set(others) - answered):
                    if _send(others[index], self.index, run):
                        answered.add(index)
                runs = dict(received)  # the thread that listens may add to it
                other = next((index for index, name in runs.items() if name != run), None)
                if other is not None:
                    raise UserError(
                        f"worker {other} ({others[other]}) has different settings from this one, "
                        f"worker {self.index}; use the same flags on all workers"
                    )
                missing = [
                    host
                    for index, host in others.items()
                    if index not in answered or index not in runs
                ]
                if not missing:
                    return
                if time.monotonic() > deadline:
                    raise UserError(
                        f"`strategy='multi_worker'`: no answer from {', '.join(missing)} within "
                        f"{seconds:g} seconds; start the same command there, check that the port "
                        "can be reached from this machine, or increase `worker_timeout`"
                    )
                if not logged:
                    logger.info(
                        "worker %d of %d: waiting for %s",
                        self.index,
                        len(self.hosts),
                        ", ".join(missing),
                    )
                    logged = True
                time.sleep(PAUSE)

    @contextlib.contextmanager
    def _listening(self, received: dict[int, str]) -> Iterator[None]:
        """Context in which a thread answers other workers and records their runs by index."""
        port = int(self.hosts[self.index].rpartition(":")[2])
        try:
            server = socket.create_server(("", port))
        except OSError as error:
            raise UserError(
                f"cannot listen on port {port}, this worker's port in TF_CONFIG "
                f"({self.hosts[self.index]}): {error.strerror}; stop the process that uses the "
                "port, or choose another port on every worker"
            ) from None
        ends = threading.Event()

        def listen() -> None:
            server.settimeout(PAUSE)
            while not ends.is_set():
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(CONNECTION_TIMEOUT)
                        message = json.loads(connection.makefile("rb").readline(1000))
                        received[int(message["worker"])] = str(message["run"])
                        connection.sendall(REPLY)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()
            server.close()


def _send(host: str, index: int, run: str) -> bool:
    """Sends this worker's index and run to another worker, and returns whether it answered."""
    name, _, port = host.rpartition(":")
    try:
        with socket.create_connection(
            (name.strip("[]"), int(port)), timeout=CONNECTION_TIMEOUT
        ) as connection:
            connection.sendall(json.dumps({"worker": index, "run": run}).encode() + b"\n")
            return connection.makefile("rb").readline(100) == REPLY
    except OSError:
        return False
