r"""The engine of all converters: loads foreign weights by a table of layer names, and proves it.

A converter is a readable table, source layer -> our layer, and the dialect of its framework:

    RULES = Rules(
        {
            "backbone.conv1.conv": "stem_conv",
            "backbone.conv1.bn": "stem_bn",
            # {n} is the same number on both sides
            "backbone.layer{n}.expand_conv.conv": "block{n}_expand_conv",
            ...
        },
        TORCH,
        ignored=(r".*\.num_batches_tracked",),
    )
    proof = load_weights(model, tensors_by_name, RULES)
    print(proof)
    tensors_by_name = dump_weights(model, RULES)  # the opposite direction

The dialect defines the names and axes of the tensors of a convolution or batch norm. Which tensors
there are, and their shapes, comes from the model. So one table is enough for every depth
multiplier, output stride and number of classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import keras
import numpy as np

from deeplab_keras.checkpoints.folder import model_variables
from deeplab_keras.checkpoints.values import check_values
from deeplab_keras.config import UserError
from deeplab_keras.convert.identify import hints
from deeplab_keras.models.layer_groups import is_in_group

# Our axes in the source's order: a source tensor is `ours.transpose(axes)`.
Axes = tuple[int, ...]
LISTED = 10  # names per kind of mismatch in an error message


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a framework names and lays out the tensors of a layer.

    Attributes:
        separator: The text between the names of a layer and a tensor.
        convolution: Our variable -> (their tensor, their axes) for a convolution. `()` if the axes
            are the same as ours.
        depthwise: The same for a depthwise convolution, whose kernel here is
            `[height, width, channels, 1]`.
        batch_norm: The same for a batch norm.
    """

    separator: str
    convolution: Mapping[str, tuple[str, Axes]]
    depthwise: Mapping[str, tuple[str, Axes]]
    batch_norm: Mapping[str, tuple[str, Axes]]

    def tensors(self, layer: keras.layers.Layer) -> Mapping[str, tuple[str, Axes]]:
        """Returns our variable -> (their tensor, their axes) for a layer of the model."""
        if isinstance(layer, keras.layers.BatchNormalization):
            return self.batch_norm
        return (
            self.depthwise if isinstance(layer, keras.layers.DepthwiseConv2D) else self.convolution
        )


_BATCH_NORM = {name: (name, ()) for name in ("gamma", "beta", "moving_mean", "moving_variance")}

