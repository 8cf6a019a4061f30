"""Configurations: frozen dataclasses that are validated when created and convert to and from JSON.

Each field has a help text. `cli/fields.py` turns the fields into command-line flags, so a flag, a
JSON key and a Python keyword have the same name. Options of the official DeepLab scripts keep
their official names.
"""

from deeplab_keras.config.base import Config, number, option, require_instance, typed
from deeplab_keras.config.conventions import CONVENTIONS, NORMALIZATIONS, Conventions
from deeplab_keras.config.data import DataConfig
from deeplab_keras.config.errors import (
    OptionError,
    UserError,
    options_shown_by,
    render_options,
    unknown_name,
    unknown_option,
    wrong_backend,
)
from deeplab_keras.config.evaluation import EvalConfig
from deeplab_keras.config.export import ExportConfig
from deeplab_keras.config.model import OUTPUT_STRIDES, ModelConfig
from deeplab_keras.config.prediction import PredictConfig
from deeplab_keras.config.train import TrainConfig

__all__ = [
    "CONVENTIONS",
    "NORMALIZATIONS",
    "OUTPUT_STRIDES",
    "Config",
    "Conventions",
    "DataConfig",
    "EvalConfig",
    "ExportConfig",
    "ModelConfig",
    "OptionError",
    "PredictConfig",
    "TrainConfig",
    "UserError",
    "number",
    "option",
    "options_shown_by",
    "render_options",
    "require_instance",
    "typed",
    "unknown_name",
    "unknown_option",
    "wrong_backend",
]
