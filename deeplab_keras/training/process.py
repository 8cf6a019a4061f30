"""Saves and restores the process-wide settings that a training run changes.

A run sets the dtype policy and the seeds of Python, NumPy, Keras and TensorFlow, and, with
`deterministic`, TensorFlow's determinism. While it runs, it also handles SIGTERM
(`run.stop_on_sigterm`). It changes no other process-wide setting.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state

# The public API can neither query nor disable determinism.
from tensorflow.python.framework import config as tf_config

KERAS_SEEDS = ("global_random_seed", "global_seed_generator")
UNSEEDED = 87654321  # TensorFlow's `get_seed` returns this if no global seed is set


@contextlib.contextmanager
def preserve_settings() -> Iterator[None]:
    """Restores the process-wide settings when the block ends, also after an exception.

    The generators of Python, NumPy and Keras continue where they were. TensorFlow does not expose
    the state of its global generator, so that one starts again from its previous seed.
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
