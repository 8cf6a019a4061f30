"""Which delegates take a TFLite file as a whole, and which of its operators stop the others.

XNNPACK is asked: the file is opened with it. The others are not on this machine; what they take is
read from their sources and manuals, cited beside each rule and in docs/export.md.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from deeplab_keras.export.mixed_int8 import layer_name
from deeplab_keras.inference.exported import open_interpreter

SHOWN = 4  # layers that a line names of the operators of one kind


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a file.

    Attributes:
        name: as CONV_2D.
        tensor: name of what it gives; of an output of the file, the output's.
        types: of its inputs that are computed, and of its output, as FLOAT32.
        aligned: a resize with aligned corners.
        half_pixel: a resize with half-pixel centres.
    """

    name: str
    tensor: str
    types: tuple[str, ...]
    aligned: bool = False
    half_pixel: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a delegate makes of a file.

    Attributes:
        delegate: its name.
        stopped_by: the operators that it leaves to the CPU, by the reason; none: it takes the whole
            graph.
        pieces: into how many parts its share falls, where that is known.
    """

    delegate: str
    stopped_by: dict[str, list[Operator]]
    pieces: int | None = None

    def __str__(self) -> str:
        parts = ""
        if self.pieces is not None:
            parts = " in 1 piece" if self.pieces == 1 else f" in {self.pieces} pieces"
        if not self.stopped_by:
            return f"{self.delegate}: takes the whole graph{parts}"
        reasons = []
        for reason, found in self.stopped_by.items():
            layers = list(dict.fromkeys(layer_name(operator.tensor) for operator in found))
            names = ", ".join(layers[:SHOWN]) + (", ..." if len(layers) > SHOWN else "")
            reasons.append(f"{len(found)} x {reason} ({names})")
        return f"{self.delegate}: all{parts} but {'; '.join(reasons)}"


# What operators of segmentation networks each delegate takes.
ARITHMETIC = {
    "ADD", "SUB", "MUL", "CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MEAN", "CONCATENATION", "PAD", "RESHAPE",
    "RELU", "RELU6", "LOGISTIC", "MAXIMUM", "MINIMUM", "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "TRANSPOSE", "SPLIT",
    "FULLY_CONNECTED", "QUANTIZE",
}  # fmt: skip
# tensorflow/lite/tools/versioning/gpu_compatibility.cc, CheckGpuDelegateCompatibility
GPU = ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "BATCH_MATMUL", "SUM", "DIV"}
# LiteRT's ML Drift, the switch over builtin_code of its IR model builder; WebGPU in @litertjs/core
# runs on it
ML_DRIFT = GPU | {"ARG_MAX", "CAST"}
# tensorflow/lite/delegates/nnapi/nnapi_delegate.cc, Validate, for Android 11 and later
NNAPI = ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "ARG_MAX", "CAST", "SUM", "DIV"}
# https://coral.ai/docs/edgetpu/models-intro/#supported-operations
EDGE_TPU = ARITHMETIC | {"SUM"}
INTEGER = {"INT8", "UINT8", "INT32"}


def _gpu(operator: Operator) -> str:
    return "" if operator.name in GPU else operator.name


def _ml_drift(operator: Operator) -> str:
    if "INT64" in operator.types:
        return f"{operator.name} of int64"
    return "" if operator.name in ML_DRIFT else operator.name


def _nnapi(operator: Operator) -> str:
    if "INT64" in operator.types:
        return f"{operator.name} of int64"
    return "" if operator.name in NNAPI else operator.name


def _edge_tpu(operator: Operator) -> str:
    if not set(operator.types) <= INTEGER:
        return "operator in float"
    return "" if operator.name in EDGE_TPU else operator.name


def _old_nnapi(operator: Operator) -> str:
    if operator.aligned or operator.half_pixel:
        return (
            "RESIZE_BILINEAR with "
            f"{'aligned corners' if operator.aligned else 'half-pixel centres'}"
        )
    return _nnapi(operator)


# Delegate -> why it leaves an operator to the CPU, or nothing.
RULES: dict[str, Callable[[Operator], str]] = {
    "GPU (TFLite's delegate)": _gpu,
    "GPU and WebGPU (LiteRT)": _ml_drift,
    "NNAPI (Android 11 on)": _nnapi,
    "NNAPI (Android 10)": _old_nnapi,
    "Edge TPU": _edge_tpu,
}


def verdicts(path: pathlib.Path, threads: int = 1) -> list[Verdict]:
    """What each delegate makes of a TFLite file."""
    found = read_operators(path)
    return [
        _xnnpack(path, found, threads),
        *(_by_rule(name, rule, found) for name, rule in RULES.items()),
    ]


def read_operators(path: pathlib.Path) -> list[Operator]:
    """The operators of a TFLite file, in their order."""
    from tensorflow.lite.python import schema_py_generated as schema  # takes TensorFlow's import

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    operators = {
        value: name
        for name, value in vars(schema.BuiltinOperator).items()
        if isinstance(value, int)
    }
    types = {
        value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)
    }
    graph, buffers = model.subgraphs[0], model.buffers
    outputs = {
        int(one.tensorIndex): one.name.decode()
        for signature in model.signatureDefs or ()
        for one in signature.outputs
    }
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        options = operator.builtinOptions
        computed = [
            i for i in operator.inputs if i >= 0 and buffers[graph.tensors[i].buffer].data is None
        ]
        tensors = [graph.tensors[index] for index in (*computed, operator.outputs[0])]
        found.append(
            Operator(
                operators[max(code.builtinCode, code.deprecatedBuiltinCode)],
                outputs.get(int(operator.outputs[0]), tensors[-1].name.decode()),
                tuple(types[tensor.type] for tensor in tensors),
                bool(getattr(options, "alignCorners", False)),
                bool(getattr(options, "halfPixelCenters", False)),
            )
        )
    return found


def _by_rule(name: str, rule: Callable[[Operator], str], operators: Sequence[Operator]) -> Verdict:
    stopped: dict[str, list[Operator]] = collections.defaultdict(list)
    for operator in operators:
        if reason := rule(operator):
            stopped[reason].append(operator)
    return Verdict(name, dict(stopped))


def _xnnpack(path: pathlib.Path, operators: Sequence[Operator], threads: int) -> Verdict:
    """What XNNPACK has left over of a file that is opened with it, as interpreters do by themselves.

    The interpreter does not say so, but tells which tensors go into the delegate's pieces and which
    come out of them.
    """
    interpreter = open_interpreter(path, threads)
    details = interpreter._get_ops_details()
    pieces = [op for op in details[len(operators) :] if op["op_name"] == "DELEGATE"]
    inside = {int(index) for op in pieces for index in op["outputs"]}
    wanted = {int(index) for op in pieces for index in op["inputs"]}
    wanted |= {int(output["index"]) for output in interpreter.get_output_details()}
    stopped: dict[str, list[Operator]] = collections.defaultdict(list)
    for operator, op in reversed(list(zip(operators, details, strict=False))):
        outputs = {int(index) for index in op["outputs"]}
        if outputs & wanted and not outputs & inside:
            wanted |= {int(index) for index in op["inputs"]}
            stopped[operator.name].insert(0, operator)
    return Verdict("XNNPACK (CPU)", dict(stopped), len(pieces))
