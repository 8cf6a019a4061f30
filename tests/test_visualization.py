"""Pictures have the right colors at the right places, and the right size."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from contracts import label_blocks, noise, raises_line
from PIL import Image

from deeplab_keras import visualization
from deeplab_keras.config import EvalConfig, PredictConfig, UserError
from deeplab_keras.data.info import DatasetInfo, info_for_classes, pascal_palette
from deeplab_keras.evaluation.report import Report
from deeplab_keras.visualization import (
    COLOR_BLINDNESS,
    LARGEST,
    SMALLEST,
    WRONG,
    class_colors,
    colorblind_palette,
    colorize,
    confidence_map,
    confusion_matrix_figure,
    error_map,
    grid,
    legend,
    overlay,
    panel,
    save_png,
    save_png_strips,
)
from deeplab_keras.visualization.panels import RIM

PALETTE = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40))
INFO = DatasetInfo("blocks", ("__sky__", "traffic_light", "car, auto", "tree"), PALETTE)


def has_color(picture: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((picture == color).all(-1).any())


def share_of(picture: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((picture == color).all(-1).mean())


def scene(
    height: int = 40, width: int = 60, classes: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns an image, a label with ignored pixels, and a prediction with a wrong corner."""
    label = label_blocks(1, height, width, classes=classes, seed=1)[0].astype(np.uint8)
    prediction = np.where(label == 255, 0, label).astype(np.uint8)
    corner = np.s_[: height // 2, : width // 2]
    prediction[corner] = (prediction[corner] + 1) % classes
    return noise(height, width, 3).astype(np.uint8), label, prediction


# --- Colors ---


def test_each_label_has_its_color() -> None:
    labels = np.array([[0, 1, 2], [3, 255, 77]], np.uint8)
    picture = colorize(labels, INFO)
    assert picture.dtype == np.uint8
    assert picture.tolist() == [
        [list(c) for c in PALETTE[:3]],
        [list(PALETTE[3]), [0, 0, 0], [0, 0, 0]],
    ]
    assert (colorize(np.array([[-1, 300]], np.int32), INFO) == 0).all()


def test_ignored_pixels_differ_from_a_black_class() -> None:
    voc = DatasetInfo("voc", ("background", "cat"), pascal_palette(2))
    assert colorize(np.array([[0, 255]]), voc).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_ignore_label_among_the_classes() -> None:
    info = DatasetInfo("ade", INFO.class_names, PALETTE, ignore_label=0)
    assert colorize(np.array([[0, 1]]), info).tolist() == [[[0, 0, 0], list(PALETTE[1])]]


def oklab(color: np.ndarray) -> np.ndarray:
    """Converts a linear RGB color to OKLab, by Ottosson's formulas."""
    r, g, b = np.clip(color, 0, 1)
    l, m, s = np.cbrt(  # noqa: E741
        [
            0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
            0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
            0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b,
        ]
    )
    return np.array(
        [
            0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
            1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
            0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
        ]
    )


@pytest.mark.parametrize(("classes", "apart"), [(7, 0.07), (19, 0.07), (60, 0.03)])
def test_the_colorblind_palette_is_distinct_for_all_kinds_of_vision(
    classes: int, apart: float
) -> None:
    palette = colorblind_palette(classes)
    assert len(set(palette)) == classes and palette[:5] == colorblind_palette(5)
    encoded = np.array([*palette, (0, 0, 0), (255, 255, 255)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    for eye in (np.eye(3), *COLOR_BLINDNESS):
        seen = np.array([oklab(np.asarray(eye) @ color) for color in linear])
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(seen))
        assert distance.min() > apart
    assert np.min([oklab(color)[0] for color in linear[:classes]]) > 0.35  # no color looks black


def test_red_and_green_are_not_distinct() -> None:
    """The previous test can fail: red and green of equal lightness look alike to some."""
    red, green = (
        np.asarray(COLOR_BLINDNESS[1]) @ np.array(c) for c in ([0.3, 0.0, 0.0], [0.0, 0.13, 0.0])
    )
    assert np.linalg.norm(oklab(red) - oklab(green)) < 0.07


def test_palette_by_name() -> None:
    assert class_colors(INFO, "color_blind")[:4].tolist() == [
        list(c) for c in colorblind_palette(4)
    ]
    with raises_line("palette 'colorblind'; did you mean 'color_blind'"):
        class_colors(INFO, "colorblind")


def test_former_spellings_are_accepted() -> None:
    assert visualization.class_colours is class_colors
    assert visualization.COLOUR_BLINDNESS is COLOR_BLINDNESS
    np.testing.assert_array_equal(
        class_colors(INFO, "colour_blind"), class_colors(INFO, "color_blind")
    )
    assert EvalConfig(palette="colour_blind") == EvalConfig(palette="color_blind")
    config = PredictConfig("model", "photos", "out", outputs=("labels", "colour"))
    assert config.outputs == ("labels", "color")


def test_overlay_blends_all_but_ignored_pixels() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[0, 1, 255]], np.uint8)
    mixed = overlay(image, labels, INFO, alpha=0.25)
    assert mixed.tolist() == [[[125, 83, 83], [83, 125, 83], [100, 100, 100]]]
    assert (overlay(image, labels, INFO, alpha=0) == image).all()
    assert overlay(image, labels, INFO, alpha=1)[0, 0].tolist() == list(PALETTE[0])


