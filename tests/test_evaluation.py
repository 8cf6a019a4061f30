"""The evaluation loop on a synthetic source, compared with a hand-counted confusion matrix."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter

import keras
import numpy as np
import pytest
from contracts import ROOT, label_blocks, noise, raises_line

from deeplab_keras.config import EvalConfig
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.evaluation.classes import check_classes
from deeplab_keras.evaluation.loop import batches, evaluate
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.io.progress import Progress
from deeplab_keras.models.layers import ResizeTo

CLASSES = 4
INFO = info_for_classes("blocks", ["sky", "road", "car", "tree"])
SIZES = [(12, 16), (9, 7), (12, 16), (12, 16), (16, 12), (9, 7), (12, 16)]


@dataclasses.dataclass(frozen=True)
class FakeSource:
    info: DatasetInfo
    pairs: list[tuple[np.ndarray, np.ndarray]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"drive/frame_{i}" for i in range(len(self.pairs)))

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.pairs[index]


def make_source(sizes=SIZES, ignore_label: int = 255) -> FakeSource:
    pairs = []
    for i, size in enumerate(sizes):
        label = label_blocks(
            1, *size, classes=CLASSES - 1, seed=i, ignore_label=ignore_label, block=3
        )[0]
        pairs.append((noise(*size, 3, seed=i).astype(np.uint8), label.astype(np.uint8)))
    return FakeSource(dataclasses.replace(INFO, ignore_label=ignore_label), pairs)


def make_model(classes: int = CLASSES - 1) -> keras.Model:
    """A model that never predicts the last class, which is not in the labels either."""
    image = keras.Input((None, None, 3))
    layer = keras.layers.Conv2D(CLASSES, 3, padding="same")
    model = keras.Model(image, layer(keras.layers.Rescaling(1 / 127.5, -1)(image)), name="tiny")
    weights = np.random.default_rng(0).normal(size=(3, 3, 3, CLASSES)).astype(np.float32)
    layer.set_weights([weights, np.where(np.arange(CLASSES) < classes, 0, -100)])
    return model


def oracle(source: FakeSource, predictor, count: int | None = None) -> np.ndarray:
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    for image, label in source.pairs[:count]:
        for expected, given in zip(label.ravel(), predictor(image).ravel(), strict=True):
            if expected != source.info.ignore_label:
                matrix[expected, given] += 1
    return matrix


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("ignore_label", [255, 0])
def test_report_equals_the_oracle(batch_size: int, ignore_label: int) -> None:
    source, model = make_source(ignore_label=ignore_label), make_model()
    config = EvalConfig(eval_batch_size=batch_size)
    report = evaluate(model, source, config, split="val", progress=False)
    matrix = oracle(source, Predictor(model))

    assert report.confusion_matrix == tuple(map(tuple, matrix.tolist()))
    ious = {
        name: matrix[c, c] / (matrix[c].sum() + matrix[:, c].sum() - matrix[c, c])
        if matrix[c].sum()
        else None
        for c, name in enumerate(INFO.class_names)
        if matrix[c].sum() or not matrix[:, c].sum()
    }
    for name, iou in ious.items():
        assert report.per_class_iou[name] == (None if iou is None else pytest.approx(iou))
    present = [iou for iou in report.per_class_iou.values() if iou is not None]
    assert report.per_class_iou["tree"] is None and len(present) == 3
    assert report.miou == pytest.approx(np.mean(present))
    assert report.pixel_accuracy == pytest.approx(np.trace(matrix) / matrix.sum())
    assert (report.images, report.model, report.dataset, report.split) == (
        len(SIZES),
        "tiny",
        "blocks",
        "val",
    )


def test_config_reaches_the_predictor() -> None:
    source, model = make_source(), make_model()
    config = EvalConfig(inference="slide", eval_crop_size=(8, 8), add_flipped_images=True)
    report = evaluate(model, source, config, progress=False)
    assert report.confusion_matrix == tuple(
        map(tuple, oracle(source, Predictor(model, config)).tolist())
    )
    assert report.confusion_matrix != evaluate(model, source, progress=False).confusion_matrix


def definition_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize with half-pixel centers, without antialiasing, by definition."""
    for axis, length in enumerate(size):
        at = np.clip(
            (np.arange(length) + 0.5) * image.shape[axis] / length - 0.5, 0, image.shape[axis] - 1
        )
        low = np.floor(at).astype(int)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, image.shape[axis] - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


