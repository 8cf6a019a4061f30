r"""The engine of all converters: foreign weights into our model and back, by a table of layer names, with a proof.

A converter is a table that a person can read, source layer -> our layer, and the dialect of its
framework:

    RULES = Rules(
        {
            "backbone.conv1.conv": "stem_conv",
            "backbone.conv1.bn": "stem_bn",
            "backbone.layer{n}.expand_conv.conv": "block{n}_expand_conv",  # {n}: a number, the same
            on both sides ...
        },
        TORCH,
        ignored=(r".*\.num_batches_tracked",),
    )
    proof = load_weights(model, tensors_by_name, RULES)
    print(proof)
    tensors_by_name = dump_weights(model, RULES)  # the way back

The dialect says what a convolution's or a batch norm's tensors are called and how their axes lie;
which tensors there are, and of what shape, comes from the model. So one table serves every width,
output stride and number of classes.
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

# Our axes in the source's order: a source tensor is `ours.transpose(axes)`.
Axes = tuple[int, ...]
LISTED = 10  # names of a kind in an error's line
CLASSIFIERS = re.compile(r"(auxiliary_)?logits(\d+|_high|_low)?")


@dataclasses.dataclass(frozen=True)
class Dialect:
    """How a framework names and lays out the tensors of a layer.

    Attributes:
        separator: stands between a layer's name and a tensor's.
        convolution: our variable -> (their tensor, their axes); `()` for axes as ours.
        depthwise: the same of a depthwise convolution, ours being `[height, width, channels, 1]`.
        batch_norm: the same of a batch norm.
    """

    separator: str
    convolution: Mapping[str, tuple[str, Axes]]
    depthwise: Mapping[str, tuple[str, Axes]]
    batch_norm: Mapping[str, tuple[str, Axes]]

    def tensors(self, layer: keras.layers.Layer) -> Mapping[str, tuple[str, Axes]]:
        """Our variable -> (their tensor, their axes) for a layer of the model."""
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
TF1_SLIM = Dialect(  # a batch norm is a layer of its own here: "MobilenetV2/Conv/BatchNorm"
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
    """What a source calls our layers.

    Attributes:
        layers: source layer -> our layer. `{n}` stands for a number, the same on both sides. A rule
            whose layer the model does not have is not used.
        dialect: names and axes of the tensors.
        ignored: regular expressions of whole source names that have no counterpart here (counters,
            optimizer slots, an ImageNet classifier).
        covers: regular expression of our layers' names that the source must fill, every one of
            them; the others keep their weights. `stem_.*|block.*` for the files of a backbone.
    """

    layers: Mapping[str, str]
    dialect: Dialect
    ignored: tuple[str, ...] = ()
    covers: str = ".*"

    def find(self, layer: str) -> tuple[int, str] | None:
        """The row of our layer in the table and the source's name of it, or None."""
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
    """One variable of ours and where its values come from."""

    source: str
    target: str
    axes: Axes
    variable: keras.Variable

    @property
    def layer(self) -> str:
        """Our layer."""
        return self.target.split("/")[0]

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Shape of the source's tensor."""
        shape = tuple(self.variable.shape)
        return tuple(shape[axis] for axis in self.axes) if self.axes else shape

    def read(self) -> np.ndarray:
        """The variable's values as the source has them."""
        values = keras.ops.convert_to_numpy(self.variable)
        return np.ascontiguousarray(values.transpose(self.axes)) if self.axes else values.copy()

    def write(self, values: np.ndarray) -> None:
        """Assigns the source's values."""
        values = self.rounded(values)
        self.variable.assign(values.transpose(np.argsort(self.axes)) if self.axes else values)

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """The source's values in the variable's precision."""
        return np.asarray(values).astype(keras.backend.standardize_dtype(self.variable.dtype))


