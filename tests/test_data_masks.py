"""Conversion of all forms of masks to index masks, and its errors."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import pathlib

import numpy as np
import pytest
from contracts import SHARED, as_command_line, raises_line, script
from data_files import mask, photograph, truncate, write_png
from dataset_trees import CITYSCAPES_IDS
from PIL import Image

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.annotations import masks
from deeplab_keras.data.annotations.labelme import draw_labelme
from deeplab_keras.data.annotations.masks import KINDS, RECORD, convert_masks
from deeplab_keras.data.info import pascal_palette
from deeplab_keras.data.registry import open_dataset

PALETTE = bytes(value for color in pascal_palette(256) for value in color)
COLORS = np.array([[0, 0, 0], [128, 64, 128], [70, 70, 70], [255, 255, 255]], np.uint8)


@pytest.fixture
def drawn(tmp_path):
    """A folder for the masks to convert."""
    path = tmp_path / "drawn"
    (path / "München").mkdir(parents=True)
    return path


def read(path: pathlib.Path) -> np.ndarray:
    """Reads a converted mask, which must have one byte per pixel."""
    with Image.open(path) as picture:
        assert picture.mode == "L" and picture.format == "PNG"
        return np.asarray(picture)


# --- Each kind ---


def test_palette(drawn, tmp_path):
    ids = mask(20, 30, ids=(0, 5, 15, 255))
    write_png(drawn / "a.png", ids, 8, PALETTE)
    write_png(drawn / "München/b.png", ids[:, ::-1] % 2, 1, PALETTE[:6])
    result = convert_masks("palette", str(drawn), str(tmp_path / "ids"))
    assert (result.converted, result.kept, result.failed) == (2, 0, ())
    np.testing.assert_array_equal(read(tmp_path / "ids/a.png"), ids)
    np.testing.assert_array_equal(read(tmp_path / "ids/München/b.png"), ids[:, ::-1] % 2)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_rgb_with_classes(suffix, drawn, tmp_path):
    rows = mask(20, 30, ids=(0, 1, 2, 3))
    Image.fromarray(COLORS[rows]).save(drawn / f"a{suffix}")
    (tmp_path / "my classes.txt").write_text(
        "road 128 64 128\nbuilding #464646\nignore #000000\nIgnore #ffffff\n"
    )
    result = convert_masks(
        "rgb", str(drawn), str(tmp_path / "ids"), classes=str(tmp_path / "my classes.txt")
    )
    np.testing.assert_array_equal(read(tmp_path / "ids/a.png"), np.array([255, 0, 1, 255])[rows])
    assert result.classes_file.read_text() == "road #804080\nbuilding #464646\n"


def test_rgb_of_a_dataset_and_without_classes(drawn, tmp_path):
    rows = mask(20, 30, ids=(0, 1, 2, 3))
    Image.fromarray(COLORS[:3][rows % 3]).save(drawn / "a.png")
    convert_masks("rgb", str(drawn), str(tmp_path / "ids"), classes="cityscapes")
    np.testing.assert_array_equal(read(tmp_path / "ids/a.png"), np.array([255, 0, 2])[rows % 3])
    result = convert_masks("rgb", str(drawn), str(tmp_path / "inferred"))
    np.testing.assert_array_equal(read(tmp_path / "inferred/a.png"), np.array([0, 2, 1])[rows % 3])
    assert (
        result.classes_file.read_text()
        == "color_000000 #000000\ncolor_464646 #464646\ncolor_804080 #804080\n"
    )


@pytest.mark.parametrize(
    ("levels", "reported"),
    [((0, 38, 75, 147, 220), True), ((0, 128, 255), False), ((0, 85, 170, 255), False)],
)
def test_luminances_of_colors_are_reported(levels, reported, tmp_path, caplog):
    """Two of PASCAL VOC's classes have the same luminance, so one class would be lost."""
    (tmp_path / "gray").mkdir()
    Image.fromarray(mask(20, 30, ids=levels)).save(tmp_path / "gray/a.png")
    convert_masks("gray", str(tmp_path / "gray"), str(tmp_path / "ids"))
    assert (
        any(
            "the luminances of PASCAL VOC's colors" in record.getMessage()
            for record in caplog.records
        )
        == reported
    )


