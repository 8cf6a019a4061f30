"""Mobile semantic segmentation in Keras 3: DeepLab, LR-ASPP and their relatives on MobileNets, with their exact numbers.

    import deeplab_keras as dk

    model = dk.build_segmentor(dk.get_config("deeplabv3_mobilenetv2os8_voc"), input_size=(512, 512))
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, PredictConfig, TrainConfig, UserError
from deeplab_keras.version import __version__

if TYPE_CHECKING:
    from deeplab_keras import visualization
    from deeplab_keras.data import open_dataset
    from deeplab_keras.evaluation import Report, evaluate
    from deeplab_keras.export import export_model
    from deeplab_keras.inference import Predictor
    from deeplab_keras.segmentor import build_segmentor
    from deeplab_keras.trainer import train
    from deeplab_keras.zoo import get_config, list_models, load_model

# Name -> the module that has it, imported when the name is first used: Keras and TensorFlow take seconds to import.
_LAZY = {
    "Predictor": "inference",
    "Report": "evaluation",
    "build_segmentor": "segmentor",
    "evaluate": "evaluation",
    "export_model": "export",
    "get_config": "zoo",
    "list_models": "zoo",
    "load_model": "zoo",
    "open_dataset": "data",
    "train": "trainer",
    "visualization": "visualization",
}

__all__ = [
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "PredictConfig",
    "Predictor",
    "Report",
    "TrainConfig",
    "UserError",
    "__version__",
    "build_segmentor",
    "evaluate",
    "export_model",
    "get_config",
    "list_models",
    "load_model",
    "open_dataset",
    "train",
    "visualization",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
    return module if _LAZY[name] == name else getattr(module, name)


# The modules whose layers, metrics, losses and optimizers occur in saved .keras files.
_IN_FILES = ("segmentor", "concat_conv", "quantization", "losses", "metrics", "optimizers")


def _register() -> None:
    """Registers what a .keras file may contain for `keras.models.load_model`."""
    if f"{__name__}.layers" in sys.modules:  # one of our own modules imports Keras, and registers itself
        return
    for name in _IN_FILES:
        importlib.import_module(f"{__name__}.{name}")


class _WhenKerasIsImported(importlib.abc.MetaPathFinder):
    """Registers our classes as soon as somebody imports Keras: importing it here would take seconds."""

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


def __dir__() -> list[str]:
    return sorted(__all__)
