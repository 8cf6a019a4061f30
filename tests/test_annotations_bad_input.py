"""Damaged and hostile exports: one line, or counted and listed, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import pathlib
import re
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from contracts import as_command_line, raises_line
from PIL import Image
from test_annotations import (
    CVAT,
    SQUARE,
    annotation,
    coco,
    convert,
    drawn,
    export,
    photo,
    read,
    write_coco,
    write_cvat,
)

import deeplab_keras as dk
from deeplab_keras.data.annotations import cvat, json_elements
from deeplab_keras.data.annotations.json_elements import read_elements
from deeplab_keras.data.annotations.rendering import UndrawableError, decode_counts, fill_counts
from deeplab_keras.visualization.dataset_report import write_report

assert export  # a fixture
needs_pycocotools = pytest.mark.package("pycocotools")
HALF = {"counts": [120, 120], "size": [12, 20]}


def only_failure(result: Any) -> str:
    """The message of the only failure, without the path of the annotation file."""
    (message,) = result.failed
    return as_command_line(message).partition(": ")[2]


# --- Shapes ---


@needs_pycocotools
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([[float("nan"), 1, 2, 3, 4, 5]], "a polygon with NaN or infinite coordinates"),
        ([[1, float("inf"), 2, 3, 4, 5]], "a polygon with NaN or infinite coordinates"),
        ([[1, 2, 3, 4, 5, 6, 7]], "a polygon with an odd number of coordinates"),
        ([[1, 2, "x", 4, 5, 6]], "a polygon with coordinates that are not numbers"),
        ([[1, 2, [3], 4, 5, 6]], "a polygon with coordinates that are not numbers"),
        ([[1, 10**400, 3, 4, 5, 6]], "a polygon with coordinates that are not numbers"),
        ("polygon", "a segmentation that is neither polygons nor run lengths"),
        ({"counts": [120, 120], "size": [20, 12]}, "an RLE of (20, 12) in an image of height"),
        ({"counts": [120, 120]}, "an RLE of () in an image of height"),
        ({"counts": [120, 119], "size": [12, 20]}, "an RLE of 239 pixels in a mask of 240"),
        ({"counts": [-1, 241], "size": [12, 20]}, "an RLE with impossible run lengths"),
        ({"counts": [2**70, 1], "size": [12, 20]}, "an RLE with counts that are not whole"),
        ({"counts": [1.5, 1], "size": [12, 20]}, "an RLE with counts that are not whole numbers"),
        ({"counts": "~~", "size": [12, 20]}, "a damaged RLE string"),
        ({"counts": "PPPPPPPPPPPPPPPP", "size": [12, 20]}, "a damaged RLE string"),
        ({"counts": "é", "size": [12, 20]}, "a damaged RLE string"),
        ({"counts": None, "size": [12, 20]}, "an RLE with counts that are not whole numbers"),
    ],
)
def test_a_shape_with_unknown_pixels_fails_its_image(shape, message, export):
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 12} for i in (1, 2)]
    write_coco(export, annotation(shape), annotation([SQUARE], image=2), images=images)
    for i in (1, 2):
        photo(export / f"{i}.png")
    result = convert(export)
    assert result.converted == 1
    assert only_failure(result).startswith("'1.png': it has " + message) or (
        only_failure(result).startswith("'1.png': " + message)
    )


@needs_pycocotools
@pytest.mark.parametrize(
    "ring",
    [
        [-5, -4, 9, -3, 25, 6, 9, 40],  # outside on all sides
        [1, 1, 18, 10, 18, 1, 1, 10],  # crosses itself
        [3, 3, 3, 3, 3, 3],  # no area
        [30, 30, 50, 30, 50, 50],  # outside
    ],
)
def test_unusual_polygons_are_drawn_as_pycocotools_draws_them(ring, export, tmp_path):
    write_coco(export, annotation([list(map(float, ring))]))
    assert convert(export).failures == {}
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), drawn(ring))


@needs_pycocotools
@pytest.mark.parametrize("far", [1e7, 1e12, 1e300])
def test_a_point_far_away_takes_no_memory(far, export, tmp_path):
    """pycocotools would interpolate the edge to it pixel by pixel."""
    ring = [10.0, -far, 10.0 + far, 6.0, 10.0, far, 10.0 - far, 6.0]
    write_coco(export, annotation([ring]), annotation([[0.0, 6, far, 6, far, far, 0, far]], 2))
    tracemalloc.start()
    assert convert(export).failures == {}
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    wanted = np.ones((12, 20))
    wanted[6:] = 2
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)


@needs_pycocotools
def test_polygons_of_two_points_are_counted(export):
    write_coco(export, annotation([[1, 2, 3, 4], [1, 2]]), annotation([SQUARE, [1, 2, 3, 4]]))
    result = convert(export)
    assert result.failures == {} and result.notes[0].endswith("which have no area: 3")


@pytest.mark.parametrize("size", [(0, 20), (12, -1), (10**6, 10**6), (10**18, 1)])
def test_impossible_image_sizes(size, export):
    image = {"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}
    write_coco(export, annotation(HALF), images=[image])
    assert "cannot be drawn" in only_failure(convert(export))


def test_damaged_run_lengths_are_never_masks():
    """Every change of a character gives an error or other pixels of the same number."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        text = "".join(chr(value) for value in rng.integers(40, 120, rng.integers(1, 12)))
        try:
            assert fill_counts(text, [12, 20], (12, 20)).shape == (12, 20)
        except UndrawableError:
            continue
        assert decode_counts(text).sum() == 240


