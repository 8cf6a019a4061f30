"""The official DeepLab's weights into our models: TF1 checkpoints, releases as downloaded, frozen graphs, TFLite files.

    print(load(model, config, "deeplabv3_mnv2_pascal_trainval_2018_01_29.tar.gz"))

Names and shapes: spec/official-deeplab.md, section 7.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from deeplab_keras.blocks import make_divisible
from deeplab_keras.checkpoints.official_files import read_source
from deeplab_keras.checkpoints.transfer import TF1_SLIM, Proof, Rules, load_weights
from deeplab_keras.config import ModelConfig, UserError

# Backbone -> the scope of its variables.
SCOPES = {
    "mobilenet_v2": "MobilenetV2",
    "mobilenet_v3_large": "MobilenetV3",
    "mobilenet_v3_small": "MobilenetV3",
    "mobilenet_v3_large_seg": "MobilenetV3",
    "mobilenet_v3_small_seg": "MobilenetV3",
    "mobilenet_edgetpu": "MobilenetEdgeTPU",
}
BLOCKS = 22  # of the deepest backbone
# Kept beside the weights: optimizer state, counters, averages, ranges of a quantised training.
BOOKKEEPING = (
    r"global_step|beta[12]_power",
    r".*/(Momentum|RMSProp(_1)?|Adam(_1)?|ExponentialMovingAverage)",
    r".*(_quant|quant_\w+)/(min|max)(/.*)?",
)
BACKBONE = r"(stem|block\d+|last)_.*"
WITHOUT_AUXILIARY = r"(?!auxiliary).*"  # no official model has such a head
CLASSIFIERS = re.compile(r"(auxiliary_)?logits(\d+|_high|_low)?")


def rules(config: ModelConfig) -> Rules:
    """What the official DeepLab calls the layers of `config`."""
    scope = SCOPES.get(config.backbone)
    if scope is None:
        raise UserError(f"--model_variant={config.backbone}: the official DeepLab's are {', '.join(SCOPES)}")
    layers = _with_batch_norm({f"{scope}/Conv": "stem", f"{scope}/Conv_1": "last"})
    for block in range(1, BLOCKS + 1):
        source = f"{scope}/expanded_conv" + (f"_{block - 1}" if block > 1 else "")
        parts = ("expand", "depthwise", "project")
        layers |= _with_batch_norm({f"{source}/{part}": f"block{block}_{part}" for part in parts})
        layers |= {
            f"{source}/squeeze_excite/Conv": f"block{block}_se_reduce",
            f"{source}/squeeze_excite/Conv_1": f"block{block}_se_expand",
        }
    layers |= _with_batch_norm(
        {
            "image_pooling": "image_pooling",
            "concat_projection": "aspp_project",
            "aspp{n}": "aspp{n}",
            "aspp{n}_depthwise": "aspp{n}_depthwise",
            "aspp{n}_pointwise": "aspp{n}_pointwise",
        }
    )
    layers |= _decoder(config)
    # A classifier of ImageNet, and the convolution before it that segmentation leaves out.
    unused = rf"{scope}/(Logits|Conv_2)/.*" + (rf"|{scope}/Conv_1/.*" if config.backbone == "mobilenet_v2" else "")
    return Rules(layers, TF1_SLIM, ignored=(*BOOKKEEPING, unused))


def _with_batch_norm(layers: Mapping[str, str]) -> dict[str, str]:
    rows = {source: f"{ours}_conv" for source, ours in layers.items()}
    return rows | {f"{source}/BatchNorm": f"{ours}_bn" for source, ours in layers.items()}


def _decoder(config: ModelConfig) -> dict[str, str]:
    if config.head == "lraspp":
        return {"decoder/feature_projection0": "logits_low", "decoder/decoder_conv0": "logits_high"}
    several = not config.aspp_with_batch_norm and len(config.atrous_rates) > 1
    layers = {"logits/semantic": "logits0" if several else "logits", "logits/semantic_{n}": "logits{n}"}
    for stage in range(len(config.low_level_features)):
        suffix, ours = (f"_{stage}", f"decoder{stage + 1}") if stage else ("", "decoder")
        rows = {f"decoder/feature_projection0{suffix}": f"{ours}_low_level"}
        for index in (0, 1):
            source = f"decoder/decoder_conv{index}{suffix}"
            if config.decoder_use_sum_merge and config.decoder_use_separable_conv:
                source = f"decoder/decoder_split_sep_conv{index}{suffix}"
            elif not config.decoder_use_sum_merge and not config.decoder_use_separable_conv:
                source = f"decoder/decoder_conv0{suffix}/decoder_conv0{suffix}_{index + 1}"
            rows[source] = f"{ours}_conv{index + 1}"
            rows |= {f"{source}_{half}": f"{ours}_conv{index + 1}_{half}" for half in ("depthwise", "pointwise")}
        layers |= _with_batch_norm(rows)
    return layers


def load(model: keras.Model, config: ModelConfig, path: str, keep: Collection[str] = ()) -> Proof:
    """Fills the model from an official file of any kind; see `read_source` and `load_official`."""
    source = read_source(path, config.backbone_bn_epsilon, config.head_bn_epsilon)
    return load_official(model, config, source.tensors, origin=source.path, keep=keep)


def start_from(model: keras.Model, config: ModelConfig, path: str, fresh: Collection[str] = ()) -> Proof:
    """Fills a model that is to be trained: what `tf_initial_checkpoint` means to the official train.py, but strict.

    The classifiers start fresh where the classes differ: of LR-ASPP the decoder's two alone, where the reference would
    fail or drop the head (spec, T12). Of another head, and of an ImageNet classifier, the backbone is taken.

    Args:
        model: the segmentor.
        config: its architecture.
        path: see `read_source`.
        fresh: layers that start fresh in any case; more than the classifiers: the backbone is taken.

    Returns:
        The proof, which says what was left fresh.

    Raises:
        UserError: the weights are of another variant, or broken.
    """
    source = read_source(path, config.backbone_bn_epsilon, config.head_bn_epsilon)
    found, tensors, keep = seems(source.tensors), source.tensors, set(fresh)
    classifiers = {layer.name for layer in model.layers if CLASSIFIERS.fullmatch(layer.name)}
    if found.get("head", config.head) != config.head or not keep <= classifiers:
        tensors = {name: value for name, value in tensors.items() if name.startswith("Mobilenet")}
    if found.get("num_classes", config.num_classes) != config.num_classes:
        keep |= classifiers
    return load_official(model, config, tensors, origin=source.path, keep=keep, covers=WITHOUT_AUXILIARY)


def load_official(
    model: keras.Model,
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    origin: str,
    keep: Collection[str] = (),
    covers: str = ".*",
) -> Proof:
    """Fills the model with official weights; strict. A backbone's file without a head fills the backbone alone.

    Args:
        model: the segmentor of `config`.
        config: the architecture.
        tensors: by their official names.
        origin: what errors call the source.
        keep: layers of ours that keep their own weights.
        covers: regular expression of the layers that must be filled.

    Returns:
        The proof, to be printed.

    Raises:
        UserError: the weights are of another variant, with the flag that would fit, or do not fit otherwise.
    """
    _check_variant(config, tensors, origin, classes_matter=not keep)
    table = dataclasses.replace(rules(config), covers=covers)
    if not any(re.match(r"(aspp0|logits|decoder)/", name) for name in tensors):
        table = dataclasses.replace(table, covers=BACKBONE)
    return load_weights(model, tensors, table, keep=keep, origin=origin)


# === What a checkpoint seems to be ===

# Backbone -> output channels of some of its layers at depth multiplier 1, enough to tell all of them apart.
WIDTHS: dict[str, dict[str, int]] = {
    "mobilenet_v2": {"Conv": 32, "expanded_conv": 16, "expanded_conv_1": 24, "expanded_conv_16": 320},
    "mobilenet_v3_large_seg": {"Conv": 16, "expanded_conv_11": 112, "expanded_conv_14": 80, "Conv_1": 480},
    "mobilenet_v3_large": {"Conv": 16, "expanded_conv_11": 112, "expanded_conv_14": 160, "Conv_1": 960},
    "mobilenet_v3_small_seg": {"Conv": 16, "expanded_conv_3": 40, "expanded_conv_10": 48, "Conv_1": 288},
    "mobilenet_v3_small": {"Conv": 16, "expanded_conv_3": 40, "expanded_conv_10": 96, "Conv_1": 576},
    "mobilenet_edgetpu": {"Conv": 32, "expanded_conv_9": 96, "expanded_conv_21": 192, "Conv_1": 1280},
}
LAST_BLOCK = {
    "mobilenet_v2": 16, "mobilenet_v3_large_seg": 14, "mobilenet_v3_large": 14, "mobilenet_v3_small_seg": 10,
    "mobilenet_v3_small": 10, "mobilenet_edgetpu": 21,
}
MULTIPLIERS = (1.0, 0.5, 0.35, 0.75, 1.4, 1.3, 0.25)


def seems(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The flags with which these weights seem to have been made, as far as names and shapes tell; {}: not official."""
    shapes = {name: tuple(np.shape(tensor)) for name, tensor in tensors.items()}
    flags: dict[str, Any] = _seems_backbone(shapes)
    if not flags:
        return {}
    classes = shapes.get("logits/semantic/biases") or shapes.get("decoder/decoder_conv0/biases")
    if classes:
        flags["num_classes"] = classes[0]
    if "aspp0/weights" in shapes:
        flags["aspp_convs_filters"] = shapes["aspp0/weights"][-1]
        flags["head"] = "lraspp" if "image_pooling/biases" in shapes else "deeplab_v3"
        if flags["head"] == "deeplab_v3" and "decoder/feature_projection0/weights" in shapes:
            flags["head"] = "deeplab_v3_plus"
        branches = {int(n) for name in shapes for n in re.findall(r"^aspp([1-9]\d*)(?:_depthwise)?/", name)}
        flags["atrous_rates"] = len(branches)
    return flags


