"""Process-wide settings are the same after a training run as before it."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as tf_config
from toy import toy_config

import deeplab_keras as dk
from deeplab_keras.training import train as trainer
from deeplab_keras.training.process import preserve_settings

pytestmark = pytest.mark.usefixtures("toy_backbone")
SIZES = {
    "train_crop_size": (64, 64),
    "synthetic_size": (64, 64),
    "train_samples": 4,
    "eval_samples": 2,
    "train_batch_size": 2,
}
CONFIG = toy_config(
    output_stride=32,
    head_channels=8,
    atrous_rates=(),
    decoder_filters=8,
    low_level_channels=(8,),
)


@pytest.fixture(autouse=True)
def policy():
    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("mine", "precision"),
    [
        ("float32", "mixed_bfloat16"),
        pytest.param("mixed_bfloat16", "float32", marks=pytest.mark.slow),
    ],
)
def test_the_policy_of_the_caller_is_restored(mine, precision, tmp_path):
    keras.config.set_dtype_policy(mine)
    training = dk.TrainConfig(
        train_logdir=str(tmp_path),
        training_number_of_steps=1,
        summary_images=0,
        html_report=False,
        precision=precision,
    )
    losses = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    dk.train(CONFIG, dk.DataConfig(dataset="synthetic", **SIZES), training, callbacks=[callback])
    assert len(losses) == 1 and np.isfinite(losses[0])
    assert keras.config.dtype_policy().name == mine
    assert keras.layers.Dense(1).compute_dtype == ("float32" if mine == "float32" else "bfloat16")


def test_everything_is_restored_after_an_exception(tmp_path, monkeypatch):
    """Seeds, determinism and the policy. The random draws are compared with those without a run."""

    def draws():
        return random.random(), float(np.random.random()), float(keras.random.normal(()))

    def diverge(*arguments, **options):
        random.random(), np.random.random(), keras.random.normal(())
        assert (
            tf_config.is_op_determinism_enabled()
            and keras.config.dtype_policy().name == "mixed_bfloat16"
        )
        raise dk.UserError("diverged")

    monkeypatch.setattr(trainer, "_fit", diverge)
    keras.utils.set_random_seed(7)
    draws()
    expected = draws()
    keras.utils.set_random_seed(7)
    draws()
    training = dk.TrainConfig(
        train_logdir=str(tmp_path / "run"),
        training_number_of_steps=1,
        precision="mixed_bfloat16",
        deterministic=True,
    )
    with pytest.raises(dk.UserError, match="diverged"):
        dk.train(CONFIG, dk.DataConfig(dataset="synthetic", **SIZES), training)
    assert draws() == expected
    assert (
        keras.config.dtype_policy().name == "float32" and not tf_config.is_op_determinism_enabled()
    )
    assert tf.compat.v1.get_seed(0)[0] == 7


def test_a_process_without_seeds_stays_unseeded():
    tf.random.set_seed(None)
    with preserve_settings():
        keras.utils.set_random_seed(3)
        tf.config.experimental.enable_op_determinism()
    first = tf.random.uniform(()).numpy()
    with preserve_settings():
        keras.utils.set_random_seed(3)
    assert tf.random.uniform(()).numpy() != first, "unseeded draws must differ"


def test_determinism_that_the_caller_enabled_is_kept():
    tf.config.experimental.enable_op_determinism()
    try:
        with preserve_settings():
            pass
        assert tf_config.is_op_determinism_enabled()
    finally:
        tf_config.disable_op_determinism()
