"""The convolutions of a float TFLite file, by the TF1 names that its converter kept."""

from __future__ import annotations

import pathlib
import re
import warnings

import numpy as np

from deeplab_keras.checkpoints.identify import identify
from deeplab_keras.config import UserError
from deeplab_keras.tflite_file import check_tflite

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:  # TensorFlow has it too, as long as it does
    import tensorflow as tf

    Interpreter, OpResolverType = tf.lite.Interpreter, tf.lite.experimental.OpResolverType

CONVOLUTIONS = {"CONV_2D": "weights", "DEPTHWISE_CONV_2D": "depthwise_weights"}
TO_TF1 = (1, 2, 3, 0)  # of [out, height, width, in] and of [1, height, width, channels]
LAYER = re.compile(
    r"(Mobilenet\w+/(?:expanded_conv(?:_\d+)?/(?:expand|depthwise|project|squeeze_excite/Conv(?:_1)?)|Conv(?:_\d)?)"
    r"|image_pooling|aspp\d+(?:_depthwise|_pointwise)?|concat_projection|logits/semantic(?:_\d+)?"
    r"|decoder/\w+(?:/decoder_conv\w+)?)/"
)


def read_tflite(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Kernels as `<layer>/weights` or `<layer>/depthwise_weights`, biases as `<layer>/offset`, in TF1's axes.

    Raises:
        UserError: not a TFLite file, quantised weights, or a network without the official names.
    """
    check_tflite(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tf.lite moves to ai-edge-litert
            resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            interpreter = Interpreter(str(path), experimental_op_resolver_type=resolver)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: damaged or not a TFLite file ({str(error).splitlines()[0][:120]})") from error
    details = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    operations = interpreter._get_ops_details()  # no public way tells which tensors belong to an operation
    # A float16 file turns its weights into float32 first.
    halves = {op["outputs"][0]: op["inputs"][0] for op in operations if op["op_name"] == "DEQUANTIZE"}
    tensors: dict[str, np.ndarray] = {}
    quantised = ""
    for op in operations:
        kind = op["op_name"]
        if kind not in CONVOLUTIONS:
            continue
        inputs = [halves.get(index, index) for index in op["inputs"][1:] if index >= 0]
        names = [details[index]["name"] for index in (*inputs, *op["outputs"])]
        layer = next((match[1] for name in names for match in LAYER.finditer(name + "/")), None)
        for index in inputs:
            if not np.issubdtype(details[index]["dtype"], np.floating):
                quantised = quantised or f"{details[index]['name']} is {np.dtype(details[index]['dtype'])}"
        if layer is None and not quantised:
            raise UserError(f"{path}: {names[0]!r} is no layer of an official DeepLab, whose files alone can be read")
        values = [interpreter.get_tensor(index).astype(np.float32) for index in inputs]
        tensors[f"{layer}/{CONVOLUTIONS[kind]}"] = np.ascontiguousarray(values[0].transpose(TO_TF1))
        if len(values) > 1:
            tensors[f"{layer}/offset"] = values[1]
    if quantised:
        raise UserError(_quantised(path, quantised, tensors))
    if not tensors:
        raise UserError(f"{path}: no convolution in it; this is no segmentation network")
    return tensors


def _quantised(path: pathlib.Path, example: str, tensors: dict[str, np.ndarray]) -> str:
    """What to say of a file whose float weights are lost."""
    shapes = {name.replace("/offset", "/biases"): value.shape for name, value in tensors.items()}
    seems = identify(shapes)
    of = f"of {seems}, " if seems else ""
    return (
        f"{path}: a quantised file {of}whose float weights are lost ({example}); give the release's archive or its "
        "checkpoint as --checkpoint, which hold them in float"
    )
