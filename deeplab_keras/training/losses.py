"""Losses for semantic segmentation: cross-entropy, focal, Dice, Lovász-softmax, distillation.

They take logits and one class index per pixel, at the same height and width, and run on every Keras
backend. Pixels with the ignore label do not count. Any other label that is not a class, such as
1.5, adds no loss, but still counts as a valid pixel (docs/reference/official_deeplab.md#loss),
because a compiled step cannot raise an error. The dataset checks find such labels before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from deeplab_keras.config import UserError, number, typed, unknown_name
from deeplab_keras.evaluation.labels import as_int32, class_ids, refuse_sample_weight

__all__ = [
    "SegmentationLoss",
    "dice",
    "distillation",
    "hardest_pixels",
    "label_masks",
    "lovasz_softmax",
    "make_loss",
    "parse_terms",
    "pixel_cross_entropy",
]

IGNORE_LABEL = 255
# Pixels added to the numerator and the denominator of the Dice score, which makes the score of a
# class with few pixels smooth.
DICE_SMOOTHING = 1.0


def label_masks(
    labels: Any, num_classes: int, ignore_label: int = IGNORE_LABEL
) -> tuple[Any, Any, Any]:
    """Returns class indices that are safe to look up, and masks of the pixels that count.

    Args:
        labels: Class index of each pixel, `[batch, height, width]`, any numeric dtype.
        num_classes: Number of classes.
        ignore_label: Label of the pixels to ignore.

    Returns:
        A tuple `(index, valid, known)` of tensors of shape `[batch, height, width]`:

        * `index`: int32 labels clipped to the range of the classes.
        * `valid`: bool, `True` where the label is not `ignore_label`.
        * `known`: bool, `True` where the pixel is valid and its label is one of the classes.

    Example:
        >>> labels = np.array([[[0, 1, 7, 255]]])
        >>> index, valid, known = dk.losses.label_masks(labels, num_classes=3)
        >>> keras.ops.convert_to_numpy(index).tolist()
        [[[0, 1, 2, 2]]]
        >>> keras.ops.convert_to_numpy(valid).tolist()
        [[[True, True, True, False]]]
        >>> keras.ops.convert_to_numpy(known).tolist()
        [[[True, True, False, False]]]
    """
    labels = as_int32(labels)
    valid = ops.not_equal(labels, ignore_label)
    known = ops.logical_and(valid, ops.logical_and(labels >= 0, labels < num_classes))
    return ops.clip(labels, 0, num_classes - 1), valid, known


def pixel_cross_entropy(
    labels: Any, logits: Any, ignore_label: int = IGNORE_LABEL, label_smoothing: float = 0.0
) -> tuple[Any, Any]:
    """Returns the softmax cross-entropy of each pixel, without creating a one-hot tensor.

    Args:
        labels: Class index of each pixel, `[batch, height, width]`.
        logits: `[batch, height, width, classes]`, float32.
        ignore_label: Label of the pixels to ignore.
        label_smoothing: Share of the target probability that is spread evenly over all classes,
            from 0 to below 1.

    Returns:
        A tuple `(loss, valid)` of tensors of shape `[batch, height, width]`:

        * `loss`: 0 where the pixel is ignored or its label is not one of the classes.
        * `valid`: bool, `True` where the label is not `ignore_label`.

    Example:
        >>> logits = np.zeros((1, 1, 2, 4), "float32")
        >>> loss, valid = dk.losses.pixel_cross_entropy(np.array([[[3, 255]]]), logits)
        >>> [round(float(value), 4) for value in loss[0, 0]]  # log(4) for the valid pixel
        [1.3863, 0.0]
    """
    index, valid, known = label_masks(labels, logits.shape[-1], ignore_label)
    loss = ops.sparse_categorical_crossentropy(index, logits, from_logits=True)
    if label_smoothing:
        uniform = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
    return ops.where(known, loss, 0.0), valid


def hardest_pixels(pixel_loss: Any, fraction: Any) -> tuple[Any, Any]:
    """Returns weights that select the pixels with the largest loss.

    `fraction` refers to all pixels, including ignored ones
    (docs/reference/official_deeplab.md#hard-pixel-mining). Pixels that tie at the threshold share
    the remaining weight equally.

    Args:
        pixel_loss: Loss of each pixel, any shape, at least 0.
        fraction: Share of the pixels to keep, above 0 and at most 1. May be a tensor.

    Returns:
        A tuple `(weights, count)`:

        * `weights`: same shape as `pixel_loss`, from 0 to 1.
        * `count`: int32, the number of kept pixels with a loss above 0.

    Example:
        >>> pixel_loss = np.array([0.1, 3.0, 0.5, 2.0], "float32")
        >>> weights, count = dk.losses.hardest_pixels(pixel_loss, 0.5)
        >>> keras.ops.convert_to_numpy(weights).tolist(), int(count)
        ([0.0, 1.0, 0.0, 1.0], 2)
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
    """Computes the soft Dice loss of a batch: 1 - Dice, averaged over the classes in the labels.

    The Dice score of a class is `(2 sum(p y) + 1) / (sum(p) + sum(y) + 1)` over the valid pixels,
    where `p` is the softmax probability and `y` is 1 for pixels of the class, else 0.

    Args:
        labels: Class index of each pixel, `[batch, height, width]`.
        logits: `[batch, height, width, classes]`, float32.
        ignore_label: Label of the pixels to ignore.
        sum_over_replicas: See `SegmentationLoss`. Gradients must flow through it.

    Returns:
        The loss, a scalar. 0 if no class occurs in the labels.

    Example:
        >>> labels = np.array([[[0, 1]]])
        >>> logits = np.zeros((1, 1, 2, 2), "float32")
        >>> round(float(dk.losses.dice(labels, logits)), 4)  # 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
        0.3333
    """
    num_classes = logits.shape[-1]
    index, valid, known = label_masks(labels, num_classes, ignore_label)
    flat_index, hits = ops.reshape(index, (-1,)), ops.cast(known, logits.dtype)
    # exp(-cross-entropy) is the probability of the labeled class. It is one fused operation and
    # avoids a gather.
    right = hits * ops.exp(-ops.sparse_categorical_crossentropy(index, logits, from_logits=True))
    overlap = ops.segment_sum(ops.reshape(right, (-1,)), flat_index, num_segments=num_classes)
    labeled = ops.segment_sum(ops.reshape(hits, (-1,)), flat_index, num_segments=num_classes)
    predicted = ops.einsum(
        "bhw,bhwc->c", ops.cast(valid, logits.dtype), ops.softmax(logits, axis=-1)
    )
    overlap, labeled, predicted = ops.unstack(
        sum_over_replicas(ops.stack([overlap, labeled, predicted])), 3
    )
    scores = (2.0 * overlap + DICE_SMOOTHING) / (predicted + labeled + DICE_SMOOTHING)
    return _mean_over_present(1.0 - scores, labeled > 0)


def lovasz_softmax(labels: Any, logits: Any, ignore_label: int = IGNORE_LABEL) -> Any:
    """Computes the Lovász-softmax loss of a batch, averaged over the classes in the labels.

    See Berman et al., arXiv:1705.08790. The loss sorts the errors of every class, so several
    tensors of the size of the logits are in memory at the same time.

    Args:
        labels: Class index of each pixel, `[batch, height, width]`.
        logits: `[batch, height, width, classes]`, float32.
        ignore_label: Label of the pixels to ignore.

    Returns:
        The loss, a scalar. 0 if no class occurs in the labels.

    Example:
        >>> labels = np.array([[[0, 1]]])
        >>> logits = np.zeros((1, 1, 2, 2), "float32")
        >>> float(dk.losses.lovasz_softmax(labels, logits))
        0.5
    """
    num_classes = logits.shape[-1]
    index, valid, known = label_masks(labels, num_classes, ignore_label)
    index = ops.reshape(ops.where(known, index, -1), (1, -1))
    foreground = ops.cast(
        ops.equal(index, ops.reshape(ops.arange(num_classes, dtype="int32"), (-1, 1))), logits.dtype
    )
    probabilities = ops.transpose(ops.reshape(ops.softmax(logits, axis=-1), (-1, num_classes)))
    # Ignored pixels get the error 0, so they are sorted last and do not contribute.
    errors = ops.abs(foreground - probabilities) * ops.cast(
        ops.reshape(valid, (1, -1)), logits.dtype
    )
    order = ops.argsort(ops.stop_gradient(-errors), axis=1)
    hits = ops.take_along_axis(foreground, order, axis=1)
    labeled = ops.sum(foreground, axis=1, keepdims=True)
    jaccard = 1.0 - (labeled - ops.cumsum(hits, axis=1)) / (
        labeled + ops.cumsum(1.0 - hits, axis=1)
    )
    slope = ops.concatenate([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], axis=1)
    losses = ops.sum(ops.take_along_axis(errors, order, axis=1) * slope, axis=1)
    return _mean_over_present(losses, labeled[:, 0] > 0)


def distillation(
    labels: Any,
    logits: Any,
    teacher_logits: Any,
    temperature: float = 1.0,
    ignore_label: int = IGNORE_LABEL,
    sum_over_replicas: Callable[[Any], Any] = lambda x: x,
) -> Any:
    """Computes how much the class probabilities differ from those of a teacher.

    The loss of a pixel is `temperature^2 KL(p || q)`, where `p` and `q` are the softmax of the
    teacher's and of the model's logits, both divided by the temperature. The factor keeps the size
    of the gradients at any temperature (Hinton et al., arXiv:1503.02531). The labels only select
    the pixels. No gradient flows to the teacher.

    Args:
        labels: Class index of each pixel, `[batch, height, width]`.
        logits: `[batch, height, width, classes]`, float32.
        teacher_logits: The teacher's logits, with the shape and the dtype of `logits`.
        temperature: Divisor of all logits, at least 1.
        ignore_label: Label of the pixels to ignore.
        sum_over_replicas: See `SegmentationLoss`.

    Returns:
        The mean over the valid pixels of all replicas, a scalar. 0 if there are no valid pixels.
        With several replicas, this replica's share of it.

    Raises:
        UserError: If the logits have different shapes, or the temperature is below 1.

    Example:
        >>> labels = np.array([[[0, 255]]])
        >>> teacher_logits = np.array([[[[0.0, np.log(3)], [9.0, 0.0]]]], "float32")
        >>> logits = np.zeros((1, 1, 2, 2), "float32")
        >>> round(float(dk.losses.distillation(labels, logits, teacher_logits)), 4)
        0.1308
    """
    temperature = number(temperature, float, "temperature", low=1)
    shapes = tuple(logits.shape), tuple(teacher_logits.shape)
    if len(shapes[0]) != len(shapes[1]) or any(
        None not in pair and pair[0] != pair[1] for pair in zip(*shapes, strict=True)
    ):
        raise UserError(
            "logits and teacher_logits must have the same shape. Received: "
            f"{shapes[0]} and {shapes[1]}"
        )
    _, valid, known = label_masks(labels, logits.shape[-1], ignore_label)
    teacher_logits = ops.stop_gradient(ops.cast(teacher_logits, logits.dtype))
    expected = ops.log_softmax(teacher_logits / temperature, axis=-1)
    found = ops.log_softmax(logits / temperature, axis=-1)
    divergence = ops.sum(ops.exp(expected) * (expected - found), axis=-1)
    count = sum_over_replicas(ops.sum(ops.cast(valid, "float32")))
    total = ops.sum(ops.where(known, divergence, 0.0))
    return temperature**2 * total / ops.maximum(ops.cast(count, total.dtype), 1.0)


def _mean_over_present(losses: Any, present: Any) -> Any:
    present = ops.cast(present, losses.dtype)
    return ops.sum(losses * present) / ops.maximum(ops.sum(present), 1.0)


@keras.saving.register_keras_serializable(package="deeplab_keras")
class SegmentationLoss(keras.losses.Loss):
    """Computes a weighted sum of segmentation losses from labels and logits.

    Labels have the shape `[batch, height, width]`, logits `[batch, height, width, classes]`.
    Cross-entropy and focal loss are means over the valid pixels of the batch, or 0 if there are no
    valid pixels.

    With several replicas (`tf.distribute`), Keras sums the replicas' gradients. With
    `sum_over_replicas`, every mean is over the global batch, so two replicas compute the same loss
    as one. The exceptions are hard pixel mining and the ranking of the Lovász term, which are
    computed per replica. Without `sum_over_replicas`, the loss is the mean of the replicas' means,
    as in PyTorch's DDP.

    Args:
        terms: Weight of each term by name: "cross_entropy", "focal", "dice" or "lovasz". Defaults
            to `{"cross_entropy": 1.0}`.
        ignore_label: Label of the pixels to ignore.
        class_weights: One factor per class, for cross-entropy and focal loss. The factors scale the
            sum over the pixels, not the number of pixels that it is divided by
            (docs/reference/official_deeplab.md#loss).
        label_smoothing: Share of the target probability that is spread evenly over all classes,
            from 0 to below 1. Applies to cross-entropy only.
        hard_example_fraction: Share of the pixels whose cross-entropy counts, above 0 and at most
            1. These are the pixels with the largest loss.
        hard_example_mining_step: Number of steps in which this share goes linearly from 1 to
            `hard_example_fraction`. 0 uses `hard_example_fraction` from the start.
        step: The 0-based training step for this ramp, as a variable or a callable such as
            `lambda: optimizer.iterations`. Defaults to the step of the segmentor that is compiled
            with this loss (see `follow`). On JAX, pass a callable that returns the traced step,
            because `fit` would treat a variable as a constant.
        focal_gamma: Exponent of the focal loss, at least 1. The focal loss of a pixel is
            `(1 - p)^focal_gamma` times its cross-entropy.
        sum_over_replicas: Function that returns the sum of a float32 tensor over all replicas.
            Gradients must flow through it. Outside a distributed step, it returns its argument.
        name: Name of the loss.

    Raises:
        UserError: If a term is unknown or an argument is out of range.

    Example:
        >>> loss = dk.losses.SegmentationLoss({"cross_entropy": 1.0, "dice": 0.5})
        >>> labels = np.array([[[0, 1, 255]]])
        >>> logits = np.zeros((1, 1, 3, 2), "float32")
        >>> round(float(loss(labels, logits)), 4)  # log(2) + 0.5 / 3
        0.8598
        >>> model = dk.load_model("runs/demo")
        >>> model.compile(optimizer="sgd", loss=loss)
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
        self.terms = _checked_terms({"cross_entropy": 1.0} if terms is None else terms)
        self.ignore_label = number(ignore_label, int, "ignore_label")
        self.class_weights = typed(class_weights, tuple[float, ...] | None, "class_weights")
        for weight in self.class_weights or ():
            number(weight, float, "class_weights", low=0)
        self.label_smoothing = number(label_smoothing, float, "label_smoothing", low=0, below=1)
        self.hard_example_fraction = number(
            hard_example_fraction, float, "hard_example_fraction", above=0, high=1
        )
        self.hard_example_mining_step = number(
            hard_example_mining_step, int, "hard_example_mining_step", low=0
        )
        self.step = self._step = step
        self.focal_gamma = number(focal_gamma, float, "focal_gamma")
        self.sum_over_replicas = sum_over_replicas
        if self.hard_example_mining_step and self.hard_example_fraction == 1 and self.step is None:
            raise UserError(
                f"hard_example_mining_step={self.hard_example_mining_step} has no effect with "
                "hard_example_fraction=1; set hard_example_fraction below 1"
            )
        if self.focal_gamma < 1:
            raise UserError(
                "focal_gamma must be at least 1, because gradients can be infinite below 1. "
                f"Received: focal_gamma={self.focal_gamma}"
            )

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the loss. Raises `UserError` for sample weights, which some terms cannot use."""
        refuse_sample_weight(sample_weight)
        return super().__call__(y_true, y_pred)

    def follow(self, step: Callable[[], Any]) -> None:
        """Uses the training step that `step` returns, unless the loss was created with a step."""
        if self.step is None:
            self._step = step

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss of one replica's batch.

        It is a scalar with `sum_over_replicas`, else a tensor of shape `[1]`: Keras divides a
        tensor with elements by the number of replicas, but not a scalar.
        """
        _check_scores(y_pred, self.class_weights)
        labels = class_ids(y_true, y_pred.shape[:-1])
        loss = sum(
            weight * TERMS[term](self, labels, y_pred) for term, weight in self.terms.items()
        )
        return ops.reshape(loss, (1,)) if self.sum_over_replicas is None else loss

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the loss, except `step` and `sum_over_replicas`."""
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
        """Divides a loss by the number of replicas, so that the replicas' sum is their mean."""
        return whole / self._sum_over_replicas(ops.ones(()))

    def _mean(self, pixel_loss: Any, count: Any) -> Any:
        """Divides this replica's sum by the pixel count of all replicas; 0 if that count is 0."""
        count = ops.cast(
            self._sum_over_replicas(ops.stop_gradient(ops.cast(count, "float32"))), pixel_loss.dtype
        )
        return ops.sum(pixel_loss) / ops.maximum(count, 1.0)

    def _weighted(self, pixel_loss: Any, labels: Any) -> Any:
        if self.class_weights is None:
            return pixel_loss
        index = ops.clip(as_int32(labels), 0, len(self.class_weights) - 1)
        return pixel_loss * ops.take(
            ops.convert_to_tensor(self.class_weights, pixel_loss.dtype), index
        )

    def _fraction(self) -> Any:
        if not self.hard_example_mining_step:
            return self.hard_example_fraction
        if self._step is None:
            raise UserError(
                f"hard_example_mining_step={self.hard_example_mining_step} requires the training "
                "step; pass step=lambda: optimizer.iterations"
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
        wrong = -ops.expm1(-pixel_loss)  # 1 - p of the labeled class, accurate for p near 1
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


def _checked_terms(terms: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(terms, Mapping) or not terms:
        raise UserError(
            "terms must give the weight of each term by name, such as "
            f"{{'cross_entropy': 1.0, 'dice': 0.5}}; for a text call dk.losses.make_loss. "
            f"Received: terms={terms!r}"
        )
    for term in terms:
        if term not in TERMS:
            raise unknown_name("loss", term, TERMS)
    return {
        term: number(weight, float, f"terms[{term!r}]", low=0) for term, weight in terms.items()
    }


def _check_scores(logits: Any, class_weights: tuple[float, ...] | None) -> None:
    shape = tuple(logits.shape)
    if len(shape) != 4 or shape[-1] is None or shape[-1] < 2:
        raise UserError(
            "logits must have the shape [batch, height, width, classes] with at least 2 classes. "
            f"Received: shape {shape}"
        )
    if class_weights is not None and len(class_weights) != shape[-1]:
        raise UserError(
            f"class_weights has {len(class_weights)} values, but the model has {shape[-1]} "
            "classes; pass one weight per class"
        )


def parse_terms(spec: str) -> dict[str, float]:
    """Parses a sum of loss terms.

    Args:
        spec: Names of terms, each with an optional factor above 0, joined by "+".

    Returns:
        The weight of each term by name, as the `terms` of `SegmentationLoss`.

    Raises:
        UserError: If a term is unknown or occurs twice, or if a factor is not a number above 0.

    Example:
        >>> dk.losses.parse_terms("cross_entropy + 0.5*dice")
        {'cross_entropy': 1.0, 'dice': 0.5}
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
                "loss must name each term once, with a factor above 0, such as "
                f"'cross_entropy+0.5*dice'. Received: loss={spec!r}"
            )
        terms[name] = weight
    return terms


def make_loss(spec: str = "cross_entropy", **options: Any) -> SegmentationLoss:
    """Creates a `SegmentationLoss` from a text such as "cross_entropy+0.5*dice".

    Args:
        spec: Names of terms, each with an optional factor above 0, joined by "+".
        **options: Other arguments of `SegmentationLoss`.

    Returns:
        The loss.

    Raises:
        UserError: If `spec` cannot be parsed (see `parse_terms`), or if an option is out of range.

    Example:
        >>> loss = dk.losses.make_loss("focal+dice", focal_gamma=2.0, ignore_label=255)
        >>> loss.terms
        {'focal': 1.0, 'dice': 1.0}
    """
    return SegmentationLoss(parse_terms(spec), **options)