TORCH = Dialect(
    separator=".",
    convolution={"kernel": ("weight", (3, 2, 0, 1)), "bias": ("bias", ())},
    depthwise={"kernel": ("weight", (2, 3, 0, 1)), "bias": ("bias", ())},
    batch_norm={
        "gamma": ("weight", ()),
        "beta": ("bias", ()),
        "moving_mean": ("running_mean", ()),
        "moving_variance": ("running_var", ()),
    },
)
TF1_SLIM = Dialect(  # a batch norm is a separate layer here: "MobilenetV2/Conv/BatchNorm"
    separator="/",
    convolution={"kernel": ("weights", ()), "bias": ("biases", ())},
    depthwise={"kernel": ("depthwise_weights", ()), "bias": ("biases", ())},
    batch_norm=_BATCH_NORM,
)
KERAS = Dialect(
    separator="/",
    convolution={"kernel": ("kernel", ()), "bias": ("bias", ())},
    depthwise={"kernel": ("kernel", ()), "bias": ("bias", ())},
    batch_norm=_BATCH_NORM,
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The names of our layers in a source.

    Attributes:
        layers: Source layer -> our layer. `{n}` stands for a number, the same on both sides. Rows
            for layers that the model does not have are not used.
        dialect: Names and axes of the tensors.
        ignored: Regular expressions of complete source names without counterpart here (counters,
            optimizer slots, an ImageNet classifier).
        group: The group of our layers (`models.layer_groups`) that the source must have. Other
            layers keep their weights.
    """

    layers: Mapping[str, str]
    dialect: Dialect
    ignored: tuple[str, ...] = ()
    group: str = "all"

    def find(self, layer: str) -> tuple[int, str] | None:
        """Returns the index of our layer's row and its source name, or `None`."""
        for row, (source, pattern) in enumerate(self._rows):
            match = pattern.fullmatch(layer)
            if match:
                return row, source.replace("{n}", match["n"]) if "{n}" in source else source
        return None

    @functools.cached_property
    def _rows(self) -> list[tuple[str, re.Pattern[str]]]:
        return [
            (source, re.compile(r"(?P<n>\d+)".join(map(re.escape, ours.split("{n}", 1)))))
            for source, ours in self.layers.items()
        ]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A variable of our model and the source tensor for it."""

    source: str
    target: str
    axes: Axes
    variable: keras.Variable

    @property
    def layer(self) -> str:
        """The name of our layer."""
        return self.target.split("/")[0]

    @property
    def source_shape(self) -> tuple[int, ...]:
        """The shape of the source tensor."""
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in self.axes) if self.axes else shape

    def read(self) -> np.ndarray:
        """Returns the variable's values with the source's axes."""
        values = keras.ops.convert_to_numpy(self.variable)
        return np.ascontiguousarray(values.transpose(self.axes)) if self.axes else values.copy()

    def write(self, values: np.ndarray) -> None:
        """Assigns values of the source tensor."""
        values = self.rounded(values)
        self.variable.assign(values.transpose(np.argsort(self.axes)) if self.axes else values)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """Returns values of the source tensor in the variable's precision."""
        return np.asarray(values).astype(keras.backend.standardize_dtype(self.variable.dtype))


def slots(model: keras.Model, rules: Rules) -> list[Slot]:
    """Returns the variables that the source must have, in the table's order.

    Raises:
        UserError: If the source has no such layer, so this architecture cannot be converted from or
            to it.
    """
    layers, result = {layer.name: layer for layer in model.layers}, []
    for target, variable in model_variables(model).items():
        layer, tensor = target.split("/")
        if not is_in_group(layer, rules.group):
            continue
        found = rules.find(layer)
        if found is None:
            raise UserError(
                f"layer {layer} of {model.name} has no counterpart in this format; give another "
                "`model`"
            )
        row, source = found
        name, axes = rules.dialect.tensors(layers[layer])[tensor]
        result.append(
            (row, Slot(f"{source}{rules.dialect.separator}{name}", target, axes, variable))
        )
    repeated = [
        name for name, count in Counter(slot.source for _, slot in result).items() if count > 1
    ]
    if repeated:
        raise ValueError(f"the rules assign one source tensor to several variables: {repeated}")
    return [slot for _, slot in sorted(result, key=operator.itemgetter(0))]


def load_weights(
    model: keras.Model,
    source: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    skip_layers: Collection[str] = (),
    origin: str = "the file",
) -> Proof:
    """Loads foreign weights strictly, and proves that they are where they belong.

    Args:
        model: A segmentor, or a part of one.
        source: The foreign tensors by name.
        rules: The names of our layers in the source.
        skip_layers: Layers that keep their weights, such as classifiers for other classes. The
            source must have tensors for them, of any shape.
        origin: The source, for error messages.

    Returns:
        The proof, to print.

    Raises:
        UserError: If tensors are missing, unexpected, of another shape or not finite. Nothing is
            assigned then.
    """
    wanted = slots(model, rules)
    problems = mismatches(wanted, source, rules, skip_layers)
    if problems:
        shapes = {name: tuple(np.shape(tensor)) for name, tensor in source.items()}
        raise UserError(
            f"{origin} does not fit {model.name}{hints(shapes, model.name)} ({problems})"
        )
    loaded = [slot for slot in wanted if slot.layer not in skip_layers]
    check_values(
        {slot.source: source[slot.source] for slot in loaded},
        origin,
        "give a file with intact weights",
    )
    for slot in loaded:
        slot.write(source[slot.source])
    return prove(model, source, rules, skip_layers=skip_layers)


def dump_weights(model: keras.Model, rules: Rules) -> dict[str, np.ndarray]:
    """Returns the model's weights with the source's names and axes, in the table's order.

    This is the inverse of `load_weights`.
    """
    return {slot.source: slot.read() for slot in slots(model, rules)}


def mismatches(
    wanted: Sequence[Slot],
    source: Mapping[str, np.ndarray],
    rules: Rules,
    skip_layers: Collection[str] = (),
) -> str:
    """Lists missing and unexpected tensors and wrong shapes in one line; "" if all of them fit."""
    shapes = {slot.source: slot.source_shape for slot in wanted}
    found = {name: tuple(np.shape(tensor)) for name, tensor in source.items()}
    loaded = [slot for slot in wanted if slot.layer not in skip_layers]
    fixed = [slot.source for slot in loaded if slot.source in found]
    lists = {
        "missing": [name for name in shapes if name not in found],
        "unexpected": [name for name in found if name not in shapes and not _ignored(name, rules)],
        "of another shape": [
            f"{name} {_by(found[name])} instead of {_by(shapes[name])}"
            for name in fixed
            if found[name] != shapes[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {_some(names, LISTED)}" for what, names in lists.items() if names
    )


def mismatched_classifiers(
    model: keras.Model, tensors: Mapping[str, np.ndarray], rules: Rules
) -> tuple[str, ...]:
    """Returns the classifiers whose tensors in the file only differ in the number of classes."""
    mismatched: dict[str, bool] = {}
    for slot in slots(model, dataclasses.replace(rules, group="classifiers")):
        ours, theirs = slot.source_shape, tuple(np.shape(tensors.get(slot.source, 0)))
        classes = slot.axes.index(len(ours) - 1) if slot.axes else len(ours) - 1
        same_but_classes = len(ours) == len(theirs) and ours == (
            *theirs[:classes],
            ours[classes],
            *theirs[classes + 1 :],
        )
        others = mismatched.get(slot.layer, True)
        mismatched[slot.layer] = others and same_but_classes and ours != theirs
    return tuple(layer for layer, found in mismatched.items() if found)


# === The proof ===


@dataclasses.dataclass(frozen=True)
class Row:
    """A tensor compared after the transfer, and the largest difference of source and model."""

    source: str
    target: str
    shape: tuple[int, ...]
    difference: float


@dataclasses.dataclass(frozen=True)
class Proof:
    """The proof of a transfer: every weight was read back and compared with its source tensor.

    Attributes:
        rows: One row per tensor.
        ignored: Source tensors without counterpart here.
        skipped_layers: Layers that were not loaded and kept their weights.
        alike: Tensors that equal another one of the same shape. If they were swapped, it would not
            show.
        notes: What else is proven, and what is not.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...]
    skipped_layers: tuple[str, ...]
    alike: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def max_difference(self) -> float:
        """The largest difference of all rows."""
        return max((row.difference for row in self.rows), default=0.0)

    def table(self) -> str:
        """Returns one line per tensor: source name, shape, our name, difference."""
        width = max((len(row.source) for row in self.rows), default=0)
        return "\n".join(
            f"{row.source:{width}}  {_by(row.shape):>13} -> {row.target}  |difference| "
            f"{row.difference:g}"
            for row in self.rows
        )

    def __str__(self) -> str:
        values = sum(math.prod(row.shape) for row in self.rows)
        lines = [
            f"{len(self.rows)} tensors with {values} values: each was assigned to one variable, "
            "and each variable was assigned once.",
            "All were read back by their source names and are bit for bit the same (max "
            f"|difference| {self.max_difference:g}).",
        ]
        if self.alike:
            lines.append(
                f"{len(self.alike)} of them equal another one of the same shape: swapping those "
                "would not show."
            )
        if self.skipped_layers:
            lines.append(f"Not loaded, with initial weights: {_some(self.skipped_layers, LISTED)}")
        if self.ignored:
            lines.append(
                f"{len(self.ignored)} tensors without counterpart here: {_some(self.ignored)}"
            )
        lines += self.notes
        return "\n".join(lines)


def prove(
    model: keras.Model,
    source: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    skip_layers: Collection[str] = (),
) -> Proof:
    """Reads every weight back by its source name and compares it with the source, bit for bit.

    Raises:
        RuntimeError: If a tensor is not where it belongs. This is an error of the converter, not of
            the file.
    """
    covered = slots(model, rules)
    transferred = [slot for slot in covered if slot.layer not in skip_layers]
    found = {slot.source: slot.read() for slot in transferred}
    rows, wrong = [], []
    for slot in transferred:
        expected, values = slot.rounded(source[slot.source]), found[slot.source]
        if expected.shape != values.shape or expected.tobytes() != values.tobytes():
            wrong.append(slot.source)
        difference = (
            np.max(np.abs(expected - values), initial=0.0)
            if expected.shape == values.shape
            else np.inf
        )
        rows.append(Row(slot.source, slot.target, slot.source_shape, float(difference)))
    # Keras' list of the weights, to find weights that are missing in our names.
    times = Counter(id(slot.variable) for slot in covered)
    in_group = [v for v in model.weights if is_in_group(_layer(v), rules.group)]
    wrong += [v.path for v in in_group if times[id(v)] != 1]
    if wrong:
        raise RuntimeError(f"the transfer is wrong: {_some(wrong)} do not have the source's values")
    digests = {name: (values.shape, values.tobytes()) for name, values in found.items()}
    counts, filled = Counter(digests.values()), {slot.layer for slot in transferred}
    return Proof(
        rows=tuple(rows),
        ignored=tuple(name for name in source if _ignored(name, rules)),
        skipped_layers=tuple(
            dict.fromkeys(layer for layer in map(_layer, model.weights) if layer not in filled)
        ),
        alike=tuple(name for name, digest in digests.items() if counts[digest] > 1),
    )


def _layer(variable: keras.Variable) -> str:
    return str(variable.path).split("/")[-2]


def _ignored(name: str, rules: Rules) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in rules.ignored)


def _by(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _some(names: Collection[str], limit: int = 3) -> str:
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
