r"""Runs a part of the tf.data service: training batches made on other machines than the trainer's.

One dispatcher, as many workers as the trainer needs, all reading the dataset under the same path.
It has to be one that is read without Python: image and mask files that are plain JPEG and PNG, or
records. Batches come as the workers finish them, each once.

    python scripts/data_service.py --role=dispatcher --port=5050
    python scripts/data_service.py --role=worker --dispatcher=grpc://head:5050 --host=node7

    python scripts/data_service.py --role=worker --dispatcher=grpc://localhost:5050
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, UserError, option


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """Which part, and where."""

    role: str = option("", "what this process is", choices=("", "dispatcher", "worker"))
    port: int = option(0, "port to listen at; 0: a free one, which is printed")
    dispatcher: str = option("", "of a worker: the dispatcher's address, as grpc://HOST:PORT")
    host: str = option("localhost", "of a worker: this machine's name, as the trainer reaches it")


def main(command: Command) -> None:
    """Starts the part and serves until it is interrupted."""
    options = command.config(Options)
    if not options.role:
        raise UserError("give --role=dispatcher or --role=worker")
    if options.role == "worker" and not options.dispatcher:
        raise UserError(
            "--role=worker needs --dispatcher=grpc://HOST:PORT, which the dispatcher printed"
        )

    from deeplab_keras.data import service

    if options.role == "dispatcher":
        server = service.start_dispatcher(options.port)
        print(f"dispatcher: train with --data_service={server.target}", flush=True)
    else:
        server = service.start_worker(options.dispatcher, options.port, options.host)
        print(f"worker of {options.dispatcher}", flush=True)
    service.serve(server)


SECTIONS = (Options,)
