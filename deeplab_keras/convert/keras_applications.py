"""Loads ImageNet weights of keras.applications' MobileNets into our backbones.

They were trained on images in -1..1, with TensorFlow's padding and a batch norm epsilon of 0.001. A
backbone with other conventions can use them, but training starts from a higher loss. The matching
conventions are in `configs/base/imagenet_keras.flags`.
"""

from __future__ import annotations

import logging
import os
import pathlib
import warnings
from typing import Any

import h5py
import keras
import numpy as np

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert.transfer import KERAS, Proof, Rules, load_weights
from deeplab_keras.io.foreign import reading

logger = logging.getLogger(__name__)

ARCHITECTURES = {
    "mobilenet_v2": keras.applications.MobileNetV2,
    "mobilenet_v3_large": keras.applications.MobileNetV3Large,
    "mobilenet_v3_small": keras.applications.MobileNetV3Small,
}
# The depth multipliers for which weights can be downloaded.
WIDTHS = {
    "mobilenet_v2": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4),
    "mobilenet_v3_large": (0.75, 1.0),
    "mobilenet_v3_small": (0.75, 1.0),
}
# The conventions with which the weights were trained.
MATCHING = {"normalization": "unit_range", "padding": "same", "backbone_bn_epsilon": 1e-3}
MAX_BLOCKS = 17

# Layer of a block in keras.applications -> our layer.
V2_PARTS = {
    "expand": "expand_conv",
    "expand_BN": "expand_bn",
    "depthwise": "depthwise_conv",
    "depthwise_BN": "depthwise_bn",
    "project": "project_conv",
    "project_BN": "project_bn",
}
V3_PARTS = {
    **{there.replace("BN", "bn"): here for there, here in V2_PARTS.items()},
    "squeeze_excite_conv": "se_reduce",
    "squeeze_excite_conv_1": "se_expand",
}


def rules(config: ModelConfig) -> Rules:
    """Returns the rules for a backbone.

    In keras.applications, the first block has no number and the second has number 1.
    """
    if config.backbone == "mobilenet_v2":
        ends, block, parts = {"Conv1": "stem_conv", "bn_Conv1": "stem_bn"}, "block", V2_PARTS
        # The convolution with 1280 channels and the classifier.
        ignored = (r"(Conv_1|Conv_1_bn|predictions)/.*",)
    else:
        ends = {
            "conv": "stem_conv",
            "conv_bn": "stem_bn",
            "conv_1": "last_conv",
            "conv_1_bn": "last_bn",
        }
        block, parts = "expanded_conv", V3_PARTS
        ignored = (r"(conv_2|logits)/.*",)
    layers = dict(ends)
    for index in range(1, MAX_BLOCKS + 1):
        prefix = "expanded_conv" if index == 1 else f"{block}_{index - 1}"
        layers |= {f"{prefix}_{there}": f"block{index}_{here}" for there, here in parts.items()}
    return Rules(layers, KERAS, ignored=ignored, group="backbone")


def load_imagenet(
    model: keras.Model, config: ModelConfig, weights: str, option: str = "tf_initial_checkpoint"
) -> Proof:
    """Loads ImageNet weights into the backbone of a model. All its layers must have weights.

    Args:
        model: A segmentor.
        config: Its architecture.
        weights: "imagenet", which Keras downloads once into ~/.keras/models, or a file of such
            weights, with or without the classifier.
        option: The option that has `weights`, for error messages.

    Raises:
        UserError: If there are no such weights for this backbone, they cannot be downloaded, or
            the file is for another network.
    """
    proof = load_weights(
        model, _read(config, weights, option), rules(config), origin=f"`{option}={weights}`"
    )
    for field, value in MATCHING.items():
        if getattr(config, field) != value:
            logger.warning(
                "%s was trained with %s=%s, not %s", weights, field, value, getattr(config, field)
            )
    return proof


def _read(config: ModelConfig, weights: str, option: str) -> dict[str, np.ndarray]:
    """Reads the weights of the classifier network: `<layer>/<variable>` -> array."""
    if config.backbone not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"`{option}={weights}`: no ImageNet weights for {config.backbone}, only for {known}"
        )
    if weights == "imagenet":
        network = _download(config, option)
    elif pathlib.Path(weights).is_file():
        network = _open(config, weights, option)
    else:
        raise UserError(
            f"`{option}={weights}`: no such file or folder; give 'imagenet', a file of ImageNet "
            "weights, a checkpoint or a `train_logdir`"
        )
    return {
        f"{layer.name}/{v.name}": keras.ops.convert_to_numpy(v)
        for layer in network.layers
        for v in layer.variables
    }


def _download(config: ModelConfig, option: str) -> keras.Model:
    widths = WIDTHS[config.backbone]
    if config.depth_multiplier not in widths:
        raise UserError(
            f"`{option}='imagenet'`: no ImageNet weights of {config.backbone} for "
            f"`depth_multiplier={config.depth_multiplier}`, only for "
            f"{', '.join(map(str, widths))}; give one of these, or omit `{option}` to train from "
            "random weights"
        )
    try:
        return ARCHITECTURES[config.backbone](
            input_shape=(224, 224, 3),
            alpha=config.depth_multiplier,
            include_top=False,
            weights="imagenet",
        )
    except Exception as error:  # Keras raises a bare Exception when a download fails
        folder = os.path.join(os.path.expanduser("~"), ".keras", "models")
        raise UserError(
            f"`{option}='imagenet'`: {str(error).splitlines()[0]}; download this file on another "
            f"machine and put it into {folder}, or give its path"
        ) from error


def _open(config: ModelConfig, path: str, option: str) -> keras.Model:
    what = (
        f"the weights of keras.applications' {ARCHITECTURES[config.backbone].__name__} at "
        f"`depth_multiplier={config.depth_multiplier}`"
    )
    next_step = (
        "give a file of these (.weights.h5), or the file's `backbone` and `depth_multiplier`"
    )
    with reading(f"`{option}={path}`", what, next_step):
        _check_size(path)
    cause: UserError | None = None
    for include_top in (False, True):
        network = ARCHITECTURES[config.backbone](
            alpha=config.depth_multiplier, include_top=include_top, weights=None
        )
        try:
            with reading(f"`{option}={path}`", what, next_step), warnings.catch_warnings():
                # Keras warns about each object that does not fit before it raises an error.
                warnings.simplefilter("ignore")
                network.load_weights(path)
            return network
        except UserError as error:
            cause = cause or error
    raise UserError(f"`{option}={path}`: not {what}; {next_step}") from cause


def _check_size(path: str) -> None:
    """Checks that the datasets of an HDF5 file are not much larger than the file.

    A few bytes can declare any size.
    """
    stored, declared = os.path.getsize(path), 0

    def add(name: str, item: Any) -> None:
        nonlocal declared
        declared += item.nbytes if isinstance(item, h5py.Dataset) else 0

    with h5py.File(path, "r") as file:
        file.visititems(add)
    if declared > 4 * stored + (64 << 20):
        raise UserError(
            f"{path}: declares {declared >> 20} MiB of weights in {stored >> 20} MiB; copy or "
            "download it again"
        )
