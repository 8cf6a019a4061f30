"""The convolutions of a frozen TF1 graph with what follows each of them: a bias, a folded or a whole batch norm."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_keras.config import UserError

CONVOLUTIONS = {"Conv2D": "weights", "DepthwiseConv2dNative": "depthwise_weights"}
PASS = {"Identity", "BatchToSpaceND", "CheckNumerics"}  # a dilated convolution of TF1 ends in BatchToSpaceND
BATCH_NORMS = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}
VECTORS = ("gamma", "beta", "moving_mean", "moving_variance")


def read_frozen_graph(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Kernels under their TF1 names; batch norms as they are, or `<layer>/scale` and `<layer>/offset` where folded.

    Raises:
        UserError: not a frozen graph, quantised weights, or no convolution in it.
    """
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(f"{path}: damaged or not a frozen graph ({error}); download it again") from error
    reader = _Graph(graph)
    tensors: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op in CONVOLUTIONS:
            kernel, name = reader.constant(node.input[1])
            if kernel is None:
                raise UserError(f"{path}: {node.name} has no constant kernel; freeze the graph, or give the checkpoint")
            layer = re.sub(r"/(depthwise_)?weights(_\w+)?$|/(Conv2D|depthwise|separable_conv2d)(_\d+)?$", "", name)
            tensors[f"{layer}/{CONVOLUTIONS[node.op]}"] = kernel.astype(np.float32)
            tensors |= {f"{layer}/{key}": value for key, value in reader.after(node.name).items()}
    if not tensors:
        raise UserError(f"{path}: no convolution in it; a frozen graph of a float model is needed")
    return tensors


class _Graph:
    """Nodes by name, and who reads whom."""

    def __init__(self, graph: Any) -> None:
        self.nodes = {node.name: node for node in graph.node}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in map(_node_name, node.input):
                self.readers.setdefault(name, []).append(node)

    def constant(self, name: str) -> tuple[np.ndarray | None, str]:
        """The value behind an input, and the name of the constant that holds it."""
        node = self.nodes.get(_node_name(name))
        while node is not None and node.op in ("Identity", "FakeQuantWithMinMaxVars"):
            node = self.nodes.get(_node_name(node.input[0]))
        if node is None or node.op != "Const":
            return None, name
        return tf.make_ndarray(node.attr["value"].tensor), node.name

    def after(self, name: str) -> dict[str, np.ndarray]:
        """What is done to each channel after the convolution `name`, up to its activation."""
        found: dict[str, np.ndarray] = {}
        while True:
            readers = self.readers.get(name, [])
            if len(readers) != 1:
                return found
            node = readers[0]
            if node.op in BATCH_NORMS:
                values = dict(zip(VECTORS, map(self._vector, node.input[1:5]), strict=True))
                return {f"BatchNorm/{key}": value for key, value in values.items() if value is not None}
            vectors = [self._vector(source) for source in node.input if _node_name(source) != name]
            vector = next((value for value in vectors if value is not None), None)
            if node.op in PASS:
                pass
            elif node.op == "Mul" and vector is not None and not found:
                found["scale"] = vector
            elif node.op in ("BiasAdd", "Add", "AddV2") and vector is not None:
                return found | {"offset": vector}
            elif node.op == "Sub" and vector is not None:
                return found | {"offset": -vector}
            else:
                return found
            name = node.name

    def _vector(self, source: str) -> np.ndarray | None:
        """The constant behind an input, if it has one value a channel."""
        value, _ = self.constant(source)
        if value is None or value.ndim == 0 or value.size != value.shape[-1]:
            return None
        return value.reshape(-1).astype(np.float32)


def _node_name(name: str) -> str:
    return name.removeprefix("^").partition(":")[0]
