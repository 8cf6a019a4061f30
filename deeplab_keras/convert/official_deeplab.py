"""Loads weights of the official DeepLab into our models.

They come as TF1 checkpoints, release archives, frozen graphs or TFLite files:

    print(load(model, config, "deeplabv3_mnv2_pascal_trainval_2018_01_29.tar.gz"))

Names and shapes: docs/reference/official_deeplab.md#variable-names.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.convert import pictures, restoring
from deeplab_keras.convert.agreement import (
    EQUAL_LABELS,
    LOGIT_DIFFERENCE,
    Agreement,
    compare,
    image_size,
)
from deeplab_keras.convert.graphs import Convolution, Pool
from deeplab_keras.convert.keras_graph import read_model
from deeplab_keras.convert.official_files import OfficialSource, read_source, tensors_of, unfold
from deeplab_keras.convert.pictures import Images, pixels_of
from deeplab_keras.convert.structure import SAME_EPSILON, map_sizes, match, pooling
from deeplab_keras.convert.transfer import (
    TF1_SLIM,
    Proof,
    Rules,
    load_weights,
    mismatched_classifiers,
)
from deeplab_keras.models.blocks import make_divisible
from deeplab_keras.models.layer_groups import layers_in_group
from deeplab_keras.models.layers import resize_bilinear
from deeplab_keras.models.segmentor import build_segmentor

logger = logging.getLogger(__name__)

# Backbone -> the scope of its variables.
SCOPES = {
    "mobilenet_v2": "MobilenetV2",
    "mobilenet_v3_large": "MobilenetV3",
    "mobilenet_v3_small": "MobilenetV3",
    "mobilenet_v3_large_seg": "MobilenetV3",
    "mobilenet_v3_small_seg": "MobilenetV3",
    "mobilenet_edgetpu": "MobilenetEdgeTPU",
}
OUTPUT_STRIDES = (8, 16, 32)
NAMELESS = "its layers do not have the names of an official DeepLab"
BLOCKS = 22  # number of blocks of the deepest backbone
# Tensors other than weights: optimizer state, counters, averages, ranges of quantized training.
BOOKKEEPING = (
    r"global_step|beta[12]_power",
    r".*/(Momentum|RMSProp(_1)?|Adam(_1)?|ExponentialMovingAverage)",
    r".*(_quant|quant_\w+)/(min|max)(/.*)?",
)


def rules(config: ModelConfig) -> Rules:
    """Returns the official DeepLab's names for the layers of `config`.

    Raises:
        UserError: If the official DeepLab has no such backbone.
    """
    scope = SCOPES.get(config.backbone)
    if scope is None:
        raise UserError(
            f"`backbone={config.backbone}`: for official weights it must be one of "
            f"{', '.join(SCOPES)}"
        )
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
    # The ImageNet classifier and the convolution before it, which segmentation does not use.
    unused = rf"{scope}/(Logits|Conv_2)/.*" + (
        rf"|{scope}/Conv_1/.*" if config.backbone == "mobilenet_v2" else ""
    )
    return Rules(layers, TF1_SLIM, ignored=(*BOOKKEEPING, unused))


def _with_batch_norm(layers: Mapping[str, str]) -> dict[str, str]:
    rows = {source: f"{ours}_conv" for source, ours in layers.items()}
    return rows | {f"{source}/BatchNorm": f"{ours}_bn" for source, ours in layers.items()}


def _decoder(config: ModelConfig) -> dict[str, str]:
    if config.head == "lraspp":
        return {"decoder/feature_projection0": "logits_low", "decoder/decoder_conv0": "logits_high"}
    several = not config.get("aspp_with_batch_norm", True) and len(config.atrous_rates) > 1
    layers = {
        "logits/semantic": "logits0" if several else "logits",
        "logits/semantic_{n}": "logits{n}",
    }
    for stage in range(len(config.get("low_level_features", ()))):
        suffix, ours = (f"_{stage}", f"decoder{stage + 1}") if stage else ("", "decoder")
        rows = {f"decoder/feature_projection0{suffix}": f"{ours}_low_level"}
        for index in (0, 1):
            source = f"decoder/decoder_conv{index}{suffix}"
            if config.decoder_use_sum_merge and config.decoder_use_separable_conv:
                source = f"decoder/decoder_split_sep_conv{index}{suffix}"
            elif not config.decoder_use_sum_merge and not config.decoder_use_separable_conv:
                source = f"decoder/decoder_conv0{suffix}/decoder_conv0{suffix}_{index + 1}"
            rows[source] = f"{ours}_conv{index + 1}"
            rows |= {
                f"{source}_{half}": f"{ours}_conv{index + 1}_{half}"
                for half in ("depthwise", "pointwise")
            }
        layers |= _with_batch_norm(rows)
    return layers


def load(
    model: keras.Model,
    config: ModelConfig,
    path: str,
    *,
    skip_mismatched_classifiers: bool = False,
    check: bool = True,
    check_photos: Images | None = None,
    restore_batch_norm: Images | None = None,
) -> Proof:
    """Loads the weights of an official file of any kind; see `read_source`.

    A graph (.pb, .tflite) is compared with the model operation by operation. Then both run on the
    same images, and their outputs are compared.

    Args:
        model: The segmentor of `config`.
        config: The architecture.
        path: The file.
        skip_mismatched_classifiers: See `conversion.convert`.
        check: Whether a graph is compared with the model. If false, its weights are loaded by
            their names.
        check_photos: Images on which they are compared, resized to the size of the graph. `None`
            for synthetic ones.
        restore_batch_norm: Images on which the statistics of folded batch norm are measured; see
            `restoring.restore_batch_norm`. `None` keeps the trivial statistics of folded layers.

    Raises:
        UserError: If the file cannot be read, does not fit, or computes something else.
    """
    images = None
    if restore_batch_norm is not None:
        images = pictures.find_for_statistics(restore_batch_norm)
    compared: list[Any] = []
    if check_photos is not None:
        compared = pictures.find_for_comparison(check_photos)
    source = read_source(path, config.backbone_bn_epsilon, config.head_bn_epsilon)
    tensors: dict[str, np.ndarray] = source.tensors
    note = not_proven(config, source.kind)
    if source.graph is not None and check:
        tensors, note = _proven_tensors(
            source, model, config, skip_mismatched_classifiers, compared
        )
    elif not tensors:
        raise UserError(
            f"{source.path}: {NAMELESS}; omit `check=False` to find its layers by their connections"
        )
    elif source.graph is not None and source.graph.quantized:
        note += f" The {source.kind} rounds to 8 bits, so the model is an approximation of it."
    skip_layers: tuple[str, ...] = ()
    if skip_mismatched_classifiers:
        skip_layers = mismatched_classifiers(model, tensors, rules(config))
    proof = load_official(model, config, tensors, origin=source.path, skip_layers=skip_layers)
    notes = [note]
    if images is not None:
        loaded = {row.target.partition("/")[0] for row in proof.rows}
        restored = restoring.restore_batch_norm(
            model, config, images, origin=source.path, loaded=loaded
        )
        notes.append(str(restored))
        if source.graph is not None and check and not skip_layers:
            size = image_size(source.graph, config)
            again = _agreement(source, model, config, size, compared)
            notes.append(f"Then the {source.kind} and the model were run again: {again}.")
    return dataclasses.replace(proof, notes=tuple(notes))


def not_proven(config: ModelConfig, kind: str) -> str:
    """Returns a note that lists what is unproven because the source was not run."""
    rates = ",".join(map(str, config.get("atrous_rates", ()))) or "none"
    window = ",".join(map(str, config.image_pooling_window)) or "the whole map"
    return (
        f"The {kind} was not run: only its weights are proven. From the config and unproven are "
        f"strides and dilations (output_stride={config.output_stride}, atrous_rates={rates}), "
        f"padding={config.padding}, image pooling over {window}, batch norm epsilons "
        f"{config.backbone_bn_epsilon:g} (backbone) and {config.head_bn_epsilon:g} (head), "
        f"activations, align_corners={config.align_corners} and "
        f"normalization={config.normalization}. Evaluate the model on labeled images."
    )


def _proven_tensors(
    source: OfficialSource,
    model: keras.Model,
    config: ModelConfig,
    skip_mismatched_classifiers: bool,
    images: Sequence[Any],
) -> tuple[dict[str, np.ndarray], str]:
    """Proves that a graph computes the same as the model of `config`.

    Returns:
        The graph's tensors by their official names, and a note about the proof.

    Raises:
        UserError: If the graph computes something else.
    """
    graph, origin = source.graph, source.path
    network = graph.network
    size = image_size(graph, config)
    classes = max(
        (network.convolutions[index].kernel.shape[-1] for index in network.reads if index >= 0),
        default=0,
    )
    if skip_mismatched_classifiers and classes != config.num_classes and classes > 1:
        config = config.replace(num_classes=classes)
        model = build_segmentor(config)
    differences = option_differences(graph, size, config)
    _check_variant(config, source.tensors, origin, classes_matter=True, differences=differences)
    table = rules(config)

    def name_of(layer: str) -> str:
        row = table.find(layer)
        return row[1] if row else ""

    found = match(network, read_model(model), size, expected=name_of, named=graph.layer_name)
    if found.differences:
        shown = "; ".join(found.differences[:3])
        raise UserError(
            f"{origin} does not compute the same as {model.name}: {shown}; give the options of the "
            "model it was exported from (`check=False` converts the weights without this check)"
        )
    layers = {name_of(layer): convolution for layer, convolution in found.layers.items()}
    tensors, _ = unfold(tensors_of(layers), config.backbone_bn_epsilon, config.head_bn_epsilon)
    load_official(model, config, tensors, origin=origin)
    agreement = _agreement(source, model, config, size, images)
    note = f"The {source.kind} and the model were run: {agreement}."
    if graph.quantized:
        resized = _resized(images, size, config)
        rounded = compare(graph, model, config, size, images=resized, rounded=True)
        note = (
            f"The {source.kind} rounds to 8 bits. Without rounding, it and the model were run: "
            f"{agreement}. The model is an approximation of the {source.kind} with rounding: "
            f"{rounded}."
        )
        if not images:
            note += " These images are synthetic; on photographs (check_photos) they agree more."
    if agreement.normalized:
        note += (
            f" The file takes normalized images, so normalization={config.normalization} is from "
            "the config and unproven."
        )
    return tensors, note


def _agreement(
    source: OfficialSource,
    model: keras.Model,
    config: ModelConfig,
    size: tuple[int, int],
    images: Sequence[Any],
) -> Agreement:
    """Runs a graph, without rounding, and a model on the same images; requires that they agree."""
    resized = _resized(images, size, config)
    agreement = compare(source.graph, model, config, size, images=resized)
    if not agreement.is_sufficient:
        raise UserError(
            f"{source.path}: the converted model does not compute the same: {agreement}; required "
            f"are {EQUAL_LABELS:.1%} and {LOGIT_DIFFERENCE:g}; give the options of the model it "
            "was exported from (`check=False` converts the weights without this check)"
        )
    return agreement


def _resized(images: Sequence[Any], size: tuple[int, int], config: ModelConfig) -> list[np.ndarray]:
    """Returns images of `pictures.find_images` as uint8 `[*size, channels]`."""
    batches = (
        pixels_of(image, "check_photos", config.input_channels)[None].astype(np.float32)
        for image in images
    )
    resized = (resize_bilinear(batch, size, config.align_corners) for batch in batches)
    return [np.round(keras.ops.convert_to_numpy(x)[0]).astype(np.uint8) for x in resized]


def start_from(
    model: keras.Model, config: ModelConfig, path: str, skip_layers: Collection[str] = ()
) -> Proof:
    """Loads initial weights for training, as the official train.py does, but strictly.

    If the number of classes differs, the classifiers keep their random weights. For LR-ASPP, these
    are only the two convolutions of the decoder; the reference would fail or drop the whole head
    (docs/reference/official_deeplab.md#restoring-and-new-classes). From a checkpoint with another
    head, and from an ImageNet classifier, only the backbone is loaded.

    Args:
        model: The segmentor.
        config: Its architecture.
        path: A TF1 checkpoint, its folder, or an archive with one. A graph must be converted
            first, which proves that the model computes the same.
        skip_layers: Layers that keep their random weights in any case. If there are others than
            classifiers, only the backbone is loaded.

    Returns:
        The proof, which lists the layers that were not loaded.

    Raises:
        UserError: If the file is a graph, or its weights are of another variant, or damaged.
    """
    source = read_source(path, config.backbone_bn_epsilon, config.head_bn_epsilon)
    if source.graph is not None:
        raise UserError(
            f"{source.path}: initial weights cannot be a {source.kind}, because training would not "
            "check that the model computes the same; convert it first "
            "(`scripts/convert_checkpoint.py` --source=official_deeplab), and start from the result"
        )
    tensors = source.tensors
    found = identify(tensors)
    skipped = set(skip_layers)
    classifiers = set(layers_in_group(model, "classifiers"))
    other_head = found.get("head", config.head) != config.head
    if other_head:
        options = " ".join(
            f"`{name}={found[name]}`" for name in ("head", "head_channels") if name in found
        )
        logger.warning(
            "%s has the head %s, so only its backbone is loaded and the head %s starts from random "
            "weights; %s, or a `model` of `list_models.py` with these, would use the "
            "checkpoint's head",
            source.path,
            found["head"],
            config.head,
            options,
        )
    if other_head or not skipped <= classifiers:
        tensors = {name: value for name, value in tensors.items() if name.startswith("Mobilenet")}
    if found.get("num_classes", config.num_classes) != config.num_classes:
        skipped |= classifiers
    # No official model has an auxiliary head.
    group = "without_auxiliary"
    return load_official(
        model, config, tensors, origin=source.path, skip_layers=skipped, group=group
    )


def load_official(
    model: keras.Model,
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    origin: str,
    skip_layers: Collection[str] = (),
    group: str = "all",
) -> Proof:
    """Loads official weights strictly. If the tensors have no head, only the backbone is loaded.

    Args:
        model: The segmentor of `config`.
        config: The architecture.
        tensors: The weights by their official names.
        origin: The source, for error messages.
        skip_layers: Layers of ours that keep their initial weights.
        group: The group of layers (`models.layer_groups`) that the tensors must have.

    Returns:
        The proof, to print.

    Raises:
        UserError: If the weights do not fit. If they are of another variant, the message has the
            options that would fit.
    """
    _check_variant(config, tensors, origin, classes_matter=not skip_layers)
    if not any(re.match(r"(aspp0|logits|decoder)/", name) for name in tensors):
        group = "backbone"
    table = dataclasses.replace(rules(config), group=group)
    return load_weights(model, tensors, table, skip_layers=skip_layers, origin=origin)


# === Identifying the variant of a checkpoint ===

# Backbone -> output channels of some layers at depth multiplier 1, enough to distinguish all
# backbones.
WIDTHS: dict[str, dict[str, int]] = {
    "mobilenet_v2": {
        "Conv": 32,
        "expanded_conv": 16,
        "expanded_conv_1": 24,
        "expanded_conv_16": 320,
    },
    "mobilenet_v3_large_seg": {
        "Conv": 16,
        "expanded_conv_11": 112,
        "expanded_conv_14": 80,
        "Conv_1": 480,
    },
    "mobilenet_v3_large": {
        "Conv": 16,
        "expanded_conv_11": 112,
        "expanded_conv_14": 160,
        "Conv_1": 960,
    },
    "mobilenet_v3_small_seg": {
        "Conv": 16,
        "expanded_conv_3": 40,
        "expanded_conv_10": 48,
        "Conv_1": 288,
    },
    "mobilenet_v3_small": {
        "Conv": 16,
        "expanded_conv_3": 40,
        "expanded_conv_10": 96,
        "Conv_1": 576,
    },
    "mobilenet_edgetpu": {
        "Conv": 32,
        "expanded_conv_9": 96,
        "expanded_conv_21": 192,
        "Conv_1": 1280,
    },
}
LAST_BLOCK = {
    "mobilenet_v2": 16,
    "mobilenet_v3_large_seg": 14,
    "mobilenet_v3_large": 14,
    "mobilenet_v3_small_seg": 10,
    "mobilenet_v3_small": 10,
    "mobilenet_edgetpu": 21,
}
MULTIPLIERS = (1.0, 0.5, 0.35, 0.75, 1.4, 1.3, 0.25)


def identify(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the options of the model with these weights, as far as names and shapes show them.

    The value of `atrous_rates` is the number of rates. Empty if the weights are not official ones.
    """
    shapes = {name: tuple(np.shape(tensor)) for name, tensor in tensors.items()}
    options: dict[str, Any] = _identify_backbone(shapes)
    if not options:
        return {}
    classes = shapes.get("logits/semantic/biases") or shapes.get("decoder/decoder_conv0/biases")
    if classes:
        options["num_classes"] = classes[0]
    if "aspp0/weights" in shapes:
        options["head_channels"] = shapes["aspp0/weights"][-1]
        options["head"] = "lraspp" if "image_pooling/biases" in shapes else "deeplab_v3"
        if options["head"] == "deeplab_v3" and "decoder/feature_projection0/weights" in shapes:
            options["head"] = "deeplab_v3_plus"
        branches = {
            int(n) for name in shapes for n in re.findall(r"^aspp([1-9]\d*)(?:_depthwise)?/", name)
        }
        options["atrous_rates"] = len(branches)
    return options


def _identify_backbone(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    for variant, widths in WIDTHS.items():
        scope = SCOPES[variant]
        numbers = [
            re.match(rf"{scope}/expanded_conv_(\d+)/project/weights$", name) for name in shapes
        ]
        if max((int(match[1]) for match in numbers if match), default=0) != LAST_BLOCK[variant]:
            continue
        found = [_out_channels(shapes, f"{scope}/{layer}") for layer in widths]
        last = found[-1] == widths.get("Conv_1")
        for divisor in (1, 8) if variant == "mobilenet_v2" else (8,):
            for multiplier in MULTIPLIERS:
                expected = [
                    make_divisible(width * multiplier, divisor) for width in widths.values()
                ]
                # slim's `finegrain_classification_mode`
                unscaled = variant == "mobilenet_edgetpu" and multiplier != 1 and last
                if found == expected or (unscaled and found[:-1] == expected[:-1]):
                    options: dict[str, Any] = {"backbone": variant, "depth_multiplier": multiplier}
                    if variant == "mobilenet_edgetpu" and multiplier != 1:
                        options["finegrain_classification_mode"] = unscaled
                    if variant == "mobilenet_v2" and multiplier != 1:
                        options["channel_divisor"] = divisor
                    return options
    return {}


def _out_channels(shapes: Mapping[str, tuple[int, ...]], layer: str) -> int:
    return (shapes.get(f"{layer}/weights") or shapes.get(f"{layer}/project/weights") or (0,))[-1]


def _check_variant(
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    origin: str,
    classes_matter: bool,
    differences: Mapping[str, tuple[Any, Any]] | None = None,
) -> None:
    """Raises UserError with the options that would fit, if the file shows other ones.

    Args:
        config: The architecture.
        tensors: The weights by their official names.
        origin: The file, for error messages.
        classes_matter: Whether another number of classes is an error.
        differences: Option -> (the file's value, the config's value); see `option_differences`.
    """
    found = identify(tensors)
    given = {name: config.get(name, 0) for name in found}
    given["atrous_rates"] = len(config.get("atrous_rates", ()))
    if not classes_matter:
        found.pop("num_classes", None)
    if found.get("head") == "lraspp":
        found.pop("atrous_rates", None)
    exact = dict(differences or {})
    if "atrous_rates" in exact:
        found.pop("atrous_rates", None)
    wrong = {name: (value, given[name]) for name, value in found.items() if value != given[name]}
    count = wrong.pop("atrous_rates", None)
    options = [
        f"`{name}={_typed(theirs)}`"
        # Other backbones and heads lack the option.
        + (f" (not {_typed(ours) or 'empty'})" if hasattr(config, name) else "")
        for name, (theirs, ours) in (wrong | exact).items()
    ]
    if count is not None:
        options.append(f"`atrous_rates` of {count[0]} rates (not {count[1]})")
    if options:
        raise UserError(
            f"{origin} seems to need {', '.join(options)}; give these options, or a `model` that "
            "has them"
        )


def _typed(value: Any) -> str:
    """Returns a value in the syntax of a flag."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def option_differences(
    graph: Any, size: tuple[int, int], config: ModelConfig
) -> dict[str, tuple[Any, Any]]:
    """Finds options in which a graph differs from the config, as far as its official names show.

    Args:
        graph: An open graph.
        size: (height, width) of its images.
        config: The architecture.

    Returns:
        Option -> (the graph's value, the config's value).
    """
    network = graph.network
    layers = {
        graph.layer_name(convolution.names): convolution for convolution in network.convolutions
    }
    backbone = {
        name: convolution for name, convolution in layers.items() if name.startswith("Mobilenet")
    }
    rows: dict[str, tuple[Any, Any]] = {}
    if backbone:
        strides = math.prod(convolution.stride[0] for convolution in backbone.values())
        rows["output_stride"] = (
            strides if strides in OUTPUT_STRIDES else config.output_stride,
            config.output_stride,
        )
    branches = {
        name: c for name, c in layers.items() if re.fullmatch(r"aspp[1-9]\d*(_depthwise)?", name)
    }
    several = branches or {
        name: c
        for name, c in layers.items()
        if name.startswith("logits/") and "aspp0" not in layers
    }
    rates = tuple(several[name].dilation[0] for name in sorted(several, key=_number))
    if branches or any(rate > 1 for rate in rates):
        rows["atrous_rates"] = (rates, config.get("atrous_rates", ()))
        rows["aspp_with_batch_norm"] = ("aspp0" in layers, config.get("aspp_with_batch_norm", True))
    if branches:
        rows["aspp_with_separable_conv"] = (
            any("depthwise" in name for name in branches),
            config.get("aspp_with_separable_conv", False),
        )
    for name, part, ours in (
        ("backbone_bn_epsilon", backbone, config.backbone_bn_epsilon),
        (
            "head_bn_epsilon",
            {name: c for name, c in layers.items() if name not in backbone},
            config.head_bn_epsilon,
        ),
    ):
        epsilons = {
            convolution.epsilon for convolution in part.values() if convolution.epsilon is not None
        }
        if len(epsilons) == 1 and abs(next(iter(epsilons)) - ours) > SAME_EPSILON:
            rows[name] = (round(float(next(iter(epsilons))), 9), ours)
    if "aspp0" in layers:
        bounded = layers["aspp0"].activation == "RELU6"
        rows["use_bounded_activation"] = (bounded, config.get("use_bounded_activation", False))
    if "aspp0" in layers and config.head != "lraspp":
        rows["add_image_level_feature"] = (
            "image_pooling" in layers,
            config.get("add_image_level_feature", False),
        )
        rows["aspp_projection_kernel"] = (
            int("concat_projection" in layers),
            config.get("aspp_projection_kernel", 0),
        )
    if config.head == "lraspp" and "image_pooling" in layers:
        rows["image_pooling_gate"] = (
            layers["image_pooling"].activation.lower(),
            config.image_pooling_gate,
        )
    aligned = {aligned for aligned, _ in network.resizes}
    if len(aligned) == 1:
        rows["align_corners"] = (aligned.pop(), config.align_corners)
    if "image_pooling" in layers:
        rows |= _pooling_options(layers["image_pooling"], map_sizes(network, size), rows, config)
    return {name: pair for name, pair in rows.items() if pair[0] != pair[1]}


def _pooling_options(
    layer: Convolution,
    maps: Mapping[int, tuple[int, int]],
    rows: Mapping[str, tuple[Any, Any]],
    config: ModelConfig,
) -> dict[str, tuple[Any, Any]]:
    features = maps.get(min(layer.reads))
    theirs = pooling(layer.pool, features)
    stride = rows["output_stride"][0] if "output_stride" in rows else config.output_stride
    window = config.replace(output_stride=stride).image_pooling_window
    ours = pooling(Pool(window or None, config.get("image_pooling_stride", ()) or (1, 1)), features)  # type: ignore[arg-type]
    if theirs is None or theirs == ours:
        return {}
    if theirs.window is None:
        sized = bool(config.get("image_pooling_size", ()))
        name = "image_pooling_size" if sized else "image_pooling_crop_size"
        return {name: ((), config.get(name, ()))}
    crop = tuple((length - 1) * stride + 1 for length in theirs.window)
    pairs: dict[str, tuple[Any, Any]] = {
        "image_pooling_stride": (theirs.stride, config.get("image_pooling_stride", (1, 1)))
    }
    if window != theirs.window:
        pairs["image_pooling_crop_size"] = (crop, config.get("image_pooling_crop_size", ()))
    return pairs


def _number(name: str) -> int:
    return int(next(iter(re.findall(r"\d+", name)), 0))
