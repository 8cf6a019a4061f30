"""A common form of frozen graphs, TFLite files and our models: their convolutions.

The readers (`frozen_graph`, `tflite_weights`, `keras_graph`) translate a file or a model to a
`Graph` of operations with common names. `find_convolutions` then collects everything that belongs
to each convolution:

* stride, dilation and padding,
* the bias or batch norm, which may be separate, folded, or a multiplication and an addition,
* the activation,
* the convolutions that it reads, and the operations between them.

Two graphs with the same convolutions compute the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_keras.config import UserError

CONVOLUTIONS = ("CONV", "DEPTHWISE")
ACTIVATIONS = ("RELU", "RELU6", "HARD_SWISH", "HARD_SIGMOID", "Q_SIGMOID", "SIGMOID")
# The gates are relu6(x + 3) * factor, with these factors.
GATES = {"Q_SIGMOID": 0.16667, "HARD_SIGMOID": 1 / 6}
VECTORS = ("gamma", "beta", "moving_mean", "moving_variance")
FREEZE = "freeze the graph, or give the checkpoint"
# Numbers that stand for inputs of a convolution other than convolutions: the image, and a tensor
# that is computed from neither the image nor a convolution.
IMAGE, OUTSIDE = -1, -2


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: `CONV`, `DEPTHWISE`, `ADD`, `SUB`, `MUL`, `BATCH_NORM`, one of `ACTIVATIONS`, `POOL`,
            `RESIZE`, `CONCAT`, `PAD`, `SPACE_TO_BATCH`, `BATCH_TO_SPACE`, `IDENTITY`, `SOFTMAX`,
            `ARGMAX`, or the format's name of another operation.
        inputs: The names of the input tensors, except sizes and control dependencies.
        output: The name of the first output.
        names: Names that identify the layer, the most specific first.
        attributes: `stride`, `dilation`, `padding`, `epsilon`, `window`, `align_corners`,
            `half_pixel_centers`, `activation` (fused), `block`, `pads`.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    names: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operations in topological order.

    Attributes:
        ops: The operations.
        constant: Returns the value of a tensor by its name, or `None` if it depends on the image.
        image: The name of the image tensor.
        outputs: The names of the output tensors, if the graph has such a list.
        origin: The file, for error messages.
    """

    ops: Sequence[Op]
    constant: Callable[[str], np.ndarray | None]
    image: str = ""
    outputs: tuple[str, ...] = ()
    origin: str = ""


@dataclasses.dataclass(frozen=True)
class Pool:
    """Average pooling; `window=None` is global pooling."""

    window: tuple[int, int] | None
    stride: tuple[int, int]


@dataclasses.dataclass
class Convolution:
    """One convolution with everything that belongs to it.

    Attributes:
        names: Names that identify the layer.
        depthwise: Whether it is a depthwise convolution.
        kernel: The kernel in TF1's axes. Zeros between the taps of a dilated kernel are removed.
        stride: (height, width).
        dilation: (height, width).
        padding: "same", "valid", or a description of another padding.
        vectors: `BatchNorm/<vector>` of a separate batch norm, or `scale` and `offset`. One value
            per channel each.
        epsilon: The epsilon of a separate batch norm.
        activation: One of `ACTIVATIONS`, or "".
        reads: Indices of the convolutions that it reads; `IMAGE` is the image.
        through: The operations between those convolutions and this one, sorted.
        pool: The pooling among these operations.
        source: The input tensor, before a SPACE_TO_BATCH.
        output: The tensor after the activation.
    """

    names: tuple[str, ...]
    depthwise: bool
    kernel: np.ndarray
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: str
    vectors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    epsilon: float | None = None
    activation: str = ""
    reads: frozenset[int] = frozenset()
    through: tuple[str, ...] = ()
    pool: Pool | None = None
    source: str = ""
    output: str = ""


