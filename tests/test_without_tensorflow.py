"""Networks, losses, optimizers and checkpoints in a process that has no TensorFlow: on Keras' JAX backend."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from contracts import ROOT

# Imports as they are where TensorFlow, and what stands on it, is not installed.
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "keras_cv"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run_without_tensorflow(code: str, *, folder: os.PathLike[str] | str = ROOT) -> str:
    """What the code prints in a fresh process."""
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED + textwrap.dedent(code)], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.jax
def test_a_model_learns_and_is_saved_without_tensorflow(tmp_path):
    out = run_without_tensorflow(
        """
        import numpy as np
        import deeplab_keras as dk
        from deeplab_keras.checkpoints.folder import save_checkpoint
        from deeplab_keras.data.info import info_for_classes
        from deeplab_keras.losses import make_loss
        from deeplab_keras.metrics import ConfusionMatrix
        from deeplab_keras.optimizers import make_optimizer

        config = dk.get_config("lrasppnet_mobilenetv3sos8_voc").replace(
            num_classes=5, depth_multiplier=0.5, output_stride=16, image_pooling_size=(), dropout_rate=0.0)
        model = dk.build_segmentor(config)
        model.compile(
            optimizer=make_optimizer(dk.TrainConfig(learning_policy="constant", base_learning_rate=0.05), 10),
            loss=make_loss("cross_entropy+0.5*dice+0.5*lovasz"), metrics=[ConfusionMatrix(5)])
        random = np.random.default_rng(0)
        images = random.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
        labels = np.repeat(np.repeat(random.integers(0, 5, (2, 4, 4)), 16, 1), 16, 2)
        labels[:, :8] = 255
        losses = [float(model.train_on_batch(images, labels)[0]) for _ in range(8)]
        assert losses[-1] < losses[0], losses
        save_checkpoint("saved", model, config, info_for_classes("five", "abcde"))
        found, expected = (np.asarray(m.predict_on_batch(images)) for m in (dk.load_model("saved"), model))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        print("learned:", losses[0], losses[-1], [name for name in sys.modules if name.partition(".")[0] == "tensorflow"])
        """,
        folder=tmp_path,
    )
    assert out.startswith("learned: ") and out.rstrip().endswith("[]")