def test_error_map() -> None:
    image, label, prediction = scene()
    picture = error_map(image, label, prediction, INFO)
    wrong = (label != 255) & (label != prediction)
    assert wrong.any() and ((picture == WRONG).all(-1) == wrong).all()
    assert ((picture == 0).all(-1) == (label == 255)).all()
    right = picture[(label == prediction)]
    assert (
        right[:, 0] == right[:, 1]
    ).all() and right.std() > 5  # gray, with the image still visible


# --- Legends, panels, grids ---


def test_legend_lists_present_classes() -> None:
    picture = legend(INFO, present=[3, 1, 255, 3, 99], width=500)
    assert picture.shape[1] == 500 and picture.dtype == np.uint8
    assert [has_color(picture, color) for color in PALETTE] == [False, True, False, True]
    assert has_color(picture, (0, 0, 0))  # the swatch of ignored pixels; the text is not pure black
    assert not has_color(legend(INFO, present=[0], width=500), (0, 0, 0))
    assert all(has_color(legend(INFO), color) for color in PALETTE)


def test_accents_that_the_font_lacks_are_dropped() -> None:
    plain, accented = (
        legend(info_for_classes("x", [name, "b"])) for name in ("Universitat", "Universität")
    )
    assert np.array_equal(plain, accented)


def test_legend_wraps_and_grows() -> None:
    info = info_for_classes("many", [f"class number {i}" for i in range(30)])
    low, high = legend(info, width=1600, text_size=14), legend(info, width=400, text_size=14)
    assert low.shape[0] < high.shape[0]
    narrow = legend(info, width=10, text_size=14)
    assert 100 < narrow.shape[1] < 300
    assert (narrow[:, -1] == 255).all()  # nothing is cut off
    assert legend(INFO, present=[]).shape[0] > 0