@pytest.mark.parametrize("variant", ["any size", "built for a size", "short side", "two layers"])
def test_layers_after_the_model_s_own_resize_take_effect(variant: str) -> None:
    """If another layer merges classes, its output is evaluated and not that of 'resized_logits'."""
    size = (24, 20) if variant == "built for a size" else None
    image = keras.Input((*(size or (None, None)), 3))
    scores = keras.layers.Conv2D(9, 4, 4, padding="same", name="logits")
    network = keras.Model(image, ResizeTo(name="resized_logits")([scores(image), image]))
    weights = np.random.default_rng(0).normal(size=(4, 4, 3, 9)).astype(np.float32) / 100
    scores.set_weights(
        [weights - weights.mean(axis=(0, 1, 2)), np.zeros(9)]
    )  # a bright image favors no class
    merge = np.zeros((9, CLASSES), np.float32)
    merge[np.arange(9), np.arange(9) % CLASSES] = 1
    bias = np.float32([0.01, -0.02, 0.03, 0])
    layer = keras.layers.Conv2D(CLASSES, 1, name="merged")
    output = layer(network.output)
    layer.set_weights([merge[None, None], bias])
    if variant == "two layers":
        output = keras.layers.Rescaling(-1.0)(
            output
        )  # the least likely class gets the highest score
    model = keras.Model(network.input, output)
    source = make_source([(33, 29), (18, 40)])
    config = (
        EvalConfig(eval_short_side=20, eval_long_side=64)
        if variant == "short side"
        else EvalConfig()
    )

    def by_hand(image: np.ndarray) -> np.ndarray:
        factor = 20 / min(image.shape[:2])
        run = size or (
            tuple(round(side * factor) for side in image.shape[:2])
            if variant == "short side"
            else image.shape[:2]
        )
        logits = np.asarray(
            network(
                definition_resize(image.astype(np.float32), run)[None].astype(np.float32),
                training=False,
            )
        )[0]
        merged = (logits @ merge + bias) * (-1 if variant == "two layers" else 1)
        return definition_resize(merged, image.shape[:2]).argmax(-1)

    matrix = oracle(source, by_hand)
    assert (matrix.sum(axis=0) > 0).sum() > 1, "the model gives several classes"
    report = evaluate(model, source, config, progress=False)
    assert report.confusion_matrix == tuple(map(tuple, matrix.tolist()))


def test_limit_and_names() -> None:
    source, network = make_source(), KerasNetwork(make_model())
    report = evaluate(network, source, limit=2, model_name="mine", progress=False)
    assert report.confusion_matrix == tuple(
        map(tuple, oracle(source, Predictor(network), 2).tolist())
    )
    assert (report.images, report.model) == (2, "mine")
    evaluate(network, source, progress=False)
    assert network._compiled.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batches_contain_each_pair_once(batch_size: int) -> None:
    sizes = [(4 + i % 11, 5) for i in range(60)]
    pairs = [
        (np.full((*size, 3), i, np.uint8), np.full(size, i % 3, np.uint8))
        for i, size in enumerate(sizes)
    ]
    seen = []
    for indices, images, labels in batches(FakeSource(INFO, pairs), 60, batch_size, INFO):
        assert len(images) <= batch_size
        for index, image, label in zip(indices, images, labels, strict=True):
            np.testing.assert_array_equal(image, pairs[index][0])
            np.testing.assert_array_equal(label, pairs[index][1])
            seen.append(index)
    assert sorted(seen) == list(range(60))


