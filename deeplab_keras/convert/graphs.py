"""What a graph computes around its convolutions, in one form for frozen graphs, TFLite files and our own models.

The readers (`frozen_graph`, `tflite_weights`, `keras_graph`) translate a file or a model into a
`Graph` of operations in one vocabulary. `find_convolutions` then collects everything that belongs
to each convolution: stride, dilation, padding, a bias or a batch norm (whole, folded, or left as
multiplication and addition), the activation, and which convolutions it reads, through which other
operations. Two graphs with the same convolutions compute the same function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deeplab_keras.config import UserError

CONVOLUTIONS = ("CONV", "DEPTHWISE")
ACTIVATIONS = ("RELU", "RELU6", "HARD_SWISH", "HARD_SIGMOID", "Q_SIGMOID", "SIGMOID")
# The factors of the two gates relu6(x + 3) * factor.
GATES = {"Q_SIGMOID": 0.16667, "HARD_SIGMOID": 1 / 6}
VECTORS = ("gamma", "beta", "moving_mean", "moving_variance")
FREEZE = "freeze the graph, or give the checkpoint"
IMAGE, OUTSIDE = (
    -1,
    -2,
)  # "convolutions" that a convolution reads: the image, and what no convolution leads to


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        kind: `CONV`, `DEPTHWISE`, `ADD`, `SUB`, `MUL`, `BATCH_NORM`, one of `ACTIVATIONS`, `POOL`,
            `RESIZE`, `CONCAT`, `PAD`, `SPACE_TO_BATCH`, `BATCH_TO_SPACE`, `IDENTITY`, `SOFTMAX`,
            `ARGMAX`, `FAKE_QUANT`, or the format's own name of another operation.
        inputs: names of the tensors that it reads, without those that only state an order or a
            size.
        output: name of its first output.
        names: names from which the layer can be recognized, the most telling first.
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
    """Operations in the order in which they can run.

    Attributes:
        ops: the operations.
        constant: the value behind a tensor's name, or None if it is computed from the image.
        image: the tensor that takes the image.
        outputs: the tensors that the graph returns, if it says so.
        origin: the file, for error messages.
    """

    ops: Sequence[Op]
    constant: Callable[[str], np.ndarray | None]
    image: str = ""
    outputs: tuple[str, ...] = ()
    origin: str = ""


@dataclasses.dataclass(frozen=True)
class Pool:
    """An average pooling; `window=None` covers the whole map."""

    window: tuple[int, int] | None
    stride: tuple[int, int]


@dataclasses.dataclass
class Convolution:
    """One convolution with everything that belongs to it.

    Attributes:
        names: names from which the layer can be recognized.
        depthwise: whether it is depthwise.
        kernel: in TF1's axes, zeros between the taps of a dilated kernel removed.
        stride: (height, width).
        dilation: (height, width).
        padding: "same", "valid" or another word.
        vectors: `BatchNorm/<vector>` of a whole batch norm, or `scale` and `offset`, one value per
            channel.
        epsilon: of a whole batch norm.
        activation: one of `ACTIVATIONS` or "".
        reads: places of the convolutions that it reads; `IMAGE` is the image.
        through: the operations between those and this convolution, sorted.
        pool: the pooling among them.
        source: the tensor that it reads, behind a SPACE_TO_BATCH.
        output: the tensor after its activation.
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
class Network:
    """All convolutions of a graph and its end.

    Attributes:
        convolutions: in the order in which they run.
        logits: the tensor with the class scores, before a softmax and an argmax; "" if there is no
            such tensor.
        reads: places of the convolutions whose sum the class scores are.
        through: the operations between those and the class scores, sorted.
        resizes: (align_corners, half_pixel_centers) of each bilinear resize.
    """

    convolutions: tuple[Convolution, ...]
    logits: str
    reads: frozenset[int]
    through: tuple[str, ...]
    resizes: frozenset[tuple[bool, bool]]


