"""Which delegates can run a whole TFLite file, and which operators prevent it.

For XNNPACK this is measured, by opening the file with it. The other delegates are not available
here. `RULES` has the operators that they support, each with the source or manual that says so.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

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
        inputs: The indices of its non-constant input tensors.
        outputs: The indices of its output tensors.
    """

    name: str
    tensor: str
    types: tuple[str, ...]
    aligned: bool = False
    half_pixel: bool = False
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


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
        if not self.stopped_by:
            return f"{self.delegate}: runs the whole graph"
        reasons = []
        for reason, found in self.stopped_by.items():
            layers = list(dict.fromkeys(layer_name(operator.tensor) for operator in found))
            names = ", ".join(layers[:SHOWN]) + (", ..." if len(layers) > SHOWN else "")
            reasons.append(f"{len(found)} x {reason} ({names})")
        if self.pieces == 0:
            return f"{self.delegate}: runs nothing: {'; '.join(reasons)}"
        parts = ""
        if self.pieces is not None:
            parts = " in 1 piece" if self.pieces == 1 else f" in {self.pieces} pieces"
        return f"{self.delegate}: runs all{parts} except {'; '.join(reasons)}"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which operators a delegate supports, according to its source.

    Attributes:
        delegate: The delegate's name.
        source: The address of the source or manual.
        operators: The operators of segmentation networks that it supports.
        refused_types: Types of tensors that it does not take -> how the reason is worded, with the
            operator's name as `{}`.
        resizes: Whether it supports resizes with aligned corners and half-pixel centers.
    """

    delegate: str
    source: str
    operators: frozenset[str]
    refused_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resizes: bool = True

    def reason(self, operator: Operator) -> str:
        """Returns why the delegate leaves an operator to the CPU, or an empty string."""
        for kind in operator.types:
            if kind in self.refused_types:
                return self.refused_types[kind].format(operator.name)
        if operator.name not in self.operators:
            return operator.name
        if not self.resizes and (operator.aligned or operator.half_pixel):
            grid = "aligned corners" if operator.aligned else "half-pixel centers"
            return f"{operator.name} with {grid}"
        return ""


# Supported by all delegates below.
ARITHMETIC = frozenset({
    "ADD", "SUB", "MUL", "CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MEAN",
    "CONCATENATION", "PAD", "RESHAPE", "RELU", "RELU6", "LOGISTIC", "MAXIMUM", "MINIMUM",
    "RESIZE_BILINEAR", "SOFTMAX", "STRIDED_SLICE", "TRANSPOSE", "SPLIT", "FULLY_CONNECTED",
    "QUANTIZE",
})  # fmt: skip
TENSORFLOW = "https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite"
LITERT = "https://github.com/google-ai-edge/LiteRT/blob/main"
NO_INT64 = {"INT64": "{} of int64"}
RULES = (
    Rule(
        "GPU (TFLite's delegate)",
        f"{TENSORFLOW}/tools/versioning/gpu_compatibility.cc",
        ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "BATCH_MATMUL", "SUM", "DIV"},
    ),
    Rule(
        "GPU and WebGPU (LiteRT)",
        f"{LITERT}/ml_drift_delegate/tflite/ir_model_builder.cc",
        ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "BATCH_MATMUL", "SUM", "DIV", "ARG_MAX", "CAST"},
        NO_INT64,
    ),
    Rule(
        "NPU of Qualcomm (LiteRT)",
        f"{LITERT}/litert/vendors/qualcomm/compiler/Qualcomm_QNN_Compiler.md",
        ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "BATCH_MATMUL", "SUM", "DIV", "ARG_MAX", "CAST"},
    ),
    Rule(
        "NPU of MediaTek (LiteRT)",
        f"{LITERT}/litert/vendors/mediatek/compiler/MediaTek_Neuro_Compiler.md",
        ARITHMETIC - {"RELU6"} | {"DEQUANTIZE", "HARD_SWISH", "BATCH_MATMUL", "SUM", "DIV", "CAST"},
        NO_INT64,
    ),
    Rule(
        "NNAPI (Android 11 and later)",
        f"{TENSORFLOW}/delegates/nnapi/nnapi_delegate.cc",
        ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "ARG_MAX", "CAST", "SUM", "DIV"},
        NO_INT64,
    ),
    Rule(
        "NNAPI (Android 10)",
        f"{TENSORFLOW}/delegates/nnapi/nnapi_delegate.cc",
        ARITHMETIC | {"DEQUANTIZE", "HARD_SWISH", "ARG_MAX", "CAST", "SUM", "DIV"},
        NO_INT64,
        resizes=False,
    ),
    Rule(
        "Edge TPU",
        "https://coral.ai/docs/edgetpu/models-intro/#supported-operations",
        ARITHMETIC | {"SUM"},
        dict.fromkeys(("FLOAT32", "FLOAT16"), "float operator") | NO_INT64,
    ),
)


def verdicts(path: pathlib.Path, threads: int = 1) -> list[Verdict]:
    """Returns what each delegate does with a TFLite file."""
    found = read_operators(path)
    return [
        _xnnpack(path, found, threads),
        *(_by_rule(rule, found) for rule in RULES),
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
                tuple(int(index) for index in computed),
                tuple(int(index) for index in operator.outputs),
            )
        )
    return found


def partition(operators: Sequence[Operator], supported: Sequence[bool]) -> int:
    """Returns in how many subgraphs TFLite runs the supported operators of a file.

    As `PartitionGraphIntoIndependentNodeSubsets` in tensorflow/lite/graph_info.cc: operators of one
    kind, supported or not, form a subgraph until none of them has all of its inputs.
    """
    missing = {index for operator in operators for index in operator.outputs}
    left, pieces = list(range(len(operators))), 0
    while left:
        kind, grows = None, True
        while grows:
            grows = False
            for place in list(left):
                ready = missing.isdisjoint(operators[place].inputs)
                if ready and kind in (None, supported[place]):
                    kind, grows = supported[place], True
                    missing.difference_update(operators[place].outputs)
                    left.remove(place)
        pieces += bool(kind)
    return pieces


def _by_rule(rule: Rule, operators: Sequence[Operator]) -> Verdict:
    reasons = [rule.reason(operator) for operator in operators]
    stopped: dict[str, list[Operator]] = collections.defaultdict(list)
    for operator, reason in zip(operators, reasons, strict=True):
        if reason:
            stopped[reason].append(operator)
    pieces = partition(operators, [not reason for reason in reasons])
    return Verdict(rule.delegate, dict(stopped), pieces)


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