@dataclasses.dataclass(frozen=True)
class ConvolutionGraph:
    """The convolutions and the class scores of a graph.

    Attributes:
        convolutions: The convolutions in topological order.
        logits: The tensor of the class scores, before softmax and argmax; "" if there is none.
        reads: Indices of the convolutions from which the class scores are computed.
        through: The operations between those convolutions and the class scores, sorted.
        resizes: (align_corners, half_pixel_centers) of each bilinear resize.
    """

    convolutions: tuple[Convolution, ...]
    logits: str
    reads: frozenset[int]
    through: tuple[str, ...]
    resizes: frozenset[tuple[bool, bool]]


def find_convolutions(graph: Graph) -> ConvolutionGraph:
    """Collects the convolutions of a graph.

    Raises:
        UserError: If a convolution has no constant kernel.
    """
    return _ConvolutionFinder(_without_identities(graph)).network()


def _without_identities(graph: Graph) -> Graph:
    """Returns a graph whose operations read the tensors before identity operations."""
    same: dict[str, str] = {}
    ops = []
    for op in graph.ops:
        inputs = tuple(same.get(name, name) for name in op.inputs)
        if op.kind == "IDENTITY" and graph.constant(op.output) is None:
            same[op.output] = inputs[0]
        else:
            ops.append(dataclasses.replace(op, inputs=inputs))
    outputs = tuple(same.get(name, name) for name in graph.outputs)
    return dataclasses.replace(graph, ops=ops, outputs=outputs)