def test_batches_are_as_full_as_possible() -> None:
    source = make_source([(6, 5), (5, 6)] * 8)
    assert [len(images) for _, images, _ in batches(source, 16, 4, INFO)] == [4, 4, 4, 4]


def test_many_sizes_do_not_fill_the_memory() -> None:
    @dataclasses.dataclass(frozen=True)
    class CountingSource(FakeSource):
        loaded: list[int] = dataclasses.field(default_factory=list)

        def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            self.loaded.append(index)
            return super().load(index)

    source = CountingSource(INFO, make_source([(4 + i, 5) for i in range(60)]).pairs)
    stream = batches(source, 60, 2, INFO)
    next(stream)
    assert (
        len(source.loaded) <= 4 * 2 + 1 + 2 * 2 + 1
    )  # waiting for pairs of their size, and read ahead
    assert len(list(stream)) == 59


def test_progress_line_shows_the_miou(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    report = evaluate(make_model(), make_source(), EvalConfig(eval_batch_size=2))
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith(f"evaluation {len(SIZES)}/{len(SIZES)}") and "images/s" in last
    assert f"mIoU {report.miou:.4g}" in last


def test_no_miou_without_labeled_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress line has no mIoU, instead of nan, until an image has labeled pixels."""
    stream, source = io.StringIO(), make_source([(12, 16)] * 2)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(
        "deeplab_keras.evaluation.loop.Progress", functools.partial(Progress, interval=0)
    )
    source.pairs[0][1][:] = 255
    report = evaluate(make_model(), source, EvalConfig(eval_batch_size=1))
    first, last = stream.getvalue().splitlines()
    assert "nan" not in first and "mIoU" not in first and f"mIoU {report.miou:.4g}" in last


# --- Mistakes ---


def test_empty_source() -> None:
    with raises_line("dataset 'blocks', split 'val': no image"):
        evaluate(make_model(), FakeSource(INFO, []), split="val", progress=False)


def test_without_labeled_pixels() -> None:
    pair = (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), 255, np.uint8))
    with raises_line("every pixel of the 2 images has the ignore label 255"):
        evaluate(make_model(), FakeSource(INFO, [pair, pair]), progress=False)


def test_label_outside_the_classes_names_the_image() -> None:
    source = make_source()
    source.pairs[4][1][3, 5] = CLASSES
    with raises_line("drive/frame_4: the label has the values 4; allowed are 0 to 3"):
        evaluate(make_model(), source, progress=False)


def test_label_of_another_size_names_the_image() -> None:
    source = make_source()
    source.pairs[1] = (source.pairs[1][0], source.pairs[1][1][1:])
    with raises_line("drive/frame_1: the label is 8x7 and the image 9x7"):
        evaluate(make_model(), source, progress=False)


def test_model_of_other_classes() -> None:
    source = FakeSource(info_for_classes("two", ["a", "b"]), make_source().pairs)
    with raises_line("'two' has 2 classes and the model 4"):
        evaluate(make_model(), source, progress=False)


# --- The report ---


def make_report(matrix=((8, 2, 0), (1, 5, 0), (0, 0, 0)), names=("sky", "road", "car")) -> Report:
    return Report.from_matrix(
        np.array(matrix), info_for_classes("blocks", names), 3, model="tiny", split="val"
    )


def test_json_has_the_documented_keys_and_round_trips() -> None:
    report = make_report()
    values = json.loads(report.to_json())
    assert list(values) == [
        "miou",
        "pixel_accuracy",
        "mean_accuracy",
        "frequency_weighted_iou",
        "per_class_iou",
        "confusion_matrix",
        "images",
        "model",
        "dataset",
        "split",
    ]
    assert values == report.to_dict()
    assert values["per_class_iou"] == {
        "sky": pytest.approx(8 / 11),
        "road": pytest.approx(5 / 8),
        "car": None,
    }
    assert values["confusion_matrix"] == [[8, 2, 0], [1, 5, 0], [0, 0, 0]]
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(json.dumps({**values, "step": 7})) == report


def test_classes_of_the_same_name_get_distinct_names() -> None:
    assert list(make_report(names=("screen", "road", "screen")).per_class_iou) == [
        "screen (0)",
        "road",
        "screen (2)",
    ]


def test_save_leaves_only_the_file(tmp_path) -> None:
    path = tmp_path / "new" / "metrics.json"
    make_report().save(path)
    make_report().save(path)
    assert os.listdir(path.parent) == ["metrics.json"]
    assert Report.from_json(path.read_text()) == make_report()
    (tmp_path / "file").write_text("")
    with raises_line("metrics.json: cannot be written"):
        make_report().save(tmp_path / "file" / "metrics.json")


def test_table() -> None:
    lines = make_report().table().splitlines()
    assert lines[0] == "3 images, blocks, val, tiny"
    assert lines[2].split() == ["sky", "72.73", "88.89", "80.00", "62.50", "#" * 15]
    assert lines[4].split() == ["car", "-", "-", "-", "0.00"]
    assert lines[-1].startswith(
        "mIoU 67.61, pixel accuracy 81.25, mean accuracy 81.67, frequency-weighted IoU"
    )
    assert (
        len({line.rstrip("#").rstrip().rfind(".") for line in lines[2:4]}) == 1
    )  # the columns are aligned


def test_an_unpredicted_class_has_no_precision() -> None:
    report = make_report(((8, 2, 0), (1, 5, 0), (0, 4, 0)))
    assert report.per_class_iou["car"] == 0
    assert report.table().splitlines()[4].split() == ["car", "0.00", "-", "0.00", "20.00"]
    assert not math.isnan(report.miou)


def test_advice_for_rare_classes_with_a_low_iou() -> None:
    """Cars are 4 of 104 labeled pixels, and one of the four is found.

    There is no advice if all four are found, or if cars are 6 of 106 pixels.
    """
    weak = make_report(((80, 0, 0), (0, 20, 0), (0, 3, 1)))
    assert weak.table().splitlines()[-1] == f"advice: {weak.advice()}"
    assert weak.advice().startswith("rare classes with a low IoU: car; what helps: docs/your_own_d")
    for cars in ((0, 0, 4), (0, 5, 1)):
        report = make_report(((80, 0, 0), (0, 20, 0), cars))
        assert report.advice() == "" and "advice" not in report.table()


# --- Several devices ---

THREE_DEVICES = """
import json, sys
sys.path.insert(0, "tests")
import tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 3)
from test_evaluation import make_model, make_source
from deeplab_keras.config import EvalConfig
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.loop import evaluate, find_devices
from deeplab_keras.inference.keras_network import KerasNetwork

