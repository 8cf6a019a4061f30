"""What a training changes in the process that calls it, and puts back.

A training sets the dtype policy, the seeds of Python, NumPy, Keras and TensorFlow, and with
`deterministic` TensorFlow's determinism; for its time it also handles SIGTERM
(`run.stop_on_sigterm`). Nothing else of the process is changed.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.framework import (
    config as tf_config,
)  # nothing public tells or ends the determinism

KERAS_SEEDS = ("global_random_seed", "global_seed_generator")
UNSEEDED = 87654321  # what TensorFlow's get_seed has for the global seed where none was set


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Restores the process' settings when the block ends, also by an exception.

    Generators of Python, NumPy and Keras continue where they were. TensorFlow does not tell how far
    its global generator
    is: it starts again from the seed that it had.
    """
    policy, python, numpy = keras.config.dtype_policy(), random.getstate(), np.random.get_state()
    seeds = {name: global_state.get_global_attribute(name) for name in KERAS_SEEDS}
    tensorflow, _ = tf.compat.v1.get_seed(0)
    deterministic = tf_config.is_op_determinism_enabled()
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(python)
        np.random.set_state(numpy)
        for name, value in seeds.items():
            global_state.set_global_attribute(name, value)
        tf.random.set_seed(None if tensorflow == UNSEEDED else tensorflow)
        if not deterministic:
            tf_config.disable_op_determinism()
