"""The audit of masks: regions, scores and ranking, on masks that the tests spoil themselves."""

from __future__ import annotations

import collections
import csv
import json
import math

import keras
import numpy as np
import pytest
from contracts import raises_line, script
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from PIL import Image

from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.evaluation import audit, audit_page, regions

IGNORE = 255
LEVEL = 60  # red value of class 1; class k has k times as much


def flooded(mask: np.ndarray) -> np.ndarray:
    """The regions of a mask by flood filling, pixel by pixel."""
    numbers, count = np.zeros(mask.shape, np.int32), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if numbers[start]:
            continue
        count += 1
        queue = collections.deque([start])
        numbers[start] = count
        while queue:
            y, x = queue.popleft()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
                if inside and mask[near] and not numbers[near]:
                    numbers[near] = count
                    queue.append(near)
    return numbers


@settings(max_examples=150, deadline=None)
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=14)))
def test_connected_regions(mask):
    np.testing.assert_array_equal(regions.connected(mask), flooded(mask))


def test_a_spiral_is_one_region():
    """Its runs are joined step by step, over many rows."""
    mask = np.zeros((41, 41), bool)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    while True:
        ahead = y + 2 * dy, x + 2 * dx
        free = 0 <= y + dy < 41 and 0 <= x + dx < 41 and not mask[y + dy, x + dx]
        beyond = not (0 <= ahead[0] < 41 and 0 <= ahead[1] < 41) or not mask[ahead]
        if not (free and beyond):
            dy, dx = dx, -dy
            if mask[y + dy, x + dx] or mask[(y + 2 * dy) % 41, (x + 2 * dx) % 41]:
                break
            continue
        y, x = y + dy, x + dx
        mask[y, x] = True
    assert mask.sum() > 300
    np.testing.assert_array_equal(regions.connected(mask), mask.astype(int))


def test_opening_removes_strips_and_keeps_squares():
    mask = np.zeros((30, 40), bool)
    mask[3:7, 2:30] = True  # four pixels wide
    mask[15:20, 20:25] = True
    mask[25:30, 0:3] = True  # three of five columns, the others would be outside the image
    kept = np.zeros_like(mask)
    kept[15:20, 20:25] = kept[25:30, 0:3] = True
    np.testing.assert_array_equal(regions.opened(mask, 2), kept)


def confident(predicted: np.ndarray, probability: float, classes: int = 4) -> np.ndarray:
    """Probabilities in which the predicted class has one value and the others share the rest."""
    found = np.full((*predicted.shape, classes), (1 - probability) / (classes - 1), np.float32)
    np.put_along_axis(found, predicted[..., None].astype(int), probability, -1)
    return found


def test_regions_of_a_mask():
    label = np.zeros((100, 100), np.uint8)
    predicted = label.copy()
    label[10:30, 10:30] = 1  # predicted as 0: doubtful
    label[50:90, 5:15] = 2  # predicted as 3: doubtful
    predicted[50:90, 5:15] = 3
    label[60:80, 60:80] = IGNORE  # does not count
    predicted[60:80, 60:80] = 1
    probabilities = confident(predicted, 0.91)
    probabilities[50:90, 5:15] = confident(predicted[50:90, 5:15], 0.88)
    found = list(audit.doubtful_regions(label, predicted, probabilities, IGNORE))
    assert [(r.label, r.predicted, r.box, r.pixels) for r in found] == [
        (1, 0, (10, 10, 30, 30), 400),
        (2, 3, (5, 50, 15, 90), 400),
    ]
    # Of the area that is predicted as 0, 400 of 9200 pixels have another label; of that predicted
    # as 3, all have.
    assert found[0].score == pytest.approx(-400 * math.log(0.03) * 400 / 9200, rel=1e-5)
    assert found[1].score == pytest.approx(-400 * math.log(0.04), rel=1e-5)


def test_a_forgotten_object_weighs_more_than_one_with_another_outline():
    label, predicted = np.zeros((2, 100, 100), np.uint8)
    predicted[10:30, 10:40] = 1  # forgotten
    predicted[50:90, 10:90] = 1
    label[50:90, 10:75] = 1  # of the same size where they differ, 40 x 15, but most of it is there
    label[52:60, 40:60] = IGNORE  # does not count
    first, second = audit.doubtful_regions(label, predicted, confident(predicted, 0.99), IGNORE)
    assert first.pixels == second.pixels == 600
    share = 600 / (40 * 80 - 8 * 20)
    assert second.score == pytest.approx(first.score * share, rel=1e-5)


def test_doubt_needs_confidence_and_width():
    label = np.zeros((100, 100), np.uint8)
    label[10:30, 10:30] = 1
    predicted = np.zeros_like(label)

    def count(probability: float, label: np.ndarray = label) -> int:
        return len(
            list(
                audit.doubtful_regions(label, predicted, confident(predicted, probability), IGNORE)
            )
        )

    assert count(0.84) == 0, "0.84 to 0.053 is less than the margin"
    assert count(0.86) == 1
    strip = np.zeros_like(label)
    strip[40:42] = 1
    assert count(0.99, strip) == 0


