"""TFLite files: converting, what lies in them, running them."""

from __future__ import annotations

import collections
import io
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.export.graph import Function, named
from deeplab_keras.progress import without_noise

# Operators that make a file slow or unusable on a device, by the start of their names.
UNWANTED = ("Flex", "SPACE_TO_BATCH", "BATCH_TO_SPACE", "VAR_HANDLE")
MADE_AT = (1980, 1, 1, 0, 0, 0)  # time stamp of the files packed into a model, so that equal models are equal files

Runner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


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


def packed_files(path: pathlib.Path) -> dict[str, str]:
    """The text files packed into a TFLite file."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def open_interpreter(path: pathlib.Path, threads: int, **options: Any) -> Any:
    """LiteRT's interpreter where ai-edge-litert is installed, otherwise TensorFlow's own; tensors allocated."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings(), without_noise():
        warnings.simplefilter("ignore")  # that tf.lite moves to ai-edge-litert; that keeping all tensors costs memory
        interpreter = Interpreter(str(path), num_threads=threads, **options)
        interpreter.allocate_tensors()
    return interpreter


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


def runner(path: pathlib.Path, threads: int) -> Runner:
    """From a uint8 image `[height, width, channels]` to labels `[height, width]` and logits, by the file itself.

    Where the file gives labels only, the logits are read in its graph, before the argmax, by a second interpreter that
    keeps every tensor.
    """
    interpreter = open_interpreter(path, threads)
    run = interpreter.get_signature_runner()
    dtype = run.get_input_details()["image"]["dtype"]
    hidden = None if "logits" in run.get_output_details() else _hidden_logits(path, threads)

    def labels_and_logits(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = image[None].astype(dtype)
        outputs = run(image=batch)
        logits = hidden(batch) if hidden else outputs["logits"][0]
        return outputs["labels"][0] if "labels" in outputs else logits.argmax(-1), logits

    return labels_and_logits


def _hidden_logits(path: pathlib.Path, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    interpreter = open_interpreter(path, threads, experimental_preserve_all_tensors=True)
    argmax = next(op for op in interpreter._get_ops_details() if op["op_name"] == "ARG_MAX")
    index = int(argmax["inputs"][0])
    details = next(tensor for tensor in interpreter.get_tensor_details() if tensor["index"] == index)
    scale, zero = details["quantization"]
    run = interpreter.get_signature_runner()

    def logits(batch: np.ndarray) -> np.ndarray:
        run(image=batch)
        values = interpreter.get_tensor(index)[0]
        return (values.astype(np.float32) - zero) * np.float32(scale) if scale else values

    return logits