# --- COCO files ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "no export of a labeling tool is recognized"),
        ('{"images": [{', "damaged or not a COCO file .*; export it again"),
        ('{"images": [1], "annotations": []}', "an entry of 'images' is not an object"),
        ('{"images": ' + "[" * 5000, "damaged or not a COCO file"),
        ('{"images": [], "categories": []}', "this COCO file has no images; export it again"),
        (json.dumps(coco(categories=[])), "this COCO file has no categories; export it again"),
        (json.dumps(coco(categories=[{"id": 1}])), "the category 1 has no name; export it again"),
        (
            json.dumps(coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])),
            "the category id 1 is both 'a' and 'b', so its objects have no certain class; give",
        ),
        (json.dumps(coco(annotation([], bbox=[1, 2, 3, 4]))), "none of its 1 annotations has an"),
        (
            json.dumps(coco(annotation(HALF, iscrowd=1))),
            "all 1 annotations are marked as iscrowd",
        ),
        (
            json.dumps(coco(categories=[{"id": i, "name": f"c{i}"} for i in range(255)])),
            "the export has 255 classes, but at most 254 are allowed",
        ),
        (
            json.dumps(coco(categories=[{"id": 1, "name": "a\nb #112233"}])),
            "the class name .* cannot be written to classes.txt; rename",
        ),
        (
            json.dumps(coco(categories=[{"id": 1, "name": "a:::"}])),
            "the class name 'a:::' cannot be written to classes.txt; rename",
        ),
    ],
)
def test_files_that_cannot_be_converted(content, message, export, tmp_path):
    (export / "annotations.json").write_text(content)
    photo(export / "a.png")
    if "no export" in message:
        (export / "a.png").unlink()
    with raises_line(message):
        convert(export)
    assert not (tmp_path / "out/classes.txt").exists()


def test_unknown_categories_and_repeated_ids(export):
    images = [{"id": 1, "file_name": f"{i}.png", "width": 20, "height": 12} for i in (1, 2)]
    write_coco(export, annotation(HALF, 5), annotation(HALF, image=8), images=images)
    for i in (1, 2):
        photo(export / f"{i}.png")
    result = convert(export)
    assert [message.partition(": ")[2] for message in result.failed] == [
        "'1.png': the category 5 is not listed",
        "'2.png': another image has the same id 1",
    ]
    assert any("images that the file does not list: 1" in note for note in result.notes)


