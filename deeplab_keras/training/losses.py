"""Losses on logits and index masks with ignored pixels: cross-entropy, focal, Dice, Lovász-softmax and sums of them.

Everything here uses `keras.ops` and runs on every Keras backend. Labels and logits have the same
height and width. A label outside the classes that is not the ignore label costs nothing, but still
counts as a pixel (docs/reference/official_deeplab.md#loss): a compiled step cannot raise an error, and
the data checks find such labels before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from deeplab_keras.config import UserError, unknown_name
from deeplab_keras.evaluation.labels import class_ids, refuse_sample_weight

IGNORE_LABEL = 255
DICE_SMOOTHING = (
    1.0  # pixels added to both sides of the Dice ratio, so that a class of few pixels has no jump
)


def label_masks(
    labels: Any, num_classes: int, ignore_label: int = IGNORE_LABEL
) -> tuple[Any, Any, Any]:
    """Splits labels into what can be looked up and what counts.

    Args:
        labels: `[batch, height, width]`, any number type.
        num_classes: number of classes.
        ignore_label: label of pixels that count nowhere.

    Returns:
        int32 labels inside the classes (anything else replaced by the nearest class), a bool mask
        of the pixels that count, and a bool mask of those of them whose label is one of the
        classes; all `[batch, height, width]`.
    """
    labels = ops.cast(labels, "int32")
    valid = ops.not_equal(labels, ignore_label)
    known = ops.logical_and(valid, ops.logical_and(labels >= 0, labels < num_classes))
    return ops.clip(labels, 0, num_classes - 1), valid, known


def pixel_cross_entropy(
    labels: Any, logits: Any, ignore_label: int = IGNORE_LABEL, label_smoothing: float = 0.0
) -> tuple[Any, Any]:
    """Softmax cross-entropy of every pixel, without a one-hot tensor.

    Args:
        labels: `[batch, height, width]` class indices.
        logits: `[batch, height, width, classes]` float32.
        ignore_label: label of pixels that count nowhere.
        label_smoothing: share of the target probability that goes evenly to all classes.

    Returns:
        The loss, `[batch, height, width]`, 0 where the pixel is ignored or its label is none of the
        classes, and a bool mask of the same shape of the pixels that count.
    """
    index, valid, known = label_masks(labels, logits.shape[-1], ignore_label)
    loss = ops.sparse_categorical_crossentropy(index, logits, from_logits=True)
    if label_smoothing:
        uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
    return ops.where(known, loss, 0.0), valid


def hardest_pixels(pixel_loss: Any, fraction: Any) -> tuple[Any, Any]:
    """Weights that keep the hardest fraction of all pixels.

    The fraction refers to all pixels, ignored ones included
    (docs/reference/official_deeplab.md#hard-pixel-mining). Pixels that tie for the last place share
    the remaining weight.

    Args:
        pixel_loss: loss of every pixel, any shape, at least 0.
        fraction: share of the pixels that is kept, above 0 and at most 1; may be a tensor.

    Returns:
        Weights of the shape of `pixel_loss`, and how many of the kept pixels have a loss above 0
        (int32).
    """
    pixel_loss = ops.stop_gradient(pixel_loss)
    ordered = ops.sort(ops.reshape(pixel_loss, (-1,)))
    count = ops.cast(ops.size(ordered), "int32")
    kept = ops.maximum(ops.cast(fraction * ops.cast(count, "float32"), "int32"), 1)
    threshold = ops.take(ordered, count - kept)
    above, tied = pixel_loss > threshold, ops.equal(pixel_loss, threshold)
    num_above, num_tied = (ops.sum(ops.cast(mask, "int32")) for mask in (above, tied))
    share = ops.cast(kept - num_above, pixel_loss.dtype) / ops.cast(
        ops.maximum(num_tied, 1), pixel_loss.dtype
    )
    weights = ops.where(above, 1.0, ops.where(tied, share, 0.0))
    return weights, ops.where(threshold > 0, kept, num_above)


def dice(
    labels: Any,
    logits: Any,
    ignore_label: int = IGNORE_LABEL,
    sum_over_replicas: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """1 - the soft Dice score of the batch, averaged over the classes that its labels hold; 0 when they hold none.

    Dice of a class is (2 sum(p y) + 1) / (sum(p) + sum(y) + 1) over the valid pixels, with the
    softmax probabilities p.

    Args:
        labels: `[batch, height, width]` class indices.
        logits: `[batch, height, width, classes]` float32.
        ignore_label: label of pixels that count nowhere.
        sum_over_replicas: see `SegmentationLoss`; must let gradients through.
    """
    num_classes = logits.shape[-1]
    index, valid, known = label_masks(labels, num_classes, ignore_label)
    flat_index, hits = ops.reshape(index, (-1,)), ops.cast(known, logits.dtype)
    # exp(-cross-entropy) is the probability of the labelled class: one fused operation instead of a
    # gather.
    right = hits * ops.exp(-ops.sparse_categorical_crossentropy(index, logits, from_logits=True))
    overlap = ops.segment_sum(ops.reshape(right, (-1,)), flat_index, num_segments=num_classes)
    labelled = ops.segment_sum(ops.reshape(hits, (-1,)), flat_index, num_segments=num_classes)
    predicted = ops.einsum(
        "bhw,bhwc->c", ops.cast(valid, logits.dtype), ops.softmax(logits, axis=-1)
    )
    overlap, labelled, predicted = ops.unstack(
        sum_over_replicas(ops.stack([overlap, labelled, predicted])), 3
    )
    scores = (2.0 * overlap + DICE_SMOOTHING) / (predicted + labelled + DICE_SMOOTHING)
    return _mean_over_present(1.0 - scores, labelled > 0)


def lovasz_softmax(labels: Any, logits: Any, ignore_label: int = IGNORE_LABEL) -> Any:
    """Lovász-softmax (Berman et al., arXiv:1705.08790) of the batch, averaged over the classes that its labels hold.

    Sorts the errors of every class: several tensors of the size of the logits are alive at once.

    Args:
        labels: `[batch, height, width]` class indices.
        logits: `[batch, height, width, classes]` float32.
        ignore_label: label of pixels that count nowhere.
    """
    num_classes = logits.shape[-1]
    index, valid, known = label_masks(labels, num_classes, ignore_label)
    index = ops.reshape(ops.where(known, index, -1), (1, -1))
    foreground = ops.cast(
        ops.equal(index, ops.reshape(ops.arange(num_classes, dtype="int32"), (-1, 1))), logits.dtype
    )
    probabilities = ops.transpose(ops.reshape(ops.softmax(logits, axis=-1), (-1, num_classes)))
    # Ignored pixels get the error 0, which sorts them last, where they weigh nothing.
    errors = ops.abs(foreground - probabilities) * ops.cast(
        ops.reshape(valid, (1, -1)), logits.dtype
    )
    order = ops.argsort(ops.stop_gradient(-errors), axis=1)
    hits = ops.take_along_axis(foreground, order, axis=1)
    labelled = ops.sum(foreground, axis=1, keepdims=True)
    jaccard = 1.0 - (labelled - ops.cumsum(hits, axis=1)) / (
        labelled + ops.cumsum(1.0 - hits, axis=1)
    )
    slope = ops.concatenate([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], axis=1)
    losses = ops.sum(ops.take_along_axis(errors, order, axis=1) * slope, axis=1)
    return _mean_over_present(losses, labelled[:, 0] > 0)


def _mean_over_present(losses: Any, present: Any) -> Any:
    present = ops.cast(present, losses.dtype)
    return ops.sum(losses * present) / ops.maximum(ops.sum(present), 1.0)


@keras.saving.register_keras_serializable(package="deeplab_keras")
class SegmentationLoss(keras.losses.Loss):
    """A weighted sum of loss terms on logits `[batch, height, width, classes]` and labels `[batch, height, width]`.

    The pixel terms are means over the valid pixels of the batch, 0 where there is none.

    Several replicas (tf.distribute): Keras adds the replicas' gradients up. With
    `sum_over_replicas` every mean is over the global batch, so that two replicas compute what one
    would; only hard pixels and the Lovász term's ranking are still those of each replica. Without
    it the loss is the mean of the replicas' own means, as under PyTorch's DDP.

    Args:
        terms: name of a term -> its weight; the names are those of `TERMS`.
        ignore_label: label of pixels that count nowhere.
        class_weights: one factor per class, for cross-entropy and focal loss. They scale the sum
            over the pixels, not the number of pixels that divides it
            (docs/reference/official_deeplab.md#loss).
        label_smoothing: share of the target probability that goes evenly to all classes;
            cross-entropy only.
        hard_example_fraction: cross-entropy of this share of the pixels only, the hardest ones; 1:
            of all.
        hard_example_mining_step: steps in which that share goes from 1 to `hard_example_fraction`.
        step: the 0-based training step for that, as a variable or a callable, such as `lambda:
            optimizer.iterations`. `None`: the step of the segmentor that is compiled with this
            loss (`follow`). On JAX, only a callable that returns the traced step works, because
            `fit` would freeze a variable's value there.
        focal_gamma: focal loss is (1 - p)^gamma times the cross-entropy.
        sum_over_replicas: takes a float32 tensor and returns its sum over all replicas, with a
            gradient; the identity outside a distributed step. The trainer has it.
        name: name of the loss.

    Raises:
        UserError: an unknown term, or a number that no run could use.
    """

    def __init__(
        self,
        terms: Mapping[str, float] | None = None,
        *,
        ignore_label: int = IGNORE_LABEL,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        hard_example_fraction: float = 1.0,
        hard_example_mining_step: int = 0,
        step: Any = None,
        focal_gamma: float = 2.0,
        sum_over_replicas: Callable[[Any], Any] | None = None,
        name: str = "segmentation_loss",
    ) -> None:
        super().__init__(name=name, dtype=keras.config.floatx())
        self.terms = dict(terms) if terms else {"cross_entropy": 1.0}
        self.ignore_label = ignore_label
        self.class_weights = (
            None if class_weights is None else tuple(float(weight) for weight in class_weights)
        )
        self.label_smoothing = label_smoothing
        self.hard_example_fraction = hard_example_fraction
        self.hard_example_mining_step = hard_example_mining_step
        self.step = self._step = step
        self.focal_gamma = focal_gamma
        self.sum_over_replicas = sum_over_replicas
        self._check()

    def _check(self) -> None:
        for term in self.terms:
            if term not in TERMS:
                raise unknown_name("loss", term, TERMS)
        if self.class_weights is not None and any(weight < 0 for weight in self.class_weights):
            raise UserError(f"class_weights={self.class_weights}: 0 or above")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing={self.label_smoothing}: at least 0 and below 1")
        if not 0 < self.hard_example_fraction <= 1:
            raise UserError(
                f"hard_example_fraction={self.hard_example_fraction}: above 0 and at most 1"
            )
        if self.hard_example_mining_step and self.hard_example_fraction == 1 and self.step is None:
            raise UserError(
                f"hard_example_mining_step={self.hard_example_mining_step} has no effect with "
                "hard_example_fraction=1; give a fraction below 1"
            )
        if self.focal_gamma < 1:
            raise UserError(
                f"focal_gamma={self.focal_gamma}: at least 1 (below, gradients can be infinite)"
            )

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the loss. Sample weights are refused: some of the terms have no use for them."""
        refuse_sample_weight(sample_weight)
        return super().__call__(y_true, y_pred)

    def follow(self, step: Callable[[], Any]) -> None:
        """Makes hard-pixel mining follow the training step that `step` returns, unless the loss was given one."""
        if self.step is None:
            self._step = step

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """The loss of one replica's batch: a scalar, or without `sum_over_replicas` a tensor of one element.

        Keras divides what has elements by the number of replicas and leaves a scalar alone.
        """
        _check_scores(y_pred, self.class_weights)
        labels = class_ids(y_true, y_pred.shape[:-1])
        loss = sum(
            weight * TERMS[term](self, labels, y_pred) for term, weight in self.terms.items()
        )
        return ops.reshape(loss, (1,)) if self.sum_over_replicas is None else loss

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the loss, without `step` and `sum_over_replicas`, which belong to a run."""
        names = (
            "name",
            "terms",
            "ignore_label",
            "class_weights",
            "label_smoothing",
            "hard_example_fraction",
            "hard_example_mining_step",
            "focal_gamma",
        )
        return {name: getattr(self, name) for name in names}

    def _sum_over_replicas(self, value: Any) -> Any:
        return value if self.sum_over_replicas is None else self.sum_over_replicas(value)

    def _share(self, whole: Any) -> Any:
        """This replica's share of a value that is a mean over all replicas."""
        return whole / self._sum_over_replicas(ops.ones(()))

    def _mean(self, pixel_loss: Any, count: Any) -> Any:
        """The sum of this replica's pixels over the number of all replicas' pixels; 0 when that is 0."""
        count = ops.cast(
            self._sum_over_replicas(ops.stop_gradient(ops.cast(count, "float32"))), pixel_loss.dtype
        )
        return ops.sum(pixel_loss) / ops.maximum(count, 1.0)

    def _weighted(self, pixel_loss: Any, labels: Any) -> Any:
        if self.class_weights is None:
            return pixel_loss
        index = ops.clip(ops.cast(labels, "int32"), 0, len(self.class_weights) - 1)
        return pixel_loss * ops.take(
            ops.convert_to_tensor(self.class_weights, pixel_loss.dtype), index
        )

    def _fraction(self) -> Any:
        if not self.hard_example_mining_step:
            return self.hard_example_fraction
        if self._step is None:
            raise UserError(
                f"hard_example_mining_step={self.hard_example_mining_step} needs the training step; "
                "give step=lambda: optimizer.iterations"
            )
        step = self._step() if callable(self._step) else self._step
        ramp = ops.minimum(ops.cast(step, "float32") / self.hard_example_mining_step, 1.0)
        return ramp * self.hard_example_fraction + (1.0 - ramp)

    def _cross_entropy(self, labels: Any, logits: Any) -> Any:
        pixel_loss, valid = pixel_cross_entropy(
            labels, logits, self.ignore_label, self.label_smoothing
        )
        pixel_loss = self._weighted(pixel_loss, labels)
        if self.hard_example_fraction == 1:
            return self._mean(pixel_loss, ops.sum(ops.cast(valid, "int32")))
        weights, count = hardest_pixels(pixel_loss, self._fraction())
        return self._mean(pixel_loss * weights, count)

    def _focal(self, labels: Any, logits: Any) -> Any:
        pixel_loss, valid = pixel_cross_entropy(labels, logits, self.ignore_label)
        wrong = -ops.expm1(-pixel_loss)  # 1 - p of the labelled class, exact for p near 1
        pixel_loss = self._weighted(pixel_loss * ops.power(wrong, self.focal_gamma), labels)
        return self._mean(pixel_loss, ops.sum(ops.cast(valid, "int32")))

    def _dice(self, labels: Any, logits: Any) -> Any:
        return self._share(dice(labels, logits, self.ignore_label, self._sum_over_replicas))

    def _lovasz(self, labels: Any, logits: Any) -> Any:
        return self._share(lovasz_softmax(labels, logits, self.ignore_label))


TERMS: dict[str, Callable[[SegmentationLoss, Any, Any], Any]] = {
    "cross_entropy": SegmentationLoss._cross_entropy,
    "focal": SegmentationLoss._focal,
    "dice": SegmentationLoss._dice,
    "lovasz": SegmentationLoss._lovasz,
}


def _check_scores(logits: Any, class_weights: tuple[float, ...] | None) -> None:
    shape = tuple(logits.shape)
    if len(shape) != 4 or shape[-1] is None or shape[-1] < 2:
        raise UserError(
            f"logits of shape {shape}; allowed is [batch, height, width, classes] with at least 2 "
            "classes"
        )
    if class_weights is not None and len(class_weights) != shape[-1]:
        raise UserError(
            f"class_weights has {len(class_weights)} numbers; the model has {shape[-1]} classes"
        )


def parse_terms(spec: str) -> dict[str, float]:
    """'cross_entropy + 0.5*dice' -> {'cross_entropy': 1.0, 'dice': 0.5}.

    Raises:
        UserError: a term that is unknown or named twice, or a weight that is not a number above 0.
    """
    terms: dict[str, float] = {}
    for part in spec.split("+"):
        weight_text, _, name = part.rpartition("*")
        name = name.strip()
        if name not in TERMS:
            raise unknown_name("loss", name or spec, TERMS)
        try:
            weight = float(weight_text) if weight_text else 1.0
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf") or name in terms:
            raise UserError(
                f"loss {spec!r}: name each term once, with a factor above 0: "
                "'cross_entropy+0.5*dice'"
            )
        terms[name] = weight
    return terms


def make_loss(spec: str = "cross_entropy", **options: Any) -> SegmentationLoss:
    """The loss of a specification such as 'cross_entropy+0.5*dice'.

    Args:
        spec: terms of `TERMS`, each with an optional factor, joined by '+'.
        **options: arguments of `SegmentationLoss`.

    Raises:
        UserError: see `parse_terms` and `SegmentationLoss`.
    """
    return SegmentationLoss(parse_terms(spec), **options)