def slots(model: keras.Model, rules: Rules) -> list[Slot]:
    """Every variable that the rules cover, in the table's order, with its source name.

    Raises:
        UserError: the source has no such layer, so that this architecture cannot come from there or
            go there.
    """
    layers, result = {layer.name: layer for layer in model.layers}, []
    for target, variable in model_variables(model).items():
        layer, tensor = target.split("/")
        if not re.fullmatch(rules.covers, layer):
            continue
        found = rules.find(layer)
        if found is None:
            raise UserError(
                f"layer {layer} of {model.name} has no counterpart there; give a `model` that has "
                "one"
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
        raise ValueError(f"the rules send one source tensor to several variables: {repeated}")
    return [slot for _, slot in sorted(result, key=operator.itemgetter(0))]


def load_weights(
    model: keras.Model,
    source: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    keep: Collection[str] = (),
    origin: str = "the file",
) -> Proof:
    """Fills the model with foreign weights; strict, and proven afterwards.

    Args:
        model: a segmentor, or a part of one.
        source: the foreign tensors by name.
        rules: what they are called.
        keep: layers of ours that keep their own weights (classifiers for other classes); their
            source tensors must be there, of whatever size.
        origin: what errors call the source.

    Returns:
        The proof, to be printed.

    Raises:
        UserError: tensors are missing, left over, of another shape or not finite; nothing is
            assigned then.
    """
    wanted = slots(model, rules)
    problems = mismatches(wanted, source, rules, keep)
    if problems:
        seems = hints(
            {name: tuple(np.shape(tensor)) for name, tensor in source.items()}, model.name
        )
        raise UserError(f"{origin} does not fit {model.name}{seems} ({problems})")
    taken = [slot for slot in wanted if slot.layer not in keep]
    check_values(
        {slot.source: source[slot.source] for slot in taken},
        origin,
        "give a file with intact weights",
    )
    for slot in taken:
        slot.write(source[slot.source])
    return prove(model, source, rules, keep=keep)


def dump_weights(model: keras.Model, rules: Rules) -> dict[str, np.ndarray]:
    """The model's weights under the source's names, in its axes and the table's order: `load_weights` back."""
    return {slot.source: slot.read() for slot in slots(model, rules)}


def mismatches(
    wanted: Sequence[Slot],
    source: Mapping[str, np.ndarray],
    rules: Rules,
    keep: Collection[str] = (),
) -> str:
    """What of the source is missing, left over or of another shape, in one line; "" if all of it fits exactly."""
    shapes = {slot.source: slot.source_shape for slot in wanted}
    found = {name: tuple(np.shape(tensor)) for name, tensor in source.items()}
    fixed = [slot.source for slot in wanted if slot.layer not in keep and slot.source in found]
    lists = {
        "missing": [name for name in shapes if name not in found],
        "left over": [name for name in found if name not in shapes and not _ignored(name, rules)],
        "of another shape": [
            f"{name} {_by(found[name])} instead of {_by(shapes[name])}"
            for name in fixed
            if found[name] != shapes[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {what}: {_some(names, LISTED)}" for what, names in lists.items() if names
    )


def fresh_classifiers(
    model: keras.Model, tensors: Mapping[str, np.ndarray], rules: Rules
) -> tuple[str, ...]:
    """Classifier layers whose tensors in the file differ from ours in the number of classes and in nothing else."""
    names: dict[str, bool] = {}
    for slot in slots(model, dataclasses.replace(rules, covers=CLASSIFIERS.pattern)):
        ours, theirs = slot.source_shape, tuple(np.shape(tensors.get(slot.source, 0)))
        classes = slot.axes.index(len(ours) - 1) if slot.axes else len(ours) - 1
        same_but_classes = len(ours) == len(theirs) and ours == (
            *theirs[:classes],
            ours[classes],
            *theirs[classes + 1 :],
        )
        names[slot.layer] = names.get(slot.layer, True) and same_but_classes and ours != theirs
    return tuple(name for name, fresh in names.items() if fresh)


# === The proof ===


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor, compared after the transfer: `difference` is the largest between the source and the model."""

    source: str
    target: str
    shape: tuple[int, ...]
    difference: float


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was transferred, read back from the model and compared with the source name by name.

    Attributes:
        rows: one a tensor.
        ignored: source tensors that have no counterpart here.
        kept: layers that no tensor filled and that kept their own weights.
        alike: tensors that equal another one of the same shape; had those been swapped, nothing
            would differ.
        notes: what else is proven, and what is not.
    """

    rows: tuple[Row, ...]
    ignored: tuple[str, ...]
    kept: tuple[str, ...]
    alike: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def max_difference(self) -> float:
        """Largest of the rows' differences."""
        return max((row.difference for row in self.rows), default=0.0)

    def table(self) -> str:
        """A line a tensor: source name, shape, our name, difference."""
        width = max((len(row.source) for row in self.rows), default=0)
        return "\n".join(
            f"{row.source:{width}}  {_by(row.shape):>13} -> {row.target}  |difference| "
            f"{row.difference:g}"
            for row in self.rows
        )

    def __str__(self) -> str:
        values = sum(math.prod(row.shape) for row in self.rows)
        lines = [
            f"{len(self.rows)} tensors with {values} values: each went to one variable, each "
            "variable was filled once,",
            "each was read back by its source name, bit for bit the same (max |difference| "
            f"{self.max_difference:g}).",
        ]
        if self.alike:
            lines.append(
                f"{len(self.alike)} of them equal another one of their shape: a swap of those "
                "would not show."
            )
        if self.kept:
            lines.append(f"newly initialised, not from the file: {_some(self.kept, LISTED)}")
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
    keep: Collection[str] = (),
) -> Proof:
    """Reads every weight back from the model under its source name and compares it with the source, bit for bit.

    Raises:
        RuntimeError: a tensor is not where it belongs, which is a mistake in the converter and not
            in the file.
    """
    covered = slots(model, rules)
    transferred = [slot for slot in covered if slot.layer not in keep]
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
    # Keras' own list of the weights, not ours, so that one which our names miss is seen.
    times = Counter(id(slot.variable) for slot in covered)
    in_reach = [v for v in model.weights if re.fullmatch(rules.covers, _layer(v))]
    wrong += [v.path for v in in_reach if times[id(v)] != 1]
    if wrong:
        raise RuntimeError(
            f"the transfer is wrong: {_some(wrong)} do not hold what the source says"
        )
    digests = {name: (values.shape, values.tobytes()) for name, values in found.items()}
    counts, filled = Counter(digests.values()), {slot.layer for slot in transferred}
    return Proof(
        rows=tuple(rows),
        ignored=tuple(name for name in source if _ignored(name, rules)),
        kept=tuple(
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