def test_gray_levels_of_all_files_together(drawn, tmp_path):
    Image.fromarray(mask(20, 30, ids=(0, 128))).save(drawn / "a.png")
    Image.fromarray(mask(20, 30, ids=(0, 255))).convert("RGB").save(drawn / "b.png")
    convert_masks("gray", str(drawn), str(tmp_path / "ids"))
    np.testing.assert_array_equal(read(tmp_path / "ids/a.png"), mask(20, 30, ids=(0, 1)))
    np.testing.assert_array_equal(read(tmp_path / "ids/b.png"), mask(20, 30, ids=(0, 2)))


def test_the_british_spelling_of_gray_is_an_alias(drawn, tmp_path):
    """Conversions that were started with the old spelling are resumed, too."""
    Image.fromarray(mask(20, 30, ids=(0, 128))).save(drawn / "a.png")
    assert convert_masks("grey", str(drawn), str(tmp_path / "ids")).converted == 1
    record = tmp_path / "ids" / RECORD
    assert '"from": "gray"' in record.read_text()
    record.write_text(record.read_text().replace("gray", "grey"))
    assert convert_masks("gray", str(drawn), str(tmp_path / "ids")).kept == 1
    assert (
        script("convert_masks.py")(
            "--from=grey", f"--input={drawn}", f"--output={tmp_path / 'ids'}"
        )
        == 0
    )


@pytest.mark.parametrize("white", [255, 128, 1])
@pytest.mark.parametrize("form", ["L", "RGB", "1", "JPEG"])
def test_binary(white, form, drawn, tmp_path):
    if white < 255 and form in ("1", "JPEG"):
        return  # 1-bit images have no other grays, and JPEG blurs around them
    ids = np.kron(mask(5, 6, ids=(0, 1)), np.ones((8, 8), np.uint8))
    picture = Image.fromarray(ids * np.uint8(white))
    if form == "JPEG":
        picture.save(drawn / "a.jpg", quality=90)
    else:
        picture.convert(form).save(drawn / "a.png")
    Image.fromarray(np.full((4, 4), white, np.uint8)).save(drawn / "full.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(drawn / "none.png")
    convert_masks("binary", str(drawn), str(tmp_path / "ids"))
    np.testing.assert_array_equal(read(tmp_path / "ids/a.png"), ids)
    assert read(tmp_path / "ids/full.png").min() == 1 and read(tmp_path / "ids/none.png").max() == 0


def test_cityscapes(drawn, tmp_path):
    ids = mask(20, 30, ids=tuple(range(34)))
    name = "aachen_000000_000019_gtFine"
    Image.fromarray(ids).save(drawn / f"{name}_labelIds.png")
    Image.fromarray(ids).save(drawn / f"{name}_instanceIds.png")
    convert_masks("cityscapes", str(drawn), str(tmp_path / "ids"))
    assert [path.name for path in (tmp_path / "ids").rglob("*.png")] == [
        f"{name}_labelTrainIds.png"
    ]
    expected = np.vectorize(CITYSCAPES_IDS.__getitem__)(ids)
    np.testing.assert_array_equal(read(tmp_path / f"ids/{name}_labelTrainIds.png"), expected)


def test_index_with_an_offset(drawn, tmp_path):
    write_png(drawn / "a.png", mask(20, 30, ids=(0, 1, 150, 255)), 16)
    convert_masks("index", str(drawn), str(tmp_path / "ids"), id_offset=-1)
    expected = np.array([255, 0, 149, 255])[mask(20, 30, ids=(0, 1, 2, 3))]
    np.testing.assert_array_equal(read(tmp_path / "ids/a.png"), expected)


# --- labelme ---


def labelme(path: pathlib.Path, *shapes: dict, **changes: object) -> str:
    content = {"shapes": list(shapes), "imageHeight": 40, "imageWidth": 60} | changes
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value is not None})
    )
    return str(path)


def shape(label: str, kind: str | None, *points: tuple[float, float], **more: object) -> dict:
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], **more}


