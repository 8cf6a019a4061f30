"""Mobile semantic segmentation in Keras 3: DeepLab, LR-ASPP and more on MobileNets.

import deeplab_keras as dk

model = dk.build_segmentor(dk.get_config("deeplabv3_mobilenetv2os8_voc"), input_size=(512, 512))
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from deeplab_keras.config import (
    DataConfig,
    EvalConfig,
    ExportConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    UserError,
)
from deeplab_keras.version import __version__

if TYPE_CHECKING:
    from deeplab_keras import data, visualization
    from deeplab_keras.checkpoints.folder import save_checkpoint
    from deeplab_keras.data.annotations.convert import convert_annotations
    from deeplab_keras.data.check import check_dataset
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.evaluation import metrics
    from deeplab_keras.evaluation.audit import audit_labels, rank_unlabeled
    from deeplab_keras.evaluation.loop import evaluate
    from deeplab_keras.evaluation.report import Report
    from deeplab_keras.export import export_model
    from deeplab_keras.inference import Predictor
    from deeplab_keras.prediction import predict
    from deeplab_keras.training import losses, optimizers
    from deeplab_keras.training.train import train
    from deeplab_keras.zoo.loading import build_segmentor, load_model
    from deeplab_keras.zoo.registry import get_config, list_models

# Name -> the module that has it, imported when the name is first used: Keras and TensorFlow take
# seconds to import.
_LAZY = {
    "Predictor": "inference",
    "Report": "evaluation.report",
    "audit_labels": "evaluation.audit",
    "build_segmentor": "zoo.loading",
    "check_dataset": "data.check",
    "convert_annotations": "data.annotations.convert",
    "evaluate": "evaluation.loop",
    "export_model": "export",
    "get_config": "zoo.registry",
    "list_models": "zoo.registry",
    "load_model": "zoo.loading",
    "open_dataset": "data.registry",
    "predict": "prediction",
    "rank_unlabeled": "evaluation.audit",
    "save_checkpoint": "checkpoints.folder",
    "train": "training.train",
}
# Modules that are namespaces of the public API.
_NAMESPACES = {
    "data": "data",
    "losses": "training.losses",
    "metrics": "evaluation.metrics",
    "optimizers": "training.optimizers",
    "visualization": "visualization",
}

__all__ = [
    "DataConfig",
    "EvalConfig",
    "ExportConfig",
    "ModelConfig",
    "PredictConfig",
    "Predictor",
    "Report",
    "TrainConfig",
    "UserError",
    "__version__",
    "audit_labels",
    "build_segmentor",
    "check_dataset",
    "convert_annotations",
    "data",
    "evaluate",
    "export_model",
    "get_config",
    "list_models",
    "load_model",
    "losses",
    "metrics",
    "open_dataset",
    "optimizers",
    "predict",
    "rank_unlabeled",
    "save_checkpoint",
    "train",
    "visualization",
]


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return importlib.import_module(f"{__name__}.{_NAMESPACES[name]}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


# The modules whose layers, metrics, losses and optimizers occur in saved .keras files.
_IN_FILES = (
    "models.segmentor",
    "models.concat_conv",
    "models.quantization",
    "training.losses",
    "evaluation.metrics",
    "training.optimizers",
)


def _register() -> None:
    """Registers what a .keras file may contain for `keras.models.load_model`."""
    if (
        f"{__name__}.models.layers" in sys.modules
    ):  # one of our own modules imports Keras, and registers itself
        return
    for name in _IN_FILES:
        importlib.import_module(f"{__name__}.{name}")


class _WhenKerasIsImported(importlib.abc.MetaPathFinder):
    """Registers our classes when Keras is imported; importing Keras here would take seconds."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                run(module)
                _register()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WhenKerasIsImported())

# Modules that documentation and recipes named before they moved -> where they are now.
_MOVED = {
    "checkpoints.convert": "convert.conversion",
    "losses": "training.losses",
    "metrics": "evaluation.metrics",
    "optimizers": "training.optimizers",
    "segmentor": "models.segmentor",
    "layers": "models.layers",
    "data.voc2012": "data.datasets.voc2012",
    "data.tfds_builders": "data.tfds.builders",
    "zoo_official": "zoo.official",
}


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module of _MOVED under its old name, as the same module object."""

    def find_spec(
        self, name: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        moved = name.startswith(f"{__name__}.") and name.removeprefix(f"{__name__}.") in _MOVED
        return importlib.machinery.ModuleSpec(name, self) if moved else None

    def exec_module(self, module: Any) -> None:
        old = module.__name__
        sys.modules[old] = importlib.import_module(
            f"{__name__}.{_MOVED[old.removeprefix(f'{__name__}.')]}"
        )


sys.meta_path.insert(0, _MovedModules())


def __dir__() -> list[str]:
    return sorted(__all__)
