"""What a run is made of: frozen dataclasses, validated when made, to and from JSON.

Every field carries its help text; `cli/fields.py` turns the fields into command-line flags, so a
flag, a JSON key and a Python keyword are one name. Fields that the official DeepLab scripts have
keep their official names.
"""

from deeplab_keras.config.base import Config, option
from deeplab_keras.config.conventions import CONVENTIONS, NORMALIZATIONS, Conventions
from deeplab_keras.config.data import DataConfig
from deeplab_keras.config.errors import (
    OptionError,
    UserError,
    options_shown_by,
    render_options,
    unknown_name,
    unknown_option,
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
    "option",
    "options_shown_by",
    "render_options",
    "unknown_name",
    "unknown_option",
]
