"""A converted graph computes the same as its source, or is refused in one line.

The graphs are intact ones, mutated ones and real files.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import flatbuffers
import keras
import numpy as np
import official_graphs
import pytest
import tensorflow as tf
from contracts import SHARED, as_command_line, raises_line, script
from official_golden import LRASPP, drawn_tensors
from tensorflow.lite.python import schema_py_generated as schema

from deeplab_keras.checkpoints.folder import named_weights
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, UserError
from deeplab_keras.convert import official_deeplab
from deeplab_keras.convert.conversion import convert
from deeplab_keras.convert.transfer import dump_weights
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.evaluation.loop import evaluate
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import open_interpreter
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.official import OFFICIAL, official_config

SIZE = (65, 97)
CONFIGS = {
    "v2": official_config(
        depth_multiplier=0.35, num_classes=5, atrous_rates=(2, 3), aspp_convs_filters=16
    ),
    "v3": official_config(
        "mobilenet_v3_small_seg",
        **LRASPP
        | dict(
            image_pooling_crop_size=(33, 65), image_pooling_stride=(1, 2), aspp_convs_filters=16
        ),
    ),
}
FLAGS: dict[str, dict[str, Any]] = {"v2": {"rates": (2, 3)}, "v3": {"pool": ((3, 5), (1, 2))}}


class Case:
    """A network, its weights, and the graphs made of them once."""

    def __init__(self, name: str) -> None:
        self.config: ModelConfig = CONFIGS[name]
        self.flags = FLAGS[name] | {"output_stride": 16}
        self.model = build_segmentor(self.config)
        self.tensors = drawn_tensors(self.model, self.config)
        self.files: dict[str, bytes] = {}

    def graph(self, **changes: Any) -> tf.compat.v1.GraphDef:
        return official_graphs.frozen(self.tensors, SIZE, **(self.flags | changes))

    def tflite(self) -> schema.ModelT:
        if "tflite" not in self.files:
            self.files["tflite"] = official_graphs.tflite(self.graph(raw=False))
        return schema.ModelT.InitFromPackedBuf(self.files["tflite"], 0)


@pytest.fixture(scope="module")
def cases():
    return functools.cache(Case)


def images() -> list[np.ndarray]:
    """Images that differ from the converter's."""
    random = np.random.default_rng(7)
    coarse = random.integers(0, 256, (2, 9, 13, 3)).astype(np.uint8)
    large = [np.kron(image, np.ones((8, 8, 1), np.uint8))[: SIZE[0], : SIZE[1]] for image in coarse]
    return [*large, random.integers(0, 256, (*SIZE, 3)).astype(np.uint8)]