def test_images_that_are_missing_or_have_another_size(export):
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 20, "height": 12} for i in ("x", "y", "z")
    ]
    write_coco(export, *[annotation(HALF, image=i) for i in ("x", "y", "z")], images=images)
    photo(export / "x.png")
    photo(export / "y.png", 20, 12)
    result = convert(export)
    assert result.converted == 1
    missing, other = [message.partition(": ")[2] for message in result.failed]
    assert missing == "'z.png': its image is not in the export"
    assert other.startswith("'y.png': the annotations are of an image of 20x12 pixels, but ")
    (export / "x.png").unlink(), (export / "y.png").unlink(), (export / "a.png").unlink()
    alone = dk.convert_annotations(export, export.parent / "alone")
    assert (alone.converted, alone.images) == (3, 0)
    assert any("the export has no images; give their folder" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../secret.png", "its file name leads out of the export"),
        ("..\\..\\secret.png", "its file name leads out of the export"),
        ("x/../../secret.png", "its file name leads out of the export"),
        ("{absolute}", "its file name is an absolute path"),
        ("C:\\secret.png", "its file name is an absolute path"),
        ("a\nb.png", "its file name cannot be the name of an image"),
        ("a\0b.png", "its file name cannot be the name of an image"),
        (".hidden.png", "its file name cannot be the name of an image"),
        ("x" * 5000 + ".png", "its file name cannot be the name of an image"),
        ("", "it has no file name"),
        (None, "it has no file name"),
        (["a.png"], "it has no file name"),
        ("link.png", "its image is not in the export"),
    ],
)
def test_names_that_lead_out_are_neither_read_nor_written(name, message, export, tmp_path):
    secret = tmp_path / "secret.png"
    photo(secret)
    name = str(secret) if name == "{absolute}" else name
    image = {"id": 1, "file_name": name, "width": 20, "height": 12}
    write_coco(export, annotation(HALF), images=[image])
    (export / "link.png").symlink_to(secret)
    before = sorted(path for path in tmp_path.rglob("*"))
    result = convert(export)
    assert (result.converted, result.images) == (0, 0)
    assert message in only_failure(result)
    made = {path for path in tmp_path.rglob("*") if path not in before}
    out = tmp_path / "out"
    assert made == {out, out / "classes.txt", out / ".convert_masks.json"}


def test_two_images_of_one_name(export):
    images = [
        {"id": i, "file_name": name, "width": 20, "height": 12}
        for i, name in enumerate(("a.png", "a.png", "a.jpg"))
    ]
    write_coco(export, annotation(HALF, image=0), images=images)
    photo(export / "a.jpg")
    result = convert(export)
    assert result.converted == 1
    assert [message.partition(": ")[2] for message in result.failed] == [
        "'a.png': 'a.png' would have the same mask; rename one",
        "'a.jpg': 'a.png' would have the same mask; rename one",
    ]


def test_an_image_that_several_files_could_be(export):
    write_coco(export, annotation(HALF))
    (export / "a.png").unlink()
    for folder in ("north", "south"):
        photo(export / folder / "a.png")
    assert only_failure(convert(export)) == "'a.png': its image is not in the export"


def test_hostile_class_names_are_escaped_in_the_report(export, tmp_path):
    name = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    write_coco(export, annotation(HALF), categories=[{"id": 1, "name": name}])
    convert(export)
    config = dk.DataConfig(dataset="folder", dataset_dir=str(tmp_path / "out"))
    check = dk.data.check_dataset(config, ["train"])
    page = write_report(check, str(tmp_path / "check")).read_text()
    assert "<script>alert" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_class_list_must_have_every_class_and_the_background(export, tmp_path):
    write_coco(export, annotation(HALF, 2))
    (tmp_path / "c.txt").write_text("background\ntree\n")
    with raises_line("it does not list 'car', of which there are objects; add them"):
        convert(export, classes=str(tmp_path / "c.txt"))
    (tmp_path / "c.txt").write_text("car\nbackground\n")
    with raises_line("the first class must be 'background', for the pixels outside all objects"):
        convert(export, classes=str(tmp_path / "c.txt"))
    (tmp_path / "c.txt").write_text("background\ntree\ncar #010203\n")
    convert(export, classes=str(tmp_path / "c.txt"))
    assert np.unique(read(tmp_path / "out/labels/train/a.png")).tolist() == [0, 2]


# --- Memory ---


@pytest.mark.parametrize("indent", [None, 1])
def test_elements_equal_those_of_the_json_module(indent, tmp_path):
    content = {
        "a": [],
        "b": [[], {}, 1, -2.5e3, 'é\\"]', None, True],
        "c": {"d": [1]},
        "e": "x" * 40_000,
    }
    (tmp_path / "a.json").write_text(json.dumps(content, indent=indent))
    found: dict[str, Any] = {"a": [], "b": []}
    for key, value in read_elements(str(tmp_path / "a.json"), "a file"):
        if key == "b":
            found["b"].append(value)
        else:
            found[key] = value
    assert found == content
    (tmp_path / "a.json").write_text(json.dumps(content["b"], indent=indent))
    elements = list(read_elements(str(tmp_path / "a.json"), "a file"))
    assert elements == [("", value) for value in content["b"]]