class _Linear:
    """The multiplications and additions after a convolution, combined to one of each."""

    def __init__(self, channels: int, bias: np.ndarray | None) -> None:
        self.channels, self.offset = channels, bias
        self.scale: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no multiplication or addition has been collected yet."""
        return self.scale is None and self.offset is None

    def append(self, factor: np.ndarray | None, summand: np.ndarray | None) -> None:
        """Appends a multiplication or an addition."""
        if factor is not None:
            self.scale = factor if self.scale is None else self.scale * factor
            self.offset = None if self.offset is None else self.offset * factor
        if summand is not None:
            self.add(summand)

    def add(self, summand: np.ndarray) -> None:
        """Appends an addition."""
        self.offset = summand if self.offset is None else self.offset + summand

    def vectors(self) -> dict[str, np.ndarray]:
        """Returns `scale` and `offset`, `offset` only, or nothing."""
        if self.is_empty:
            return {}
        offset = np.zeros(self.channels, np.float32) if self.offset is None else self.offset
        return {"offset": offset} if self.scale is None else {"scale": self.scale, "offset": offset}


class _ConvolutionFinder:
    """Finds the convolutions of a graph and what belongs to them; see `find_convolutions`."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = {op.output: op for op in graph.ops}
        self.readers: dict[str, list[Op]] = {}
        for op in graph.ops:
            for name in dict.fromkeys(op.inputs):
                self.readers.setdefault(name, []).append(op)
        # Tensor after a convolution's activation -> index of the convolution.
        self.index_of: dict[str, int] = {}

    def network(self) -> ConvolutionGraph:
        found = []
        for op in self.graph.ops:
            if op.kind in CONVOLUTIONS:
                found.append(self._convolution(op))
                self.index_of[found[-1].output] = len(found) - 1
        for convolution in found:
            convolution.reads, through, convolution.pool = self._trace_back(convolution.source)
            # OUTSIDE are sizes that the graph computes to preprocess the image.
            if convolution.reads == {IMAGE, OUTSIDE}:
                convolution.reads = frozenset({IMAGE})
            convolution.through = () if convolution.reads == {IMAGE} else through
        logits = self._logits()
        reads, through, _ = self._trace_back(logits) if logits else (frozenset(), (), None)
        resizes = frozenset(
            (op.attributes["align_corners"], op.attributes["half_pixel_centers"])
            for op in self.graph.ops
            if op.kind == "RESIZE"
        )
        return ConvolutionGraph(tuple(found), logits, reads, through, resizes)

    # --- One convolution ---

    def _convolution(self, op: Op) -> Convolution:
        kernel = self.graph.constant(op.inputs[1])
        if kernel is None or kernel.ndim != 4:
            raise UserError(f"{self.graph.origin}: {op.names[0]} has no constant kernel; {FREEZE}")
        source = self._skip_identities(op.inputs[0])
        before = self.producer.get(source)
        block = None
        if before is not None and before.kind == "SPACE_TO_BATCH":
            block, source = before, self._skip_identities(before.inputs[0])
        kernel, rate = _without_zeros(kernel, op.attributes["dilation"])
        result = Convolution(
            op.names,
            op.kind == "DEPTHWISE",
            kernel,
            op.attributes["stride"],
            rate,
            op.attributes["padding"],
            source=source,
        )
        result.output = self._follow(op, result, block)
        return result

    def _follow(self, op: Op, result: Convolution, block: Op | None) -> str:
        """Collects what follows a convolution up to its activation.

        Returns:
            The tensor after the activation.
        """
        channels = (
            result.kernel.shape[2] * result.kernel.shape[3]
            if result.depthwise
            else result.kernel.shape[3]
        )
        linear = _Linear(
            channels, self._vector(op.inputs[2], channels) if len(op.inputs) > 2 else None
        )
        tensor, activation = self._linear_part(op, result, block, linear)
        if not activation:
            activation, tensor = self._activation(tensor)
        if (
            activation == "RELU6"
            and (reader := self._only_reader(tensor)) is not None
            and (gate := self._gate(reader, tensor))
        ):
            # In relu6(x + 3) * factor, the 3 was added to the bias.
            activation, tensor = gate, reader.output
            linear.add(np.full(channels, -3, np.float32))
        result.activation = activation
        result.vectors |= linear.vectors()
        return self._skip_identities(tensor)

    def _linear_part(
        self, op: Op, result: Convolution, block: Op | None, linear: _Linear
    ) -> tuple[str, str]:
        """Collects bias, batch norm and BATCH_TO_SPACE after a convolution.

        Returns:
            The tensor after them, and the activation fused into the last of them, or "".
        """
        tensor, activation = op.output, op.attributes.get("activation", "")
        while (reader := self._only_reader(tensor)) is not None:
            step = None
            if reader.kind == "BATCH_TO_SPACE" and block is not None:
                _undo_blocks(result, block, reader)
                block = None
            elif activation:
                break
            elif reader.kind == "BATCH_NORM" and linear.is_empty and not result.vectors:
                values = zip(VECTORS, reader.inputs[1:5], strict=True)
                result.vectors = {
                    f"BatchNorm/{name}": self._vector(value, linear.channels)
                    for name, value in values
                }
                result.epsilon = reader.attributes["epsilon"]
            elif reader.kind in ("MUL", "ADD", "SUB") and not result.vectors:
                step = self._step(reader, tensor, linear.channels)
                if step is None:
                    break
                linear.append(*step)
            elif reader.kind != "IDENTITY":
                break
            tensor, activation = (
                reader.output,
                activation or reader.attributes.get("activation", ""),
            )
        if block is not None:
            result.padding = "SPACE_TO_BATCH without BATCH_TO_SPACE"
        return tensor, activation

    def _step(
        self, op: Op, tensor: str, channels: int
    ) -> tuple[np.ndarray | None, np.ndarray | None] | None:
        """Returns (factor, None) or (None, summand), one value per channel.

        Returns `None` if `op` does not combine `tensor` with a constant.
        """
        if op.kind == "ADD" and self._starts_activation(op):
            return None
        others = [name for name in op.inputs if name != tensor]
        if len(others) != 1 or (op.kind == "SUB" and op.inputs[0] != tensor):
            return None
        value = self.graph.constant(others[0])
        if value is None or (
            value.size != 1 and (value.size != channels or value.shape[-1] != channels)
        ):
            return None
        vector = np.broadcast_to(value.reshape(-1).astype(np.float32), (channels,)).copy()
        return (
            (vector, None) if op.kind == "MUL" else (None, -vector if op.kind == "SUB" else vector)
        )

    def _starts_activation(self, op: Op) -> bool:
        """Whether an addition is the first operation of relu6(x + 3)."""
        reader = self._only_reader(op.output)
        three = [
            value
            for name in op.inputs
            if (value := self.graph.constant(name)) is not None and value.size == 1
        ]
        return bool(three) and (
            op.attributes.get("activation") == "RELU6"
            or (reader is not None and reader.kind == "RELU6")
        )

    def _activation(self, tensor: str) -> tuple[str, str]:
        """Returns the activation of `tensor` and the tensor after it."""
        readers = self._readers(tensor)
        if len(readers) == 1 and readers[0].kind in ACTIVATIONS:
            return readers[0].kind, readers[0].output
        shifted = [op for op in readers if op.kind == "ADD" and self._starts_activation(op)]
        if len(shifted) != 1 or not any(
            _is(self.graph.constant(name), 3.0) for name in shifted[0].inputs
        ):
            return "", tensor
        clipped = shifted[0].output
        if not shifted[0].attributes.get("activation"):
            # The only reader, according to `_starts_activation`.
            clipped = self.readers[clipped][0].output
        reader = self._only_reader(clipped)
        if reader is None or reader.kind != "MUL":
            return "", tensor
        gate = self._gate(reader, clipped)
        if len(readers) == 1 and gate:
            return gate, reader.output
        if len(readers) != 2:
            return "", tensor
        last = self._only_reader(reader.output)
        if last is None or last.kind != "MUL":
            return "", tensor
        products = (reader, last)
        multiplied = any(
            self._skip_identities(name) == self._skip_identities(tensor)
            for op in products
            for name in op.inputs
        )
        factors = [self.graph.constant(name) for op in products for name in op.inputs]
        sixth = any(
            _is(value, number) for value in factors for number in (1 / 6, np.float16(1 / 6))
        )
        return ("HARD_SWISH", last.output) if multiplied and sixth else ("", tensor)

    def _gate(self, op: Op, tensor: str) -> str:
        """Returns the gate whose last operation is `op`, or ""."""
        if op.kind != "MUL":
            return ""
        value = next((self.graph.constant(name) for name in op.inputs if name != tensor), None)
        exact = next((gate for gate, factor in GATES.items() if _is(value, factor)), "")
        # In half precision, both factors are the same number. It is the official gate.
        return exact or ("Q_SIGMOID" if _is(value, np.float16(GATES["Q_SIGMOID"])) else "")

    def _vector(self, name: str, channels: int) -> np.ndarray:
        value = self.graph.constant(name)
        if value is None or value.size != channels:
            raise UserError(
                f"{self.graph.origin}: {name} is not a constant with {channels} values; {FREEZE}"
            )
        return value.reshape(-1).astype(np.float32)

    # --- Between the convolutions ---

    def _readers(self, tensor: str) -> list[Op]:
        """Returns the operations that read a tensor, skipping identities."""
        found: list[Op] = []
        for op in self.readers.get(tensor, []):
            found += self._readers(op.output) if op.kind == "IDENTITY" else [op]
        return found

    def _only_reader(self, tensor: str) -> Op | None:
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.graph.outputs else None

    def _skip_identities(self, tensor: str) -> str:
        """Returns the tensor before identity operations."""
        seen = set()
        while (
            (op := self.producer.get(tensor)) is not None
            and op.kind == "IDENTITY"
            and tensor not in seen
        ):
            seen.add(tensor)
            tensor = op.inputs[0]
        return tensor

    def _trace_back(self, tensor: str) -> tuple[frozenset[int], tuple[str, ...], Pool | None]:
        """Finds the convolutions from which a tensor is computed.

        Returns:
            Their indices, the operations between them and the tensor, and the pooling among these
            operations.
        """
        reads: set[int] = set()
        through: list[str] = []
        pool: Pool | None = None
        seen: set[str] = set()
        waiting = [tensor]
        while waiting:
            name = self._skip_identities(waiting.pop())
            if name in seen:
                continue
            seen.add(name)
            op = self.producer.get(name)
            if name in self.index_of:
                reads.add(self.index_of[name])
            elif op is None or name == self.graph.image:
                reads.add(IMAGE if name == self.graph.image else OUTSIDE)
            else:
                if op.kind == "POOL":
                    pool = Pool(op.attributes["window"], op.attributes["stride"])
                if op.kind != "RESIZE":
                    through.append(
                        " ".join(filter(None, (op.kind, op.attributes.get("activation", ""))))
                    )
                constants = [name for name in op.inputs if self.graph.constant(name) is not None]
                if constants and op.kind in ("ADD", "MUL", "SUB"):
                    through[-1] += " with a constant"
                waiting += [name for name in op.inputs if name not in constants]
        return frozenset(reads), tuple(sorted(through)), pool

    def _logits(self) -> str:
        """Returns the tensor of the class scores, or ""."""
        last = next((op for op in reversed(self.graph.ops) if op.kind == "ARGMAX"), None)
        if last is not None:
            tensor = self._skip_identities(last.inputs[0])
        elif len(self.graph.outputs) == 1:
            tensor = self._skip_identities(self.graph.outputs[0])
        else:
            softmax = next((op for op in reversed(self.graph.ops) if op.kind == "SOFTMAX"), None)
            tensor = self._skip_identities(softmax.output) if softmax is not None else ""
        op = self.producer.get(tensor)
        if op is not None and op.kind == "SOFTMAX":
            return self._skip_identities(op.inputs[0])
        return tensor