def network_of_colors() -> keras.Model:
    """Recognizes class k by its red value, LEVEL * k, without any training."""
    image = keras.Input((None, None, 3))
    classifier = keras.layers.Conv2D(4, 1, name="logits")
    model = keras.Model(image, classifier(image))
    kernel, classes = np.zeros((1, 1, 3, 4), np.float32), np.arange(4)
    kernel[0, 0, 0] = 2 * LEVEL * classes / 300
    classifier.set_weights([kernel, (-((LEVEL * classes) ** 2) / 300).astype(np.float32)])
    return model


class Scenes:
    """Rectangles of classes 1 to 3 on class 0; the network confuses class 3 in every scene."""

    info = DatasetInfo(
        "scenes", ("a", "b", "c", "d"), ((0, 0, 0), (9, 0, 0), (99, 0, 0), (0, 9, 0))
    )

    def __init__(self, count: int = 30) -> None:
        self.names = tuple(f"scene_{index:02d}" for index in range(count))
        rng = np.random.default_rng(0)
        self.pairs = []
        for _ in range(count):
            label = np.zeros((96, 128), np.uint8)
            for class_id in (1, 2, 3):
                top, left = rng.integers(0, 50), rng.integers(0, 80)
                label[top : top + 40, left : left + 40] = class_id
            image = np.zeros((96, 128, 3), np.uint8)
            image[..., 0] = LEVEL * label
            top, left = np.argwhere(label == 3)[0]
            image[top : top + 20, left : left + 20, 0] = 0  # looks like class 0
            self.pairs.append((image, label))

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = self.pairs[index]
        return image.copy(), label.copy()


def test_spoiled_masks_come_first():
    """Exchanged classes, a deleted object, a shifted mask; the confusion of class 3 comes later."""
    scenes = Scenes()
    for index, spoil in ((4, "exchange"), (11, "delete"), (23, "shift")):
        image, label = scenes.pairs[index]
        if spoil == "exchange":
            label = np.array([0, 2, 1, 3], np.uint8)[label]
        elif spoil == "delete":
            label[label == 1] = 2
        else:
            label = np.roll(label, (12, 9), (0, 1))
        scenes.pairs[index] = image, label
    found = audit.audit_labels(network_of_colors(), scenes, split="train", progress=False)
    assert {mask.index for mask in found.masks[:3]} == {4, 11, 23}
    assert found.images == len(scenes) and len(found.masks) > 20, "class 3 is doubted everywhere"
    exchanged = next(mask for mask in found.masks if mask.index == 4)
    assert {(r.label, r.predicted) for r in exchanged.regions[:2]} == {(1, 2), (2, 1)}
    shifts = {mask.index: mask.shift for mask in found.masks if mask.shift}
    assert shifts == {23: (-8, -12)}, "9 pixels, in steps of 2"
    assert "the mask fits better 8 pixels to the left and 12 pixels up" in audit_page.table(found)
    values = found.to_dict()
    assert values["masks"][0]["name"] == found.masks[0].name
    assert audit_page.table(found).splitlines()[0].startswith("train: the model contradicts ")


def test_rare_confusions_weigh_more():
    """100 pixels of a confusion that no other image has, before 400 of one that another one has."""

    def region(label: int, predicted: int, pixels: int) -> audit.Region:
        return audit.Region(label, predicted, (0, 0, 1, 1), pixels, float(pixels))

    found = {0: [region(1, 2, 100)], 1: [region(3, 0, 400)], 2: [region(3, 0, 400)]}
    weighted = audit.weighted_regions(found, np.array([9999, 998, 998, 998]))
    assert weighted[0][0].score == pytest.approx(100 * 3)  # -log10(1 / 1000)
    assert weighted[1][0].score == pytest.approx(400 * 0.39686, rel=1e-4)  # -log10(401 / 1000)
    assert weighted[2][0].score == weighted[1][0].score


@pytest.mark.parametrize(("down", "right"), [(0, 0), (8, 0), (-4, 12), (12, -12), (0, -2)])
def test_the_shift_of_a_mask(down, right):
    rng = np.random.default_rng(3)
    predicted = np.repeat(np.repeat(rng.integers(0, 5, (12, 15)), 8, 0), 8, 1)
    label = np.roll(predicted, (-down, -right), (0, 1))
    label[40:50, 30:60] = IGNORE
    gain, move = audit.best_shift(label, predicted, IGNORE)
    assert move == (right, down)
    counts = label != IGNORE
    assert gain == pytest.approx(1 - ((label == predicted) & counts).sum() / counts.sum())


def test_shifts_of_large_masks_are_in_their_own_pixels():
    rng = np.random.default_rng(3)
    predicted = np.repeat(np.repeat(rng.integers(0, 5, (12, 20)), 64, 0), 64, 1)
    label = np.roll(predicted, (-12, 24), (0, 1))  # 1280 pixels wide: every third pixel is used
    assert audit.best_shift(label, predicted, IGNORE)[1] == (-24, 12)