@pytest.mark.parametrize(
    "text",
    ["", "1", "{", "[", '{"a"', '{"a": 1', "[1 2]", '{"a" 1}', "[1,]", '{"a": [1, 2}', "{1: 2}x"],
)
def test_damaged_json_is_one_line(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with raises_line("a.json: damaged or not a COCO file"):
        list(read_elements(str(tmp_path / "a.json"), "a COCO file"))


@needs_pycocotools
def test_a_large_file_takes_less_memory_than_four_times_its_size(export):
    ring = np.random.default_rng(0).random(4000).round(3) * 12
    many = [annotation([ring.tolist()]) for _ in range(400)]
    write_coco(export, *many)
    size = os.path.getsize(export / "annotations.json")
    assert size > 9_000_000
    tracemalloc.start()
    convert(export)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size  # json.load takes more than 6 times its size


def test_files_and_elements_above_the_limits_are_refused(export, monkeypatch):
    write_coco(export, annotation(HALF))
    monkeypatch.setattr(json_elements, "LARGEST_ELEMENT", 1 << 14)
    (export / "annotations.json").write_text(json.dumps(coco(info={"text": "x" * 100_000})))
    with raises_line("an element has more than 0 MiB"):
        convert(export)
    monkeypatch.setattr(json_elements, "LARGEST_FILE", 1 << 10)
    with raises_line("export the images in several parts, and convert each into a folder"):
        convert(export)


# --- The other forms ---


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<polygon label="sign" points="1,2;nan,4;5,6"/>', "NaN or infinite"),
        ('<polygon label="tree" points="1,2;3,4;5,6"/>', "its label 'tree' is not listed"),
        ('<box label="sign" xtl="1" ytl="inf" xbr="3" ybr="4"/>', "NaN or infinite"),
        ('<blob label="sign"/>', "it has an unknown shape, 'blob'"),
        ('<mask label="sign" rle="3,3" left="0" top="0" width="2" height="2"/>', "an RLE of 6 pix"),
        ('<mask label="sign" rle="-1,5" left="0" top="0" width="2" height="2"/>', "impossible run"),
        (
            '<mask label="sign" rle="1" left="0" top="0" width="99999" height="99999"/>',
            "a mask of 99999x99999 pixels",
        ),
    ],
)
@needs_pycocotools
def test_shapes_of_cvat(shape, message, export):
    write_cvat(export, shape)
    assert message in only_failure(convert(export))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CVAT.format(images="<image"), "damaged or not an XML file of CVAT"),
        (CVAT.format(images="<track/>"), "an export for videos; export it again as 'CVAT for imag"),
        (
            '<!DOCTYPE a [<!ENTITY b "bb">]>' + CVAT[39:].format(images=""),
            "it defines a document type, which is not read",
        ),
        (CVAT.format(images='<image name="a" width="x" height="1"/>'), "damaged or not an XML"),
        (CVAT.format(images="<a>" * 100_000), "damaged or not an XML file of CVAT"),
    ],
)
def test_files_of_cvat(text, message, export):
    (export / "annotations.xml").write_text(text)
    photo(export / "images/a.png")
    with raises_line(message):
        convert(export)


@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
def test_entities_are_not_expanded(coding, export):
    entities = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    text = f'<!DOCTYPE x [<!ENTITY a0 "aaaaaaaaaa">{entities}]><annotations>&a9;</annotations>'
    (export / "annotations.xml").write_text(text, encoding=coding)
    with raises_line("it defines a document type, which is not read"):
        convert(export)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.2 nan 0.4 0.5 0.6", "NaN or infinite"),
        ("0 0.1 0.2 0.3 0.4 0.5", "an odd number of coordinates"),
        ("5 0.1 0.2 0.3 0.4 0.5 0.6", "it has the class 5, but there are 2 classes"),
        ("0.5 0.1 0.2 0.3 0.4 0.5 0.6", "it has the class 0.5, but there are 2 classes"),
        ("car 0.1 0.2 0.3 0.4 0.5 0.6", "it has a line that is not numbers: 'car 0.1"),
    ],
)
@needs_pycocotools
def test_lines_of_yolo(line, message, export):
    (export / "labels").mkdir()
    (export / "data.yaml").write_text("names: [sign, car]\n")
    for name, text in (("a", line), ("b", "0 0.1 0.2 0.3 0.4 0.5 0.6"), ("gone", "")):
        (export / f"labels/{name}.txt").write_text(text)
    for name in "ab":
        photo(export / f"images/{name}.png")
    result = convert(export)
    assert result.converted == 1
    problems = [as_command_line(line) for line in result.failed]
    assert any(message in problem for problem in problems)
    assert any("its image is not in the export" in problem for problem in problems)