def _undo_blocks(result: Convolution, before: Op, after: Op) -> None:
    """Converts a convolution between SPACE_TO_BATCH and BATCH_TO_SPACE to a dilated one."""
    block = before.attributes["block"]
    if block is None or block != after.attributes["block"] or result.padding != "valid":
        result.padding = "SPACE_TO_BATCH that does not fit BATCH_TO_SPACE"
        return
    result.dilation = tuple(rate * size for rate, size in zip(result.dilation, block, strict=True))
    pads, crops = before.attributes["pads"], after.attributes["pads"]
    result.padding = "same"
    # If pads and crops are not constant, the graph computes them from the size of the image.
    if pads is not None and crops is not None:
        needed = [
            (size - 1) * rate // 2
            for size, rate in zip(result.kernel.shape[:2], result.dilation, strict=True)
        ]
        found = np.asarray(pads) - np.asarray(crops)
        if not np.array_equal(found, np.transpose([needed, needed])):
            result.padding = f"explicit {found.tolist()}"


def _without_zeros(
    kernel: np.ndarray, dilation: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Converts a kernel with zeros between its taps to a smaller dilated one."""
    size = kernel.shape[0]
    if dilation != (1, 1) or size < 5 or kernel.shape[1] != size:
        return kernel, dilation
    for rate in range((size - 1) // 2, 1, -1):
        rest = np.array(kernel)
        rest[::rate, ::rate] = 0
        if (size - 1) % rate == 0 and not rest.any() and kernel[0].any() and kernel[-1].any():
            return np.ascontiguousarray(kernel[::rate, ::rate]), (rate, rate)
    return kernel, dilation


def _is(value: np.ndarray | None, number: float | np.floating) -> bool:
    return (
        value is not None
        and value.size == 1
        and np.float32(value.reshape(-1)[0]) == np.float32(number)
    )


def is_global_pooling(axes: np.ndarray | None) -> bool:
    """Whether a mean over these axes is global average pooling."""
    return axes is not None and sorted(axes.reshape(-1).tolist()) == [1, 2]