def test_labelme_shapes_may_extend_beyond_the_image(tmp_path):
    path = labelme(tmp_path / "a.json", shape("car", "rectangle", (-9e5, 10), (9e5, 9e5)))
    ids = draw_labelme(path, {"car": 1})
    assert (ids[:10] == 0).all() and (ids[10:] == 1).all()


def test_labelme_shapes(tmp_path):
    """Compares with coordinates: pixel centers within each shape, away from its contour."""
    inside = np.zeros((8, 6), np.uint8)
    inside[2:, :3] = 1
    data = io.BytesIO()
    Image.fromarray(inside * 255).save(data, format="PNG")
    path = labelme(
        tmp_path / "a.json",
        shape("road", "polygon", (0, 20), (59, 20), (59, 39), (0, 39)),
        shape("car", None, (10.5, 22.0), (20, 22), (20, 30), (10.5, 30)),
        shape("sign", "rectangle", (40, 15), (30, 5)),
        shape("lamp", "circle", (50, 10), (53, 14)),
        shape("car", "mask", (2, 25), (8, 33), mask=base64.b64encode(data.getvalue()).decode()),
        shape("__ignore__", "polygon", (50, 30), (59, 30), (59, 39), (50, 39)),
        shape("_background_", "rectangle", (0, 35), (5, 39)),
        shape("road", "line", (0, 0), (59, 39)),
    )
    ids = draw_labelme(path, {"_background_": 0, "car": 1, "lamp": 2, "road": 3, "sign": 4})
    y, x = np.mgrid[:40, :60]
    expected = np.where(y >= 20, 3, 0)
    expected[(x >= 11) & (x <= 20) & (y >= 22) & (y <= 30)] = 1
    expected[(x >= 30) & (x <= 40) & (y >= 5) & (y <= 15)] = 4
    expected[np.hypot(x - 50, y - 10) <= 5] = 2
    expected[27:33, 2:5] = 1
    expected[(x >= 50) & (y >= 30)] = 255
    expected[(x <= 5) & (y >= 35)] = 0
    wrong = ids != expected
    near_contours = (np.abs(np.hypot(x - 50, y - 10) - 5) < 1.2) | (
        (x == 10) & (y >= 22) & (y <= 30)
    )
    assert not (wrong & ~near_contours).any()
    assert wrong.sum() < 30, "the circle's contour"


def test_labelme_classes_are_collected_from_all_files(drawn, tmp_path):
    box = ((1, 1), (20, 1), (20, 20), (1, 20))
    labelme(drawn / "a.json", shape("tree", "polygon", *box))
    labelme(
        drawn / "b.json",
        shape("car", "polygon", *box),
        imageHeight=None,
        imageWidth=None,
        imageData=picture_data(40, 60),
    )
    result = convert_masks("labelme", str(drawn), str(tmp_path / "ids"))
    assert result.classes_file.read_text().split() == [
        "_background_",
        "#000000",
        "car",
        "#800000",
        "tree",
        "#008000",
    ]
    assert read(tmp_path / "ids/a.png")[10, 10] == 2 and read(tmp_path / "ids/b.png")[10, 10] == 1
    assert read(tmp_path / "ids/b.png").shape == (40, 60)


def picture_data(height: int, width: int) -> str:
    data = io.BytesIO()
    Image.fromarray(photograph(height, width)).save(data, format="JPEG")
    return base64.b64encode(data.getvalue()).decode()


# --- Resuming, and errors ---


def test_existing_masks_are_kept_and_changed_ones_converted_again(drawn, tmp_path):
    for name in ("a", "b", "c"):
        write_png(drawn / f"{name}.png", mask(20, 30, ids=(0, 5)), 8, PALETTE)
    target = tmp_path / "ids"
    assert convert_masks("palette", str(drawn), str(target)).converted == 3
    (target / "b.png").unlink()
    write_png(drawn / "c.png", mask(20, 30, ids=(0, 7)), 8, PALETTE)
    later = (target / "a.png").stat().st_mtime + 10
    os.utime(drawn / "c.png", (later, later))
    result = convert_masks("palette", str(drawn), str(target))
    assert (result.converted, result.kept) == (2, 1)
    assert read(target / "c.png").max() == 7
    assert convert_masks("palette", str(drawn), str(target), overwrite=True).converted == 3


