"""Reads float TFLite files as a `Graph`, and runs them."""

from __future__ import annotations

import functools
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from deeplab_keras.config import UserError
from deeplab_keras.convert.graphs import (
    ConvolutionGraph,
    Graph,
    Op,
    find_convolutions,
    is_global_pooling,
)
from deeplab_keras.convert.identify import identify
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.tflite_file import check_tflite

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:  # TensorFlow still has it, too
    import tensorflow as tf

    Interpreter, OpResolverType = tf.lite.Interpreter, tf.lite.experimental.OpResolverType

KINDS = {
    "CONV_2D": "CONV", "DEPTHWISE_CONV_2D": "DEPTHWISE", "ADD": "ADD", "SUB": "SUB", "MUL": "MUL",
    "RELU": "RELU", "RELU6": "RELU6", "HARD_SWISH": "HARD_SWISH", "LOGISTIC": "SIGMOID",
    "AVERAGE_POOL_2D": "POOL", "MEAN": "MEAN", "RESIZE_BILINEAR": "RESIZE",
    "CONCATENATION": "CONCAT", "PAD": "PAD", "SPACE_TO_BATCH_ND": "SPACE_TO_BATCH",
    "BATCH_TO_SPACE_ND": "BATCH_TO_SPACE", "SOFTMAX": "SOFTMAX", "ARG_MAX": "ARGMAX",
    "FAKE_QUANT": "FAKE_QUANT",
}  # fmt: skip
FIRST_ONLY = ("RESIZE", "PAD", "SPACE_TO_BATCH", "BATCH_TO_SPACE", "MEAN", "ARGMAX")
OPERATORS = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}
ACTIVATIONS = {
    value: name
    for name, value in vars(schema.ActivationFunctionType).items()
    if not name.startswith("_")
}
TYPES = {
    schema.TensorType.FLOAT32: np.float32,
    schema.TensorType.FLOAT16: np.float16,
    schema.TensorType.INT32: np.int32,
    schema.TensorType.UINT8: np.uint8,
    schema.TensorType.INT8: np.int8,
    schema.TensorType.INT64: np.int64,
}
# Transposes [out, height, width, in] and [1, height, width, channels] to TF1's axes.
TO_TF1 = (1, 2, 3, 0)
VALID = schema.Padding.VALID
LAYER = re.compile(
    r"(Mobilenet\w+/(?:expanded_conv(?:_\d+)?/"
    r"(?:expand|depthwise|project|squeeze_excite/Conv(?:_1)?)|Conv(?:_\d)?)"
    r"|image_pooling|aspp\d+(?:_depthwise|_pointwise)?|concat_projection|logits/semantic(?:_\d+)?"
    r"|decoder/\w+(?:/decoder_conv\w+)?)/"
)


def layer_name(names: Sequence[str]) -> str:
    """Returns the official layer name in the first of these names that has one, or ""."""
    return next((match[1] for name in names for match in LAYER.finditer(name + "/")), "")


