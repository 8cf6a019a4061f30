"""Removes the rounding of a quantization-aware graph, and restores its batch norms.

TensorFlow's `quantize.create_eval_graph` multiplies the kernel of a convolution by
gamma / sqrt(variance + epsilon), rounds the product to 8 bits, and adds what is left of the batch
norm to the output of the convolution. Weights and statistics are in the graph as they were trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

# Operations that round a tensor to 8 bits.
ROUNDING = (
    "FakeQuantWithMinMaxVars",
    "FakeQuantWithMinMaxVarsPerChannel",
    "FakeQuantWithMinMaxArgs",
)


def without_rounding(definition: Any) -> Any:
    """Returns a quantization-aware `GraphDef` that does not round and has separate batch norms.

    The nodes keep their names.
    """
    exact = tf.compat.v1.GraphDef()
    exact.CopyFrom(definition)
    for node in exact.node:
        if node.op in ROUNDING:
            _replace(node, "Identity", node.input[:1], T=tf.float32)
    nodes = {node.name: node for node in exact.node}
    for node in exact.node:
        found = _batch_norm(node, nodes)
        if found is not None:
            nodes[found.convolution].input[1] = found.kernel
            _replace(
                node,
                "FusedBatchNormV3",
                (node.input[0], *found.vectors),
                T=tf.float32,
                U=tf.float32,
            )
            node.attr["epsilon"].f = found.epsilon
            node.attr["is_training"].b = False
    return exact


@dataclasses.dataclass(frozen=True)
class _BatchNorm:
    """A batch norm that was multiplied into a kernel.

    Attributes:
        convolution: The name of the node of the convolution.
        kernel: The tensor of the kernel before the multiplication.
        vectors: The tensors of gamma, beta, mean and variance.
        epsilon: The epsilon.
    """

    convolution: str
    kernel: str
    vectors: tuple[str, str, str, str]
    epsilon: float


def _batch_norm(node: Any, nodes: Mapping[str, Any]) -> _BatchNorm | None:
    """Returns the batch norm that ends with this addition, or `None`.

    kernel * scale and beta - mean * scale, with scale = gamma * rsqrt(variance + epsilon).
    """

    def inputs(node: Any, *kinds: str) -> tuple[Any, Any] | None:
        """Returns the nodes of the two inputs, if the node is of one of these kinds."""
        if node.op not in kinds or len(node.input) < 2:
            return None
        first, second = (_source(name, nodes) for name in node.input[:2])
        return None if first is None or second is None else (first, second)

    if not (added := inputs(node, "Add", "AddV2")):
        return None
    convolution, bias = added
    if convolution.op == "BatchToSpaceND":
        convolution = _source(convolution.input[0], nodes)
    if not (
        (operands := inputs(convolution, "Conv2D", "DepthwiseConv2dNative"))
        and (product := inputs(operands[1], "Mul"))
        and (difference := inputs(bias, "Sub"))
        and (shift := inputs(difference[1], "Mul"))
        and (scale := inputs(shift[1], "Mul"))
        and product[1].name == shift[1].name
        and scale[1].op == "Rsqrt"
        and (total := _source(scale[1].input[0], nodes)) is not None
        and (summands := inputs(total, "Add", "AddV2"))
        and summands[1].op == "Const"
    ):
        return None
    return _BatchNorm(
        convolution.name,
        product[0].name,
        (scale[0].name, difference[0].name, shift[0].name, summands[0].name),
        float(tf.make_ndarray(summands[1].attr["value"].tensor)),
    )


def _source(name: str, nodes: Mapping[str, Any]) -> Any:
    """Returns the node of a tensor before identities and changes of shape, or `None`."""
    node = nodes.get(name.removesuffix(":0"))
    while node is not None and node.op in ("Identity", "Reshape"):
        node = nodes.get(node.input[0].removesuffix(":0"))
    return node


def _replace(node: Any, kind: str, inputs: Any, **types: tf.DType) -> None:
    """Gives a node another operation with these inputs, under its own name."""
    name, inputs = node.name, list(inputs)
    node.Clear()
    node.name, node.op = name, kind
    node.input.extend(inputs)
    for attribute, dtype in types.items():
        node.attr[attribute].type = dtype.as_datatype_enum
