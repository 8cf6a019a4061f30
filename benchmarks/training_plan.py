"""Computes what the contenders of a training benchmark share.

It runs in its own process, which does not use the GPU.
"""

from __future__ import annotations

from typing import Any

from benchmarks.batches import IGNORE_LABEL
from benchmarks.peers.plan import describe
from deeplab_keras.config import DataConfig, ModelConfig
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor

NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}


class TrainingPlan:
    """Reads the dataset's classes, if there is one, and builds the network once."""

    def __init__(
        self, model: ModelConfig, size: tuple[int, int], with_steps: bool, data: DataConfig | None
    ) -> None:
        classes, ignore_label = model.num_classes, IGNORE_LABEL
        if data is not None:
            from deeplab_keras.data.registry import open_dataset

            info = open_dataset(data, data.train_split).info
            classes, ignore_label = info.num_classes, info.ignore_label
        # With its concatenations, because the peers have no branch-wise convolution.
        network = build_segmentor(model.replace(num_classes=classes, branchwise=False), size)
        self.shared = {
            "classes": classes,
            "ignore_label": ignore_label,
            "steps": describe(network) if with_steps else [],
            "multiply_adds": count_multiply_adds(network, auxiliary=model.auxiliary_head),
        }

    def measure(self) -> dict[str, Any]:
        """Returns the classes, the ignore label, the steps for PyTorch, and the multiply-adds."""
        return self.shared