class TFLiteGraph:
    """An open TFLite file.

    Args:
        path: A .tflite file.

    Raises:
        UserError: If the file is not a TFLite file, or has quantized weights.
    """

    kind = "TFLite file"
    runtime = "LiteRT"

    def __init__(self, path: pathlib.Path) -> None:
        check_tflite(path)
        self.path = path
        with reading(path, "a TFLite file"):
            self._model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
            (self._subgraph,) = self._model.subgraphs
            self._check_types()

    @functools.cached_property
    def network(self) -> ConvolutionGraph:
        """The convolutions.

        Raises:
            UserError: If a convolution has no constant kernel.
        """
        with reading(self.path, "a TFLite file"):
            ops = [self._op(operator) for operator in self._subgraph.operators]
            outputs = tuple(map(str, self._subgraph.outputs))
            return find_convolutions(Graph(ops, self.constant, self.image, outputs, str(self.path)))

    layer_name = staticmethod(layer_name)

    @property
    def image(self) -> str:
        """The name of the only input, or ""."""
        return str(self._subgraph.inputs[0]) if len(self._subgraph.inputs) == 1 else ""

    def constant(self, name: str) -> np.ndarray | None:
        """Returns the value of a constant tensor, else `None`. Kernels are in TF1's axes."""
        number, _, kernel = name.partition("/")
        if kernel:
            value = self.constant(number)
            return value if value is None else np.ascontiguousarray(value.transpose(TO_TF1))
        index = int(number)
        producer = self._producers.get(index)
        if producer is not None:
            # A float16 file first converts its weights to float32.
            halves = self._kind(producer) == "DEQUANTIZE" and self._buffer(producer.inputs[0])
            return halves.astype(np.float32) if isinstance(halves, np.ndarray) else None
        return self._buffer(index)

    def run(self, tensors: Sequence[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Computes the values of tensors from the given value of the input."""
        key = tuple(tensors)
        if key not in self._interpreters:
            self._interpreters[key] = self._open(key)
        interpreter = self._interpreters[key]
        (details,) = interpreter.get_input_details()
        (value,) = feed.values()
        interpreter.set_tensor(details["index"], np.ascontiguousarray(value, details["dtype"]))
        interpreter.invoke()
        return [interpreter.get_tensor(int(name)) for name in tensors]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Returns a tensor's shape."""
        return tuple(map(int, self._subgraph.tensors[int(name)].shape))

    def dtype(self, name: str) -> np.dtype:
        """Returns a tensor's type."""
        return np.dtype(TYPES[self._subgraph.tensors[int(name)].type])

    @functools.cached_property
    def _interpreters(self) -> dict[tuple[str, ...], Any]:
        return {}

    def _open(self, tensors: tuple[str, ...]) -> Any:
        """Returns an interpreter of the same graph with other outputs."""
        own, self._subgraph.outputs = self._subgraph.outputs, np.array(tensors, np.int32)
        signatures, self._model.signatureDefs = self._model.signatureDefs, None
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        self._subgraph.outputs, self._model.signatureDefs = own, signatures
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tf.lite is moving to ai-edge-litert
            resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            content = bytes(builder.Output())
            interpreter = Interpreter(
                model_content=content, experimental_op_resolver_type=resolver, num_threads=2
            )
            interpreter.allocate_tensors()
        return interpreter

    @functools.cached_property
    def _producers(self) -> dict[int, Any]:
        return {int(operator.outputs[0]): operator for operator in self._subgraph.operators}

    def _kind(self, operator: Any) -> str:
        code = self._model.operatorCodes[operator.opcodeIndex]
        return OPERATORS.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")

    def _buffer(self, index: int) -> np.ndarray | None:
        tensor = self._subgraph.tensors[index]
        data = self._model.buffers[tensor.buffer].data
        if data is None or len(data) == 0 or tensor.type not in TYPES:
            return None
        shape = () if tensor.shape is None else tuple(tensor.shape)
        return np.frombuffer(np.asarray(data, np.uint8).tobytes(), TYPES[tensor.type]).reshape(
            shape
        )

    def _name(self, index: int) -> str:
        return (self._subgraph.tensors[index].name or b"").decode(errors="replace")

    def _op(self, operator: Any) -> Op:
        own, options = self._kind(operator), operator.builtinOptions
        kind = KINDS.get(own, own)
        indices = [int(index) for index in operator.inputs if index >= 0]
        output = int(operator.outputs[0])
        attributes: dict[str, Any] = {}
        activation = ACTIVATIONS.get(
            getattr(options, "fusedActivationFunction", 0), "unknown activation"
        )
        if activation != "NONE":
            attributes["activation"] = activation
        if kind in ("CONV", "DEPTHWISE"):
            attributes |= {
                "stride": (options.strideH, options.strideW),
                "dilation": (options.dilationHFactor, options.dilationWFactor),
                "padding": "valid" if options.padding == VALID else "same",
            }
        elif kind == "POOL":
            attributes |= {
                "window": (options.filterHeight, options.filterWidth),
                "stride": (options.strideH, options.strideW),
            }
            kind = "POOL" if options.padding == VALID else "POOL with padding"
        elif kind == "MEAN" and is_global_pooling(self._buffer(indices[1])):
            kind, attributes = "POOL", {"window": None, "stride": (1, 1)}
        elif kind == "RESIZE":
            attributes |= {
                "align_corners": bool(options.alignCorners),
                "half_pixel_centers": bool(options.halfPixelCenters),
            }
        elif kind in ("SPACE_TO_BATCH", "BATCH_TO_SPACE"):
            block, pads = self._buffer(indices[1]), self._buffer(indices[2])
            attributes |= {"block": None if block is None else tuple(block.tolist()), "pads": pads}
        elif own == "DEQUANTIZE" and self.constant(str(output)) is not None:
            kind = "IDENTITY"
        names = tuple(self._name(index) for index in (*map(self._source, indices[1:]), output))
        inputs = [
            str(index) for index in (indices[:1] if kind.split()[0] in FIRST_ONLY else indices)
        ]
        if kind in ("CONV", "DEPTHWISE"):
            inputs[1] += "/kernel"
        return Op(kind, tuple(inputs), str(output), names, attributes)

    def _check_types(self) -> None:
        """Checks that no kernel is quantized."""
        shapes, example = {}, ""
        for operator in self._subgraph.operators:
            if self._kind(operator) not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                continue
            indices = [self._source(int(index)) for index in operator.inputs[1:] if index >= 0]
            layer = layer_name(
                tuple(self._name(index) for index in (*indices, int(operator.outputs[0])))
            )
            tensors = [self._subgraph.tensors[index] for index in indices]
            for tensor, name in zip(tensors, ("weights", "biases"), strict=False):
                shapes[f"{layer}/{name}"] = tuple(tensor.shape)
                if tensor.type not in (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16):
                    example = (
                        example
                        or f"{tensor.name.decode(errors='replace')} is "
                        f"{np.dtype(TYPES.get(tensor.type, np.void))}"
                    )
        if example:
            identity = identify(shapes)
            of = f"of {identity}, " if identity else ""
            raise UserError(
                f"{self.path}: a quantized file {of}which no longer has the float weights "
                f"({example}); give the release's archive or its checkpoint, which have them"
            )

    def _source(self, index: int) -> int:
        producer = self._producers.get(index)
        return (
            int(producer.inputs[0])
            if producer is not None and self._kind(producer) == "DEQUANTIZE"
            else index
        )
