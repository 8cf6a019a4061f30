"""The confusion matrix and its scores, compared with plain loops, also for large counts."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import ROOT, SHARED, label_blocks, noise, raises_line

from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.evaluation.metrics import ConfusionMatrix, Scores, count_pixels
from deeplab_keras.training.losses import make_loss


def oracle_matrix(
    labels: np.ndarray, predictions: np.ndarray, classes: int, ignore_label: int = 255
) -> np.ndarray:
    matrix = np.zeros((classes, classes), np.int64)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != ignore_label and label < classes:
            matrix[label, prediction] += 1
    return matrix


def oracle_iou(
    labels: np.ndarray, predictions: np.ndarray, classes: int, ignore_label: int = 255
) -> list[float | None]:
    counted = labels != ignore_label
    ious: list[float | None] = []
    for c in range(classes):
        union = np.sum(counted & ((labels == c) | (predictions == c)))
        ious.append(np.sum(counted & (labels == c) & (predictions == c)) / union if union else None)
    return ious


def oracle_miou(*arguments) -> float:
    return float(np.mean([iou for iou in oracle_iou(*arguments) if iou is not None]))


@pytest.mark.package("sklearn")
@pytest.mark.parametrize("case", ["random", "an absent class", "one class", "all ignored"])
def test_scores_equal_scikit_learn(case: str) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

    labels, predictions = random_case(6, 3)
    if case == "an absent class":
        labels[labels == 2], predictions[predictions == 2] = 3, 4
    if case == "one class":
        labels[labels != 255], predictions[:] = 1, 1
    if case == "all ignored":
        labels[:] = 255
    matrix = count_pixels(labels, predictions, 6, 255)
    scores = Scores.from_matrix(matrix)
    counted = labels != 255
    given, found = labels[counted], predictions[counted]
    if case == "all ignored":
        assert not matrix.any() and math.isnan(scores.miou)
        return
    assert (matrix == confusion_matrix(given, found, labels=range(6))).all()
    present = sorted({*given.tolist(), *found.tolist()})
    expected = jaccard_score(given, found, labels=present, average=None)
    assert [scores.per_class_iou[c] for c in present] == pytest.approx(expected.tolist())
    assert all(scores.per_class_iou[c] is None for c in range(6) if c not in present)
    assert scores.miou == pytest.approx(
        jaccard_score(given, found, labels=present, average="macro")
    )
    assert scores.pixel_accuracy == pytest.approx(accuracy_score(given, found))


def random_case(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = label_blocks(2, 20, 24, classes=classes, seed=seed, block=3)
    random = np.random.default_rng(seed + 100)
    predictions = np.where(
        random.random(labels.shape) < 0.6, labels, random.integers(0, classes, labels.shape)
    )
    return labels, np.where(predictions == 255, 0, predictions).astype(np.int32)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_counts_and_miou_over_batches(classes: int) -> None:
    metric = ConfusionMatrix(classes)
    batches = [random_case(classes, seed) for seed in range(3)]
    for labels, predictions in batches:
        metric.update_state(labels, predictions)
    labels, predictions = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert (
        keras.ops.convert_to_numpy(metric.matrix) == oracle_matrix(labels, predictions, classes)
    ).all()
    assert float(metric.result()) == pytest.approx(
        oracle_miou(labels, predictions, classes), abs=1e-6
    )
    assert int(metric.out_of_range) == 0
    metric.reset_state()
    assert not keras.ops.convert_to_numpy(metric.matrix).any()


def test_logits_count_like_their_argmax() -> None:
    labels, _ = random_case(5, 0)
    logits = noise(2, 20, 24, 5) - 128
    from_logits, from_labels = ConfusionMatrix(5), ConfusionMatrix(5)
    from_logits.update_state(labels.astype(np.uint8), logits)
    from_labels.update_state(labels, logits.argmax(-1))
    assert (
        keras.ops.convert_to_numpy(from_logits.matrix)
        == keras.ops.convert_to_numpy(from_labels.matrix)
    ).all()


def test_absent_classes_are_not_in_the_mean() -> None:
    labels = np.array([[[0, 0, 1, 255]]])
    metric = ConfusionMatrix(4)
    metric.update_state(
        labels, np.array([[[0, 2, 1, 3]]])
    )  # 2 is only predicted; 3 only on an ignored pixel
    assert float(metric.result()) == pytest.approx((0.5 + 1 + 0) / 3)
    assert metric.scores().per_class_iou == (0.5, 1.0, 0.0, None)


def test_everything_ignored() -> None:
    metric = ConfusionMatrix(3)
    metric.update_state(np.full((1, 4, 4), 255), np.zeros((1, 4, 4), np.int32))
    assert float(metric.result()) == 0
    assert math.isnan(metric.scores().miou) and metric.scores().per_class_iou == (None, None, None)


@pytest.mark.parametrize("ignore_label", [0, 255, -1])
def test_ignore_label_inside_and_outside_the_classes(ignore_label: int) -> None:
    labels, predictions = random_case(4, 1)
    labels[labels == 255] = ignore_label
    metric = ConfusionMatrix(4, ignore_label)
    metric.update_state(labels, predictions)
    assert (
        keras.ops.convert_to_numpy(metric.matrix)
        == oracle_matrix(labels, predictions, 4, ignore_label)
    ).all()
    assert int(metric.out_of_range) == 0


def test_labels_and_predictions_outside_the_classes_are_counted_separately() -> None:
    metric = ConfusionMatrix(3)
    metric.update_state(np.array([[[0, 3, -1, 254, 255, 1]]]), np.array([[[0, 0, 0, 0, 9, 7]]]))
    assert (
        int(metric.out_of_range) == 4
    )  # 3, -1, 254, and the prediction 7; the 9 is on an ignored pixel
    assert keras.ops.convert_to_numpy(metric.matrix).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("start", [2**24, 2**31, 2**53 - 10])
def test_large_counts_stay_exact(start: int) -> None:
    metric = ConfusionMatrix(2)
    metric.matrix.assign(np.full((2, 2), start, np.int64))
    for _ in range(3):
        metric.update_state(np.array([[[0, 1]]]), np.array([[[0, 0]]]))
    assert keras.ops.convert_to_numpy(metric.matrix).tolist() == [
        [start + 3, start],
        [start + 3, start],
    ]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_with_unknown_sizes(jit_compile: bool) -> None:
    metric = ConfusionMatrix(5)

    @tf.function(jit_compile=jit_compile)
    def step(labels, logits):
        metric.update_state(labels, logits)
        return metric.result()

    labels, _ = random_case(5, 2)
    logits = noise(2, 20, 24, 5)
    step(labels, logits)
    result = float(step(labels[:1, :7], logits[:1, :7]))
    matrix = oracle_matrix(labels, logits.argmax(-1), 5) + oracle_matrix(
        labels[:1, :7], logits[:1, :7].argmax(-1), 5
    )
    assert (keras.ops.convert_to_numpy(metric.matrix) == matrix).all()
    assert result == pytest.approx(Scores.from_matrix(matrix).miou, abs=1e-6)


def test_fit_under_mixed_precision() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        image = keras.Input((None, None, 3))
        features = keras.layers.Conv2D(8, 3, padding="same")(image)
        model = keras.Model(image, keras.layers.Conv2D(3, 1, dtype="float32")(features))
        model.compile(metrics=[ConfusionMatrix(3)], loss="sparse_categorical_crossentropy")
        images, labels = (
            noise(4, 8, 8, 3),
            label_blocks(4, 8, 8, classes=3, ignore_label=None, block=2),
        )
        measured = model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)["miou"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert measured == pytest.approx(
        oracle_miou(labels, model.predict(images, verbose=0).argmax(-1), 3), abs=1e-6
    )


TWO_REPLICAS = """
import json
import numpy as np
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from deeplab_keras.evaluation.metrics import ConfusionMatrix
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.Lambda(lambda x: x)(image))
    metric = ConfusionMatrix(3)
    model.compile(metrics=[metric], loss="sparse_categorical_crossentropy")
