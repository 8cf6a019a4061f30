"""Predictions as COCO's and labelme's files, and back: exact, or within the stated tolerance."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from contracts import SHARED, script
from data_files import photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from test_prediction import INFO, job, put

import deeplab_keras as dk
from deeplab_keras.config import PredictConfig
from deeplab_keras.data.annotations.rendering import fill_counts
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.prediction import results as results_module
from deeplab_keras.prediction.inputs import Input
from deeplab_keras.prediction.outlines import (
    find_regions,
    signed_area,
    simplify,
    trace,
    with_holes,
)
from deeplab_keras.prediction.results import Results

assert job  # a fixture
needs_pycocotools = pytest.mark.package("pycocotools")
maps = st.builds(
    lambda rows, columns, classes, block, seed: np.kron(
        np.random.default_rng(seed).integers(0, classes, (rows, columns)),
        np.ones((block, block), int),
    ).astype(np.uint8),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2**31),
)


def flooded(labels: np.ndarray) -> list[set[tuple[int, int]]]:
    """The connected regions of a label map, by flooding pixel by pixel."""
    height, width = labels.shape
    left, regions = {(y, x) for y in range(height) for x in range(width)}, []
    while left:
        waiting = [left.pop()]
        region = set(waiting)
        while waiting:
            y, x = waiting.pop()
            for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if place in left and labels[place] == labels[y, x]:
                    left.remove(place)
                    region.add(place)
                    waiting.append(place)
        regions.append(region)
    return regions


@given(maps)
@settings(deadline=None, max_examples=150)
def test_regions_are_the_connected_pixels(labels):
    regions, numbers = find_regions(labels)
    found = {}
    for region in regions:
        pixels = fill_counts(region.counts, labels.shape, labels.shape)
        y, x = np.nonzero(pixels)
        assert set(labels[pixels].tolist()) == {region.label} and region.area == len(y)
        assert region.box == (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
        assert (numbers[pixels] == region.number).all()
        found[frozenset(zip(y.tolist(), x.tolist(), strict=True))] = region
    assert set(found) == set(map(frozenset, flooded(labels)))


@needs_pycocotools
@given(maps)
@settings(deadline=None, max_examples=100)
def test_exact_polygons_are_the_regions(labels):
    """For pycocotools, whose polygons are edges, and Pillow, which draws their outline, too."""
    from pycocotools import mask

    height, width = labels.shape
    regions, numbers = find_regions(labels)
    canvas = Image.new("L", (width, height), 255)
    outlines = trace(numbers)
    for region in sorted(regions, key=lambda region: -region.area):
        lines = outlines[region.number]
        assert signed_area(lines[0][0]) > 0
        assert all(signed_area(line) < 0 for line, _ in lines[1:])
        polygon = with_holes([simplify(line, 0) for line, _ in lines]).ravel().tolist()
        pixels = mask.decode(mask.frPyObjects([polygon], height, width))[..., 0]
        np.testing.assert_array_equal(pixels, numbers == region.number)
        points = list(map(tuple, with_holes([line for _, line in lines])))
        ImageDraw.Draw(canvas).polygon(points, fill=region.label, outline=region.label)
    np.testing.assert_array_equal(canvas, labels)


@given(st.integers(3, 60), st.floats(0, 3), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_simplified_polygons_stay_within_the_tolerance(count, tolerance, seed):
    points = np.random.default_rng(seed).random((count, 2)) * 20
    found = simplify(points, tolerance)
    assert {tuple(point) for point in found} <= {tuple(point) for point in points}
    following = np.roll(found, -1, axis=0)
    for point in points:
        distances = []
        for start, end in zip(found, following, strict=True):
            along = end - start
            share = np.clip((point - start) @ along / max(along @ along, 1e-12), 0, 1)
            distances.append(np.linalg.norm(point - start - share * along))
        assert min(distances) <= tolerance + 1e-9


def written(labels: np.ndarray, info: DatasetInfo, root: pathlib.Path, **options: object) -> None:
    """Writes the annotations of a label map as `predict` does."""
    config = PredictConfig(checkpoint_dir="x", input="x", output=str(root), **options)  # type: ignore
    results = Results(config, info)
    results.write(Input(str(root / "photos/a.png"), "a"), None, labels, None)
    results.finish()


def round_trip(labels: np.ndarray, info: DatasetInfo, root: pathlib.Path, **options: object):
    """Returns a label map that was written as COCO annotations and read again."""
    (root / "photos").mkdir(parents=True)
    Image.fromarray(photograph(*labels.shape)).save(root / "photos/a.png")
    written(labels, info, root, outputs=("coco",), **options)
    result = dk.convert_annotations(
        root / "annotations_coco.json", root / "back", images=root / "photos"
    )
    assert (result.converted, result.failures) == (1, {})
    names = [line.split(" #")[0] for line in result.classes_file.read_text().splitlines()]
    with Image.open(root / "back/labels/train/a.png") as picture:
        back = np.asarray(picture)
    ids = np.array(
        [info.class_names.index(name) if name in info.class_names else 255 for name in names]
    )
    return ids[back]


ROOMS = DatasetInfo("rooms", ("wall", "floor", "lamp"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
SCENE = DatasetInfo("scene", ("background", "floor", "lamp"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


@needs_pycocotools
@pytest.mark.parametrize("info", [ROOMS, SCENE])
def test_run_lengths_out_and_in_again_are_exact(info, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (30, 40)).astype(np.uint8)
    np.testing.assert_array_equal(round_trip(labels, info, tmp_path), labels)
    content = json.loads((tmp_path / "annotations_coco.json").read_text())
    names = [(item["id"], item["name"]) for item in content["categories"]]
    assert names == [
        (i, name) for i, name in enumerate(info.class_names, info is ROOMS) if i or info is ROOMS
    ]
    assert [item["id"] for item in content["annotations"]] == [
        *range(1, len(content["annotations"]) + 1)
    ]


@needs_pycocotools
@pytest.mark.shared
@pytest.mark.parametrize("name", ["0001TP_006690", "0001TP_006720"])
def test_real_label_maps_agree_after_polygons(name, tmp_path):
    with Image.open(SHARED / f"data/camvid/labels/train/{name}.png") as picture:
        labels = np.asarray(picture)
    count = int(labels[labels < 255].max()) + 1
    info = DatasetInfo("camvid", tuple(f"c{i}" for i in range(count)), ((0, 0, 0),) * count)
    labels = np.where(labels == 255, 0, labels)
    back = round_trip(labels, info, tmp_path / "coco", coco_shapes="polygons")
    assert (back == labels).mean() >= 0.99
    exact = round_trip(
        labels, info, tmp_path / "exact", coco_shapes="polygons", polygon_tolerance=0
    )
    np.testing.assert_array_equal(exact, labels)
    written(labels, info, tmp_path / "labelme", outputs=("labelme",))
    result = dk.convert_annotations(tmp_path / "labelme", tmp_path / "back")
    assert (result.converted, result.failures) == (1, {})
    names = [line.split(" #")[0] for line in result.classes_file.read_text().splitlines()]
    with Image.open(tmp_path / "back/a.png") as picture:
        back = np.asarray(picture)
    ids = np.array([255, *(info.class_names.index(name) for name in names[1:])])
    assert (ids[back] == labels).mean() >= 0.99


@needs_pycocotools
def test_one_file_has_the_regions_of_all_images(job, tmp_path):
    from pycocotools import mask

    for name, size in (("b.png", (9, 14)), ("north/a.jpg", (20, 30)), ("c.png", (9, 14))):
        put(tmp_path / "in" / name, *size)
    done = job(tmp_path / "in", outputs=("coco", "labelme", "labels"))
    done.results.finish()
    content = json.loads((tmp_path / "out/annotations_coco.json").read_text())
    assert [item["file_name"] for item in content["images"]] == ["b.png", "c.png", "north/a.jpg"]
    assert [item["name"] for item in content["categories"]] == list(INFO.class_names)
    for image in content["images"]:
        found = np.full((image["height"], image["width"]), 255)
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                pixels = mask.decode(item["segmentation"])
                assert item["area"] == pixels.sum() and item["iscrowd"] == 0
                assert item["bbox"] == mask.toBbox(item["segmentation"]).tolist()
                found[pixels > 0] = item["category_id"] - 1
        stem = image["file_name"].rpartition(".")[0]
        with Image.open(tmp_path / f"out/{stem}_labels.png") as picture:
            np.testing.assert_array_equal(found, picture)
    shapes = json.loads((tmp_path / "out/north/a.json").read_text())
    assert (shapes["imageHeight"], shapes["imageWidth"], shapes["imageData"]) == (20, 30, None)
    assert shapes["imagePath"] == "../../in/north/a.jpg"
    assert {shape["label"] for shape in shapes["shapes"]} <= set(INFO.class_names)


@needs_pycocotools
def test_the_command_keeps_an_existing_file(tiny_run, tmp_path, capsys):
    put(tmp_path / "in/a.png", 40, 40)
    given = (f"--checkpoint_dir={tiny_run}", f"--input={tmp_path}/in", f"--output={tmp_path}/out")
    assert script("predict.py")(*given, "--outputs=coco") == 0
    first = (tmp_path / "out/annotations_coco.json").read_bytes()
    assert len(json.loads(first)["images"]) == 1
    assert script("predict.py")(*given, "--outputs=coco") == 1
    assert "annotations_coco.json exists; give --overwrite" in capsys.readouterr().err
    assert script("predict.py")(*given, "--outputs=coco", "--overwrite") == 0
    assert (tmp_path / "out/annotations_coco.json").read_bytes() == first


def test_a_huge_image_is_refused(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results_module, "LARGEST_WITH_REGIONS", 100)
    put(tmp_path / "in/big.png", 20, 30)
    put(tmp_path / "in/small.png", 6, 9)
    done = job(tmp_path / "in", outputs=("labelme",))
    assert done.failed == 1 and (tmp_path / "out/small.json").is_file()
    assert "big.png: 30x20 pixels are too many for annotations; omit" in capsys.readouterr().err


def test_run_lengths_need_pycocotools(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    config = PredictConfig(checkpoint_dir="x", input="x", output=str(tmp_path), outputs=("coco",))
    with pytest.raises(dk.UserError, match="need pycocotools: pip install pycocotools"):
        Results(config, INFO)