@pytest.mark.parametrize("text", ["names: [a, {b: c}]", "names: &x [*x]", "names:\n  1: a\n"])
def test_class_names_of_yolo_that_are_not_understood(text, export):
    (export / "labels").mkdir()
    (export / "labels/a.txt").write_text("0 0.1 0.2 0.3 0.4 0.5 0.6")
    (export / "data.yaml").write_text(text)
    photo(export / "images/a.png")
    with raises_line("data.yaml: damaged or not a list of class names|it has no class names"):
        convert(export)


def test_boxes_are_not_segmentation(export):
    (export / "labels").mkdir()
    (export / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (export / "data.yaml").write_text("names: [sign]\n")
    photo(export / "images/a.png")
    with raises_line("all 1 objects are boxes; export polygons, such as 'YOLOv8 segmentation'"):
        convert(export)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": {"points": [[1, 2], [float("nan"), 3], [4, 5]], "polygonlabels": ["a"]}}, "NaN"),
        ({"image_rotation": 90}, "a rotated image; rotate the file itself"),
        ({"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0, 4], "brushlabels": ["a"]}}, "cut off"),
        ({"type": "brushlabels", "value": {"format": "rle", "rle": [0, 255, 255, 255, 57], "brushlabels": ["a"]}}, "pixels in an image of 240"),
        ({"type": "brushlabels", "value": {"format": "rle", "rle": [999], "brushlabels": ["a"]}}, "not a list of bytes"),
        ({"type": "brushlabels", "value": {"format": "png", "brushlabels": ["a"]}}, "an unknown format"),
    ],
)  # fmt: skip
@needs_pycocotools
def test_results_of_label_studio(change, message, export):
    result = {
        "type": "polygonlabels",
        "original_width": 20,
        "original_height": 12,
        "value": {"points": [[1, 2], [50, 3], [4, 50]], "polygonlabels": ["a"]},
    }
    good = [{"annotations": [{"result": [result]}], "data": {"image": "b.png"}}]
    bad = [{"annotations": [{"result": [result | change]}], "data": {"image": "a.png"}}]
    (export / "a.json").write_text(json.dumps(good + bad))
    photo(export / "a.png")
    photo(export / "b.png")
    done = convert(export)
    assert done.converted == 1 and message in only_failure(done)


def test_masks_of_roboflow_and_cvat(export, tmp_path):
    photo(export / "train/a.jpg")
    (export / "train/_classes.csv").write_text("filename, car\na.jpg, 1\n")
    with raises_line("its folder has no files \\*_mask.png; export 'Semantic Segmentation"):
        convert(export)
    (export / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, car\n")
    Image.fromarray(np.full((12, 20), 7, np.uint8)).save(export / "train/a_mask.png")
    assert "its mask holds the id 7, but there are 2 classes" in only_failure(convert(export))


# --- Recognition ---


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no export of a labeling tool is recognized, and it has no masks"),
        (["a.jpg"], "its JPEG and WebP files are photographs or damaged masks"),
        (["images/a.png", "labels/b.png"], "it has images too; give the folder of the masks"),
        (["a.png"], "these pictures have 256 colors or more, as photographs do"),
    ],
)
def test_what_is_not_recognized(files, message, export):
    for name in files:
        photo(export / name, 60, 80)
    with raises_line(message):
        convert(export)


def test_gray_levels_are_not_guessed(export):
    Image.fromarray(np.uint8([[0, 85, 170]])).save(export / "a.png")
    with raises_line(
        "hold the gray levels '0', '170', '85'; if each is a class, give its form as --from: gray, "
        "and if they are class ids, index"
    ):
        convert(export)


def test_masks_in_an_archive_are_refused(export, tmp_path):
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        Image.fromarray(np.uint8([[0, 1]])).save(export / "a.png")
        archive.write(export / "a.png", "a.png")
    with raises_line("masks are converted from a folder; extract the archive"):
        dk.convert_annotations(tmp_path / "masks.zip", tmp_path / "out")


def test_panoptic_with_too_many_categories(export):
    categories = [{"id": i, "name": f"c{i}"} for i in range(300)]
    entry = {"image_id": 1, "file_name": "b.png", "segments_info": []}
    (export / "panoptic.json").write_text(json.dumps(coco(entry, categories=categories)))
    with raises_line("it has 300 categories, but at most 255 are allowed; remove"):
        convert(export)


