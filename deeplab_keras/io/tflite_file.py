"""Checks TFLite files for truncation and damage, which would crash an interpreter."""

from __future__ import annotations

import math
import os
import pathlib
import struct
from types import ModuleType
from typing import Any

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.progress import without_noise

NO_RUNTIME = ".tflite files need LiteRT; pip install ai-edge-litert"
OUTPUTS = 8  # place of the offset of a graph's list of outputs in its vtable
NEXT_STEP = "download, copy or export it again"
# TensorType -> bits per value; other types have no fixed size.
BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT64": 64, "INT4": 4, "INT8": 8, "UINT8": 8,
    "INT16": 16, "UINT16": 16, "INT32": 32, "UINT32": 32, "INT64": 64, "UINT64": 64, "BOOL": 8,
    "COMPLEX64": 64, "COMPLEX128": 128,
}  # fmt: skip
LARGEST = 1 << 31  # bytes of a tensor
# Operator -> fields of its options that kernels divide by or allocate memory for.
POSITIVE = {
    "CONV_2D": ("strideH", "strideW", "dilationHFactor", "dilationWFactor"),
    "DEPTHWISE_CONV_2D": ("strideH", "strideW", "dilationHFactor", "dilationWFactor"),
    "TRANSPOSE_CONV": ("strideH", "strideW"),
    **dict.fromkeys(
        ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"),
        ("strideH", "strideW", "filterHeight", "filterWidth"),
    ),
}
# Operator -> the prefix of its options' name, if it differs from the operator's name.
OPTIONS = {
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"), "Pool2D"),
    **dict.fromkeys(
        ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"),
        "Reducer",
    ),
}


def check_tflite(path: str | os.PathLike[str]) -> None:
    """Reads every table of the file and checks that sizes, offsets and options are valid.

    Raises:
        UserError: The file is truncated, damaged or not a TFLite file, or neither LiteRT nor
            TensorFlow is installed.
    """
    schema = _schema()
    what = "TFLite file"
    with reading(path, f"a {what}", NEXT_STEP):
        content = pathlib.Path(path).read_bytes()
        try:
            if not schema.Model.ModelBufferHasIdentifier(content, 0):
                raise ValueError("it has another header")
            _check(schema.ModelT.InitFromPackedBuf(content, 0), len(content), schema)
        except MemoryError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise UserError(
                f"{path}: truncated, damaged or not a {what} ({reason}); {NEXT_STEP}"
            ) from error


def _schema() -> ModuleType:
    """Returns the generated classes of TFLite's tables; both packages contain them."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        try:
            with without_noise():
                from tensorflow.lite.python import schema_py_generated as schema
        except ImportError as error:
            raise UserError(NO_RUNTIME) from error
    return schema


def with_input_as_output(content: bytes, kind: str) -> tuple[bytes, int]:
    """Returns a TFLite file that also outputs what its first operator of a kind reads.

    The file is not parsed and written again, which would take as long as opening it, and three
    times its memory. A longer list of outputs is appended, and the offset of the list changed.

    Args:
        content: The content of a file that `check_tflite` has checked.
        kind: The operator, such as "ARG_MAX".

    Returns:
        The content of the changed file, and the index of the tensor.

    Raises:
        UserError: Neither LiteRT nor TensorFlow is installed.
    """
    schema = _schema()
    model = schema.Model.GetRootAs(content, 0)
    code, graph = getattr(schema.BuiltinOperator, kind), model.Subgraphs(0)
    operators = (graph.Operators(place) for place in range(graph.OperatorsLength()))
    index = next(
        int(operator.Inputs(0))
        for operator in operators
        if _kind_of(model.OperatorCodes(operator.OpcodeIndex())) == code
    )
    outputs = np.append(graph.OutputsAsNumpy(), index).astype("<i4")
    changed = bytearray(content)
    changed += bytes(-len(changed) % 4)  # lists are aligned
    field = graph._tab.Pos + graph._tab.Offset(OUTPUTS)
    struct.pack_into("<I", changed, field, len(changed) - field)
    changed += struct.pack("<I", len(outputs)) + outputs.tobytes()
    return bytes(changed), index


def output_names(content: bytes) -> list[str]:
    """Returns the names of the outputs of the first signature of a checked TFLite file."""
    model = _schema().Model.GetRootAs(content, 0)
    if model.SignatureDefsLength() == 0:
        return []
    signature = model.SignatureDefs(0)
    places = range(signature.OutputsLength())
    return [(signature.Outputs(place).Name() or b"").decode() for place in places]


def _kind_of(code: Any) -> int:
    """Returns what `_kind` returns, for a table that is not unpacked."""
    return max(code.BuiltinCode(), code.DeprecatedBuiltinCode())


def _kind(code: Any) -> int:
    """Returns the number of an operator's kind; old files have it in another field."""
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check(model: Any, size: int, schema: Any) -> None:
    types = {
        value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")
    }
    _require(
        model.version == 3 and bool(model.subgraphs) and bool(model.buffers),
        "it has no graph of version 3",
    )
    for buffer in model.buffers:
        _require(
            buffer.offset in (0, 1) or 0 < buffer.offset <= buffer.offset + buffer.size <= size,
            "a buffer reaches beyond the end",
        )
    for graph in model.subgraphs:
        _require(bool(graph.tensors), "a graph has no tensors")
        for index, tensor in enumerate(graph.tensors):
            _check_tensor(index, tensor, model.buffers, types)
        _check_order(model, graph, schema)
    for signature in model.signatureDefs or []:
        _require(signature.subgraphIndex < len(model.subgraphs), "a signature refers to no graph")
        tensors = len(model.subgraphs[signature.subgraphIndex].tensors)
        for entry in (*(signature.inputs or ()), *(signature.outputs or ())):
            _require(entry.tensorIndex < tensors, "a signature refers to no tensor")


