"""Boundary IoU, calibration, scores per image, the comparison of two models, and the page."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
import pathlib
import re
import subprocess

import numpy as np
import pytest
from contracts import BROWSER, raises_line, script
from PIL import Image
from test_evaluation import CLASSES, INFO, make_model, make_source

from deeplab_keras.config import EvalConfig
from deeplab_keras.evaluation.compare import compare
from deeplab_keras.evaluation.curves import read_rows
from deeplab_keras.evaluation.detail import Details, ImageScore, count_boundaries, near_boundary
from deeplab_keras.evaluation.loop import evaluate
from deeplab_keras.evaluation.output import draw_panel, write_report
from deeplab_keras.evaluation.page import extremes, html_page
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Predictor, predict_logits
from deeplab_keras.visualization import class_colors


def boundary_oracle(labels: np.ndarray, distance: int) -> np.ndarray:
    height, width = labels.shape
    found = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            for i in range(y - distance, y + distance + 1):
                for j in range(x - distance, x + distance + 1):
                    outside = not (0 <= i < height and 0 <= j < width)
                    found[y, x] |= outside or labels[i, j] != labels[y, x]
    return found


@pytest.mark.parametrize("seed", range(40))
def test_near_boundary(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, rng.integers(1, 4), rng.integers(1, 9, 2)).astype(np.uint8)
    if seed % 2:
        labels = labels.repeat(4, 0).repeat(3, 1)
    distance = int(rng.integers(1, 5))
    np.testing.assert_array_equal(
        near_boundary(labels, distance), boundary_oracle(labels, distance)
    )


def test_boundary_counts_equal_those_of_each_class():
    """Compares with the paper's definition per class: a mask minus its erosion."""
    rng = np.random.default_rng(0)
    label, prediction = (
        rng.integers(0, CLASSES, (8, 6)).repeat(8, 0).repeat(8, 1) for _ in range(2)
    )
    label[:9, :13] = 255
    distance = round(0.02 * math.hypot(64, 48))
    assert distance > 1
    found = count_boundaries(label, prediction, INFO)
    shown = np.where(label == 255, 255, prediction)
    for c in range(CLASSES):
        rims = [
            boundary_oracle((labels == c).astype(int), distance) & (labels == c)
            for labels in (label, shown)
        ]
        expected = [(rims[0] & rims[1]).sum(), rims[0].sum(), rims[1].sum()]
        np.testing.assert_array_equal(found[:, c], expected)


def test_the_details_of_an_evaluation():
    source, model = make_source(), make_model()
    details = Details(source.info)
    plain = evaluate(model, source, progress=False)
    report = evaluate(model, source, EvalConfig(eval_batch_size=2), progress=False, details=details)
    assert report.confusion_matrix == plain.confusion_matrix and report.miou == plain.miou
    assert plain.boundary_iou is None and "boundary_iou" not in plain.to_dict()

    predictor = Predictor(model)
    for score in details.images:
        image, label = source.load(source.names.index(score.name))
        single = evaluate(
            model, make_single(source, source.names.index(score.name)), progress=False
        )
        assert score.miou == pytest.approx(single.miou)
        assert score.pixel_accuracy == pytest.approx(single.pixel_accuracy)
        assert score.labeled.sum() == (label != 255).sum()
        np.testing.assert_array_equal(
            score.predicted, np.bincount(predictor(image)[label != 255], minlength=CLASSES)
        )

    pixels = []  # (confidence, correct) of each pixel
    for image, label in source.pairs:
        logits = predict_logits(model, image[None])[0].numpy().astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        counted = label != 255
        pixels += zip(
            probabilities.max(-1)[counted],
            (probabilities.argmax(-1) == label)[counted],
            strict=True,
        )
    bins = [[p for p in pixels if math.floor(p[0] * 15) == b] for b in range(15)]
    error = sum(
        abs(np.mean([c - right for c, right in group])) * len(group) / len(pixels)
        for group in bins
        if group
    )
    assert report.expected_calibration_error == pytest.approx(error, abs=1e-5)

    counts = sum(
        count_boundaries(label, predictor(image), source.info) for image, label in source.pairs
    )
    ious = counts[0] / np.maximum(counts[1] + counts[2] - counts[0], 1)
    present = counts[1] + counts[2] > 0
    assert report.boundary_iou == pytest.approx(ious[present].mean())
    assert report.per_class_boundary_iou["tree"] is None and not present[CLASSES - 1]
    assert Report.from_json(report.to_json()) == report


def make_single(source, index):
    return type(source)(INFO, [source.pairs[index]])


# --- Two models ---