def test_masks_of_another_conversion_are_not_mixed(drawn, tmp_path):
    write_png(drawn / "a.png", mask(20, 30, ids=(1, 5)), 8, PALETTE)
    convert_masks("index", str(drawn), str(tmp_path / "ids"), id_offset=-1)
    with pytest.raises(UserError) as error:
        convert_masks("palette", str(drawn), str(tmp_path / "ids"))
    assert as_command_line(error.value) == (
        f"--output={tmp_path}/ids: 1 of these masks already exist, written by another "
        f"conversion or with other classes; give another folder, or --overwrite"
    )
    assert (
        convert_masks("palette", str(drawn), str(tmp_path / "ids"), overwrite=True).converted == 1
    )


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_no_half_written_file(after, drawn, tmp_path, monkeypatch):
    for index in range(6):
        write_png(drawn / f"{index}.png", mask(20, 30, ids=(0, 5), seed=index), 8, PALETTE)
    save, written = Image.Image.save, []

    def full(self, path, *args, **options):
        if len(written) >= after:
            pathlib.Path(path).write_bytes(b"\x89PNG half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        save(self, path, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with raises_line(
        r"ids/\d\.png: cannot be written \(No space left on device\); give another path or "
        r"free some space",
    ):
        convert_masks("palette", str(drawn), str(tmp_path / "ids"))
    there = [path.name for path in (tmp_path / "ids").iterdir()]
    assert len([name for name in there if name.endswith(".png")]) == after and not any(
        name.endswith(".tmp") for name in there
    )
    monkeypatch.undo()
    assert convert_masks("palette", str(drawn), str(tmp_path / "ids")).converted == 6 - after


# Name of the case -> file name, function that writes the file, kind, message.
def writer(pixels: np.ndarray, **options: object):
    return lambda path: Image.fromarray(pixels).save(path, **options)


