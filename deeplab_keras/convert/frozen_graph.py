"""Reads frozen TF1 graphs as a `Graph`, and runs them."""

from __future__ import annotations

import functools
import heapq
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError
from deeplab_keras.convert.fake_quant import ROUNDING, without_rounding
from deeplab_keras.convert.graphs import (
    ConvolutionGraph,
    Graph,
    Op,
    find_convolutions,
    is_global_pooling,
)
from deeplab_keras.io.foreign import reading

KINDS = {
    "Conv2D": "CONV", "DepthwiseConv2dNative": "DEPTHWISE", "BiasAdd": "ADD", "Add": "ADD",
    "AddV2": "ADD", "Sub": "SUB", "Mul": "MUL", "FusedBatchNorm": "BATCH_NORM",
    "FusedBatchNormV2": "BATCH_NORM", "FusedBatchNormV3": "BATCH_NORM", "Relu": "RELU",
    "Relu6": "RELU6", "Sigmoid": "SIGMOID", "AvgPool": "POOL", "Mean": "MEAN",
    "ResizeBilinear": "RESIZE", "ConcatV2": "CONCAT", "Pad": "PAD",
    "SpaceToBatchND": "SPACE_TO_BATCH", "BatchToSpaceND": "BATCH_TO_SPACE",
    "Identity": "IDENTITY", "StopGradient": "IDENTITY", "CheckNumerics": "IDENTITY",
    "Softmax": "SOFTMAX", "ArgMax": "ARGMAX",
}  # fmt: skip
# Operations that only read sizes.
SIZES = ("Shape", "ShapeN", "Size", "Rank", "Assert", "NoOp")
# Operations whose first input is the data and whose other inputs are sizes and axes.
FIRST_ONLY = ("RESIZE", "PAD", "SPACE_TO_BATCH", "BATCH_TO_SPACE", "MEAN", "POOL", "ARGMAX")
# Other operations that are allowed in a graph, because they only compute tensors from tensors. The
# graph is run, and other operations may read or write files, even some that TensorFlow calls
# stateless (ReadFile, ImmutableConst, calls of functions that write).
PURE = frozenset(
    """
    Abs All Any ArgMin BatchMatMul BatchMatMulV2 BroadcastTo Cast Ceil Concat Const Dequantize
    Div DivNoNan Elu Equal Exp ExpandDims Fill Floor FloorDiv FloorMod Gather GatherV2 Greater
    GreaterEqual LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul
    Max MaxPool Maximum Mean Merge Min Minimum MirrorPad Neg NotEqual OnesLike Pack PadV2
    Placeholder PlaceholderWithDefault Pow Prod Range RealDiv Reciprocal Reshape
    ResizeNearestNeighbor ReverseV2 Round Rsqrt Select SelectV2 Selu Slice Split SplitV Sqrt
    Square SquaredDifference Squeeze StridedSlice Sum Switch Tanh Tile Transpose Unpack
    ZerosLike
    """.split()
)


def layer_name(names: Sequence[str]) -> str:
    """Returns the layer of the kernel or operation with this name."""
    return re.sub(
        r"/(depthwise_)?weights(_\w+)?$|/(Conv2D|depthwise|separable_conv2d)(_\d+)?$", "", names[0]
    )