def scores(seed: int, quality: float, count: int = 12) -> list[ImageScore]:
    rng = np.random.default_rng(seed)
    labeled = rng.integers(50, 100, (count, CLASSES))
    hits = (labeled * np.clip(quality + rng.normal(0, 0.03, labeled.shape), 0, 1)).astype(np.int64)
    return [
        ImageScore(f"image {i}", h, n, n)
        for i, (h, n) in enumerate(zip(hits, labeled, strict=True))
    ]


def test_a_clear_difference_and_no_difference():
    better = compare(scores(0, 0.6), scores(1, 0.7))
    total = [
        np.sum([(s.hits, s.labeled) for s in scores(seed, q)], 0)
        for seed, q in ((0, 0.6), (1, 0.7))
    ]
    mious = [float(np.mean(hits / (2 * labeled - hits))) for hits, labeled in total]
    assert better.miou == pytest.approx(tuple(mious))
    assert (
        0 < better.low < mious[1] - mious[0] < better.high
        and better.verdict == "the second is better"
    )
    assert compare(scores(1, 0.7), scores(0, 0.6)).low == pytest.approx(-better.high, abs=2e-3)
    same = compare(scores(0, 0.6), scores(0, 0.6)[::-1])
    assert same.low == same.high == 0 and "not significant" in same.verdict
    table = better.table("runs/a", "runs/b", INFO.class_names)
    assert "B: runs/b" in table and f"{100 * better.low:+.2f} to" in table


def test_the_interval_is_a_paired_bootstrap():
    first, second = scores(0, 0.6, 5), scores(1, 0.62, 5)
    draws = np.random.default_rng(3).integers(0, 5, (4000, 5))

    def miou(images):
        hits, labeled = np.sum([(s.hits, s.labeled) for s in images], 0)
        return np.mean(hits / (2 * labeled - hits))

    differences = [
        miou([second[i] for i in draw]) - miou([first[i] for i in draw]) for draw in draws
    ]
    found = compare(first, second, samples=4000)
    np.testing.assert_allclose(
        [found.low, found.high], np.percentile(differences, (2.5, 97.5)), atol=2e-3
    )


def test_other_images_are_refused():
    with raises_line("not evaluated on the same images .image 11."):
        compare(scores(0, 0.5), scores(0, 0.5, 11))


# --- The page and the files ---


def test_extremes():
    images = scores(0, 0.5, 5) + [ImageScore("empty", *np.zeros((3, CLASSES), np.int64))]
    worst, best = extremes(images, 4)
    ranked = sorted(images[:5], key=lambda score: score.miou)
    assert [s.name for s in worst] == [s.name for s in ranked[:2]]
    assert [s.name for s in best] == [s.name for s in ranked[:2:-1]]
    assert [len(part) for part in extremes(images[:1], 4)] == [1, 0]
    assert extremes([], 4) == ([], [])