random = np.random.default_rng(0)
labels = random.integers(0, 3, (8, 4, 4))
logits = random.normal(size=(8, 4, 4, 3)).astype("float32")
miou = model.evaluate(logits, labels, batch_size=4, verbose=0, return_dict=True)["miou"]
matrix = keras.ops.convert_to_numpy(metric.matrix)
print(json.dumps([miou, matrix.tolist(), np.argmax(logits, -1).tolist(), labels.tolist()]))
"""


@pytest.mark.slow
def test_two_replicas_are_added_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    miou, matrix, predictions, labels = json.loads(done.stdout.splitlines()[-1])
    expected = oracle_matrix(np.array(labels), np.array(predictions), 3)
    assert matrix == expected.tolist()
    assert miou == pytest.approx(Scores.from_matrix(expected).miou, abs=1e-6)


def test_scores_against_loops() -> None:
    classes = 6
    labels, predictions = random_case(classes, 3)
    predictions[labels == 4] = 5  # class 4 is never correct, and class 3 is absent
    labels[labels == 3], predictions[predictions == 3] = 255, 0
    scores = Scores.from_matrix(oracle_matrix(labels, predictions, classes))

    counted = labels != 255
    ious = oracle_iou(labels, predictions, classes)
    present = [c for c in range(classes) if np.any(labels == c)]
    assert scores.per_class_iou == pytest.approx(ious) and scores.per_class_iou[3] is None
    assert scores.miou == pytest.approx(oracle_miou(labels, predictions, classes))
    assert scores.pixel_accuracy == pytest.approx(np.mean(labels[counted] == predictions[counted]))
    assert scores.mean_accuracy == pytest.approx(
        np.mean([np.mean(predictions[labels == c] == c) for c in present])
    )
    weighted = sum(np.sum(labels == c) / np.sum(counted) * ious[c] for c in present)
    assert scores.frequency_weighted_iou == pytest.approx(weighted)


@pytest.mark.parametrize("ignore_label", [0, 255])
def test_counting_in_numpy(ignore_label: int) -> None:
    labels, predictions = random_case(4, 4)
    labels[labels == 255] = ignore_label
    counts = count_pixels(labels.astype(np.uint8), predictions.astype(np.uint8), 4, ignore_label)
    assert (
        counts.dtype == np.int64
        and (counts == oracle_matrix(labels, predictions, 4, ignore_label)).all()
    )


def test_config_round_trip() -> None:
    copy = ConfusionMatrix.from_config(ConfusionMatrix(4, 0, "score").get_config())
    assert (copy.num_classes, copy.ignore_label, copy.name) == (4, 0, "score")


@pytest.mark.shared
def test_golden_cases_of_the_official_deeplab() -> None:
    cases = json.loads((SHARED / "golden/official_deeplab/components/miou.json").read_text())
    assert len(cases) == 3
    for miou, matrix in cases.values():
        assert Scores.from_matrix(np.array(matrix)).miou == pytest.approx(miou, abs=1e-6)


# --- Labels in other forms, as in the loss ---

IDS = label_blocks(2, 8, 8, classes=3, ignore_label=None, block=2)
LOGITS = 10.0 * np.eye(3, dtype=np.float32)[IDS] - 5  # all pixels correct


@pytest.mark.parametrize(
    "labels",
    [IDS, IDS[..., None], IDS.astype(np.uint8)[..., None], IDS[..., None].astype(np.float32)],
)
def test_class_ids_with_and_without_a_last_axis(labels):
    metric = ConfusionMatrix(3)
    metric.update_state(labels, LOGITS)
    assert float(metric.result()) == 1 and int(np.sum(metric.matrix)) == IDS.size
    metric.update_state(labels, IDS)  # predicted labels
    assert int(np.sum(metric.matrix)) == 2 * IDS.size == int(np.trace(np.asarray(metric.matrix)))
    assert float(make_loss()(labels, LOGITS)) == pytest.approx(float(make_loss()(IDS, LOGITS)))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (
            np.eye(3)[IDS],
            LOGITS,
            r"labels \(2, 8, 8, 3\) for predictions of \(2, 8, 8\) pixels: .* argmax",
        ),
        (np.eye(3, dtype=np.int32)[IDS], LOGITS, "argmax"),
        (np.eye(3)[IDS], np.zeros((2, 8, 8, 4), np.float32), "."),
        (IDS[:, ::2], LOGITS, "differ in height or width"),
        (IDS[:, ::2, :, None], LOGITS, "differ in height or width"),
        (IDS[:1], LOGITS, "differ in the number of images"),
        (IDS[0], LOGITS, "one class id per pixel"),
        (np.eye(3)[IDS].argmax(-1), LOGITS[..., :1], "."),  # the scores of a sigmoid
        (
            IDS,
            np.eye(8, dtype=np.float32)[IDS, :8],
            ".",
        ),  # another number of classes, which only the metric knows
    ],
)
def test_labels_other_than_class_ids_are_refused(labels, scores, message):
    metric = ConfusionMatrix(3)
    with raises_line(message):
        metric.update_state(labels, scores)
    assert not np.asarray(metric.matrix).any()
    if scores.shape[-1] in (1, 3):
        with raises_line("."):
            make_loss()(labels, scores)


NUMBERS = (np.uint8, np.int32, np.int64, np.float32, np.float64)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_labels_that_are_no_class_are_counted_separately_in_every_dtype(dtype):
    """A cast to int32 would turn 1.5 and 2**32 + 1 into class 1."""
    labels = IDS.astype(dtype)
    strange = {np.dtype(np.int64): (2**32 + 1, -(2**32)), np.dtype(np.uint8): (7, 8)}
    first, second = strange.get(labels.dtype, (1.5, np.nan))
    if labels.dtype == np.int32:
        first, second = 2**31 - 1, -1
    labels[0, 0, :2] = first, second
    counted = np.ones(IDS.shape, bool)
    counted[0, 0, :2] = False
    metric = ConfusionMatrix(3)
    metric.update_state(labels, LOGITS)
    assert (np.asarray(metric.matrix) == oracle_matrix(IDS[counted], IDS[counted], 3)).all()
    assert int(metric.out_of_range) == 2
    # Such pixels add no loss, but count as valid pixels.
    right = -np.log(np.exp(0.5) / (np.exp(0.5) + 2 * np.exp(-0.5)))
    assert float(make_loss()(labels, LOGITS / 10)) == pytest.approx(
        right * (IDS.size - 2) / IDS.size, rel=1e-5
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_nan_scores_are_no_class(jit_compile):
    scores = LOGITS.copy()
    scores[0, 0, 0] = np.nan
    scores[1, 2, 3, 1] = np.nan  # a single one
    metric = ConfusionMatrix(3)
    tf.function(metric.update_state, jit_compile=jit_compile)(tf.constant(IDS), tf.constant(scores))
    assert int(metric.out_of_range) == 2 and int(np.sum(metric.matrix)) == IDS.size - 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("3",), "num_classes must be a whole number"),
        ((2.5,), "num_classes must be a whole number"),
        ((None,), "num_classes must be a whole number"),
        ((True,), "num_classes must be a whole number"),
        ((3, "255"), "ignore_label must be a whole number"),
        ((3, 1.5), "ignore_label must be a whole number"),
        ((3, None), "ignore_label must be a whole number"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, message):
    with raises_line(message):
        ConfusionMatrix(*arguments)
    if len(arguments) == 2:
        with raises_line(message):
            make_loss(ignore_label=arguments[1])


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 1], "labels from 0 to 3 .* for 3 classes and the ignore label 255"),
        ([-1, 0], [0, 1], "labels from -1 to 0"),
        ([0, 256], [0, 1], "labels from 0 to 256"),
        ([0, 1], [0, 3], "predictions from 0 to 3 for 3 classes"),
        ([0, 1], [0, -1], "predictions from -1 to 0"),
        ([0, 1], [0, 1, 2], r"shape \(2,\) .* shape \(3,\) must have the same shape"),
        ([0, 1], [0.0, 1.0], "predictions of dtype float64; must be integers"),
    ],
)
def test_counting_in_numpy_refuses_what_it_would_count_wrongly(labels, predictions, message):
    labels, predictions = np.array(labels), np.array(predictions)
    with raises_line(message):
        count_pixels(labels, predictions, 3)


def test_scores_without_a_class_axis_are_refused():
    with pytest.raises(UserError):
        ConfusionMatrix(3).update_state(IDS, IDS / 3)


@pytest.mark.parametrize("extra_axis", [False, True])
@pytest.mark.parametrize("unknown_size", [False, True])
def test_fit_takes_labels_with_a_last_axis(extra_axis, unknown_size):
    """All pixels are correct in loss and metric, also in a graph with unknown sizes."""
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Activation("linear")(image))
    model.compile(keras.optimizers.SGD(0.0), loss=make_loss(), metrics=[ConfusionMatrix(3)])
    labels = IDS[..., None] if extra_axis else IDS
    data = tf.data.Dataset.from_tensors((LOGITS, labels))
    if unknown_size:
        kinds = (tf.TensorSpec((None, None, None, 3)), tf.TensorSpec([None] * labels.ndim))
        data = tf.data.Dataset.from_generator(lambda: [(LOGITS, labels)], output_signature=kinds)
    history = model.fit(data, verbose=0).history
    assert history["miou"] == [1.0] and history["loss"][0] == pytest.approx(
        float(make_loss()(IDS, LOGITS))
    )


def test_a_single_class_is_refused():
    with raises_line(
        "num_classes must be at least 2, including the background. Received: num_classes=1"
    ):
        ConfusionMatrix(1)
    with raises_line("at least 2"):
        ModelConfig(num_classes=1)
    with raises_line("has 1 class.*at least 2"):
        info_for_classes("one", ["thing"])
