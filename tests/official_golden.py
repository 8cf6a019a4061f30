"""The official DeepLab's golden values, and small ones for machines without them.

`python tests/official_golden.py` wrote `golden/official/networks.npz` with a version of the code
whose outputs equal those of the official graphs (tests/test_golden_official.py with the shared
folder). The weights are drawn by the official name of each tensor, so a wrong name is noticed too.
"""

from __future__ import annotations

import json
import pathlib
import zlib

import keras
import numpy as np
from contracts import ROOT, SHARED, noise

from deeplab_keras.config import ModelConfig
from deeplab_keras.convert.official_deeplab import load_official, rules
from deeplab_keras.convert.transfer import slots
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.official import official_config

GOLDEN = SHARED / "golden" / "official_deeplab"
LOCAL = ROOT / "tests" / "golden" / "official"
MODELS = (
    "mnv2_dm05_os16",
    "mnv2_dm10_os16",
    "mnv2_dm10_os16_aspp_dec4",
    "mnv3_large_seg_os32",
    "mnv3_small_seg_os16",
)
LRASPP = dict(
    num_classes=5,
    image_pooling_crop_size=(65, 65),
    image_pooling_stride=(2, 3),
    aspp_convs_filters=32,
    aspp_with_concat_projection=False,
    aspp_with_squeeze_and_excitation=True,
    decoder_use_sum_merge=True,
    decoder_filters=5,
    decoder_output_is_logits=True,
    image_se_uses_qsigmoid=True,
    decoder_output_stride=(8,),
)
# Case -> network and input size. Even sizes reveal padding errors, odd ones do not.
SMALL: dict[str, tuple[ModelConfig, tuple[int, int]]] = {
    "mnv2_dm05_os16": (official_config(depth_multiplier=0.5, num_classes=5), (64, 49)),
    "mnv2_dm035_os32": (
        official_config(depth_multiplier=0.35, num_classes=5, output_stride=32),
        (65, 64),
    ),
    "mnv2_os8_aspp_dec4": (
        official_config(
            output_stride=8,
            num_classes=5,
            atrous_rates=(2, 4),
            decoder_output_stride=(4,),
            aspp_convs_filters=16,
            decoder_filters=24,
        ),
        (33, 48),
    ),
    "mnv3_large_seg_os32": (
        official_config("mobilenet_v3_large_seg", output_stride=32, **LRASPP),
        (97, 129),
    ),
    "mnv3_small_seg_os8": (
        official_config("mobilenet_v3_small_seg", output_stride=8, **LRASPP),
        (96, 97),
    ),
    "edgetpu_os16": (
        official_config("mobilenet_edgetpu", num_classes=5, aspp_convs_filters=16),
        (65, 48),
    ),
}


def manifest(model: str) -> dict:
    """The flags of the official scripts."""
    return json.loads((GOLDEN / model / "manifest.json").read_text())


def golden_config(model: str) -> ModelConfig:
    """Returns the network of a golden model, from the official flags in its manifest."""
    told = manifest(model)
    flags = {
        name: tuple(map(int, v)) if isinstance(v, list) else v for name, v in told["flags"].items()
    }
    rates = tuple(told["atrous_rates"] or ())
    return official_config(
        num_classes=told["num_classes"],
        output_stride=told["output_stride"],
        atrous_rates=rates,
        **flags,
    )


def drawn_tensors(model: keras.Model, config: ModelConfig) -> dict[str, np.ndarray]:
    """Returns weights drawn by official name, so that activations keep their magnitude."""
    tensors = {}
    for slot in slots(model, rules(config)):
        random, shape = np.random.default_rng(zlib.crc32(slot.source.encode())), slot.source_shape
        kind = slot.source.rpartition("/")[2]
        if kind in ("gamma", "moving_variance"):
            values = random.uniform(0.5, 1.5, shape)
        else:
            fan_in = np.prod(shape[:2]) if kind == "depthwise_weights" else np.prod(shape[:-1])
            values = random.standard_normal(shape) * (
                np.sqrt(2 / fan_in) if kind.endswith("weights") else 0.1
            )
        tensors[slot.source] = values.astype(np.float32)
    return tensors


def small_case(name: str) -> tuple[keras.Model, ModelConfig, np.ndarray]:
    """Returns a small network with its drawn weights, and its input."""
    config, size = SMALL[name]
    model = build_segmentor(config, size)
    load_official(model, config, drawn_tensors(model, config), origin=name)
    return model, config, noise(1, *size, 3, seed=zlib.crc32(name.encode()))


def merged_logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns the logits before the last resize."""
    return keras.Model(model.input, model.get_layer("logits").output).predict(images, verbose=0)


def make(path: pathlib.Path = LOCAL / "networks.npz") -> None:
    """Writes the outputs of the small networks."""
    outputs = {}
    for name in SMALL:
        model, _, images = small_case(name)
        outputs[name] = merged_logits(model, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **outputs)


if __name__ == "__main__":
    make()