def test_files_of_two_forms_are_not_guessed(export):
    write_coco(export, annotation(HALF))
    (export / "b.json").write_text('{"shapes": []}')
    with raises_line(
        r"several forms, annotations.json \(coco\), b.json \(labelme\); give its form"
    ):
        convert(export)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cocoo"}, "unknown --from 'cocoo'; did you mean 'coco'"),
        ({"kind": "yolo"}, "it has no files for --from=yolo, which are labels"),
        ({"overlap": "size"}, "unknown --overlap 'size'"),
        ({"crowd": "drop"}, "unknown --crowd 'drop'"),
        ({"id_offset": 1}, "only --from=index uses it"),
        ({"images": "nowhere"}, "--images=nowhere: this folder does not exist"),
    ],
)
def test_options(options, message, export):
    write_coco(export, annotation(HALF))
    with raises_line(message):
        convert(export, **options)


def test_the_output_is_outside_the_input(export):
    write_coco(export, annotation(HALF))
    with raises_line("give a folder outside"):
        dk.convert_annotations(export, export / "out")
    with raises_line("this folder does not exist"):
        dk.convert_annotations(export / "nothing", export.parent / "out")


def test_without_pycocotools_one_line_says_how_to_install_it(export, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    write_coco(export, annotation([SQUARE]))
    with raises_line("polygons and run lengths need pycocotools: pip install pycocotools"):
        convert(export)


def test_existing_masks_of_another_program_are_kept(export, tmp_path):
    write_coco(export, annotation(HALF))
    mask = pathlib.Path(tmp_path / "out/labels/train/a.png")
    photo(mask)
    before = mask.read_bytes()
    with raises_line("1 of these masks already exist, written by another program"):
        convert(export)
    assert mask.read_bytes() == before


# --- Random damage ---

STRANGE = (None, [], {}, [[]], -1, 10**30, 0.5, float("nan"), "", "x", True, {"a": [1]})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in JSON."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        inner = list(value.items() if isinstance(value, dict) else enumerate(value))
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


TASK = {
    "annotations": [
        {
            "result": [
                {
                    "type": kind,
                    "original_width": 20,
                    "original_height": 12,
                    "image_rotation": 0,
                    "to_name": "image",
                    "value": value | {kind: ["car"]},
                }
                for kind, value in (
                    ("polygonlabels", {"points": [[1, 2], [50, 3], [4, 50]]}),
                    ("rectanglelabels", {"x": 1, "y": 2, "width": 3, "height": 4}),
                    ("brushlabels", {"format": "rle", "rle": [0, 0, 3, 192, 57]}),
                )
            ]
        }
    ],
    "data": {"image": "a.png"},
}
DAMAGED = {
    "coco": coco(
        annotation([SQUARE, [1, 2, 3, 4]], bbox=[1, 2, 3, 4], iscrowd=0),
        annotation(HALF, 2, iscrowd=1),
        annotation([], bbox=[1, 2, 3, 4]),
    ),
    "coco_panoptic": coco(
        {"image_id": 1, "file_name": "b.png", "segments_info": [{"id": 0, "category_id": 2}]}
    ),
    "label_studio": [TASK],
}


def converts_or_says_why(export: pathlib.Path, kind: str) -> None:
    try:
        convert(export, kind=kind, overwrite=True)
    except dk.UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)


@needs_pycocotools
@pytest.mark.parametrize("kind", sorted(DAMAGED))
def test_every_value_can_be_replaced(kind, export):
    photo(export / "a.png")
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(export / "b.png")
    file = export / ("panoptic.json" if kind == "coco_panoptic" else "annotations.json")
    for number, place in enumerate(places(DAMAGED[kind])):
        for new in STRANGE[number % 3 :: 3]:
            file.write_text(json.dumps(replaced(DAMAGED[kind], place, new)))
            converts_or_says_why(export, kind)


@needs_pycocotools
@pytest.mark.parametrize("kind", ["coco", "label_studio", "cvat", "yolo"])
def test_every_byte_can_be_changed(kind, export):
    if kind == "cvat":
        write_cvat(
            export,
            '<polygon label="sign" points="1,2;3,4;5,6"/>',
            '<mask label="car" rle="1,3" left="0" top="0" width="2" height="2"/>',
        )
        file = export / "annotations.xml"
    elif kind == "yolo":
        (export / "labels").mkdir()
        (export / "data.yaml").write_text("names: {0: sign, 1: 'car'}\n")
        photo(export / "images/a.png")
        file = export / "labels/a.txt"
        file.write_text("0 0.1 0.2 0.3 0.4 0.5 0.6\n1 0.5 0.5 0.2 0.2\n")
    else:
        file = export / "annotations.json"
        file.write_text(json.dumps(DAMAGED[kind]))
        photo(export / "a.png")
    data, rng = bytearray(file.read_bytes()), np.random.default_rng(0)
    for _ in range(120):
        damaged = data.copy()
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] = rng.integers(256)
        file.write_bytes(damaged[: rng.integers(1, 3 * len(damaged))])
        converts_or_says_why(export, kind)


