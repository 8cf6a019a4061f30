r"""Runs the dispatcher or a worker of the tf.data service, which makes batches on other machines.

Start one dispatcher and as many workers as the training run needs. All workers read the dataset
under the same path. The dataset must be readable without Python: plain JPEG and PNG files, or
TFRecords. Each batch arrives once, in the order in which the workers finish.

    python scripts/data_service.py --role=dispatcher --port=5050
    python scripts/data_service.py --role=worker --dispatcher=grpc://head:5050 --host=node7

    python scripts/data_service.py --role=worker --dispatcher=grpc://localhost:5050
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, UserError, option


@dataclasses.dataclass(frozen=True)
class ServiceOptions(Config):
    """Which server to start."""

    role: str = option("", "server to start", choices=("", "dispatcher", "worker"))
    port: int = option(0, "port to listen on; 0: a free port, which is printed")
    dispatcher: str = option("", "worker: address of the dispatcher, as grpc://HOST:PORT")
    host: str = option(
        "localhost", "worker: name of this machine under which the training run reaches it"
    )

    def validate(self) -> None:
        """Requires a role, what it needs, and a possible port."""
        self._require_given("role", "`role=dispatcher` or `role=worker`")
        if self.role == "worker" and not self.dispatcher:
            raise UserError(
                "`role=worker` requires `dispatcher=grpc://HOST:PORT`, which the dispatcher prints"
            )
        self._require(0 <= self.port <= 65535, "port", "must be between 0 and 65535")


def main(command: Command) -> None:
    """Starts the server, which runs until it is interrupted."""
    options = command.config(ServiceOptions)
    load_keras()

    from deeplab_keras.data import service

    if options.role == "dispatcher":
        server = service.start_dispatcher(options.port)
        print(f"dispatcher: train with --data_service={server.target}", flush=True)
    else:
        server = service.start_worker(options.dispatcher, options.port, options.host)
        print(f"worker of {options.dispatcher}", flush=True)
    service.serve(server)


SECTIONS = (ServiceOptions,)
