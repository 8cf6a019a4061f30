"""TFLite files: conversion, quantization, packed text files and operators."""

from __future__ import annotations

import collections
import contextlib
import io
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.lite.python.convert_phase import ConverterError

from deeplab_keras.config import UserError
from deeplab_keras.export.graph import Function, named
from deeplab_keras.io.progress import without_noise

# Prefixes of operators that make a file slow or unusable on a device.
UNWANTED = ("Flex", "SPACE_TO_BATCH", "BATCH_TO_SPACE", "VAR_HANDLE")
# The time stamp of packed text files, so that equal models are equal files.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)


def convert(frozen: Function, outputs: Sequence[str], kind: str) -> bytes:
    """Converts to a TFLite file that computes in float32, for one image of a fixed size.

    The input "image" is float32 `[1, height, width, channels]` in 0..255. The outputs are "labels",
    int32 `[1, height, width]`, and "logits", float32 `[1, height, width, num_classes]`.

    Args:
        frozen: The graph of a segmentor for a batch of 1 and a fixed size, float32.
        outputs: The names of its outputs.
        kind: "float32", "float16" (16-bit weights) or "dynamic" (8-bit weights).

    Returns:
        The content of the file.

    Raises:
        UserError: TFLite lacks an operation of the graph.
    """
    converter = _converter(frozen, outputs)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    with without_noise(), _naming_operations():
        return converter.convert()


def calibrate(frozen: Function, outputs: Sequence[str], images: Sequence[np.ndarray]) -> bytes:
    """Converts to a float32 file with the ranges of all tensors, the input of `quantize`.

    Args:
        frozen: The graph of a segmentor for a batch of 1 and a fixed size, float32.
        outputs: The names of its outputs.
        images: uint8 arrays `[height, width, channels]`, similar to those that the model will see.

    Returns:
        The content of the file.

    Raises:
        UserError: TFLite lacks an operation of the graph.
    """
    converter = _converter(frozen, outputs)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [image[None].astype(np.float32)] for image in _full_range(images)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    # Calibration takes nearly all of the time, so several files share it.
    converter._experimental_calibrate_only = True
    with without_noise(), _naming_operations():
        return converter.convert()


def quantize(calibrated: bytes, float_tensors: Sequence[str] = ()) -> bytes:
    """Quantizes to an int8 file: all arithmetic in 8 bits, with one scale per channel of a kernel.

    The input is uint8. The outputs are those of a float32 file.

    Args:
        calibrated: The result of `calibrate`.
        float_tensors: Names of tensors whose operators stay in float32.

    Returns:
        The content of the file.
    """
    with warnings.catch_warnings(), without_noise():
        # The statistics of the inputs come from the calibration.
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
        return mlir_quantize(
            calibrated, input_data_type=tf.uint8, denylisted_nodes=list(float_tensors)
        )


@contextlib.contextmanager
def _naming_operations() -> Iterator[None]:
    """Context that names the operations that TFLite lacks in one line."""
    try:
        yield
    except ConverterError as error:
        names = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", str(error))))
        if not names:
            raise
        raise UserError(
            f"`formats`: TFLite has no operation {', '.join(names)}; replace the layers with it, "
            "or give `formats='saved_model'`"
        ) from error


def _converter(frozen: Function, outputs: Sequence[str]) -> Any:
    # TensorFlow plans to remove tf.lite, so only this file uses its converter.
    return tf.lite.TFLiteConverter.from_concrete_functions([named(frozen, outputs)], tf.Module())


def _full_range(images: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Yields the images, the first with one black and one white pixel.

    The range of the input is then 0..255 and its scale 1, so an int8 file takes the unmodified
    bytes of an image.
    """
    for index, image in enumerate(images):
        if index == 0:
            image = image.copy()
            image[0, 0], image[0, 1] = 0, 255
        yield image


def pack(model: bytes, files: Mapping[str, str]) -> bytes:
    """Appends text files to a TFLite file as a zip archive, like TFLite metadata's label files."""
    buffer = io.BytesIO(model)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, TIMESTAMP), text)
    return buffer.getvalue()


def operators(path: pathlib.Path) -> dict[str, int]:
    """Returns the number of occurrences of each operator in a TFLite file, most frequent first."""
    return dict(collections.Counter(name for name, _ in named_operators(path)).most_common())


def named_operators(model: pathlib.Path | bytes) -> list[tuple[str, str]]:
    """Returns the operators of a TFLite file in order, each with the name of its output tensor."""
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