def _seems_backbone(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    for variant, widths in WIDTHS.items():
        scope = SCOPES[variant]
        numbers = [re.match(rf"{scope}/expanded_conv_(\d+)/project/weights$", name) for name in shapes]
        if max((int(match[1]) for match in numbers if match), default=0) != LAST_BLOCK[variant]:
            continue
        found = [_out_channels(shapes, f"{scope}/{layer}") for layer in widths]
        for divisor in (1, 8) if variant == "mobilenet_v2" else (8,):
            for multiplier in MULTIPLIERS:
                if found == [make_divisible(width * multiplier, divisor) for width in widths.values()]:
                    flags = {"model_variant": variant, "depth_multiplier": multiplier}
                    return flags | ({"divisible_by": divisor} if variant == "mobilenet_v2" and multiplier != 1 else {})
    return {}


def _out_channels(shapes: Mapping[str, tuple[int, ...]], layer: str) -> int:
    return (shapes.get(f"{layer}/weights") or shapes.get(f"{layer}/project/weights") or (0,))[-1]


def _check_variant(config: ModelConfig, tensors: Mapping[str, np.ndarray], origin: str, classes_matter: bool) -> None:
    """Raises UserError with the flags that would fit, where the file tells them."""
    given: dict[str, Any] = {
        "model_variant": config.backbone,
        "depth_multiplier": config.depth_multiplier,
        "divisible_by": config.channel_divisor,
        "num_classes": config.num_classes,
        "aspp_convs_filters": config.head_channels,
        "head": config.head,
        "atrous_rates": len(config.atrous_rates),
    }
    found = seems(tensors)
    if not classes_matter:
        found.pop("num_classes", None)
    if not found:
        return
    wrong = {flag: value for flag, value in found.items() if value != given[flag]}
    if found.get("head") == "lraspp":
        wrong.pop("atrous_rates", None)
    if not wrong:
        return
    rates = wrong.pop("atrous_rates", None)
    flags = [f"--{flag}={value} (not {given[flag]})" for flag, value in wrong.items()]
    if rates is not None:
        flags.append(f"--atrous_rates of {rates} rates (not {given['atrous_rates']})")
    raise UserError(f"{origin} seems made with {', '.join(flags)}; give these flags, or the --model that has them")