class Tags(html.parser.HTMLParser):
    """Checks that all tags are closed, and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text, self.images = "", 0

    def handle_starttag(self, tag, attrs):
        if tag in ("meta", "img"):
            self.images += tag == "img"
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_report() -> Report:
    matrix = np.array([[8, 2, 0], [1, 5, 0], [0, 0, 0]])
    info = INFO.__class__("a<b", ("sky & air", "<road>", "car"), INFO.palette[:3])
    return Report.from_matrix(matrix, info, 3, model="m", split="val")


def test_page_is_complete_and_escapes_names():
    report = make_report()
    picture = np.zeros((4, 5, 3), np.uint8)
    score = dataclasses.replace(scores(0, 0.5, 1)[0], name='"><script>alert(1)</script>')
    page = html_page(report, [(score, picture)], [])
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.images == 1
    assert "sky & air" in tags.text and "<road>" in tags.text and "<road>" not in page
    assert '"><script>alert(1)</script>: mIoU' in tags.text and "<script" not in page
    assert "default-src 'none'" in page, "the browser runs no script and loads nothing"
    assert report.confusions() == [
        ("sky & air", "<road>", pytest.approx(0.2), pytest.approx(2 / 16)),
        ("<road>", "sky & air", pytest.approx(1 / 6), pytest.approx(1 / 16)),
    ]


def test_files(tmp_path):
    source, model = make_source(), make_model()
    details = Details(source.info)
    report = evaluate(model, source, progress=False, details=details)
    write_report(tmp_path, report, details, Predictor(model), source, pictures=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics.csv",
        "metrics.json",
        "metrics.md",
        "report.html",
    ]
    assert (tmp_path / "report.html").read_text().count("<img") == 4
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert (
        lines[0] == "class,iou,precision,recall,pixels,boundary_iou" and len(lines) == 1 + CLASSES
    )
    assert lines[1].split(",")[1] == str(report.per_class_iou["sky"]) and lines[4] == "tree,,,,0.0,"
    markdown = (tmp_path / "metrics.md").read_text().splitlines()
    assert markdown[0].startswith("7 images, blocks") and {
        line.count("|") for line in markdown[2:]
    } == {7}


def test_the_charts_of_a_training_run(tmp_path):
    path = tmp_path / "training.csv"
    path.write_text(
        "step,loss,train_miou,learning_rate,val_miou\n10,2.0,0.1,0.01,\n20,1.0,nan,0.005,0.25\n30,0.5,0.3,0.001,0.5\n"
    )
    rows = read_rows(path)
    drawn = html_page(make_report(), course=rows)
    tags = Tags()
    tags.feed(drawn)
    assert tags.open == [] and drawn.count("<svg") == 3
    lines = re.findall(r'polyline points="([^"]+)"', drawn)
    points = [[tuple(map(float, point.split(","))) for point in line.split()] for line in lines]
    assert [len(line) for line in points] == [3, 2, 2, 3]  # loss, validation, training crops, rate
    xs, ys = zip(*points[0], strict=True)
    assert (
        xs[1] == pytest.approx((xs[0] + xs[2]) / 2, abs=0.1) and ys[0] < ys[1] < ys[2]
    )  # y points down in SVG
    assert (ys[1] - ys[0]) == pytest.approx(2 * (ys[2] - ys[1]), abs=0.2)
    for course in ([], rows[:1]):
        assert "<h2>Training" not in html_page(make_report(), course=course)


@pytest.mark.slow
def test_script_compares(tiny_run, capsys):
    assert script("eval.py")(f"--compare={tiny_run},{tiny_run}/best") == 0
    shown = capsys.readouterr().out
    assert "the difference is not significant" in shown and "+0.00 to +0.00" in shown
    assert script("eval.py")(f"--compare={tiny_run}") == 1
    assert "--compare=" in capsys.readouterr().err
    assert script("eval.py")(f"--checkpoint_dir={tiny_run}") == 0
    assert json.loads((tiny_run / "eval_val" / "metrics.json").read_text())["boundary_iou"] >= 0


# --- In a browser ---


def console(page: pathlib.Path, shot: pathlib.Path) -> list[str]:
    """Opens a page in a browser, takes a screenshot, and returns the console output."""
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--hide-scrollbars",
    )
    size = ("--window-size=1200,3000", "--virtual-time-budget=5000", f"--screenshot={shot}")
    done = subprocess.run(
        [str(BROWSER), *flags, *size, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.package("chromium")
def test_a_browser_shows_the_page_without_errors(tmp_path):
    source, model = make_source(), make_model()
    details = Details(source.info)
    report = evaluate(model, source, progress=False, details=details)
    course = tmp_path / "training.csv"
    course.write_text(
        "step,loss,learning_rate,val_miou\n10,2.0,0.01,\n20,1.0,0.005,0.25\n30,0.5,0.001,0.5\n"
    )
    predictor = Predictor(model, EvalConfig(palette="color_blind"))
    write_report(tmp_path, report, details, predictor, source, pictures=2, training_csv=course)
    assert console(tmp_path / "report.html", tmp_path / "shot.png") == []
    shown = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    rows = {
        name: (shown == color).all(-1).any(1)
        for name, color in {
            "totals": (241, 244, 246),
            "chart": (47, 125, 140),
            "a class": class_colors(INFO, "color_blind")[1],
        }.items()
    }
    first = {name: int(found.argmax()) for name, found in rows.items() if found.any()}
    assert list(first) == sorted(first, key=first.__getitem__) == list(rows), (
        "the parts stand below each other, all seen"
    )
    assert not (shown == INFO.palette[1]).all(-1).any(), "colors of one palette alone"

    broken = tmp_path / "broken.html"
    broken.write_text("<script>throw Error('this one is to be seen')</script>")
    assert "this one is to be seen" in console(broken, tmp_path / "broken.png")[0]


@pytest.mark.parametrize("palette", ["dataset", "color_blind"])
def test_a_panel_has_the_palette_of_the_config(palette):
    image, label = make_source([(40, 60)]).load(0)
    image = (image // 128 * 60 + 90).astype(
        np.uint8
    )  # no pixel happens to have the color of a class
    drawn = draw_panel(Predictor(make_model(), EvalConfig(palette=palette)), image, label, INFO)
    other = {"dataset": "color_blind", "color_blind": "dataset"}[palette]
    for chosen, seen in ((palette, True), (other, False)):
        for color in class_colors(INFO, chosen)[1:3]:
            assert (drawn == color).all(-1).any() == seen
