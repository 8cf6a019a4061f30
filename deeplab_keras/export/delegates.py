"""Which delegates can run a whole TFLite file, and which operators prevent it.

For XNNPACK this is measured, by opening the file with it. The other delegates are not available
here; the operators that they support come from their sources and manuals, cited at each rule and in
docs/export.md.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from deeplab_keras.export.mixed_int8 import layer_name
from deeplab_keras.inference.exported import open_interpreter

SHOWN = 4  # layers listed per kind of operator


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a file.

    Attributes:
        name: The operator's name, such as CONV_2D.
        tensor: The name of its output tensor. For an output of the file, the output's name.
        types: The types of its non-constant inputs and of its output, such as FLOAT32.
        aligned: Whether it is a resize with aligned corners.
        half_pixel: Whether it is a resize with half-pixel centers.
    """

    name: str
    tensor: str
    types: tuple[str, ...]
    aligned: bool = False
    half_pixel: bool = False


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a delegate does with a file.

    Attributes:
        delegate: The delegate's name.
        stopped_by: The operators that it leaves to the CPU, by reason. Empty if it runs the whole
            graph.
        pieces: The number of subgraphs that it runs, if known.
    """

    delegate: str
    stopped_by: dict[str, list[Operator]]
    pieces: int | None = None

    def __str__(self) -> str:
        parts = ""
        if self.pieces is not None:
            parts = " in 1 piece" if self.pieces == 1 else f" in {self.pieces} pieces"
        if not self.stopped_by:
            return f"{self.delegate}: runs the whole graph{parts}"
        reasons = []
        for reason, found in self.stopped_by.items():
            layers = list(dict.fromkeys(layer_name(operator.tensor) for operator in found))
            names = ", ".join(layers[:SHOWN]) + (", ..." if len(layers) > SHOWN else "")
            reasons.append(f"{len(found)} x {reason} ({names})")
        return f"{self.delegate}: runs all{parts} except {'; '.join(reasons)}"


# The operators of segmentation networks that each delegate supports.
ARITHMETIC = {
    "ADD", "SUB", "MUL", "CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MEAN",
    "CONCATENATION", "PAD", "RESHAPE", "RELU", "RELU6", "LOGISTIC", "MAXIMUM", "MINIMUM",
    "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "TRANSPOSE", "SPLIT", "FULLY_CONNECTED",
    "QUANTIZE",
}  # fmt: skip
# tensorflow/lite/tools/versioning/gpu_compatibility.cc, CheckGpuDelegateCompatibility
GPU = ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "BATCH_MATMUL", "SUM", "DIV"}
# LiteRT's ML Drift: the switch over builtin_code of its IR model builder. @litertjs/core uses it
# for WebGPU.
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
        return "float operator"
    return "" if operator.name in EDGE_TPU else operator.name


def _old_nnapi(operator: Operator) -> str:
    if operator.aligned or operator.half_pixel:
        return (
            "RESIZE_BILINEAR with "
            f"{'aligned corners' if operator.aligned else 'half-pixel centers'}"
        )
    return _nnapi(operator)


# Delegate -> function that returns why it leaves an operator to the CPU, or "".
RULES: dict[str, Callable[[Operator], str]] = {
    "GPU (TFLite's delegate)": _gpu,
    "GPU and WebGPU (LiteRT)": _ml_drift,
    "NNAPI (Android 11 and later)": _nnapi,
    "NNAPI (Android 10)": _old_nnapi,
    "Edge TPU": _edge_tpu,
}


def verdicts(path: pathlib.Path, threads: int = 1) -> list[Verdict]:
    """Returns what each delegate does with a TFLite file."""
    found = read_operators(path)
    return [
        _xnnpack(path, found, threads),
        *(_by_rule(name, rule, found) for name, rule in RULES.items()),
    ]


def read_operators(path: pathlib.Path) -> list[Operator]:
    """Returns the operators of a TFLite file in execution order."""
    from tensorflow.lite.python import schema_py_generated as schema  # slow: imports TensorFlow

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
    """Finds the operators that XNNPACK, the default delegate, leaves to the CPU kernels.

    The interpreter does not list them. It lists the input and output tensors of the delegate's
    subgraphs, from which they follow.
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
