"""SSSegmentation's own PyTorch modules for the torch lane, built without its config files.

Requires `pip install torch==2.13.0` and `pip install --no-deps --no-build-isolation
sssegmentation==1.7.0`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

# Modules that the reference imports for its datasets and other models. The systems compared here
# do not use them.
STAND_INS = (
    "pandas",
    "cv2",
    "scipy",
    "sklearn",
    "torchvision",
    "chainercv",
    "dill",
    "tqdm",
    "timm",
    "pycocotools",
)


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class that can be subclassed and called."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `STAND_INS` if no real finder does."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".")[0] in STAND_INS:
            return importlib.util.spec_from_loader(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Does nothing."""


def _config(name: str, num_classes: int, dropout: float) -> dict[str, Any]:
    """Returns the merged config of a system, with batch norm for one device.

    See docs/reference/sssegmentation.md#merged-configs.
    """
    aspp = {
        "in_channels": 320,
        "feats_channels": 512,
        "dilations": [1, 12, 24, 36],
        "dropout": dropout,
    }
    large = "mobilenetv3l" in name
    systems: dict[str, tuple[str, dict[str, Any]]] = {
        "fcn": ("FCN", {"in_channels": 320, "feats_channels": 512, "dropout": dropout}),
        "pspnet": ("PSPNet", {**aspp, "pool_scales": [1, 2, 3, 6]}),
        "deeplabv3": ("Deeplabv3", aspp),
        "deeplabv3plus": (
            "Deeplabv3Plus",
            {**aspp, "in_channels": [24, 320], "shortcut_channels": 48},
        ),
        "lrasppnet": (
            "LRASPPNet",
            {
                "in_channels_list": [16, 24, 960] if large else [16, 16, 576],
                "branch_channels_list": [32, 64],
                "feats_channels": 128,
                "dropout": dropout,
            },
        ),
    }
    kind, head = systems[name.split("_")[0]]
    cross_entropy = {
        "type": "CrossEntropyLoss",
        "scale_factor": 1.0,
        "ignore_index": -100,
        "reduction": "mean",
    }
    config: dict[str, Any] = {
        "type": kind,
        "num_classes": num_classes,
        "benchmark": True,
        "align_corners": False,
        "norm_cfg": {"type": "BatchNorm2d"},
        "act_cfg": {"type": "ReLU", "inplace": True},
        "head": head,
        "auxiliary": {"in_channels": 96, "out_channels": 512, "dropout": dropout},
        "losses": {"loss_cls": cross_entropy, "loss_aux": {**cross_entropy, "scale_factor": 0.4}},
        "backbone": {
            "type": "MobileNetV2",
            "structure_type": "mobilenetv2",
            "pretrained": False,
            "outstride": 8,
            "selected_indices": (0, 1, 2, 3),
        },
    }
    if kind == "LRASPPNet":
        arch, indices = ("large", (1, 3, 16)) if large else ("small", (0, 1, 12))
        config |= {
            "norm_cfg": {"type": "BatchNorm2d", "eps": 1e-3},
            "auxiliary": None,
            "losses": {"loss_cls": cross_entropy},
            "backbone": {
                "type": "MobileNetV3",
                "structure_type": f"mobilenetv3_{arch}",
                "pretrained": False,
                "outstride": 8,
                "arch_type": arch,
                "out_indices": indices,
                "selected_indices": (0, 1, 2),
            },
        }
    return config


def build(name: str, num_classes: int, dropout: float = 0.0) -> Any:
    """Returns the reference's module of a system, with random weights."""
    if not any(isinstance(finder, _StandIns) for finder in sys.meta_path):
        sys.meta_path.append(_StandIns())
    from ssseg.modules import BuildSegmentor

    return BuildSegmentor(_config(name, num_classes, dropout), mode="TRAIN")


def prepare(images: np.ndarray, dtype: str = "float32", noise: float = 0.0) -> Any:
    """Returns uint8 RGB images `[batch, height, width, 3]` as the reference normalizes them.

    `noise` is the standard deviation of noise that is added to the result.
    """
    import torch

    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    normalized = (images.astype(np.float64) - mean) / std
    normalized += noise * np.random.default_rng(0).standard_normal(images.shape)
    return torch.from_numpy(np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)).astype(dtype))


def logits(module: Any, images: np.ndarray) -> np.ndarray:
    """Returns the logits before the last resize, `[batch, h, w, classes]`."""
    import torch
    from ssseg.modules import SSSegInputStructure

    module.eval()
    with torch.no_grad():
        scores = module(SSSegInputStructure(images=prepare(images), mode="TEST")).seg_logits
    return scores.numpy().transpose(0, 2, 3, 1)


class Training:
    """Trains a module like the reference, at a constant rate, in float32 or float64."""

    def __init__(
        self, module: Any, dtype: str = "float32", rate: float = 0.01, noise: float = 0.0
    ) -> None:
        import torch

        self.module, self.dtype, self.noise = module.to(getattr(torch, dtype)).train(), dtype, noise
        self.optimizer = torch.optim.SGD(
            module.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4
        )

    def step(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Runs one step and returns its losses; the gradients remain in the module's parameters."""
        import torch
        from ssseg.modules import SSSegInputStructure

        targets = torch.from_numpy(np.where(labels == 255, -100, labels).astype(self.dtype))
        inputs = prepare(images, self.dtype, self.noise)
        self.optimizer.zero_grad()
        outputs = self.module(SSSegInputStructure(images=inputs, seg_targets=targets, mode="TRAIN"))
        outputs.loss.backward()
        self.optimizer.step()
        return outputs.losses_log_dict

    def losses(self, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Returns the total loss of a step on each batch."""
        return [self.step(*batch)["loss_total"] for batch in batches]

    def norms(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns L2 norms of the last gradients, without weight decay, and of the state_dict."""

        def norm(tensor: Any) -> float:
            return float(np.linalg.norm(tensor.detach().numpy().astype(np.float64)))

        gradients = {
            name: norm(parameter.grad) for name, parameter in self.module.named_parameters()
        }
        return gradients, {
            name: norm(tensor) for name, tensor in self.module.state_dict().items() if tensor.ndim
        }