def agrees(model: keras.Model, run: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether model and source compute the same labels and logits."""
    same, difference, largest = [], 0.0, 0.0
    for image in images():
        theirs, ours = run(image), np.asarray(model(image[None].astype(np.float32)))
        same.append(np.mean(theirs.argmax(-1) == ours.argmax(-1)))
        difference, largest = (
            max(difference, np.abs(theirs - ours).max()),
            max(largest, np.abs(theirs).max()),
        )
    return bool(np.mean(same) >= 0.999 and difference <= 1e-3 * largest)


def refused_or_right(
    case: Case, path: pathlib.Path, run: Callable[[np.ndarray], np.ndarray]
) -> str:
    """Returns the error, or "" for a correct conversion; fails for a wrong one."""
    try:
        official_deeplab.load(case.model, case.config, str(path))
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return str(error)
    assert agrees(case.model, run), "converted without an error, but computes something else"
    return ""


# === Intact graphs ===


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fold", [False, True])
def test_an_intact_frozen_graph(cases, name, fold, tmp_path):
    case, path = cases(name), tmp_path / "graph.pb"
    graph = case.graph(fold=fold)
    path.write_bytes(graph.SerializeToString())
    proof = official_deeplab.load(case.model, case.config, str(path))
    assert "100.0000 % of the labels are equal" in str(
        proof
    ) and "3 images of 65x97, TensorFlow compared with Keras" in str(proof)
    assert agrees(case.model, lambda image: official_graphs.run(graph, image))
    if not fold:
        found = dump_weights(case.model, official_deeplab.rules(case.config))
        for tensor, value in case.tensors.items():
            assert np.array_equal(found[tensor], value), tensor


@pytest.mark.parametrize("name", CONFIGS)
def test_an_intact_tflite_file(cases, name, tmp_path):
    case, path = cases(name), tmp_path / "model.tflite"
    path.write_bytes(packed(case.tflite()))
    proof = official_deeplab.load(case.model, case.config, str(path))
    assert "LiteRT compared with Keras" in str(
        proof
    ) and "normalization=unit_range is from the config and unproven" in str(proof)
    graph = case.graph(raw=False)
    assert agrees(case.model, lambda image: official_graphs.run(graph, image))


@pytest.mark.slow
def test_a_tflite_file_without_names_is_matched_by_its_structure(cases, tmp_path):
    case, path = cases("v2"), tmp_path / "model.tflite"
    model = case.tflite()
    for tensor in model.subgraphs[0].tensors:
        tensor.name = b"std.constant"
    path.write_bytes(packed(model))
    official_deeplab.load(case.model, case.config, str(path))
    graph = case.graph(raw=False)
    assert agrees(case.model, lambda image: official_graphs.run(graph, image))
    with raises_line("do not have the names of an official DeepLab; omit --check=false"):
        official_deeplab.load(case.model, case.config, str(path), check=False)


@pytest.mark.slow
def test_dilated_kernels_that_are_stuffed_with_zeros(cases, tmp_path):
    """A 3x3 kernel at rate 2 stored as 5x5."""
    case, path = cases("v2"), tmp_path / "graph.pb"
    stuffed = dict(case.tensors)
    for index, rate in ((1, 2), (2, 3)):
        kernel = stuffed[f"aspp{index}_depthwise/depthwise_weights"]
        larger = np.zeros((2 * rate + 1, 2 * rate + 1, *kernel.shape[2:]), np.float32)
        larger[::rate, ::rate] = kernel
        stuffed[f"aspp{index}_depthwise/depthwise_weights"] = larger
    graph = official_graphs.frozen(stuffed, SIZE, output_stride=16, rates=(1, 1))
    path.write_bytes(graph.SerializeToString())
    official_deeplab.load(case.model, case.config, str(path))
    original = case.graph()
    assert agrees(case.model, lambda image: official_graphs.run(original, image))


# === Flags ===


@pytest.mark.parametrize(
    "name, changes, flags",
    [
        ("v2", {"output_stride": 8}, "--output_stride=16 (not 8)"),
        ("v2", {"atrous_rates": (2, 4)}, "--atrous_rates=2,3 (not 2,4)"),
        ("v2", {"align_corners": False}, "--align_corners=true (not false)"),
        ("v2", {"backbone_bn_epsilon": 1e-2}, "--backbone_bn_epsilon=0.001 (not 0.01)"),
        ("v2", {"head_bn_epsilon": 1e-3}, "--head_bn_epsilon=1e-05 (not 0.001)"),
        ("v2", {"use_bounded_activation": True}, "--use_bounded_activation=false (not true)"),
        ("v2", {"num_classes": 7}, "--num_classes=5 (not 7)"),
        ("v2", {"normalization": "imagenet"}, "--normalization=unit_range"),
        ("v2", {"image_pooling_crop_size": (33, 33)}, "--image_pooling_crop_size= (not 33,33)"),
        (
            "v3",
            {"image_pooling_crop_size": (17, 65)},
            "--image_pooling_crop_size=33,65 (not 17,65)",
        ),
        ("v3", {"image_pooling_stride": (1, 1)}, "--image_pooling_stride=1,2 (not 1,1)"),
        (
            "v3",
            {"image_pooling_gate": "hard_sigmoid"},
            "--image_pooling_gate=q_sigmoid (not hard_sigmoid)",
        ),
    ],
)
def test_the_error_names_the_flags_that_fit(cases, name, changes, flags, tmp_path):
    case, path = cases(name), tmp_path / "graph.pb"
    path.write_bytes(case.graph().SerializeToString())
    config = case.config.replace(**changes)
    with pytest.raises(UserError) as caught:
        official_deeplab.load(build_segmentor(config), config, str(path))
    assert flags in as_command_line(caught.value) and "\n" not in as_command_line(caught.value)


def test_no_check_only_loads_the_weights(cases, tmp_path, capsys):
    case, path = cases("v2"), tmp_path / "graph.pb"
    path.write_bytes(case.graph().SerializeToString())
    config = case.config.replace(output_stride=8)
    _, proof = convert("official_deeplab", str(path), config, check=False)
    assert "was not run: only its weights are proven" in str(proof) and "output_stride=8" in str(
        proof
    )
    flags = [
        "--source=official_deeplab",
        f"--checkpoint={path}",
        "--model=deeplabv3_mnv2_dm05_pascal_trainval",
    ]
    flags += [
        "--depth_multiplier=0.35",
        "--num_classes=5",
        "--atrous_rates=2,3",
        "--aspp_convs_filters=16",
    ]
    assert script("convert_checkpoint.py")(*flags, f"--output={tmp_path}/a") == 1
    assert "seems to need --output_stride=16 (not 8)" in capsys.readouterr().err
    assert script("convert_checkpoint.py")(*flags, "--no_check", f"--output={tmp_path}/a") == 0
    assert "was not run" in capsys.readouterr().out


@pytest.mark.slow
def test_a_conversion_to_other_classes_is_proven_with_the_classes_of_the_file(cases, tmp_path):
    case, path = cases("v2"), tmp_path / "graph.pb"
    path.write_bytes(case.graph().SerializeToString())
    model, proof = convert(
        "official_deeplab",
        str(path),
        case.config.replace(num_classes=3),
        skip_mismatched_classifiers=True,
    )
    assert proof.skipped_layers == ("logits",) and "were run: 100.0000 %" in str(proof)
    np.testing.assert_array_equal(
        named_weights(model)["aspp0_conv/kernel"], case.tensors["aspp0/weights"]
    )


# === Mutations of frozen graphs ===

Graph = tf.compat.v1.GraphDef
BLOCK = "MobilenetV2/expanded_conv_{}"


def node(graph: Graph, name: str) -> Any:
    return next(node for node in graph.node if node.name == name)


def set_ints(name: str, attribute: str, *values: int) -> Callable[[Graph], None]:
    return lambda graph: (
        node(graph, name).attr[attribute].list.i.__setitem__(slice(None), (1, *values, 1))
    )


def set_value(name: str, attribute: str, field: str, value: Any) -> Callable[[Graph], None]:
    return lambda graph: setattr(node(graph, name).attr[attribute], field, value)


def set_all(op: str, attribute: str, field: str, value: Any) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        for found in graph.node:
            if found.op == op:
                setattr(found.attr[attribute], field, value)

    return change


def set_op(name: str, op: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        node(graph, name).op = op

    return change


def set_constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Graph], None]:
    def apply(graph: Graph) -> None:
        tensor = node(graph, name).attr["value"].tensor
        value = tf.make_ndarray(tensor)
        tensor.CopyFrom(
            tf.make_tensor_proto(np.asarray(change(value), value.dtype), shape=value.shape)
        )

    return apply


def swap(first: str, second: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        one, other = (
            node(graph, first).attr["value"].tensor,
            node(graph, second).attr["value"].tensor,
        )
        kept = type(one)()
        kept.CopyFrom(one)
        one.CopyFrom(other)
        other.CopyFrom(kept)

    return change


def insert(after: str, op: str, value: Any = None) -> Callable[[Graph], None]:
    """Inserts an operation, with a constant as its second input, between a node and its readers."""

    def change(graph: Graph) -> None:
        for reader in graph.node:
            for place, source in enumerate(reader.input):
                if source == after:
                    reader.input[place] = "inserted"
        new = graph.node.add(name="inserted", op=op)
        new.attr["T"].type = tf.float32.as_datatype_enum
        new.input.append(after)
        if value is not None:
            constant = graph.node.add(name="inserted/y", op="Const")
            constant.attr["dtype"].type = tf.float32.as_datatype_enum
            constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.float32(value)))
            new.input.append("inserted/y")

    return change


def rewire(name: str, place: int, source: str) -> Callable[[Graph], None]:
    return lambda graph: node(graph, name).input.__setitem__(place, source)


def both(
    first: Callable[[Graph], None], second: Callable[[Graph], None]
) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        first(graph)
        second(graph)

    return change


def swap_inputs(name: str) -> Callable[[Graph], None]:
    def change(graph: Graph) -> None:
        found = node(graph, name)
        found.input[0], found.input[1] = found.input[1], found.input[0]

    return change


P = BLOCK + "/project/BatchNorm/"
V3 = "MobilenetV3/expanded_conv"
V2_MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "stride 2 to 1": set_ints(BLOCK.format(3) + "/depthwise/depthwise", "strides", 1, 1),
    "stride 1 to 2": set_ints(BLOCK.format(2) + "/depthwise/depthwise", "strides", 2, 2),
    "stride of the stem": set_ints("MobilenetV2/Conv/Conv2D", "strides", 1, 1),
    "dilation of a backbone layer": set_ints(
        BLOCK.format(9) + "/depthwise/depthwise", "dilations", 2, 2
    ),
    "dilation of a pointwise layer": set_ints(
        BLOCK.format(9) + "/expand/Conv2D", "dilations", 2, 2
    ),
    "blocks of another rate": set_constant(
        "aspp2_depthwise/depthwise/SpaceToBatchND/block_shape", lambda value: value - 1
    ),
    "paddings of the blocks": set_constant(
        "aspp1_depthwise/depthwise/SpaceToBatchND/paddings", lambda value: value[:, ::-1]
    ),
    "padding of the stem": set_value("MobilenetV2/Conv/Conv2D", "padding", "s", b"VALID"),
    "padding of a depthwise layer": set_value(
        BLOCK.format(8) + "/depthwise/depthwise", "padding", "s", b"VALID"
    ),
    "pooling window": set_ints("AvgPool2D/AvgPool", "ksize", 3, 3),
    "pooling window and stride": both(
        set_ints("AvgPool2D/AvgPool", "ksize", 3, 3), set_ints("AvgPool2D/AvgPool", "strides", 2, 2)
    ),
    "pooling padding": set_value("AvgPool2D/AvgPool", "padding", "s", b"SAME"),
    "maximum for the mean": set_op("AvgPool2D/AvgPool", "MaxPool"),
    "one epsilon": set_value(P.format(5) + "FusedBatchNormV3", "epsilon", "f", 0.05),
    "all epsilons": set_all("FusedBatchNormV3", "epsilon", "f", 0.02),
    "batch norm in training": set_value(P.format(5) + "FusedBatchNormV3", "is_training", "b", True),
    "extra multiplication by a number": insert(
        BLOCK.format(4) + "/project/BatchNorm/FusedBatchNormV3", "Mul", 1.1
    ),
    "extra multiplication after an activation": insert(
        BLOCK.format(4) + "/expand/Relu6", "Mul", 1.1
    ),
    "extra multiplication before a batch norm": insert(
        BLOCK.format(4) + "/project/Conv2D", "Mul", 1.1
    ),
    "extra multiplication of the image": insert("shift", "Mul", 1.02),
    "extra multiplication of the scores": insert("logits/semantic/BiasAdd", "Mul", 1.1),
    "extra multiplication of the resized scores": insert("ResizeBilinear_2", "Mul", -1.0),
    "extra addition": insert(BLOCK.format(6) + "/depthwise/Relu6", "Add", 0.3),
    "extra addition to the scores": insert(
        "logits/semantic/BiasAdd", "Add", np.float32([0, 3, 0, 0, 0])
    ),
    "extra activation": insert(BLOCK.format(5) + "/add", "Relu"),
    "another activation": set_op(BLOCK.format(6) + "/expand/Relu6", "Relu"),
    "a sigmoid": set_op("aspp0/Relu", "Sigmoid"),
    "no activation": set_op("concat_projection/Relu", "Identity"),
    "relu6 in the head": set_op("aspp0/Relu", "Relu6"),
    "corners of all resizes": set_all("ResizeBilinear", "align_corners", "b", False),
    "corners of the last resize": set_value("ResizeBilinear_2", "align_corners", "b", False),
    "nearest neighbor": set_op("ResizeBilinear_2", "ResizeNearestNeighbor"),
    "swapped betas": swap(P.format(4) + "beta", P.format(5) + "beta"),
    "swapped kernels": swap(
        BLOCK.format(4) + "/project/weights", BLOCK.format(5) + "/project/weights"
    ),
    "gamma for variance": swap(P.format(4) + "gamma", P.format(4) + "moving_variance"),
    "a residual from elsewhere": rewire(
        BLOCK.format(5) + "/add", 1, BLOCK.format(4) + "/project/BatchNorm/FusedBatchNormV3"
    ),
    "a residual left out": rewire(
        BLOCK.format(5) + "/add", 1, BLOCK.format(5) + "/project/BatchNorm/FusedBatchNormV3"
    ),
    "a difference for a residual": set_op(BLOCK.format(5) + "/add", "Sub"),
    "swapped branches": swap_inputs("concat"),
    "swapped inputs of a sum": swap_inputs(BLOCK.format(5) + "/add"),
    "normalization, factor": set_constant("scale/x", lambda value: value / 2),
    "normalization, summand": set_constant("shift/y", lambda value: value * 0),
    "NaN weights": set_constant(P.format(4) + "beta", lambda value: value * np.nan),
    "a negative variance": set_constant(P.format(4) + "moving_variance", lambda value: -value),
}
V3_MUTATIONS: dict[str, Callable[[Graph], None]] = {
    "factor of hard-swish": set_constant(
        "MobilenetV3/Conv/hard_swish/mul_1/y", lambda value: value * 1.3
    ),
    "summand of hard-swish": set_constant(
        "MobilenetV3/Conv/hard_swish/add/y", lambda value: value - 1
    ),
    "factor of a gate": set_constant(
        f"{V3}_4/squeeze_excite/Conv_1/mul/y", lambda value: value * 1.2
    ),
    "hard sigmoid for a gate": set_constant("image_pooling/mul/y", lambda value: np.float32(1 / 6)),
    "summand of a gate": set_constant("image_pooling/add/y", lambda value: value - 1),
    "relu for relu6 in a gate": set_op(f"{V3}_4/squeeze_excite/Conv_1/Relu6", "Relu"),
    "mean over one axis": set_constant(
        f"{V3}_4/squeeze_excite/Mean/reduction_indices", lambda value: np.array([1, 1])
    ),
    "gate of another layer": rewire(
        f"{V3}_5/squeeze_excite/mul", 0, f"{V3}_4/depthwise/hard_swish/mul_1"
    ),
    "pooling window of the gate": set_ints("AvgPool2D/AvgPool", "ksize", 5, 5),
    "pooling stride of the gate": set_ints("AvgPool2D/AvgPool", "strides", 1, 1),
    "no squeeze-and-excite": rewire(
        f"{V3}_4/project/Conv2D", 0, f"{V3}_4/depthwise/hard_swish/mul_1"
    ),
    "a product for the sum of scores": set_op("decoder/add", "Mul"),
}
# Mutations that change nothing, or that the converter reproduces exactly.
HARMLESS = {
    "swapped inputs of a sum",
    "swapped betas",
    "swapped kernels",
    "gamma for variance",
    "dilation of a pointwise layer",
    "extra multiplication of the scores",
    "extra addition to the scores",
}
QUICK = (
    "stride 2 to 1",
    "blocks of another rate",
    "one epsilon",
    "extra multiplication of the scores",
    "another activation",
    "swapped branches",
)


def _mutations(mutations: dict[str, Callable[[Graph], None]]) -> list[Any]:
    return [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow, id=name)
        for name in mutations
    ]


def _mutated(case: Case, change: Callable[[Graph], None], path: pathlib.Path) -> str:
    graph = case.graph()
    change(graph)
    path.write_bytes(graph.SerializeToString())
    return refused_or_right(case, path, lambda image: official_graphs.run(graph, image))


@pytest.mark.parametrize("name", _mutations(V2_MUTATIONS))
def test_a_mutated_graph_is_refused_or_right(cases, name, tmp_path):
    refusal = _mutated(cases("v2"), V2_MUTATIONS[name], tmp_path / "graph.pb")
    assert (refusal == "") <= (name in HARMLESS)


@pytest.mark.parametrize("name", _mutations(V3_MUTATIONS))
def test_a_mutated_lraspp_graph_is_refused_or_right(cases, name, tmp_path):
    assert _mutated(cases("v3"), V3_MUTATIONS[name], tmp_path / "graph.pb")


# === Mutations of TFLite files ===


def packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operators(model: schema.ModelT, kind: str) -> list[Any]:
    code = getattr(schema.BuiltinOperator, kind)
    codes = [max(found.builtinCode, found.deprecatedBuiltinCode) for found in model.operatorCodes]
    return [
        operator for operator in model.subgraphs[0].operators if codes[operator.opcodeIndex] == code
    ]


def option(kind: str, index: int, **values: Any) -> Callable[[schema.ModelT], None]:
    def change(model: schema.ModelT) -> None:
        for field, value in values.items():
            setattr(operators(model, kind)[index].builtinOptions, field, value)

    return change


def swap_buffers(kind: str, first: int, second: int, place: int) -> Callable[[schema.ModelT], None]:
    def change(model: schema.ModelT) -> None:
        tensors = [
            model.subgraphs[0].tensors[operators(model, kind)[index].inputs[place]]
            for index in (first, second)
        ]
        tensors[0].buffer, tensors[1].buffer = tensors[1].buffer, tensors[0].buffer

    return change


def rewire_input(
    kind: str, index: int, place: int, other: tuple[str, int]
) -> Callable[[schema.ModelT], None]:
    def change(model: schema.ModelT) -> None:
        operator = operators(model, kind)[index]
        operator.inputs = np.array(operator.inputs)
        operator.inputs[place] = operators(model, other[0])[other[1]].outputs[0]

    return change


TFLITE_MUTATIONS: dict[str, Callable[[schema.ModelT], None]] = {
    "stride": option("DEPTHWISE_CONV_2D", 2, strideH=2, strideW=2),
    "dilation": option("DEPTHWISE_CONV_2D", 8, dilationHFactor=2, dilationWFactor=2),
    "padding": option("DEPTHWISE_CONV_2D", 8, padding=schema.Padding.VALID),
    "activation": option(
        "DEPTHWISE_CONV_2D", 8, fusedActivationFunction=schema.ActivationFunctionType.RELU
    ),
    "no activation": option(
        "CONV_2D", 0, fusedActivationFunction=schema.ActivationFunctionType.NONE
    ),
    "activation of a sum": option(
        "ADD", 1, fusedActivationFunction=schema.ActivationFunctionType.RELU
    ),
    "pooling window": option("AVERAGE_POOL_2D", 0, filterHeight=3, filterWidth=3),
    "corners": option("RESIZE_BILINEAR", -1, alignCorners=False),
    "half-pixel centers": option("RESIZE_BILINEAR", -1, alignCorners=False, halfPixelCenters=True),
    "swapped biases": swap_buffers("CONV_2D", 10, 12, 2),
    "a residual from elsewhere": rewire_input("ADD", 3, 1, ("ADD", 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TFLITE_MUTATIONS)
def test_a_mutated_tflite_file_is_refused_or_right(cases, name, tmp_path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    case, path = cases("v2"), tmp_path / "model.tflite"
    model = case.tflite()
    TFLITE_MUTATIONS[name](model)
    path.write_bytes(packed(model))
    scores = int(operators(model, "ARG_MAX")[0].inputs[0])

    def run(image: np.ndarray) -> np.ndarray:
        interpreter = Interpreter(
            str(path),
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        normalized = image[None].astype(np.float32) / np.float32(127.5) - 1
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], normalized)
        interpreter.invoke()
        return interpreter.get_tensor(scores)

    refused_or_right(case, path, run)


def test_there_are_enough_mutations():
    assert len(V2_MUTATIONS) + len(V3_MUTATIONS) + len(TFLITE_MUTATIONS) >= 60


# === Other refused graphs ===


@pytest.mark.slow
def test_a_rounding_operation_is_removed(cases, tmp_path):
    case, path = cases("v2"), tmp_path / "graph.pb"
    graph = case.graph()
    insert("aspp0/Relu", "FakeQuantWithMinMaxArgs")(graph)
    del node(graph, "inserted").attr["T"]
    path.write_bytes(graph.SerializeToString())
    proof = official_deeplab.load(case.model, case.config, str(path))
    assert "The frozen graph rounds to 8 bits. Without rounding, it and the model" in str(proof)


def test_a_cycle(cases, tmp_path):
    case, path = cases("v2"), tmp_path / "graph.pb"
    graph = case.graph()
    rewire("MobilenetV2/Conv/Conv2D", 0, "MobilenetV2/Conv/Relu6")(graph)
    path.write_bytes(graph.SerializeToString())
    with raises_line("cycle"):
        official_deeplab.load(case.model, case.config, str(path))


@tf.function
def _writes(path):
    tf.raw_ops.WriteFile(filename=path, contents="x")
    return path


def _stateless_call(path):
    _writes(path)


# TensorFlow calls all but the first one stateless. The last one hides the operation in a function
# of the graph's library.
ACTS = {
    "WriteFile": lambda path: tf.raw_ops.WriteFile(filename=path, contents="x", name="evil"),
    "ReadFile": lambda path: tf.raw_ops.ReadFile(filename=path, name="evil"),
    "ImmutableConst": lambda path: tf.raw_ops.ImmutableConst(
        dtype=tf.float32, shape=[1], memory_region_name="region", name="evil"
    ),
    "PartitionedCall": _stateless_call,
}


@pytest.mark.parametrize("op", ACTS)
def test_an_operation_with_side_effects_is_not_run(cases, tmp_path, op):
    case, path = cases("v2"), tmp_path / "graph.pb"
    graph = case.graph()
    with tf.Graph().as_default() as other:
        ACTS[op](str(tmp_path / "written"))
    definition = other.as_graph_def()
    for node in definition.node:
        if node.op == "StatefulPartitionedCall":
            node.op = "PartitionedCall"
    graph.MergeFromString(definition.SerializeToString())
    path.write_bytes(graph.SerializeToString())
    with raises_line(f"graph.pb: has the operation {op} [(].*which no network here needs"):
        official_deeplab.load(case.model, case.config, str(path))
    assert not (tmp_path / "written").exists()


# === Real files of third parties ===

THIRD_PARTY = SHARED / "weights" / "third_party"
SMALL = "deeplab_mnv3_small_cityscapes_trainfine"


@pytest.mark.shared
@pytest.mark.parametrize(
    "file, model, changes, pairs",
    [
        (
            "mnv2_dm05_513_unfolded/deeplabv3_mnv2_dm05_pascal.tflite",
            "deeplabv3_mnv2_dm05_pascal_trainval",
            {},
            ["image argmax"],
        ),
        *(
            (
                f"mnv3_small_5_classes/{name}",
                SMALL,
                {"num_classes": 5, "image_pooling_crop_size": (385, 769)},
                ["road_image road_argmax_float", "city_image city_argmax_float"],
            )
            for name in ("frozen_inference_graph.pb", "seg_graph_f.tflite")
        ),
    ],
)
def test_third_party_files(file, model, changes, pairs):
    path = THIRD_PARTY / file
    if changes:
        with raises_line(
            "--num_classes=5 .not 19., --image_pooling_crop_size=385,769 .not 769,769.",
        ):
            convert("official_deeplab", str(path), OFFICIAL[model])
    converted, proof = convert("official_deeplab", str(path), OFFICIAL[model].replace(**changes))
    assert "were run" in str(proof)
    predictor = Predictor(converted)
    with np.load(path.parent / "expected.npz") as expected:
        for pair in pairs:
            image, labels = (expected[name] for name in pair.split())
            assert np.mean(predictor(image) == labels) >= 0.999


@pytest.mark.slow
@pytest.mark.shared
def test_released_weights_on_photographs():
    """Ours, evaluated in the official way, and a third party's file of these weights in LiteRT.

    The two files are independent of each other. NumPy counts the pixels of the other file.
    """
    config = OFFICIAL["deeplabv3_mnv2_dm05_pascal_trainval"].replace(output_stride=8)
    folder = SHARED / "weights/deeplabv3_mnv2_dm05_257"
    model, _ = convert("official_deeplab", str(folder / "deeplabv3.tflite"), config)
    file = THIRD_PARTY / "mnv2_dm05_513_unfolded/deeplabv3_mnv2_dm05_pascal.tflite"
    interpreter = open_interpreter(file, threads=2)
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    data = DataConfig(dataset="voc2012", dataset_dir=SHARED / "data/voc_animals/VOCdevkit")
    source = open_dataset(data, "val")
    official = EvalConfig(inference="official", eval_crop_size=(513, 513))
    predictor = Predictor(model, official)
    equal, matrix = [], np.zeros((21, 21), np.int64)
    for index in range(len(source)):
        image, label = source.load(index)
        height, width = image.shape[:2]
        padded = np.full((1, 513, 513, 3), 127.5, np.float32)
        padded[0, :height, :width] = image
        interpreter.set_tensor(given["index"], padded / 127.5 - 1)
        interpreter.invoke()
        expected = interpreter.get_tensor(returned["index"])[0, :height, :width]
        equal.append((predictor(image) == expected).mean())
        valid = label != 255
        np.add.at(matrix, (label[valid], expected[valid]), 1)
    union = matrix.sum(0) + matrix.sum(1) - np.diagonal(matrix)
    iou = np.diagonal(matrix) / np.maximum(union, 1)
    report = evaluate(model, source, official, progress=False)
    print(f"{100 * np.mean(equal):.5f} % of the labels are equal")
    background = source.info.class_names[0]
    for name in (background, "cat", "dog", "horse", "cow", "sheep", "person"):
        own, other = report.per_class_iou[name], iou[source.info.class_names.index(name)]
        print(f"{name}: IoU {100 * own:.2f}, in LiteRT {100 * other:.2f}")
        assert own == pytest.approx(other, abs=5e-5) and own > 0.5
    assert len(equal) == 445 and np.mean(equal) >= 0.9999
