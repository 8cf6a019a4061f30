"""What training needs from Keras' backend: TensorFlow or JAX.

`engine_tensorflow` and `engine_jax` have the functions of `Engine`. Everything else in this room is
the same for both. TensorFlow also prepares the batches and writes TensorBoard's files for JAX.
"""

from __future__ import annotations

import contextlib
import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from deeplab_keras.config import TrainConfig
from deeplab_keras.models.layers import require_backend
from deeplab_keras.training.step import Tensors, TrainedModel

ENGINES = ("tensorflow", "jax")


class Engine(Protocol):
    """The functions of an engine.

    Attributes:
        Model: The class of the model to train.
        OUT_OF_MEMORY: The exception for arrays that do not fit into memory.
        ALWAYS_COMPILED: Whether XLA compiles every training step.
    """

    Model: type[TrainedModel]
    OUT_OF_MEMORY: type[Exception]
    ALWAYS_COMPILED: bool

    def check(self, training: TrainConfig) -> None:
        """Raises `UserError` for options that the engine or its devices do not have."""

    def make_strategy(self, name: str) -> Any:
        """Returns the devices of a run, with `num_replicas_in_sync` and `scope()`.

        Args:
            name: "none" for a single device, "auto" or "mirrored". "auto" uses all visible
                accelerators, else the CPU.
        """

    def fit_scope(self, strategy: Any) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which `fit` runs on the devices of `make_strategy`."""

    def compiled(
        self, function: Callable[[Any], Any], variables: Sequence[keras.Variable]
    ) -> Callable[[Any], Any]:
        """Compiles a function of one array.

        Args:
            function: The function.
            variables: All variables that it reads or assigns to.
        """

    def copies(self, values: Tensors) -> Tensors:
        """Returns the initial averages of tensors, for `average`."""

    def average(self, values: Tensors, averages: Tensors, momentum: float) -> Tensors:
        """Returns `momentum * average + (1 - momentum) * value` for each pair, on the device.

        The averages passed in must not be used afterwards.
        """

    def read_counts(self, variable: keras.Variable) -> np.ndarray:
        """Returns the sum of a metric's counts over the replicas of this process."""

    def write_counts(self, variable: keras.Variable, counts: np.ndarray) -> None:
        """Makes `read_counts` return these counts. The variable must have been reset before."""

    def start_profiler(self, folder: pathlib.Path) -> None:
        """Starts to record a profile for TensorBoard."""

    def stop_profiler(self) -> None:
        """Writes the profile."""


def find_engine() -> Engine:
    """Returns the engine of Keras' backend.

    Raises:
        UserError: Keras runs on a backend without an engine.
    """
    require_backend("training", ENGINES)
    engine: Any = importlib.import_module(f".engine_{keras.backend.backend()}", __package__)
    return engine
