"""Reads TFLite files as a `Graph`, and runs them.

Weights with 8 bits are converted to floats by their scales and zero points.
"""

from __future__ import annotations

import copy
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
    "FAKE_QUANT": "IDENTITY", "QUANTIZE": "IDENTITY",
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
TYPE_NAMES = {
    value: name.lower()
    for name, value in vars(schema.TensorType).items()
    if not name.startswith("_")
}
FLOATS = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
EIGHT_BITS = (schema.TensorType.UINT8, schema.TensorType.INT8)
WIDE_INTEGERS = (schema.TensorType.INT32, schema.TensorType.INT64)  # of biases
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
        UserError: If the file is not a TFLite file, or has weights with less than 8 bits.
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
            self.quantized = any(
                self._subgraph.tensors[int(operator.inputs[1])].type in EIGHT_BITS
                for operator in self._convolutions()
            )

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
            # A file with float16 or 8-bit weights may first convert them to float32.
            if self._kind(producer) != "DEQUANTIZE":
                return None
            index = int(producer.inputs[0])
            stored = self._dequantized(index)
            return None if stored is None else stored.astype(np.float32)
        return self._dequantized(index)

    def run(
        self, tensors: Sequence[str], feed: dict[str, np.ndarray], *, rounded: bool = True
    ) -> list[np.ndarray]:
        """Computes the values of tensors from the given value of the input.

        A float value is rounded for an 8-bit input, and the values of 8-bit tensors are returned as
        floats.

        Args:
            tensors: The names of the tensors.
            feed: The given value by the name of the input.
            rounded: Whether to run a file with 8-bit weights unchanged, in 8-bit arithmetic.
                `False` computes in float32 with the same weights.
        """
        model = self._model if rounded or not self.quantized else self._exact
        key = (model is self._model, tuple(tensors))
        if key not in self._interpreters:
            self._interpreters[key] = self._open(model, tensors)
        interpreter = self._interpreters[key]
        (details,) = interpreter.get_input_details()
        (value,) = feed.values()
        if np.issubdtype(value.dtype, np.floating) and np.issubdtype(details["dtype"], np.integer):
            scale, zero_point = details["quantization"]
            limits = np.iinfo(details["dtype"])
            value = np.clip(np.round(value / scale + zero_point), limits.min, limits.max)
        interpreter.set_tensor(details["index"], np.ascontiguousarray(value, details["dtype"]))
        interpreter.invoke()
        values = [interpreter.get_tensor(int(name)) for name in tensors]
        return [
            self._as_floats(int(name), value) if np.issubdtype(value.dtype, np.integer) else value
            for name, value in zip(tensors, values, strict=True)
        ]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Returns a tensor's shape."""
        return tuple(map(int, self._subgraph.tensors[int(name)].shape))

    def dtype(self, name: str) -> np.dtype:
        """Returns a tensor's type."""
        return np.dtype(TYPES[self._subgraph.tensors[int(name)].type])

    @functools.cached_property
    def _interpreters(self) -> dict[tuple[bool, tuple[str, ...]], Any]:
        return {}

    @staticmethod
    def _open(model: Any, tensors: Sequence[str]) -> Any:
        """Returns an interpreter of the same graph with other outputs."""
        (subgraph,) = model.subgraphs
        own, subgraph.outputs = subgraph.outputs, np.array(tensors, np.int32)
        signatures, model.signatureDefs = model.signatureDefs, None
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        subgraph.outputs, model.signatureDefs = own, signatures
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
    def _exact(self) -> Any:
        """The model with all weights and features as floats."""
        model = copy.deepcopy(self._model)
        (subgraph,) = model.subgraphs
        for index, tensor in enumerate(subgraph.tensors):
            if index not in self._bias_scales and (
                tensor.type not in EIGHT_BITS or self._scales(index) is None
            ):
                continue
            values = self._dequantized(index)
            if values is not None:
                buffer = schema.BufferT()
                buffer.data = np.frombuffer(values.tobytes(), np.uint8)
                model.buffers.append(buffer)
                tensor.buffer = len(model.buffers) - 1
            tensor.type, tensor.quantization = schema.TensorType.FLOAT32, None
        same: dict[int, int] = {}
        operators = []
        for operator in subgraph.operators:
            operator.inputs = np.array(
                [same.get(int(i), int(i)) for i in operator.inputs], np.int32
            )
            types = {subgraph.tensors[int(i)].type for i in (*operator.inputs, *operator.outputs)}
            converts = self._kind(operator) in ("QUANTIZE", "DEQUANTIZE")
            if converts and types == {schema.TensorType.FLOAT32}:
                same[int(operator.outputs[0])] = int(operator.inputs[0])
            else:
                operators.append(operator)
        subgraph.operators = operators
        return model

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

    def _dequantized(self, index: int) -> np.ndarray | None:
        """Returns a stored value, as float32 if it has 8 bits; `None` if it is not stored."""
        stored = self._buffer(index)
        if stored is None or self._subgraph.tensors[index].type in FLOATS:
            return stored
        if index in self._bias_scales:
            return (stored * self._bias_scales[index]).astype(np.float32)
        return self._as_floats(index, stored)

    def _as_floats(self, index: int, values: np.ndarray) -> np.ndarray:
        """Returns (values - zero point) * scale for a tensor with 8 bits, and others unchanged."""
        tensor = self._subgraph.tensors[index]
        scales = self._scales(index)
        if scales is None or tensor.type not in EIGHT_BITS:
            return values
        zero_points = np.asarray(tensor.quantization.zeroPoint, np.float64)
        shape = [1] * values.ndim
        if scales.size > 1:  # one per channel
            shape[tensor.quantization.quantizedDimension] = scales.size
        if zero_points.size > 1:
            zero_points = zero_points.reshape(shape)
        return ((values - zero_points) * scales.reshape(shape)).astype(np.float32)

    def _scales(self, index: int) -> np.ndarray | None:
        quantization = self._subgraph.tensors[index].quantization
        if quantization is None or quantization.scale is None or not len(quantization.scale):
            return None
        scales = np.asarray(quantization.scale, np.float64)
        if not (scales > 0).all():
            raise UserError(
                f"{self.path}: damaged (tensor {index} has a scale that is not positive); "
                "download, copy or export it again"
            )
        return scales

    @functools.cached_property
    def _bias_scales(self) -> dict[int, np.ndarray]:
        """Integer bias -> its scale: that of the layer's input times those of its kernel."""
        found = {}
        for operator in self._convolutions():
            image, kernel, *bias = map(int, operator.inputs)
            scales = self._scales(image), self._scales(kernel)
            if bias and bias[0] >= 0 and self._subgraph.tensors[bias[0]].type in WIDE_INTEGERS:
                if scales[0] is None or scales[1] is None:
                    raise UserError(
                        f"{self.path}: {self._name(bias[0])} is an integer bias without scales; "
                        "export the file again"
                    )
                found[bias[0]] = scales[0] * scales[1]
        return found

    def _convolutions(self) -> list[Any]:
        """Returns the operators with a kernel."""
        kinds = ("CONV_2D", "DEPTHWISE_CONV_2D")
        return [op for op in self._subgraph.operators if self._kind(op) in kinds]

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
        elif own == "DEQUANTIZE" or (own == "TILE" and self._enlarges_one_pixel(operator)):
            kind = "IDENTITY"
        names = tuple(self._name(index) for index in (*map(self._source, indices[1:]), output))
        inputs = [
            str(index) for index in (indices[:1] if kind.split()[0] in FIRST_ONLY else indices)
        ]
        if kind in ("CONV", "DEPTHWISE"):
            inputs[1] += "/kernel"
        return Op(kind, tuple(inputs), str(output), names, attributes)

    def _enlarges_one_pixel(self, operator: Any) -> bool:
        """Whether a TILE does what resizing does: it repeats a map of one pixel."""
        source, multiples = map(int, operator.inputs)
        counts, shape = self._buffer(multiples), self._subgraph.tensors[source].shape
        return (
            counts is not None
            and len(shape) == 4
            and tuple(shape[1:3]) == (1, 1)
            and counts.size == 4
            and counts[0] == counts[3] == 1
        )

    def _check_types(self) -> None:
        """Checks that kernels and biases are floats or have at least 8 bits."""
        shapes, example = {}, ""
        for operator in self._convolutions():
            indices = [self._source(int(index)) for index in operator.inputs[1:] if index >= 0]
            layer = layer_name(
                tuple(self._name(index) for index in (*indices, int(operator.outputs[0])))
            )
            tensors = [self._subgraph.tensors[index] for index in indices]
            integers = {"weights": EIGHT_BITS, "biases": WIDE_INTEGERS}
            for tensor, name in zip(tensors, integers, strict=False):
                shapes[f"{layer}/{name}"] = tuple(tensor.shape)
                if tensor.type not in (*FLOATS, *integers[name]):
                    example = (
                        example
                        or f"{tensor.name.decode(errors='replace')} is "
                        f"{TYPE_NAMES.get(tensor.type, 'of an unknown type')}"
                    )
        if example:
            identity = identify(shapes)
            of = f"of {identity}, " if identity else ""
            raise UserError(
                f"{self.path}: a quantized file {of}which neither has float nor 8-bit weights "
                f"({example}); give the release's archive or its checkpoint"
            )

    def _source(self, index: int) -> int:
        producer = self._producers.get(index)
        return (
            int(producer.inputs[0])
            if producer is not None and self._kind(producer) == "DEQUANTIZE"
            else index
        )