def find_convolutions(graph: Graph) -> Network:
    """Collects the convolutions of a graph.

    Raises:
        UserError: a convolution has no constant kernel, or the graph simulates 8-bit arithmetic.
    """
    rounding = sum(op.kind == "FAKE_QUANT" for op in graph.ops)
    if rounding:
        raise UserError(
            f"{graph.origin}: quantization-aware: {rounding} operations round its weights and "
            "features, which no float model "
            "does; give the float graph, or the TF1 checkpoint of its training for the float "
            "weights"
        )
    return _Walk(graph).network()


class _Linear:
    """The multiplications and additions after a convolution, as one of each."""

    def __init__(self, channels: int, bias: np.ndarray | None) -> None:
        self.channels, self.offset = channels, bias
        self.scale: np.ndarray | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has followed yet."""
        return self.scale is None and self.offset is None

    def follow(self, factor: np.ndarray | None, summand: np.ndarray | None) -> None:
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
        """`scale` and `offset`, as far as there are any."""
        if self.is_empty:
            return {}
        offset = np.zeros(self.channels, np.float32) if self.offset is None else self.offset
        return {"offset": offset} if self.scale is None else {"scale": self.scale, "offset": offset}


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = {op.output: op for op in graph.ops}
        self.readers: dict[str, list[Op]] = {}
        for op in graph.ops:
            for name in dict.fromkeys(op.inputs):
                self.readers.setdefault(name, []).append(op)
        self.place: dict[
            str, int
        ] = {}  # tensor after a convolution's activation -> the convolution

    def network(self) -> Network:
        found = []
        for op in self.graph.ops:
            if op.kind in CONVOLUTIONS:
                found.append(self._convolution(op))
                self.place[found[-1].output] = len(found) - 1
        for convolution in found:
            convolution.reads, through, convolution.pool = self._back(convolution.source)
            if convolution.reads == {
                IMAGE,
                OUTSIDE,
            }:  # sizes, on the way to which the image is prepared
                convolution.reads = frozenset({IMAGE})
            convolution.through = () if convolution.reads == {IMAGE} else through
        end = self._end()
        reads, through, _ = self._back(end) if end else (frozenset(), (), None)
        resizes = frozenset(
            (op.attributes["align_corners"], op.attributes["half_pixel_centers"])
            for op in self.graph.ops
            if op.kind == "RESIZE"
        )
        return Network(tuple(found), end, reads, through, resizes)

    # --- One convolution ---

    def _convolution(self, op: Op) -> Convolution:
        kernel = self.graph.constant(op.inputs[1])
        if kernel is None or kernel.ndim != 4:
            raise UserError(f"{self.graph.origin}: {op.names[0]} has no constant kernel; {FREEZE}")
        dilation, source, padding = (
            op.attributes["dilation"],
            self._plain(op.inputs[0]),
            op.attributes["padding"],
        )
        before = self.producer.get(source)
        block = None
        if before is not None and before.kind == "SPACE_TO_BATCH":
            block, source = before, self._plain(before.inputs[0])
        kernel, rate = _without_zeros(kernel, dilation)
        result = Convolution(
            op.names,
            op.kind == "DEPTHWISE",
            kernel,
            op.attributes["stride"],
            rate,
            padding,
            source=source,
        )
        result.output = self._follow(op, result, block)
        return result

    def _follow(self, op: Op, result: Convolution, block: Op | None) -> str:
        """Collects what follows a convolution up to its activation; returns the tensor behind that."""
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
            activation, tensor = (
                gate,
                reader.output,
            )  # relu6(x + 3) * factor, whose 3 went into the bias
            linear.add(np.full(channels, -3, np.float32))
        result.activation = activation
        result.vectors |= linear.vectors()
        return self._plain(tensor)

    def _linear_part(
        self, op: Op, result: Convolution, block: Op | None, linear: _Linear
    ) -> tuple[str, str]:
        """The tensor after bias, batch norm and blocks, and the activation that is fused into the last of these."""
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
                linear.follow(*step)
            elif reader.kind != "IDENTITY":
                break
            tensor, activation = (
                reader.output,
                activation or reader.attributes.get("activation", ""),
            )
        if block is not None:
            result.padding = "blocks that are not undone"
        return tensor, activation

    def _step(
        self, op: Op, tensor: str, channels: int
    ) -> tuple[np.ndarray | None, np.ndarray | None] | None:
        """(factor, None) or (None, summand), one value per channel, if `op` combines `tensor` with a constant."""
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
        """The activation that `tensor` goes through and the tensor behind it."""
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
            clipped = self.readers[clipped][
                0
            ].output  # `_starts_activation` saw that it is the only one
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
            self._plain(name) == self._plain(tensor) for op in products for name in op.inputs
        )
        factors = [self.graph.constant(name) for op in products for name in op.inputs]
        sixth = any(
            _is(value, number) for value in factors for number in (1 / 6, np.float16(1 / 6))
        )
        return ("HARD_SWISH", last.output) if multiplied and sixth else ("", tensor)

    def _gate(self, op: Op, tensor: str) -> str:
        """The gate whose last step is `op`."""
        if op.kind != "MUL":
            return ""
        value = next((self.graph.constant(name) for name in op.inputs if name != tensor), None)
        exact = next((gate for gate, factor in GATES.items() if _is(value, factor)), "")
        # In half precision both factors are the same number; the official one is meant.
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
        """The operations that read a tensor, seen through identities."""
        found: list[Op] = []
        for op in self.readers.get(tensor, []):
            found += self._readers(op.output) if op.kind == "IDENTITY" else [op]
        return found

    def _only_reader(self, tensor: str) -> Op | None:
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.graph.outputs else None

    def _plain(self, tensor: str) -> str:
        """The tensor behind identities."""
        seen = set()
        while (
            (op := self.producer.get(tensor)) is not None
            and op.kind == "IDENTITY"
            and tensor not in seen
        ):
            seen.add(tensor)
            tensor = op.inputs[0]
        return tensor

    def _back(self, tensor: str) -> tuple[frozenset[int], tuple[str, ...], Pool | None]:
        """The convolutions that a tensor is computed from, the operations between, and the pooling among those."""
        reads: set[int] = set()
        through: list[str] = []
        pool, seen, waiting = None, set(), [tensor]
        while waiting:
            name = self._plain(waiting.pop())
            if name in seen:
                continue
            seen.add(name)
            op = self.producer.get(name)
            if name in self.place:
                reads.add(self.place[name])
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

    def _end(self) -> str:
        """The tensor with the class scores."""
        last = next((op for op in reversed(self.graph.ops) if op.kind == "ARGMAX"), None)
        if last is not None:
            tensor = self._plain(last.inputs[0])
        elif len(self.graph.outputs) == 1:
            tensor = self._plain(self.graph.outputs[0])
        else:
            softmax = next((op for op in reversed(self.graph.ops) if op.kind == "SOFTMAX"), None)
            tensor = self._plain(softmax.output) if softmax is not None else ""
        op = self.producer.get(tensor)
        return self._plain(op.inputs[0]) if op is not None and op.kind == "SOFTMAX" else tensor


def _undo_blocks(result: Convolution, before: Op, after: Op) -> None:
    """A convolution between SPACE_TO_BATCH and BATCH_TO_SPACE is a dilated one."""
    block = before.attributes["block"]
    if block is None or block != after.attributes["block"] or result.padding != "valid":
        result.padding = "blocks of another form"
        return
    result.dilation = tuple(rate * size for rate, size in zip(result.dilation, block, strict=True))
    pads, crops = before.attributes["pads"], after.attributes["pads"]
    result.padding = "same"
    if pads is not None and crops is not None:  # else they are computed from the size of the image
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
    """A kernel whose taps have zeros between them is a smaller dilated one."""
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


def over_the_map(axes: np.ndarray | None) -> bool:
    """Whether a mean over these axes is one over the whole map."""
    return axes is not None and sorted(axes.reshape(-1).tolist()) == [1, 2]