# --- Ids, orientation and folders that would give wrong masks ---


@needs_pycocotools
@pytest.mark.parametrize(("listed", "used"), [(1, 1.0), (1.0, 1), (1, "1"), ("1", 1), (1, 1)])
def test_ids_of_other_json_types_are_equal(listed, used, export, tmp_path):
    images = [{"id": listed, "file_name": "a.png", "width": 20, "height": 12}]
    categories = [{"id": listed, "name": "sign"}]
    content = annotation([SQUARE], used, image=used)
    write_coco(export, content, images=images, categories=categories)
    assert convert(export).failures == {}
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), drawn(SQUARE))


def test_annotations_that_all_belong_to_other_images_are_refused(export):
    write_coco(export, annotation(HALF, image=7), annotation(HALF, image=8))
    with raises_line("its 2 annotations are all of images that the file does not list, such as"):
        convert(export)


def rotated(path: pathlib.Path, turn: int, height: int = 12, width: int = 20) -> None:
    photo(path, height, width)
    with Image.open(path) as picture:
        exif = Image.Exif()
        exif[0x0112] = turn
        picture.save(path, exif=exif)


@pytest.mark.parametrize(
    ("turn", "size"), [(2, (12, 20)), (3, (12, 20)), (4, (12, 20)), (6, (20, 20))]
)
def test_an_orientation_that_the_size_does_not_tell_is_refused(turn, size, export):
    height, width = size
    half = {"counts": [height * width // 2] * 2, "size": [height, width]}
    image = {"id": 1, "file_name": "b.jpg", "width": width, "height": height}
    write_coco(export, annotation(half), images=[image])
    rotated(export / "b.jpg", turn, height, width)
    message = only_failure(convert(export))
    assert f"its EXIF orientation is {turn}, and its size does not tell" in message
    rotated(export / "b.jpg", 1, height, width)
    assert convert(export).converted == 1


def write_yolo(export: pathlib.Path, **labels: str) -> None:
    for name, text in labels.items():
        file = export / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (export / "data.yaml").write_text("names: [sign, car]\n")


TOP = "1 0 0 1 0 1 0.5 0 0.5"


@needs_pycocotools
def test_yolo_polygons_are_on_the_rotated_image(export, tmp_path):
    write_yolo(export, **{"labels/a": TOP})
    (export / "images").mkdir()
    rotated(export / "images/a.jpg", 6)
    convert(export)
    wanted = np.zeros((20, 12))
    wanted[:10] = 2
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)
    config = dk.DataConfig(dataset="folder", dataset_dir=str(tmp_path / "out"))
    image, label = dk.open_dataset(config, "train").load(0)
    assert image.shape[:2] == label.shape == (20, 12)


@needs_pycocotools
@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.png", "LABELS/a"),
        ("images/a.png", "labels/train/a"),
        ("images/train/a.png", "labels/a"),
    ],
)
def test_an_image_whose_labels_are_elsewhere_is_not_all_background(image, label, export, tmp_path):
    write_yolo(export, **{label: TOP})
    photo(export / image)
    result = convert(export)
    assert (result.converted, result.failures) == (1, {})
    assert read(tmp_path / "out/labels/train/a.png")[0].all()


@needs_pycocotools
def test_labels_of_one_split_are_not_those_of_an_image_of_another(export, tmp_path):
    write_yolo(export, **{"labels/train/a": TOP, "labels/train/b": TOP})
    photo(export / "images/train/b.png")
    photo(export / "images/val/a.png")
    result = convert(export)
    assert only_failure(result).endswith("'a': its image is not in the export")
    assert not read(tmp_path / "out/labels/val/a.png").any()


@needs_pycocotools
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nan 0 0 1 0 1 1", "it has the class nan, but there are 2 classes"),
        ("inf 0 0 1 0 1 1", "it has the class inf, but there are 2 classes"),
        ("0 5 5 19 5 19 11", "it has the coordinate 19, but coordinates are fractions"),
    ],
)
def test_values_of_yolo(line, message, export):
    write_yolo(export, **{"labels/a": line})
    photo(export / "images/a.png")
    assert message in only_failure(convert(export))


