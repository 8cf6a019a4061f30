"""TFLite files: converting, and what lies in them."""

from __future__ import annotations

import collections
import io
import pathlib
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_keras.export.graph import Function, named
from deeplab_keras.progress import without_noise

# Operators that make a file slow or unusable on a device, by the start of their names.
UNWANTED = ("Flex", "SPACE_TO_BATCH", "BATCH_TO_SPACE", "VAR_HANDLE")
MADE_AT = (1980, 1, 1, 0, 0, 0)  # time stamp of the files packed into a model, so that equal models are equal files


def convert(frozen: Function, outputs: Sequence[str], kind: str, images: Iterable[np.ndarray] = ()) -> bytes:
    """A TFLite file for one image of one size.

    Input "image": float32 `[1, height, width, channels]` in 0..255; uint8 in an int8 file. Outputs: "labels", int32
    `[1, height, width]`; "logits", float32 `[1, height, width, num_classes]`.

    Args:
        frozen: the graph of a segmentor for a batch of 1 and one size, float32.
        outputs: the names of its outputs.
        kind: "float32"; "float16": weights of 16 bits; "dynamic": weights of 8 bits; "int8": all arithmetic in 8 bits,
            with a scale for each channel of a kernel.
        images: for int8, uint8 `[height, width, channels]` pictures of the kind that the model will see.
    """
    # tf.lite is announced to leave TensorFlow: the converter is used here and nowhere else.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([named(frozen, outputs)], tf.Module())
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in _full_range(images))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = tf.uint8
    with warnings.catch_warnings(), without_noise():
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs")  # they come from the images
        return converter.convert()


def _full_range(images: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """The images, the first with one pixel black and one white.

    The input then has the range 0..255 and so the scale 1: an int8 file takes a picture's bytes as they are.
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
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError:
        Interpreter, OpResolverType = tf.lite.Interpreter, tf.lite.experimental.OpResolverType
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    return dict(collections.Counter(operator["op_name"] for operator in plain._get_ops_details()).most_common())