def test_maps_without_outlines_are_in_their_place():
    flat = np.zeros((30, 40), np.uint8)
    assert audit.best_shift(flat, flat, IGNORE) == (0.0, (0, 0))
    assert audit.best_shift(flat[:3, :2], flat[:3, :2], IGNORE) == (0.0, (0, 0))
    assert audit.best_shift(np.full_like(flat, IGNORE), flat, IGNORE) == (0.0, (0, 0))


def test_intact_masks_are_not_doubted():
    scenes = Scenes(4)
    scenes.pairs = [
        (np.repeat((LEVEL * label)[..., None], 3, -1).astype(np.uint8), label)
        for _, label in scenes.pairs
    ]
    found = audit.audit_labels(network_of_colors(), scenes, split="val", progress=False)
    assert found.masks == ()
    assert audit_page.table(found) == "val: the model contradicts 0 of 4 masks with confidence"


def test_a_model_of_other_classes_is_refused():
    scenes = Scenes(1)
    scenes.info = DatasetInfo("two", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with raises_line("the dataset 'two' has 2 classes and the model 4"):
        audit.audit_labels(network_of_colors(), scenes, progress=False)


def test_unlabeled_pictures_are_ranked_by_expected_disagreement():
    """The oracle: the mean over many masks drawn from the model's own probabilities."""
    model, rng = network_of_colors(), np.random.default_rng(0)
    certain = np.full((8, 8, 3), LEVEL, np.uint8)
    between = np.full((8, 8, 3), int(1.5 * LEVEL), np.uint8)
    half = np.concatenate([certain[:4], between[:4]])
    ranking = audit.rank_unlabeled(
        model, [("certain", certain), ("half", half), ("between", between)]
    )
    assert [name for name, _ in ranking] == ["between", "half", "certain"]
    logits = model.predict(between[None].astype(np.float32), verbose=0)[0, 0, 0].astype(np.float64)
    p = np.exp(logits - logits.max())
    p /= p.sum()
    drawn = rng.choice(4, 20000, p=p)
    assert ranking[0][1] == pytest.approx((1 - p[drawn]).mean(), abs=0.01)
    assert ranking[1][1] == pytest.approx((ranking[0][1] + ranking[2][1]) / 2, abs=1e-5)


@pytest.mark.parametrize("images", [None, 5, "abc", [1], [("a",)], [(1, 2)], {"a": 1}])
def test_pictures_to_rank_need_names(images):
    with raises_line("images: each item must be a name and an image, not .*; give a list such as"):
        audit.rank_unlabeled(network_of_colors(), images)


def test_the_script_shows_doubtful_masks(tiny_run, tmp_path, capsys):
    photos = tmp_path / "new"
    photos.mkdir()
    for name in ("a.jpg", "b & <c>.png"):
        Image.new("RGB", (40, 30), (90, 120, 30)).save(photos / name)
    (photos / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "report"
    summary = tmp_path / "summary.json"
    arguments = [f"--checkpoint_dir={tiny_run}", f"--unlabeled={photos}"]
    arguments += [f"--output={out}", f"--summary={summary}"]
    assert script("check_dataset.py")(*arguments) == 0
    printed = capsys.readouterr().out
    assert "2 pictures without masks; label these first:" in printed
    rows = list(csv.reader((out / "unlabeled.csv").open()))
    assert rows[0] == ["name", "score"]
    assert sorted(row[0] for row in rows[1:]) == ["a", "b & <c>"]
    report = json.loads((out / "report.json").read_text())
    assert [(part["split"], part["images"]) for part in report["audit"]] == [
        ("train", 8),
        ("val", 4),
    ]
    assert "Doubtful masks of train" in (out / "report.html").read_text()
    assert "broken" in str(json.loads(summary.read_text())["failures"])
    assert script("check_dataset.py")("--unlabeled=x") == 1
    assert "--unlabeled needs --checkpoint_dir, a trained model" in capsys.readouterr().err


def test_names_in_the_report_are_escaped():
    scenes = Scenes(3)
    scenes.info = DatasetInfo(
        "x", ("a", "<script>b</script>", "c", "d"), ((0, 0, 0), (9, 0, 0), (99, 0, 0), (0, 9, 0))
    )
    image, label = scenes.pairs[0]
    scenes.pairs[0] = image, np.array([0, 2, 1, 3], np.uint8)[label]
    predictor = audit.Predictor(network_of_colors(), audit.EvalConfig())
    found = audit.audit_labels(predictor.network, scenes, split="train", progress=False)
    part = audit_page.describe(found, predictor, scenes)
    assert any("<script>" in figure["caption"] for figure in part.figures)
    from deeplab_keras.visualization.html import render  # escapes, see dataset.html

    text = render(
        "dataset.html",
        title="t",
        check=_Check(scenes.info),
        with_sheet=False,
        doubts=[part],
        shown=1,
        colors=["#000000"] * 5,
        widest=1,
        weights={},
    )
    assert "<script>" not in text and "&lt;script&gt;" in text


class _Check:
    """The least of a `DatasetCheck` that the page needs."""

    wrong, looks_like, notes, splits = False, "", (), ()

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