@needs_pycocotools
def test_files_of_yolo_that_contradict_each_other(export):
    write_yolo(export, **{"labels/a": f"{TOP}\n0 0.1 0.2\n", "labels/classes": "sign\ncar\n"})
    photo(export / "images/a.png")
    result = convert(export)
    assert result.failures == {}, "labels/classes.txt is not a label file"
    assert any(note.endswith("which have no area: 1") for note in result.notes)
    photo(export / "images/a.jpg")
    with raises_line("a.png: a.jpg has the same name, so both would have the same labels"):
        convert(export)
    (export / "images/a.jpg").unlink()
    (export / "other.yaml").write_text("names: [car, sign]\n")
    with raises_line("other.yaml: its class names are not those of .*data.yaml; remove one"):
        convert(export)
    (export / "other.yaml").write_text("kpt_shape: [2, 3]\nnames: [sign, car]\n")
    with raises_line("other.yaml: its objects are keypoints"):
        convert(export)


@needs_pycocotools
def test_polygons_and_labels_that_are_left_out_are_counted(export):
    write_cvat(export, '<polygon label="sign" points="1,2;3,4"/>')
    assert any(note.endswith("which have no area: 1") for note in convert(export).notes)
    (export / "annotations.xml").unlink()
    task = json.loads(json.dumps(TASK))
    value = {"points": [[1, 2], [50, 3], [4, 50]], "polygonlabels": ["a", "b"]}
    first, *_ = task["annotations"][0]["result"]
    short = value | {"points": [[1, 2], [3, 4]], "polygonlabels": ["a"]}
    task["annotations"][0]["result"] = [first | {"value": value}, first | {"value": short}]
    (export / "a.json").write_text(json.dumps([task]))
    photo(export / "a.png")
    notes = dk.convert_annotations(export, export.parent / "tasks").notes
    assert "objects with several labels, of which the first is used: 1" in notes
    assert any(note.endswith("which have no area: 1") for note in notes)


def test_a_conversion_into_the_folder_of_the_images_can_be_repeated(export):
    write_coco(export, annotation(HALF))
    for _ in range(2):
        result = dk.convert_annotations(export / "annotations.json", export / "dataset")
        assert result.failures == {}
    assert result.kept == 1


def test_the_stated_size_takes_no_memory_if_the_image_has_another(export):
    half = {"counts": [50_000_000] * 2, "size": [10_000, 10_000]}
    image = {"id": 1, "file_name": "a.png", "height": 10_000, "width": 10_000}
    write_coco(export, annotation(half), images=[image])
    tracemalloc.start()
    assert "the annotations are of an image of 10000x10000 pixels" in only_failure(convert(export))
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


def test_millions_of_empty_elements_are_refused(export, monkeypatch):
    monkeypatch.setattr(json_elements, "MOST_ELEMENTS", 100)
    write_coco(export, *[{}] * 200)
    with raises_line("damaged or not a COCO file .*more than 100 elements"):
        convert(export)
    (export / "annotations.json").unlink()
    monkeypatch.setattr(cvat, "MOST_TAGS", 100)
    (export / "a.xml").write_text(f"<annotations>{'<a/>' * 200}</annotations>")
    with raises_line("a.xml: it has more than 100 tags; export the images in several parts"):
        convert(export)


@pytest.mark.parametrize("side", [float("nan"), float("inf"), -float("inf")])
def test_sizes_that_are_not_finite(side, export):
    image = {"id": 1, "file_name": "a.png", "height": 12, "width": side}
    write_coco(export, annotation(HALF), images=[image])
    assert convert(export).failures == {}, "the size of the image file is used"


@pytest.mark.parametrize("name", ["a\ud800", "a\x1b[2J", "a\nb", " a", "a\x85b"])
def test_class_names_that_cannot_be_written(name, export, tmp_path):
    """The message names the class, and no mask is written."""
    categories = [{"id": 1, "name": name}, {"id": 2, "name": "car"}]
    write_coco(export, annotation(HALF), annotation(HALF, 2), categories=categories)
    shown = re.escape(ascii(name))
    with raises_line(f"the class name {shown} cannot be written to classes.txt; rename"):
        convert(export)
    assert not list(tmp_path.glob("out/**/*.png")) and not list(tmp_path.glob("out/*.txt"))