def test_names_are_shortened() -> None:
    names = (
        "__background__",
        "traffic_light",
        "table, board",
        "a very long name that nobody can read at a glance",
    )
    plain = ("background", "traffic light", "table", "a very long name that n…")
    pictures = [legend(DatasetInfo("names", n, PALETTE), width=900) for n in (names, plain)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize(
    ("size", "factor"),
    [((160, 160), 3), ((360, 480), 1), ((40, 60), 7), ((640, 1280), LARGEST / 1280)],
)
def test_panel_with_a_label(size: tuple[int, int], factor: float) -> None:
    image, label, prediction = scene(*size)
    height, width = round(size[0] * factor), round(size[1] * factor)
    picture = panel(image, label, prediction, INFO, with_legend=False)
    assert (picture[-1] == RIM).all(-1).sum() == 4 * (width + 2)  # the border of each picture
    picture = picture[:-1, 1:-1]
    caption, gap = picture.shape[0] - height, max(4, width // 50)
    assert SMALLEST <= max(height, width) <= LARGEST
    assert picture.shape[1] == 4 * width + 3 * gap and 20 < caption < 100

    tiles = [picture[caption:, i * (width + gap) :][:, :width] for i in range(4)]
    rows, columns = (((np.arange(n) + 0.5) / factor).astype(int) for n in (height, width))
    for tile, drawn in [
        (tiles[1], colorize(label, INFO)),
        (tiles[2], colorize(prediction, INFO)),
        (tiles[3], error_map(image, label, prediction, INFO)),
    ]:
        np.testing.assert_array_equal(tile, drawn[rows][:, columns])
    assert np.abs(tiles[0].mean((0, 1)) - image.mean((0, 1))).max() < 2
    captions = picture[:caption]
    inked = [(captions[:, i * (width + gap) :][:, :width] < 128).any() for i in range(4)]
    assert inked == [True] * 4


def test_panel_without_a_label() -> None:
    image, _, prediction = scene(400, 500)
    picture = panel(image, None, prediction, INFO, with_legend=False)[:-1, 1:-1]
    assert picture.shape[1] == 3 * 500 + 2 * 10
    caption = picture.shape[0] - 400
    np.testing.assert_array_equal(picture[caption:, :500], image)
    np.testing.assert_array_equal(picture[caption:, 510:1010], colorize(prediction, INFO))
    np.testing.assert_array_equal(picture[caption:, 1020:], overlay(image, prediction, INFO))


def test_the_legend_of_a_panel_lists_classes_of_label_and_prediction() -> None:
    image = noise(400, 400, 3).astype(np.uint8)
    label, prediction = np.full((400, 400), 1, np.uint8), np.full((400, 400), 2, np.uint8)
    bare = panel(image, label, prediction, INFO, with_legend=False)
    below = panel(image, label, prediction, INFO)[bare.shape[0] :]
    assert [has_color(below, color) for color in PALETTE] == [False, True, True, False]
    assert not has_color(below, (0, 0, 0))
    label[:9] = 255
    below = panel(image, label, prediction, INFO, palette="color_blind")[bare.shape[0] :]
    assert has_color(below, (0, 0, 0)) and has_color(below, colorblind_palette(4)[1])


def test_the_legend_of_a_panel_has_the_scale_of_the_confidence() -> None:
    image, label, prediction = scene(400, 500)
    without = panel(image, label, prediction, INFO)
    with_it = panel(image, label, prediction, INFO, confidence=np.full((400, 500), 0.5, np.float32))
    for end in confidence_map(np.array([0, 1])):
        assert has_color(with_it, tuple(end.tolist())) and not has_color(
            without, tuple(end.tolist())
        )


def test_panel_without_the_image() -> None:
    """The image is not in the panel: neither as a tile nor below the errors."""
    image, label, prediction = scene(400, 500)
    picture = panel(None, label, prediction, INFO, with_legend=False)[:-1, 1:-1]
    assert picture.shape[1] == 3 * 500 + 2 * 10
    caption = picture.shape[0] - 400
    np.testing.assert_array_equal(picture[caption:, :500], colorize(label, INFO))
    blank = np.full_like(image, 128)
    np.testing.assert_array_equal(
        picture[caption:, 1020:], error_map(blank, label, prediction, INFO)
    )


def test_panel_of_a_very_narrow_image_keeps_its_captions_apart() -> None:
    image, label, prediction = scene(400, 10)
    picture = panel(image, label, prediction, INFO, with_legend=False)
    assert picture.shape[1] > 200


def test_panel_with_nothing_labeled() -> None:
    image, label, prediction = scene()
    picture = panel(image, np.full_like(label, 255), prediction, INFO)
    assert share_of(picture, (0, 0, 0)) > 0.3 and not has_color(picture, WRONG)


def test_grid() -> None:
    a, b, c = (np.full((h, w, 3), v, np.uint8) for h, w, v in [(4, 6, 1), (5, 2, 2), (3, 3, 3)])
    column = grid([a, b, c], gap=2)
    assert column.shape == (4 + 5 + 3 + 4, 6, 3)
    assert (
        (column[:4] == 1).all()
        and (column[6:11, :2] == 2).all()
        and (column[6:11, 2:] == 255).all()
    )
    two = grid([a, b, c], columns=2, gap=1)
    assert two.shape == (5 + 3 + 1, 6 + 2 + 1, 3)
    assert (two[:5, 7:] == 2).all() and (two[6:, :3] == 3).all()
    with raises_line("a grid without pictures"):
        grid([])


# --- Figures and files ---


def report(classes: int) -> Report:
    matrix = np.random.default_rng(0).integers(0, 20, (classes, classes)) + 200 * np.eye(
        classes, dtype=int
    )
    matrix[1] = 0
    return Report.from_matrix(
        matrix, info_for_classes("d", [f"class {i}" for i in range(classes)]), 5, model="m"
    )


@pytest.mark.parametrize("classes", [3, 32])
def test_confusion_matrix_figure(classes: int) -> None:
    pytest.importorskip("matplotlib")
    picture = confusion_matrix_figure(report(classes))
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[-1] == 3
    rows, columns = np.nonzero(
        picture[..., 2].astype(int) - picture[..., 0] > 70
    )  # the blue of the diagonal
    assert len(rows) > 20
    assert np.corrcoef(rows, columns)[0, 1] > 0.9  # from the upper left to the lower right
    assert has_color(picture, (230, 230, 230))  # a class without labeled pixels is gray


def test_without_matplotlib_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with raises_line(r"needs matplotlib, which is not installed; pip install matplotlib$"):
        confusion_matrix_figure(report(3))


def test_save_png(tmp_path) -> None:
    image, label, _ = scene()
    for name, array in (("image", image[:, ::-1]), ("label", label)):
        path = tmp_path / "new" / f"{name}.png"
        save_png(path, array)
        np.testing.assert_array_equal(np.asarray(Image.open(path)), array)
    assert sorted(os.listdir(tmp_path / "new")) == ["image.png", "label.png"]
    with raises_line("label.png/x.png: cannot be written"):
        save_png(tmp_path / "new" / "label.png" / "x.png", image)


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_save_png_in_strips(tmp_path, rows: int, channels: tuple[int, ...]) -> None:
    array = noise(23, 31, *channels).astype(np.uint8)
    array[5:9] = 7  # flat areas and noise
    save_png_strips(
        tmp_path / "new" / "a.png", (array[top : top + rows] for top in range(0, 23, rows))
    )
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.mode == ("RGB" if channels else "L")
        picture.verify()  # all checksums
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), array)
    assert os.listdir(tmp_path / "new") == ["a.png"]
    with raises_line("a.png/x.png: cannot be written"):
        save_png_strips(tmp_path / "new" / "a.png" / "x.png", [array])


def test_failing_strips_leave_no_file(tmp_path) -> None:
    def broken():
        yield scene()[0]
        raise UserError("no")

    with raises_line("no"):
        save_png_strips(tmp_path / "a.png", broken())
    assert os.listdir(tmp_path) == []


def test_confidence_is_drawn_from_dark_to_light() -> None:
    drawn = confidence_map(np.linspace(0, 1, 101)[None])[0].astype(int)
    assert drawn[0].tolist() == [0, 32, 77] and drawn[100].tolist() == [255, 234, 70]
    assert (np.diff(drawn @ (0.2126, 0.7152, 0.0722)) > 0).all(), (
        "lighter with every step, so that every eye sees the order"
    )


def test_a_panel_shows_the_confidence() -> None:
    image, label, prediction = scene()
    confidence = np.full(label.shape, 0.25, np.float32)
    plain, more = (panel(image, label, prediction, INFO, confidence=c) for c in (None, confidence))
    assert more.shape[1] > plain.shape[1]
    assert has_color(more, (66, 78, 108)) and not has_color(plain, (66, 78, 108))