source, network = make_source(), KerasNetwork(make_model())
config = EvalConfig(eval_batch_size=1, add_flipped_images=True)
used, compiled = [], network._compiled
def noted(images):
    logits = compiled(images)
    used.append(logits.device[-5:])
    return logits
network._compiled = noted
found = [
    evaluate(network, source, config, progress=False, devices=devices,
             details=Details(source.info) if details else None).to_dict()
    for details in (False, True) for devices in ((), find_devices(), find_devices(2))
]
try:
    find_devices(4)
except Exception as error:
    found.append(str(error))
print(json.dumps([found, used]))
"""


@pytest.mark.slow
def test_several_devices_equal_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREE_DEVICES], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (one, three, two, *detailed, refused), used = json.loads(done.stdout.splitlines()[-1])
    assert one == three == two and detailed[0] == detailed[1] == detailed[2]
    assert (
        one["confusion_matrix"]
        == oracle(
            make_source(), Predictor(make_model(), EvalConfig(add_flipped_images=True))
        ).tolist()
    )
    passes = 2 * len(SIZES)  # each image and its flip
    assert set(used[:passes]) == {"CPU:0"}
    assert Counter(used[passes : 2 * passes]) == {"CPU:0": 6, "CPU:1": 4, "CPU:2": 4}
    assert refused == "eval_devices=4: only 3 CPU available; give at most that, or 0 for all"


# --- A checkpoint of other classes ---


def named(*names: str, dataset: str = "mine") -> DatasetInfo:
    return info_for_classes(dataset, names)


@pytest.mark.parametrize(
    "names", [("Sky", "traffic light"), ("class_0", "class_1"), ("sky_", "class_1")]
)
def test_other_spellings_of_the_same_classes_are_accepted(names, caplog) -> None:
    check_classes("runs/a", named("__sky__", "traffic_light"), named(*names))
    assert not caplog.records


def test_a_checkpoint_of_other_classes_is_reported(monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(
        "deeplab_keras.evaluation.classes.logger.warning",
        lambda text, *values: told.append(text % values),
    )
    check_classes(
        "runs/a", named("sky", "road", "car", dataset="city"), named("sky", "nail", "skin")
    )
    assert told == [
        "runs/a was trained on other classes, those of 'city': class 1 is 'road' in the checkpoint "
        "and 'nail' in the dataset, and 1 more; classes are compared by id"
    ]
    with raises_line(
        "^runs/a: was trained on these classes in another order: class 0 is 'sky' in the "
        "checkpoint",
    ):
        check_classes("runs/a", named("sky", "road"), named("road", "sky"))
    with raises_line(
        "^runs/a: was trained on the 2 classes of 'city', and the dataset 'mine' has 3; give",
    ):
        check_classes("runs/a", named("sky", "road", dataset="city"), named("sky", "road", "car"))


# --- Memory ---

LARGE_ADE20K = """
import resource
import numpy as np
from deeplab_keras.zoo import registry as zoo
from deeplab_keras.config import EvalConfig
from deeplab_keras.data.datasets.ade20k import ADE20K
from deeplab_keras.evaluation.loop import evaluate
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.segmentor import build_segmentor