class FrozenGraph:
    """An open frozen graph.

    Args:
        path: A .pb file.

    Raises:
        UserError: If the file is not a frozen graph, or has operations that do more than compute
            tensors.
    """

    kind = "frozen graph"
    runtime = "TensorFlow"

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        definition = tf.compat.v1.GraphDef()
        with reading(path, "a frozen graph"):
            definition.ParseFromString(path.read_bytes())
            self._check(definition)
            self._graph = _imported(definition)
            self.quantized = any(node.op in ROUNDING for node in definition.node)
            # What the file computes without rounding. Its weights are those before rounding.
            self._exact = self._graph
            if self.quantized:
                self._exact = _imported(without_rounding(definition))
            # TensorFlow's version of the graph has the defaults of attributes that the file omits.
            self._nodes = {node.name: node for node in self._exact.as_graph_def().node}
            self._order = self._in_order()
            self._constants = self._find_constants()

    @functools.cached_property
    def network(self) -> ConvolutionGraph:
        """The convolutions.

        Raises:
            UserError: If a convolution has no constant kernel.
        """
        with reading(self.path, "a frozen graph"):
            ops = [op for name in self._order if (op := self._op(self._nodes[name])) is not None]
            read = {name for op in ops for name in op.inputs}
            leaves = tuple(op.output for op in ops if op.output not in read)
            return find_convolutions(Graph(ops, self.constant, self.image, leaves, str(self.path)))

    layer_name = staticmethod(layer_name)

    @property
    def image(self) -> str:
        """The name of the only placeholder, or ""."""
        names = [name for name, node in self._nodes.items() if node.op == "Placeholder"]
        return names[0] if len(names) == 1 else ""

    def constant(self, name: str) -> np.ndarray | None:
        """Returns the value of a tensor that is computed only from constants, else `None`."""
        node = self._nodes.get(_node_name(name))
        while node is not None and node.op == "Identity":
            node = self._nodes.get(_node_name(node.input[0]))
        if node is None or node.name not in self._constants:
            return None
        if node.op == "Const":
            return np.asarray(tf.make_ndarray(node.attr["value"].tensor))
        return self.run([node.name], {}, rounded=False)[0]

    def run(
        self, tensors: Sequence[str], feed: dict[str, np.ndarray], *, rounded: bool = True
    ) -> list[np.ndarray]:
        """Computes the values of tensors from the given values of others.

        Args:
            tensors: The names of the tensors.
            feed: The given values by name.
            rounded: Whether a quantization-aware graph rounds.
        """
        session = self._session if rounded else self._exact_session
        fed = {_tensor(name): value for name, value in feed.items()}
        return [
            np.asarray(value) for value in session.run([_tensor(name) for name in tensors], fed)
        ]

    def static_shape(self, name: str) -> tuple[int | None, ...] | None:
        """Returns a tensor's shape, as far as the graph says it."""
        shape = self._graph.get_tensor_by_name(_tensor(name)).shape
        return None if shape.rank is None else tuple(shape.as_list())

    def dtype(self, name: str) -> np.dtype:
        """Returns a tensor's type."""
        return np.dtype(self._graph.get_tensor_by_name(_tensor(name)).dtype.as_numpy_dtype)

    @functools.cached_property
    def _session(self) -> Any:
        return tf.compat.v1.Session(graph=self._graph)

    @functools.cached_property
    def _exact_session(self) -> Any:
        if self._exact is self._graph:
            return self._session
        return tf.compat.v1.Session(graph=self._exact)

    def _check(self, definition: Any) -> None:
        """Checks that all operations only compute tensors."""
        for node in definition.node:
            if node.op not in (*PURE, *KINDS, *SIZES, *ROUNDING):
                raise UserError(
                    f"{self.path}: has the operation {node.op} ({node.name}), which no network "
                    "here needs, so the graph is not run; freeze the graph of a float model"
                )

    def _in_order(self) -> list[str]:
        """Returns the nodes' names in topological order."""
        missing = {
            name: {_node_name(i) for i in node.input} & self._nodes.keys()
            for name, node in self._nodes.items()
        }
        readers: dict[str, list[str]] = {}
        for name, sources in missing.items():
            for source in sources:
                readers.setdefault(source, []).append(name)
        position = {name: index for index, name in enumerate(self._nodes)}
        ready, order = [position[name] for name, sources in missing.items() if not sources], []
        names = list(self._nodes)
        while ready:
            order.append(name := names[heapq.heappop(ready)])
            for reader in readers.get(name, []):
                missing[reader].discard(name)
                if not missing[reader]:
                    heapq.heappush(ready, position[reader])
        if len(order) < len(self._nodes):
            raise UserError(
                f"{self.path}: its nodes form a cycle; freeze the graph of a float model"
            )
        return order

    def _find_constants(self) -> set[str]:
        """Returns the nodes that are computed only from constants."""
        found: set[str] = set()
        for name in self._order:
            node = self._nodes[name]
            data = _data(node)
            if node.op == "Const" or (data and all(_node_name(i) in found for i in data)):
                found.add(name)
        return found

    def _op(self, node: Any) -> Op | None:
        if node.op in SIZES or node.name in self._constants:
            return None
        kind, inputs = KINDS.get(node.op, node.op), tuple(map(_plain, _data(node)))
        names: tuple[str, ...] = (node.name,)
        attributes: dict[str, Any] = {}
        if kind in ("CONV", "DEPTHWISE"):
            kernel = self._nodes[_node_name(inputs[1])]
            while kernel.op == "Identity":
                kernel = self._nodes[_node_name(kernel.input[0])]
            names = (kernel.name, node.name)
            attributes = {
                "stride": tuple(node.attr["strides"].list.i[1:3]),
                "dilation": tuple(node.attr["dilations"].list.i[1:3]) or (1, 1),
                "padding": node.attr["padding"].s.decode().lower(),
            }
        elif kind == "BATCH_NORM":
            attributes = {"epsilon": float(node.attr["epsilon"].f)}
            kind = "BATCH_NORM in training" if node.attr["is_training"].b else kind
        elif kind == "POOL":
            attributes = {
                "window": tuple(node.attr["ksize"].list.i[1:3]),
                "stride": tuple(node.attr["strides"].list.i[1:3]),
            }
            kind = "POOL" if node.attr["padding"].s == b"VALID" else "POOL with padding"
        elif kind == "MEAN" and is_global_pooling(self._parameter(inputs, 1)):
            kind, attributes = "POOL", {"window": None, "stride": (1, 1)}
        elif kind == "RESIZE":
            attributes = {
                key: bool(node.attr[key].b) for key in ("align_corners", "half_pixel_centers")
            }
        elif kind in ("SPACE_TO_BATCH", "BATCH_TO_SPACE"):
            block, pads = self._parameter(inputs, 1), self._parameter(inputs, 2)
            attributes = {"block": None if block is None else tuple(block.tolist()), "pads": pads}
        if node.attr["data_format"].s == b"NCHW":
            kind += " in NCHW"
        if kind.split()[0] in FIRST_ONLY:
            inputs = inputs[:1]
        elif kind == "CONCAT":
            inputs = inputs[:-1]
        return Op(kind, inputs, node.name, names, attributes)

    def _parameter(self, inputs: Sequence[str], index: int) -> np.ndarray | None:
        return self.constant(inputs[index]) if index < len(inputs) else None


def _imported(definition: Any) -> tf.Graph:
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    return graph


def _data(node: Any) -> list[str]:
    return [name for name in node.input if not name.startswith("^")]


def _node_name(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"
