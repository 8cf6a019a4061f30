"""What the contenders of a training benchmark share, found in a process of its own that leaves the GPU to them."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.peers.plan import describe
from deeplab_keras.config import DataConfig, ModelConfig
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor

NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
IGNORE_LABEL = 255


class Contender:
    """Reads the dataset's classes and builds the network once.

    Keras' other backends than TensorFlow have no dataset: there the network's own number of classes
    counts.
    """

    def __init__(self, model: ModelConfig, data: DataConfig, with_steps: bool) -> None:
        classes, ignore_label = model.num_classes, IGNORE_LABEL
        if keras.backend.backend() == "tensorflow":
            from deeplab_keras.data.registry import open_dataset

            info = open_dataset(data, data.train_split).info
            classes, ignore_label = info.num_classes, info.ignore_label
        height, width = data.train_crop_size
        network = build_segmentor(
            model.replace(num_classes=classes, branchwise=False), (height, width)
        )  # as it is drawn
        self.found = {
            "classes": classes,
            "ignore_label": ignore_label,
            "steps": describe(network) if with_steps else [],
            "multiply_adds": count_multiply_adds(network, auxiliary=model.auxiliary_head),
        }

    def measure(self) -> dict[str, Any]:
        """The number of classes, their ignore label, PyTorch's plan of the network, its multiply-adds on an image."""
        return self.found


def make(model: ModelConfig, data: DataConfig, with_steps: bool) -> Contender:
    """The contender of `training`."""
    return Contender(model, data, with_steps)