class Source:
    info, names = ADE20K, ("a", "b", "c", "d")
    def __len__(self):
        return len(self.names)
    def load(self, index):
        random = np.random.default_rng(index)
        image, label = random.integers(0, 255, (15, 20, 3)), random.integers(0, 150, (15, 20))
        large = [np.kron(x, np.ones((100, 100) + (1,) * (x.ndim - 2), int)) for x in (image, label)]
        return [x.astype(np.uint8) for x in large]

network = KerasNetwork(build_segmentor(zoo.get_config("lrasppnet_mobilenetv3sos8_ade20k")))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluate(network, Source(), EvalConfig(eval_short_side=512, eval_long_side=2048), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_150_classes_at_the_labels_size_stay_under_two_gibibytes() -> None:
    """A batch of four images of 1500x2000, whose scores at once would take 6.7 GiB."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_ADE20K], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kibibytes = int(done.stdout.split()[-1])
    print(f"{kibibytes / 2**20:.2f} GiB more than with the network alone")
    assert kibibytes < 2 * 2**20


SLIDING_ADE20K = """
import resource
import numpy as np
from deeplab_keras.zoo import registry as zoo
from deeplab_keras.config import EvalConfig
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.segmentor import build_segmentor

network = KerasNetwork(build_segmentor(zoo.get_config("lrasppnet_mobilenetv3sos8_ade20k")))
small = np.random.default_rng(0).integers(0, 255, (30, 40, 3))
image = np.kron(small, np.ones((100, 100, 1))).astype(np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Predictor(network, EvalConfig(inference="slide")).labels_and_confidence(image[None])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_150_classes_by_sliding_window_stay_under_two_gibibytes() -> None:
    """All scores of 4000x3000 pixels would take 6.7 GiB; the limit includes activations."""
    done = subprocess.run(
        [sys.executable, "-c", SLIDING_ADE20K],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kibibytes = int(done.stdout.split()[-1])
    print(f"{kibibytes / 2**20:.2f} GiB more than with the network alone")
    assert kibibytes < 2 * 2**20
