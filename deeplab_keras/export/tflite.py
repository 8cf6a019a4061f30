"""TFLite files: converting, and what lies in them."""

from __future__ import annotations

import collections
import io
import pathlib
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import mlir_quantize

from deeplab_keras.export.graph import Function, named
from deeplab_keras.io.progress import without_noise

# Operators that make a file slow or unusable on a device, by the start of their names.
UNWANTED = ("Flex", "SPACE_TO_BATCH", "BATCH_TO_SPACE", "VAR_HANDLE")
MADE_AT = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # time stamp of the files packed into a model, so that equal models are equal files


def convert(frozen: Function, outputs: Sequence[str], kind: str) -> bytes:
    """A TFLite file for one image of one size that computes in float32.

    Input "image": float32 `[1, height, width, channels]` in 0..255. Outputs: "labels", int32 `[1,
    height, width]`; "logits", float32 `[1, height, width, num_classes]`.

    Args:
        frozen: the graph of a segmentor for a batch of 1 and one size, float32.
        outputs: the names of its outputs.
        kind: "float32"; "float16": weights of 16 bits; "dynamic": weights of 8 bits.
    """
    converter = _converter(frozen, outputs)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with without_noise():
        return converter.convert()


def calibrate(frozen: Function, outputs: Sequence[str], images: Sequence[np.ndarray]) -> bytes:
    """The float32 file of a graph with the range of every tensor on the images, from which `quantize` makes int8 files.

    Args:
        frozen: the graph of a segmentor for a batch of 1 and one size, float32.
        outputs: the names of its outputs.
        images: uint8 `[height, width, channels]` pictures of the kind that the model will see.
    """
    converter = _converter(frozen, outputs)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [image[None].astype(np.float32)] for image in _full_range(images)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter._experimental_calibrate_only = (
        True  # the ranges take nearly all of the time: many files from one pass
    )
    with without_noise():
        return converter.convert()


def quantize(calibrated: bytes, float_tensors: Sequence[str] = ()) -> bytes:
    """An int8 file: all arithmetic in 8 bits, with a scale for each channel of a kernel.

    The input is uint8; the outputs are as in a float32 file.

    Args:
        calibrated: as `calibrate` gives it.
        float_tensors: names of tensors whose operators stay in float32.
    """
    with warnings.catch_warnings(), without_noise():
        warnings.filterwarnings(
            "ignore", message="Statistics for quantized inputs"
        )  # they come from the images
        return mlir_quantize(
            calibrated, input_data_type=tf.uint8, denylisted_nodes=list(float_tensors)
        )


def _converter(frozen: Function, outputs: Sequence[str]) -> Any:
    # tf.lite is announced to leave TensorFlow: its converter is used in this file and nowhere else.
    return tf.lite.TFLiteConverter.from_concrete_functions([named(frozen, outputs)], tf.Module())


def _full_range(images: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """The images, the first with one pixel black and one white.

    The input then has the range 0..255 and so the scale 1: an int8 file takes a picture's bytes as
    they are.
    """
    for index, image in enumerate(images):
        if index == 0:
            image = image.copy()
            image[0, 0], image[0, 1] = 0, 255
        yield image


def pack(model: bytes, files: Mapping[str, str]) -> bytes:
    """The file with text files packed behind it, as TFLite metadata packs label files: `unzip` shows them."""
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, MADE_AT), text)
    return buffer.getvalue()


def operators(path: pathlib.Path) -> dict[str, int]:
    """Operator -> how often it stands in a TFLite file, the most frequent first."""
    return dict(collections.Counter(name for name, _ in named_operators(path)).most_common())


def named_operators(model: pathlib.Path | bytes) -> list[tuple[str, str]]:
    """The operators of a TFLite file in their order, each with the name of the tensor that it gives."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        Interpreter, OpResolverType = tf.lite.Interpreter, tf.lite.experimental.OpResolverType
    source = {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = Interpreter(
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, **source
        )
    tensors = {tensor["index"]: tensor["name"] for tensor in plain.get_tensor_details()}
    return [
        (op["op_name"], tensors.get(int(op["outputs"][0]), "")) for op in plain._get_ops_details()
    ]