WRONG = {
    "a truncated file": ("a.png", lambda path: (writer(photograph(20, 30))(path), truncate(path)), "rgb",
                         "{path}: cannot be decoded (image file is truncated)"),
    "not an image": ("a.png", lambda path: path.write_text("404"), "palette", "{path}: cannot be "
                                                                               "decoded (not a "
                                                                               "PNG file)"),
    "gray instead of a palette": ("a.png", writer(mask(9, 9)), "palette",
                                    "{path}: not a palette PNG: it is gray; if its values are "
                                    "ids, use --from=index"),
    "colors instead of a palette": ("a.png", writer(photograph(9, 9)), "palette",
                                       "{path}: not a palette PNG: it has RGB colors; use "
                                       "--from=rgb"),
    "colors instead of gray": ("a.png", writer(photograph(9, 9)), "gray", "{path}: this mask is "
                                                                           "in colors; use "
                                                                           "--from=rgb"),
    "16 bits instead of gray": ("a.png", lambda path: write_png(path, mask(9, 9), 16), "gray",
                                "{path}: this mask has 16 bits per pixel, so it holds ids; use "
                                "--from=index"),
    "a photograph instead of black and white": ("a.png", writer(np.repeat(photograph(9, 9)[..., :1], 3, -1)), "binary",
                                                "{path}: 56% of the pixels are neither black nor "
                                                "white; use --from=gray or --from=index"),
    "an id that Cityscapes does not have": ("a_labelIds.png", writer(mask(9, 9, ids=(7, 40))), "cityscapes",
                                      "{path}: it holds ids that Cityscapes does not have; the "
                                      "ids in its *_labelIds.png files are 0 to 33"),
    "no JSON": ("a.json", lambda path: path.write_text("{"), "labelme", "{path}: cannot be read "
                                                                        "as JSON (Expecting "
                                                                        "property name "
                "enclosed in double quotes: line 1 column 2 (char 1))"),
    "JSON without shapes": ("a.json", lambda path: path.write_text('{"images": []}'), "labelme",
                     "{path}: not a labelme file, which would have a list 'shapes'"),
    "a shape without points": ("a.json", lambda path: path.write_text('{"shapes": [{"label": '
                                                                      '"x"}]}'), "labelme",
                               "{path}: a shape has no label or no points"),
    "a polygon of two points": ("a.json", lambda path: labelme(path, shape("car", "polygon", (1, 1), (5, 5))), "labelme",
                                "{path}: the polygon 'car' cannot be drawn (2 points); fix it "
                                "in labelme"),
    "an unknown shape": ("a.json", lambda path: labelme(path, shape("car", "cube", (1, 1))), "labelme", "{path}: the cube 'car' cannot be drawn (unknown "
                                                                                                        "shape_type, known: polygon, rectangle, circle, "
                                                                                                        "mask); fix it in labelme"),
    "a point that is not a number": ("a.json", lambda path: labelme(path, shape("car", "polygon", (float("nan"), 1), (5, 5), (9, 1))),
                                  "labelme", "{path}: the polygon 'car' cannot be drawn (a "
                                             "point at nan, 1); fix it in labelme"),
    "a distant point": ("a.json", lambda path: labelme(path, shape("car", "circle", (5, 5), (5, 2e9))), "labelme",
                        "{path}: the circle 'car' cannot be drawn (a point at 5, 2e+09); fix "
                        "it in labelme"),
    "an impossible size": ("a.json", lambda path: labelme(path, imageWidth=10**6, imageHeight=10**6), "labelme",
                           "{path}: it gives an image size of 1000000x1000000, which is too "
                           "large; save it again in labelme"),
    "no size": ("a.json", lambda path: labelme(path, imageWidth=None), "labelme",
                "{path}: it has neither imageWidth and imageHeight nor an embedded image; save "
                "it again in labelme"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_failed_files_are_listed_and_the_others_converted(name, drawn, tmp_path):
    file, write, kind, message = WRONG[name]
    write(drawn / file)
    good = {
        "labelme": lambda path: labelme(path.with_suffix(".json")),
        "palette": lambda path: write_png(path, mask(9, 9), 8, PALETTE),
    }
    (good.get(kind) or writer(mask(9, 9, ids=(0, 7))))(
        drawn / ("good_labelIds.png" if kind == "cityscapes" else "good.png")
    )
    result = convert_masks(kind, str(drawn), str(tmp_path / "ids"))
    assert [as_command_line(line) for line in result.failed] == [
        message.replace("{path}", str(drawn / file))
    ]
    assert result.converted == 1 and len(list((tmp_path / "ids").rglob("*.png"))) == 1


MISTAKES = {
    "no folder": (("palette", "{drawn}/x", "{ids}"), {}, "--input={drawn}/x: this folder does not exist"),
    "an empty folder": (("palette", "{drawn}", "{ids}"), {}, "--input={drawn}: it has no files for "
                                                           "--from=palette; supported: .png"),
    "into itself": (("palette", "{drawn}", "{drawn}/ids"), {}, "--output={drawn}/ids: give a folder outside "
                                                               "--input={drawn}, so that no mask is converted "
                                                               "twice"),
    "unknown kind": (("pallete", "{drawn}", "{ids}"), {}, "unknown --from 'pallete'; did you mean "
                                                          "'palette'? known: binary, cityscapes, "
                     "gray, index, labelme, palette, rgb"),
    "an offset for another kind": (("rgb", "{drawn}", "{ids}"), {"id_offset": 1}, "--id_offset=1: only --from=index uses it, but "
                                                                           "--from=rgb is given"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, drawn, tmp_path):
    arguments, options, message = MISTAKES[name]
    places = {"drawn": drawn, "ids": tmp_path / "ids"}
    with pytest.raises(UserError) as error:
        convert_masks(*(argument.format(**places) for argument in arguments), **options)
    assert as_command_line(error.value) == message.format(**places)


def test_other_mistakes(drawn, tmp_path):
    Image.fromarray(photograph(40, 40)).save(drawn / "a.png")
    with raises_line(
        (
            r"--classes=mine.txt: this file does not exist; give a file or one of voc2012, "
            r"cityscapes"
        ),
    ):
        convert_masks("rgb", str(drawn), str(tmp_path / "ids"), classes="mine.txt")
    with raises_line(
        r"--input: the masks have 256 colors or more; list the classes in --classes=FILE",
    ):
        convert_masks("rgb", str(drawn), str(tmp_path / "ids"))
    result = convert_masks("rgb", str(drawn), str(tmp_path / "ids"), classes="voc2012")
    assert "100.00% of the pixels have a color without a class: #" in result.failed[0]
    Image.fromarray(photograph(40, 40)).save(drawn / "a.bmp")
    with raises_line(r"would be converted to the same mask, .*a\.png; remove one of the two"):
        convert_masks("rgb", str(drawn), str(tmp_path / "other"), classes="voc2012")
    assert not (tmp_path / "other").exists()


# --- The script ---


def test_the_script(drawn, tmp_path, capsys):
    write_png(drawn / "a.png", mask(20, 30, ids=(0, 5)), 8, PALETTE)
    (drawn / "b.png").write_text("404")
    call = script("convert_masks.py")
    arguments = ("--from=palette", f"--input={drawn}", f"--output={tmp_path}/ids")
    assert call(*arguments) == 1
    printed = capsys.readouterr()
    assert f"written: 1 masks to {tmp_path}/ids\n" in printed.out
    wanted = (
        f"error: 1 of the files in {drawn} could not be converted: {drawn}/b.png: cannot be "
        "decoded (not a PNG file)"
    )
    assert printed.err.splitlines()[-1] == wanted
    (drawn / "b.png").unlink()
    assert call(*arguments) == 0
    assert "written: 0 masks" in (said := capsys.readouterr().out) and "1 already existed" in said
    assert call(f"--input={drawn}") == 1
    assert capsys.readouterr().err.startswith("error: --output is required: a folder for")
    assert call("--help") == 0
    help = capsys.readouterr().out
    assert all(f"{kind}" in help for kind in KINDS) and all(name in help for name in masks.PALETTES)


def test_converted_masks_are_a_dataset(drawn, tmp_path):
    """From color masks to training pairs, by the steps in the documentation."""
    root = tmp_path / "mine"
    (root / "images/train").mkdir(parents=True)
    for index in range(2):
        rows = mask(20, 30, index, ids=(0, 1, 2, 3))
        Image.fromarray(COLORS[rows]).save(drawn / f"{index}.png")
        Image.fromarray(photograph(20, 30)).save(root / f"images/train/{index}.jpg")
    result = convert_masks("rgb", str(drawn), str(root / "labels/train"))
    result.classes_file.rename(root / "classes.txt")
    source = open_dataset(DataConfig(dataset="folder", dataset_dir=str(root)), "train")
    assert source.info.num_classes == 4
    np.testing.assert_array_equal(
        source.load(1)[1], np.array([0, 2, 1, 3])[mask(20, 30, 1, ids=(0, 1, 2, 3))]
    )


@pytest.mark.shared
def test_real_masks(tmp_path):
    voc = SHARED / "data/voc2012_sample/VOCdevkit/VOC2012/SegmentationClass"
    assert convert_masks("palette", str(voc), str(tmp_path / "voc")).converted == 4
    present = {
        int(value) for path in (tmp_path / "voc").glob("*.png") for value in np.unique(read(path))
    }
    assert present == {0, 5, 6, 7, 9, 15, 18, 19, 255}
    Image.open(voc / "2007_000042.png").convert("RGB").save(tmp_path / "colors.png")
    (tmp_path / "rgb").mkdir()
    (tmp_path / "colors.png").rename(tmp_path / "rgb/2007_000042.png")
    convert_masks("rgb", str(tmp_path / "rgb"), str(tmp_path / "ids"), classes="voc2012")
    np.testing.assert_array_equal(
        read(tmp_path / "ids/2007_000042.png"), read(tmp_path / "voc/2007_000042.png")
    )
    city = SHARED / "data/cityscapes_sample"
    convert_masks("cityscapes", str(city / "gtFine"), str(tmp_path / "city"))
    source = open_dataset(DataConfig(dataset="cityscapes", dataset_dir=str(city)), "val")
    np.testing.assert_array_equal(
        read(next((tmp_path / "city").rglob("frankfurt_000000_000294*.png"))), source.load(0)[1]
    )