def _check_tensor(index: int, tensor: Any, buffers: Any, types: dict[int, str]) -> None:
    name = f"tensor {index}"
    _require(
        tensor.type in types and tensor.buffer < len(buffers),
        f"{name} has no known type or no buffer",
    )
    shape = [int(length) for length in (() if tensor.shape is None else tensor.shape)]
    _require(
        len(shape) <= 8 and all(length >= 0 for length in shape), f"{name} has the shape {shape}"
    )
    bits = BITS.get(types[tensor.type])
    if bits is None:
        return
    needed = -(-math.prod(shape) * bits // 8)
    _require(needed < LARGEST, f"{name} takes {needed} bytes")
    data = buffers[tensor.buffer].data
    if data is not None and len(data) and tensor.sparsity is None:
        _require(len(data) == needed, f"{name} has {len(data)} bytes for the shape {shape}")
        if types[tensor.type] in ("FLOAT32", "FLOAT16"):
            values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), types[tensor.type].lower())
            _require(bool(np.isfinite(values).all()), f"{name} holds NaN or infinite values")
    scaling = tensor.quantization
    if scaling is not None and scaling.scale is not None and len(scaling.scale):
        scales = len(scaling.scale)
        fits = scales == 1 or (
            0 <= scaling.quantizedDimension < len(shape)
            and scales == shape[scaling.quantizedDimension]
        )
        zeros = 0 if scaling.zeroPoint is None else len(scaling.zeroPoint)
        _require(
            fits and zeros in (0, 1, scales),
            f"{name} has {scales} scales and {zeros} zero points for the shape {shape}",
        )


def _check_order(model: Any, graph: Any, schema: Any) -> None:
    """Checks that operators read only tensors written before, and have their own options."""
    operators = {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if not name.startswith("_")
    }
    options = {
        value: name
        for name, value in vars(schema.BuiltinOptions).items()
        if not name.startswith("_")
    }
    count = len(graph.tensors)
    ready = {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.isVariable or _has_data(tensor, model.buffers)
    }
    _require(
        all(0 <= index < count for index in (*graph.inputs, *graph.outputs)),
        "an input or output is not a tensor",
    )
    ready.update(map(int, graph.inputs))
    written = set(ready)
    for place, operator in enumerate(graph.operators or ()):
        _require(operator.opcodeIndex < len(model.operatorCodes), f"operator {place} has no code")
        code = model.operatorCodes[operator.opcodeIndex]
        kind = operators.get(_kind(code), "")
        inputs = [int(index) for index in (() if operator.inputs is None else operator.inputs)]
        outputs = [int(index) for index in (() if operator.outputs is None else operator.outputs)]
        _require(
            bool(kind) and bool(outputs), f"operator {place} is of an unknown kind or has no output"
        )
        _require(
            all(index == -1 or index in ready for index in inputs),
            f"operator {place} ({kind}) reads a tensor before it is written",
        )
        new = all(0 <= index < count and index not in written for index in outputs)
        _require(new, f"operator {place} ({kind}) overwrites a tensor")
        ready.update(outputs)
        written.update(outputs)
        own = options.get(operator.builtinOptionsType, "")
        expected = f"{OPTIONS.get(kind, kind.replace('_', ''))}Options".lower()
        known = expected in {name.lower() for name in options.values()}
        _require(
            own == "NONE" or not known or own.lower() == expected,
            f"operator {place} ({kind}) has the options {own}",
        )
        for field in POSITIVE.get(kind, ()):
            value = getattr(operator.builtinOptions, field, 0)
            _require(0 < value < 1 << 16, f"operator {place} ({kind}) has {field}={value}")
    _require(all(int(index) in ready for index in graph.outputs), "an output is never written")


def _has_data(tensor: Any, buffers: Any) -> bool:
    buffer = buffers[tensor.buffer]
    # A constant without values has no data either.
    empty = (
        tensor.shape is not None
        and len(tensor.shape) > 0
        and math.prod(map(int, tensor.shape)) == 0
    )
    return (buffer.data is not None and len(buffer.data) > 0) or buffer.offset > 1 or empty
