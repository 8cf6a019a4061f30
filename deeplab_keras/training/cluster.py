"""The machines of a training with --strategy=multi_worker: who they are, and waiting until all of them are there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Iterator

from absl import logging

from deeplab_keras.config import UserError

EXAMPLE = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, "task": {"type": "worker", '
    '"index": 0}}'
)
REPLY = b"deeplab_keras\n"
PATIENCE = 2.0  # seconds for one greeting
PAUSE = 0.3  # seconds between two rounds of greetings


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All workers, and which of them this process is.

    Attributes:
        hosts: 'host:port' of every worker; the first one is the chief, which keeps the run's
            folder.
        index: this worker's place among them.
    """

    hosts: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> Cluster:
        """Reads TensorFlow's variable TF_CONFIG.

        Raises:
            UserError: it is not set, or does not say what it must.
        """
        text = os.environ.get("TF_CONFIG", "")
        wanted = f"TF_CONFIG holds on every worker the same hosts and its own index, like {EXAMPLE}"
        if not text:
            raise UserError(
                f"`strategy='multi_worker'`: the variable TF_CONFIG is not set; {wanted}"
            )
        try:
            config = json.loads(text)
            jobs, task = config["cluster"], config["task"]
            chiefs, workers = list(jobs.get("chief", [])), list(jobs.get("worker", []))
            kind, index = str(task["type"]), int(task["index"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"TF_CONFIG={text}: cannot be read; {wanted}") from None
        hosts = tuple(map(str, chiefs + workers))
        place = index + (len(chiefs) if kind == "worker" else 0)
        if kind not in ("chief", "worker") or set(jobs) - {"chief", "worker"}:
            raise UserError(
                f"TF_CONFIG={text}: knows workers, and a chief if one is wanted, nothing else; "
                f"{wanted}"
            )
        if len(chiefs) > 1 or index < 0 or index >= len(jobs.get(kind, [])):
            raise UserError(f"TF_CONFIG={text}: the cluster has no {kind} {index}; {wanted}")
        if bad := [
            host
            for host in hosts
            if not host.rpartition(":")[0] or not host.rpartition(":")[2].isdigit()
        ]:
            raise UserError(f"TF_CONFIG names the host {bad[0]!r}; a host is written name:port")
        if len(set(hosts)) < len(hosts):
            raise UserError(
                f"TF_CONFIG={text}: names a host twice; every worker has a port of its own"
            )
        return cls(hosts, place)

    @property
    def is_chief(self) -> bool:
        """Whether this worker keeps the run's folder."""
        return self.index == 0

    def wait_for_all(self, seconds: float, run: str) -> None:
        """Returns when all workers have heard from each other.

        TensorFlow's own rendezvous waits without an end and without a word. This one goes before
        it, on the same ports.

        Args:
            seconds: how long.
            run: what all workers must have in common: a digest of their settings.

        Raises:
            UserError: a worker did not answer, or has other settings, or this one's port is in use.
        """
        others = {index: host for index, host in enumerate(self.hosts) if index != self.index}
        heard: dict[int, str] = {}
        greeted: set[int] = set()
        deadline, said = time.monotonic() + seconds, False
        with self._listening(heard):
            while True:
                for index in sorted(set(others) - greeted):
                    if _greet(others[index], self.index, run):
                        greeted.add(index)
                known = dict(heard)
                other = next((index for index, name in known.items() if name != run), None)
                if other is not None:
                    raise UserError(
                        f"worker {other} ({others[other]}) was started with other settings than "
                        f"this one, worker {self.index}: "
                        "give all workers the same flags"
                    )
                missing = [
                    host
                    for index, host in others.items()
                    if index not in greeted or index not in known
                ]
                if not missing:
                    return
                if time.monotonic() > deadline:
                    raise UserError(
                        f"`strategy='multi_worker'`: no answer from {', '.join(missing)} within "
                        f"{seconds:g} seconds; start the "
                        "same command there, look whether its port can be reached from here, or "
                        "give a longer `worker_timeout`"
                    )
                if not said:
                    logging.info(
                        "worker %d of %d: waiting for %s",
                        self.index,
                        len(self.hosts),
                        ", ".join(missing),
                    )
                    said = True
                time.sleep(PAUSE)

    @contextlib.contextmanager
    def _listening(self, heard: dict[int, str]) -> Iterator[None]:
        """Within the block the other workers' greetings are answered and noted."""
        port = int(self.hosts[self.index].rpartition(":")[2])
        try:
            server = socket.create_server(("", port))
        except OSError as error:
            raise UserError(
                f"port {port}, which TF_CONFIG gives this worker ({self.hosts[self.index]}), "
                "cannot be used "
                f"({error.strerror}): end what uses it, or choose another port on every worker"
            ) from None
        ends = threading.Event()

        def listen() -> None:
            server.settimeout(PAUSE)
            while not ends.is_set():
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(PATIENCE)
                        greeting = json.loads(connection.makefile("rb").readline(1000))
                        heard[int(greeting["worker"])] = str(greeting["run"])
                        connection.sendall(REPLY)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()
            server.close()


def _greet(host: str, index: int, run: str) -> bool:
    """Tells a worker that this one is there; whether it answered."""
    name, _, port = host.rpartition(":")
    try:
        with socket.create_connection(
            (name.strip("[]"), int(port)), timeout=PATIENCE
        ) as connection:
            connection.sendall(json.dumps({"worker": index, "run": run}).encode() + b"\n")
            return connection.makefile("rb").readline(100) == REPLY
    except OSError:
        return False
