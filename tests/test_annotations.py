"""Exports of labeling tools become the masks that the tools and pycocotools draw.

The masks are compared with pycocotools called directly, with loops over pixels, and with the
tools' own PNG exports.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile
from typing import Any

import numpy as np
import pytest
from contracts import SHARED, script
from data_files import photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import deeplab_keras as dk
from deeplab_keras.data.annotations.label_studio import fill_brush
from deeplab_keras.data.annotations.rendering import decode_counts, fill_counts, fill_rows
from deeplab_keras.data.annotations.yolo import yaml_names

EXPORTS = SHARED / "data" / "annotations"
needs_pycocotools = pytest.mark.package("pycocotools")
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 9.0, 2.0, 9.0]
TRIANGLE = [1.5, 1.0, 18.2, 4.7, 6.0, 11.3]
LARGE = [0.0, 0.0, 20.0, 0.0, 20.0, 12.0, 0.0, 12.0]


def drawn(*rings: list[float], height: int = 12, width: int = 20) -> np.ndarray:
    """The pixels of polygons according to pycocotools."""
    from pycocotools import mask

    return mask.decode(mask.merge(mask.frPyObjects(list(rings), height, width))).astype(bool)


def read(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "L" and picture.format == "PNG"
        return np.asarray(picture)


def photo(path: pathlib.Path, height: int = 12, width: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph(height, width)).save(path)


def annotation(segmentation: Any, category: int = 1, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "segmentation": segmentation, **more}


def coco(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 12}],
        "categories": [{"id": 1, "name": "sign"}, {"id": 2, "name": "car"}],
        "annotations": list(annotations),
    } | changes


def write_coco(root: pathlib.Path, *annotations: dict[str, Any], **changes: Any) -> pathlib.Path:
    root.mkdir(exist_ok=True)
    (root / "annotations.json").write_text(json.dumps(coco(*annotations, **changes)))
    photo(root / "a.png")
    return root


@pytest.fixture
def export(tmp_path):
    """A folder for an export."""
    path = tmp_path / "export"
    path.mkdir()
    return path


def convert(export: pathlib.Path, **options: Any) -> Any:
    return dk.convert_annotations(export, export.parent / "out", **options)


# --- COCO ---


@needs_pycocotools
def test_polygons_are_drawn_as_pycocotools_draws_them(export, tmp_path):
    write_coco(export, annotation([TRIANGLE]), annotation([SQUARE, [15, 1, 19, 1, 19, 5]], 2))
    result = convert(export)
    assert (result.converted, result.images, result.failures) == (1, 1, {})
    assert result.recognized == "COCO annotations, 3 classes, train: 1 image"
    wanted = np.zeros((12, 20), np.uint8)
    wanted[drawn(TRIANGLE)] = 1
    wanted[drawn(SQUARE, [15, 1, 19, 1, 19, 5])] = 2
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)
    names = [line.split(" #")[0] for line in result.classes_file.read_text().splitlines()]
    assert names == ["background", "sign", "car"]
    assert (tmp_path / "out/images/train/a.png").read_bytes() == (export / "a.png").read_bytes()


def test_run_lengths_compressed_and_not(export, tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 12, 20)) < 0.3
    column_runs = [0, *np.diff(np.flatnonzero(np.diff(np.r_[0, first.T.ravel(), 0]))).tolist()]
    start = int(np.argmax(first.T.ravel()))
    counts = [start, *column_runs[1:], 240 - start - sum(column_runs)]
    write_coco(
        export,
        annotation({"counts": counts, "size": [12, 20]}),
        annotation({"counts": compressed(second), "size": [12, 20]}, 2),
    )
    convert(export)
    wanted = np.where(second, 2, first).astype(np.uint8)
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)


def compressed(pixels: np.ndarray) -> str:
    """COCO's compressed run lengths, after the loop in its C code."""
    flat = [0, *pixels.T.ravel().astype(int).tolist()]
    counts, run = [], 0
    for before, value in zip(flat, flat[1:], strict=False):
        if value != before:
            counts.append(run)
            run = 0
        run += 1
    counts.append(run)
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            code = value & 0x1F
            value >>= 5
            more = value != (-1 if code & 0x10 else 0)
            text += chr((code | 0x20 * more) + 48)
    return text


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_run_lengths_round_trip(height, width, share, seed):
    pixels = np.random.default_rng(seed).random((height, width)) < share
    found = fill_counts(compressed(pixels), [height, width], (height, width))
    np.testing.assert_array_equal(found, pixels)


@needs_pycocotools
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_pycocotools_run_lengths_are_read(height, width, block, seed):
    from pycocotools import mask

    coarse = np.random.default_rng(seed).random((height // block + 1, width // block + 1)) < 0.5
    pixels = np.kron(coarse, np.ones((block, block), bool))[:height, :width]
    text = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert compressed(pixels) == text
    np.testing.assert_array_equal(fill_counts(text, [height, width], (height, width)), pixels)
    assert decode_counts(text).sum() == height * width


@needs_pycocotools
def test_overlaps_are_drawn_in_the_order_of_the_file_or_by_area(export, tmp_path):
    write_coco(export, annotation([SQUARE]), annotation([LARGE], 2))
    convert(export)
    assert (read(tmp_path / "out/labels/train/a.png") == 2).all()
    convert(export, overlap="area", overwrite=True)
    wanted = np.where(drawn(SQUARE), 1, 2)
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)


@needs_pycocotools
def test_crowds_are_ignored_below_the_objects_in_them(export, tmp_path):
    whole = {"counts": [0, 240], "size": [12, 20]}
    write_coco(export, annotation([SQUARE]), annotation(whole, 2, iscrowd=1))
    assert "which become the ignore label: 1" in convert(export).notes[0]
    wanted = np.where(drawn(SQUARE), 1, 255)
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)
    convert(export, crowd="class", overwrite=True)
    assert (read(tmp_path / "out/labels/train/a.png") == 2).all()


@needs_pycocotools
def test_categories_of_one_name_are_one_class(export, tmp_path):
    """Roboflow's first category stands for the project; here, as often, no object has it."""
    categories = [
        {"id": 0, "name": "street-x7", "supercategory": "none"},
        {"id": 1, "name": "car", "supercategory": "street-x7"},
        {"id": 7, "name": "car", "supercategory": "street-x7"},
        {"id": 9, "name": "Background", "supercategory": "street-x7"},
        {"id": 11, "name": "ignore", "supercategory": "street-x7"},
    ]
    for split in ("train", "valid", "test"):
        content = coco(
            annotation([LARGE], 11),
            annotation([SQUARE], 7),
            annotation([[9, 0, 20, 0, 20, 12, 9, 12]], 1),
            annotation([[15, 0, 20, 0, 20, 12, 15, 12]], 9),
            categories=categories,
        )
        photo(export / split / "a.png")
        (export / split / "_annotations.coco.json").write_text(json.dumps(content))
    result = convert(export)
    assert result.splits == {"test": 1, "train": 1, "val": 1}
    assert result.classes_file.read_text() == "background #000000\ncar #800000\n"
    wanted = np.full((12, 20), 255)
    wanted[drawn(SQUARE)] = wanted[:, 9:] = 1
    wanted[:, 15:] = 0
    for split in result.splits:
        np.testing.assert_array_equal(read(tmp_path / f"out/labels/{split}/a.png"), wanted)
    source = dk.open_dataset(
        dk.DataConfig(dataset="folder", dataset_dir=str(tmp_path / "out")), "val"
    )
    np.testing.assert_array_equal(source.load(0)[1], wanted)


@needs_pycocotools
def test_an_archive_and_a_single_file_give_the_same_masks(export, tmp_path):
    write_coco(export, annotation([TRIANGLE]))
    convert(export)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in export.iterdir():
            archive.write(path, f"mine/{path.name}")
    dk.convert_annotations(tmp_path / "export.zip", tmp_path / "zip")
    dk.convert_annotations(export / "annotations.json", tmp_path / "file")
    for name in ("labels/train/a.png", "images/train/a.png", "classes.txt"):
        wanted = (tmp_path / "out" / name).read_bytes()
        assert (tmp_path / "zip" / name).read_bytes() == wanted
        assert (tmp_path / "file" / name).read_bytes() == wanted


@needs_pycocotools
def test_panoptic(export, tmp_path):
    ids = np.random.default_rng(0).choice([0, 7, 300, 70000], (12, 20))
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    (export / "panoptic_val").mkdir()
    Image.fromarray(colors).save(export / "panoptic_val/a.png")
    segments = [
        {"id": 7, "category_id": 2},
        {"id": 300, "category_id": 1},
        {"id": 70000, "category_id": 2, "iscrowd": 1},
    ]
    content = coco({"image_id": 1, "file_name": "a.png", "segments_info": segments})
    (export / "panoptic_val.json").write_text(json.dumps(content))
    result = convert(export)
    assert result.recognized == "COCO panoptic, 2 classes, val: 1 image"
    wanted = np.select([ids == 300, ids == 7], [0, 1], 255)
    np.testing.assert_array_equal(read(tmp_path / "out/labels/val/a.png"), wanted)


@needs_pycocotools
def test_an_interrupted_conversion_resumes(export, tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 12} for i in (1, 2)]
    write_coco(export, annotation([SQUARE]), images=images)
    for i in (1, 2):
        photo(export / f"{i}.png")
    assert convert(export).converted == 2
    (tmp_path / "out/labels/train/2.png").unlink()
    again = convert(export)
    assert (again.converted, again.kept) == (1, 1)
    for options in ({"overlap": "area"}, {"crowd": "class"}):
        with pytest.raises(dk.UserError, match="by another conversion or with other classes"):
            convert(export, **options)
    write_coco(export, annotation([TRIANGLE]), images=images)
    with pytest.raises(dk.UserError, match="by another conversion or with other classes"):
        convert(export)
    assert convert(export, overwrite=True).converted == 2


def test_two_exports_of_the_same_classes_are_one_dataset(export, tmp_path):
    """With other classes, the ids of the masks that exist would have another meaning."""
    half = {"counts": [120, 120], "size": [12, 20]}
    write_coco(export, annotation(half))
    convert(export)
    image = {"id": 1, "file_name": "b.png", "width": 20, "height": 12}
    write_coco(export, annotation(half, 2), images=[image])
    photo(export / "b.png")
    assert convert(export).converted == 1
    before = (tmp_path / "out/classes.txt").read_text()
    image["file_name"] = "a.png"
    write_coco(export, annotation(half), images=[image], categories=[{"id": 1, "name": "tree"}])
    for overwrite in (False, True):
        with pytest.raises(dk.UserError, match="other classes"):
            convert(export, overwrite=overwrite)
    assert (tmp_path / "out/classes.txt").read_text() == before


# --- The other forms ---


@needs_pycocotools
@pytest.mark.parametrize(
    "names",
    [
        "names: ['sign', \"car\"]",
        "names:\n- sign\n- 'car'\nnc: 2",
        "names:\n  0: sign\n  1: car\n",
        "names: {0: sign, 1: car}",
    ],
)
def test_yolo(names, export, tmp_path):
    (export / "data.yaml").write_text(f"train: ../../../etc\nnc: 2\n{names}\n")
    for split in ("train", "valid"):
        photo(export / split / "images/north/a.png")
        photo(export / split / "images/b.png")
        (export / split / "labels/north").mkdir(parents=True)
        scaled = (np.array(TRIANGLE).reshape(-1, 2) / (20, 12)).ravel()
        text = f"1 {' '.join(map(str, scaled))}\n0 0.5 0.5 0.9 0.5 0.9 0.8\n\n"
        (export / split / "labels/north/a.txt").write_text(text)
    result = convert(export)
    assert result.recognized == "YOLO polygons, 3 classes, train: 2 images, val: 2 images"
    wanted = np.zeros((12, 20), np.uint8)
    wanted[drawn((scaled.reshape(-1, 2) * (20, 12)).ravel().tolist())] = 2
    wanted[drawn([0.5 * 20, 0.5 * 12, 0.9 * 20, 0.5 * 12, 0.9 * 20, 0.8 * 12])] = 1
    for split in ("train", "val"):
        np.testing.assert_array_equal(read(tmp_path / f"out/labels/{split}/north/a.png"), wanted)
        assert not read(tmp_path / f"out/labels/{split}/b.png").any()


@needs_pycocotools
def test_yolo_labels_with_images_in_another_folder(export, tmp_path):
    """As in Label Studio's YOLO export: classes.txt, and labels without images."""
    (export / "labels").mkdir()
    (export / "classes.txt").write_text("sign\ncar\n")
    (export / "labels/a.txt").write_text("1 0.1 0.2 0.9 0.2 0.9 0.9\n")
    photo(tmp_path / "photos/a.jpg")
    result = convert(export, images=tmp_path / "photos")
    assert (result.converted, result.images, result.failures) == (1, 1, {})
    wanted = drawn([2, 12 * 0.2, 18, 12 * 0.2, 18, 12 * 0.9]) * 2
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)


def test_names_in_yaml():
    yaml = pytest.importorskip("yaml")
    for text in (
        "names: ['it''s', \"a, b\", c d]\n",
        "nc: 3\nnames:\n  - 'it''s'\n  # comment\n  - a-b\n\n  - \"c\\\"d\"\nother: 1\n",
        "names: {1: b, 0: 'a: x'}\n",
        "names:\n  2: c\n  0: a\n  1: b b\n",
    ):
        wanted = yaml.safe_load(text)["names"]
        wanted = [wanted[i] for i in sorted(wanted)] if isinstance(wanted, dict) else wanted
        assert yaml_names(text) == wanted
    for text in ("names: [a, [b]]\n", "names: {0: a, 2: b}\n", "names: [a\n"):
        with pytest.raises(ValueError, match="names"):
            yaml_names(text)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
  <label><name>sign</name><color>#112233</color></label><label><name>car</name></label>
</labels></task></meta>
{images}</annotations>"""


def write_cvat(export: pathlib.Path, *shapes: str) -> None:
    image = f'<image id="0" name="a.png" width="20" height="12">{"".join(shapes)}</image>'
    (export / "annotations.xml").write_text(CVAT.format(images=image))
    photo(export / "images/a.png")


@needs_pycocotools
def test_cvat_for_images(export, tmp_path):
    """A higher z_order is drawn later; a mask's runs are rows of its box."""
    inside = np.random.default_rng(0).random((5, 7)) < 0.5
    flat = [False, *inside.ravel()]
    changes = np.flatnonzero(np.diff(np.r_[flat, not flat[-1]]))
    runs = np.diff(np.r_[0, changes])
    points = ";".join(f"{x},{y}" for x, y in np.reshape(TRIANGLE, (-1, 2)))
    write_cvat(
        export,
        f'<mask label="car" rle="{", ".join(map(str, runs))}" left="10" top="4" width="7" '
        'height="5" z_order="2"/>',
        '<box label="sign" xtl="3" ytl="2" xbr="9" ybr="6" z_order="1"/>',
        '<points label="sign" points="1,1" z_order="0"/>',
        f'<polygon label="car" points="{points}" z_order="0"><attribute name="b">c</attribute>'
        "</polygon>",
    )
    result = convert(export)
    assert result.recognized == "CVAT for images, 3 classes, train: 1 image"
    wanted = np.zeros((12, 20), np.uint8)
    wanted[drawn(TRIANGLE)] = 2
    wanted[2:6, 3:9] = 1
    wanted[4:9, 10:17][inside] = 2
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)
    assert "sign #112233" in result.classes_file.read_text()


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(-25, 25), st.integers(-25, 25), st.data()
)
@settings(deadline=None, max_examples=200)
def test_runs_of_rows_are_clipped_at_the_image(height, width, left, top, data):
    inside = np.random.default_rng(data.draw(st.integers(0, 99))).random((height, width)) < 0.5
    runs, value, run = [], False, 0
    for pixel in inside.ravel().tolist():
        if pixel != value:
            runs.append(run)
            value, run = pixel, 0
        run += 1
    found = fill_rows(np.array([*runs, run]), (left, top, width, height), (12, 20))
    for y in range(12):
        for x in range(20):
            within = 0 <= y - top < height and 0 <= x - left < width
            assert found[y, x] == (within and inside[y - top, x - left])


@needs_pycocotools
@pytest.mark.parametrize("degrees", [0, 90, 37.5])
def test_rotated_boxes_and_ellipses(degrees, export, tmp_path):
    write_cvat(
        export,
        f'<box label="sign" xtl="2" ytl="3" xbr="10" ybr="7" rotation="{degrees}"/>',
        f'<ellipse label="car" cx="15" cy="6" rx="4" ry="2" rotation="{degrees}"/>',
    )
    convert(export)
    turn = np.radians(degrees)
    y, x = np.mgrid[:12, :20] + 0.5

    def local(center_x: float, center_y: float) -> tuple[np.ndarray, np.ndarray]:
        across, down = x - center_x, y - center_y
        return (
            across * np.cos(turn) + down * np.sin(turn),
            down * np.cos(turn) - across * np.sin(turn),
        )

    u, v = local(6, 5)
    wanted = ((abs(u) < 4) & (abs(v) < 2)).astype(np.uint8)
    u, v = local(15, 6)
    wanted[(u / 4) ** 2 + (v / 2) ** 2 < 1] = 2
    found = read(tmp_path / "out/labels/train/a.png")
    assert (found != wanted).mean() < (0.001 if degrees in (0,) else 0.06)  # edges only


def test_cvat_segmentation_masks(export, tmp_path):
    colors = {"car": (7, 73, 80), "background": (0, 0, 0), "ignore": (9, 9, 9), "sign": (1, 2, 3)}
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in colors.items()]
    (export / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]))
    names = np.random.default_rng(0).choice(list(colors), (12, 20))
    (export / "SegmentationClass/x").mkdir(parents=True)
    pixels = np.array([[colors[name] for name in row] for row in names], np.uint8)
    for name, split in (("a", "Train"), ("x/b", "Validation")):
        Image.fromarray(pixels).save(export / f"SegmentationClass/{name}.png")
        photo(export / f"JPEGImages/{name}.jpg")
        (export / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (export / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    result = convert(export)
    assert result.recognized == "CVAT Segmentation mask, 3 classes, train: 1 image, val: 1 image"
    ids = {"background": 0, "car": 1, "sign": 2, "ignore": 255}
    wanted = [[ids[name] for name in row] for row in names]
    np.testing.assert_array_equal(read(tmp_path / "out/labels/train/a.png"), wanted)
    np.testing.assert_array_equal(read(tmp_path / "out/labels/val/x/b.png"), wanted)
    assert (tmp_path / "out/images/val/x/b.jpg").is_file()


def test_roboflow_masks(export, tmp_path):
    ids = np.random.default_rng(0).integers(0, 3, (12, 20)).astype(np.uint8)
    for split in ("train", "valid"):
        photo(export / split / "a_jpg.rf.12.jpg")
        Image.fromarray(ids).save(export / split / "a_jpg.rf.12_mask.png")
        (export / split / "_classes.csv").write_text(
            "Pixel Value, Class\n0, background\n1, sign\n2, car\n"
        )
    result = convert(export)
    assert result.recognized == "Roboflow masks, 3 classes, train: 1 image, val: 1 image"
    np.testing.assert_array_equal(read(tmp_path / "out/labels/val/a_jpg.rf.12.png"), ids)
    assert (tmp_path / "out/images/val/a_jpg.rf.12.jpg").is_file()


# The brush of Label Studio's SDK 2.1.2 (`mask2rle`) for an 8x8 image where (x + y) % 3 == 0.
BRUSH = [
    0, 0, 1, 0, 57, 27, 252, 127, 243, 128, 71, 255, 56, 4, 127, 246, 192, 35, 255, 156, 2, 63, 251,
    96, 17, 255, 206, 1, 31, 252, 224, 19, 255, 206, 1, 31, 252, 224, 17, 255, 219, 0, 143, 254,
    112, 8, 255, 237, 128, 71, 255, 56, 4, 127, 243, 128, 79, 255, 56, 4, 127, 243, 128, 71, 255,
    108, 2, 63, 249, 192, 35, 255, 156, 0,
]  # fmt: skip


def brush(values: np.ndarray, lengths: tuple[int, int, int, int], word: int = 8) -> bytes:
    """Packs RGBA bytes as rle-pack does, in a text of bits."""
    flat = values.ravel().tolist()
    bits = f"{len(flat):032b}{word - 1:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    place = 0
    while place < len(flat):
        same = 1
        while place + same < len(flat) and flat[place + same] == flat[place]:
            same += 1
        which = next((i for i, n in enumerate(lengths) if same - 1 < 1 << n), 3)
        count = min(same, 1 << lengths[which])
        if count == 1:
            bits += f"0{which:02b}{0:0{lengths[which]}b}{flat[place]:0{word}b}"
        else:
            bits += f"1{which:02b}{count - 1:0{lengths[which]}b}{flat[place]:0{word}b}"
        place += count
    bits = bits.ljust(-(-len(bits) // 8) * 8, "0")
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def test_brush_of_the_sdk():
    wanted = np.indices((8, 8)).sum(0) % 3 == 0
    np.testing.assert_array_equal(fill_brush(bytes(BRUSH), (8, 8)), wanted)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31))
@settings(deadline=None, max_examples=100)
def test_brushes_round_trip(height, width, seed):
    rng = np.random.default_rng(seed)
    alpha = np.repeat(rng.integers(0, 3, height * width // 4 + 1) * 100, 4)[: height * width]
    pixels = np.stack([rng.integers(0, 2, height * width)] * 3 + [alpha], axis=-1)
    data = brush(pixels, (3, 4, 8, 16))
    found = fill_brush(data, (height, width))
    np.testing.assert_array_equal(found, alpha.reshape(height, width) > 0)


@needs_pycocotools
def test_label_studio(export, tmp_path):
    def result(kind: str, label: str, **value: Any) -> dict[str, Any]:
        size = {"original_width": 20, "original_height": 12, "image_rotation": 0}
        return {"type": kind, "to_name": "image", "value": {**value, kind: [label]}, **size}

    percent = (np.array(TRIANGLE).reshape(-1, 2) * (5, 100 / 12)).tolist()
    stroke = np.zeros((12, 20, 4), np.uint8)
    stroke[8:11, 2:5] = 255
    first = [
        result("polygonlabels", "sign", points=percent, closed=True),
        result("rectanglelabels", "car", x=50, y=50, width=25, height=25, rotation=0),
        result("brushlabels", "car", format="rle", rle=list(brush(stroke, (3, 4, 8, 16)))),
        {**result("keypointlabels", "sign", x=1, y=1), "type": "keypointlabels"},
    ]
    tasks = [
        {
            "annotations": [{"result": [], "was_cancelled": True}, {"result": first}],
            "data": {"image": "/data/upload/3/0a1b2c3d-a%20b.png"},
        },
        {"annotations": [{"result": []}], "data": {"image": "s3://bucket/path/c.png?x=1"}},
        {"annotations": [], "data": {"image": "/data/local-files/?d=dir/none.png"}},
    ]
    (export / "project-1.json").write_text(json.dumps(tasks))
    photo(tmp_path / "photos/a b.png")
    photo(tmp_path / "photos/c.png")
    done = convert(export, images=tmp_path / "photos")
    assert (done.converted, done.images, done.failures) == (2, 2, {})
    wanted = np.zeros((12, 20), np.uint8)
    wanted[drawn((np.reshape(percent, (-1, 2)) * (20, 12) / 100).ravel().tolist())] = 2
    wanted[6:9, 10:15] = 1
    wanted[8:11, 2:5] = 1
    found = read(tmp_path / "out/labels/train/0a1b2c3d-a b.png")
    np.testing.assert_array_equal(found, wanted)
    assert not read(tmp_path / "out/labels/train/c.png").any()
    assert any("tasks without an annotation: 1" in note for note in done.notes)


# --- Recognition of masks ---


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.uint8([[0, 255], [255, 255]]), "binary"),
        (np.uint8([[0, 1], [2, 255]]), "index"),
        (np.uint8([[[0, 0, 0], [128, 64, 128]], [[0, 0, 0], [0, 0, 0]]]), "rgb"),
    ],
)
def test_masks_are_recognized_where_they_are_unambiguous(pixels, kind, export, tmp_path):
    Image.fromarray(pixels).save(export / "a.png")
    result = convert(export)
    assert (result.converted, result.recognized) == (1, f"masks for from={kind}, 1 file")
    told = dk.convert_annotations(export, tmp_path / "told", kind=kind)
    assert (told.converted, told.recognized) == (1, "")
    np.testing.assert_array_equal(read(tmp_path / "out/a.png"), read(tmp_path / "told/a.png"))


def test_masks_of_a_palette_and_of_labelme_are_recognized(export, tmp_path):
    Image.fromarray(np.uint8([[0, 5]])).convert("P").save(export / "a.png")
    assert convert(export).recognized == "masks for from=palette, 1 file"
    (tmp_path / "json").mkdir()
    shape = {"label": "car", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}
    content = {"shapes": [shape], "imageWidth": 20, "imageHeight": 12}
    (tmp_path / "json/a.json").write_text(json.dumps(content))
    result = dk.convert_annotations(tmp_path / "json", tmp_path / "out2")
    assert result.recognized == "masks for from=labelme, 1 file"
    assert read(tmp_path / "out2/a.png").any()


# --- The script ---


@needs_pycocotools
def test_the_script_says_what_it_recognized(export, tmp_path, capsys):
    write_coco(export, annotation([SQUARE]), annotation([[1, 2, 3, 4]]))
    arguments = (f"--input={export}", f"--output={tmp_path / 'out'}")
    assert script("convert_masks.py")(*arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "recognized: COCO annotations, 3 classes, train: 1 image",
        "note: skipped, polygons with fewer than three points, which have no area: 1",
        "note: classes without an object: 'car'; to leave them out, list the others in "
        "--classes=FILE",
        f"written: 1 masks to {tmp_path / 'out'}",
        f"ready: --dataset=folder --dataset_dir={tmp_path / 'out'} --val_fraction=0.2",
    ]


# --- Real exports ---


@needs_pycocotools
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "split"),
    [("roboflow_coco_polygons", "val"), ("cvat_coco_polygons", "train")],
)
def test_real_coco_exports(name, split, tmp_path):
    from pycocotools import mask

    result = dk.convert_annotations(EXPORTS / name, tmp_path / "out")
    assert (result.converted, result.images, result.failures) == (6, 6, {})
    content = json.loads(next((EXPORTS / name).rglob("*.json")).read_text())
    names = [line.rpartition(" #")[0] for line in result.classes_file.read_text().splitlines()]
    categories = {item["id"]: names.index(item["name"]) for item in content["categories"]}
    assert names[0] == "background" and len(names) == len({*categories.values()}) + 1
    for image in content["images"]:
        height, width = image["height"], image["width"]
        wanted = np.zeros((height, width), np.uint8)
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                rles = mask.frPyObjects(item["segmentation"], height, width)
                pixels = mask.decode(mask.merge(rles)).astype(bool)
                wanted[pixels] = categories[item["category_id"]]
        assert wanted.any()
        stem = image["file_name"].rpartition(".")[0]
        np.testing.assert_array_equal(read(tmp_path / f"out/labels/{split}/{stem}.png"), wanted)


@pytest.mark.shared
def test_a_real_cvat_mask_export(tmp_path):
    root = EXPORTS / "cvat_segmentation_mask"
    result = dk.convert_annotations(root, tmp_path / "out")
    assert (result.converted, result.images, result.failures) == (6, 6, {})
    lines = [line.split(":") for line in (root / "labelmap.txt").read_text().split()[2:]]
    for path in (root / "SegmentationClass").glob("*.png"):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        wanted = np.full(pixels.shape[:2], 99)
        for number, line in enumerate(lines):
            wanted[(pixels == [int(value) for value in line[1].split(",")]).all(-1)] = number
        np.testing.assert_array_equal(read(tmp_path / f"out/labels/train/{path.name}"), wanted)


@needs_pycocotools
@pytest.mark.shared
def test_a_real_label_studio_export(tmp_path):
    path = EXPORTS / "label_studio/test_export_yolo/data_polygons.json"
    result = dk.convert_annotations(path, tmp_path / "out")
    assert (result.converted, result.failures) == (1, {})
    item = json.loads(path.read_text())[0]["annotations"][0]["result"][0]
    ring = np.array(item["value"]["points"]) * (640, 426) / 100
    wanted = drawn(ring.ravel().tolist(), height=426, width=640)
    found = read(tmp_path / "out/labels/train/e97d4735-000000000025.png")
    np.testing.assert_array_equal(found, wanted)


@needs_pycocotools
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "options", "splits"),
    [
        ("coco_dataset/coco_instances", {}, {"train": 1, "val": 1}),
        ("coco_dataset/mmdet_coco", {}, {"train": 1, "val": 1}),
        ("coco_dataset/coco", {"kind": "coco"}, {"train": 1, "val": 1}),
        ("coco_dataset/coco_stuff", {"crowd": "class"}, {"train": 1, "val": 1}),
        ("cvat_dataset/for_images/export_project", {}, {"train": 2, "val": 2, "test": 2}),
        ("voc_dataset/voc_dataset1", {}, {"train": 1}),
        ("mapillary_vistas_dataset/val/v2.0", {"images": "val/images"}, {"train": 2}),
    ],
)  # fmt: skip
def test_small_layouts_of_datumaro(name, options, splits, tmp_path):
    """datumaro's fixtures: exports of a few pixels, some of which mix several forms."""
    layouts = EXPORTS / "layouts"
    if "images" in options:
        options = {"images": layouts / "mapillary_vistas_dataset" / options["images"]}
    result = dk.convert_annotations(layouts / name, tmp_path / "out", **options)
    assert (result.splits, result.failures) == (splits, {})


@needs_pycocotools
@pytest.mark.shared
@pytest.mark.slow
def test_three_commands_lead_from_an_export_to_a_tflite_file(tiny_flags, tmp_path):
    """The export has only the split "valid"."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    export = EXPORTS / "roboflow_coco_polygons"
    assert script("convert_masks.py")(f"--input={export}", f"--output={mine}") == 0
    data = ("--dataset=folder", f"--dataset_dir={mine}", "--train_split=val", "--eval_split=val")
    assert script("train.py")(*tiny_flags, *data, f"--train_logdir={run}") == 0
    export = ("--formats=tflite", "--input_size=64,64", f"--export_path={run / 'export'}")
    assert script("export_model.py")(f"--checkpoint_dir={run}", *export) == 0
    assert list((run / "export").glob("*.tflite"))


def test_converted_masks_are_used_instead_of_the_downloaded_ones(tmp_path, capsys):
    """Black-and-white masks, converted to `labels` next to them, with classes.txt there."""
    (tmp_path / "Masks").mkdir()
    for name in "abcdef":
        photo(tmp_path / f"Images/{name}.png")
        mask = np.full((12, 20), 255, np.uint8)
        mask[:, 4:] = 0
        Image.fromarray(mask).save(tmp_path / f"Masks/{name}.png")
    given = (f"--input={tmp_path}/Masks", f"--output={tmp_path}/labels")
    assert script("convert_masks.py")(*given) == 0
    assert f"ready: --dataset=folder --dataset_dir={tmp_path}" in capsys.readouterr().out
    config = dk.DataConfig(dataset="folder", dataset_dir=str(tmp_path), val_fraction=0.5)
    source = dk.open_dataset(config, "train")
    assert source.info.class_names == ("background", "foreground")
    np.testing.assert_array_equal(source.load(0)[1], np.repeat([[1] * 4 + [0] * 16], 12, 0))
    assert script("convert_masks.py")(f"--input={tmp_path}/Masks", f"--output={tmp_path}/x") == 0
    assert f"next: move {tmp_path}/x to labels/" in capsys.readouterr().out


@pytest.mark.shared
@pytest.mark.slow
def test_three_commands_lead_from_thin_objects_to_a_tflite_file(tiny_flags, tmp_path, capsys):
    """CamVid's poles, as published sets of cracks are: black-and-white masks, no splits."""
    download, run = tmp_path / "poles", tmp_path / "run"
    (download / "Masks").mkdir(parents=True)
    (download / "Images").mkdir()
    pole = 2
    for image in sorted((SHARED / "data/camvid/images/val").iterdir())[:20]:
        shutil.copy(image, download / "Images")
        label = np.asarray(Image.open(SHARED / "data/camvid/labels/val" / f"{image.stem}.png"))
        mask = Image.fromarray(np.where(label == pole, 255, 0).astype(np.uint8))
        mask.save(download / "Masks" / f"{image.stem}.png")
    masks = (f"--input={download / 'Masks'}", f"--output={download / 'labels'}")
    assert script("convert_masks.py")(*masks) == 0
    assert f"ready: --dataset=folder --dataset_dir={download}" in capsys.readouterr().out
    data = ("--dataset=folder", f"--dataset_dir={download}", "--val_fraction=0.2")
    assert script("train.py")(*tiny_flags, *data, f"--train_logdir={run}") == 0
    assert dk.Predictor(run).info.class_names == ("background", "foreground")
    export = ("--formats=tflite", "--input_size=64,64", f"--export_path={run / 'export'}")
    assert script("export_model.py")(f"--checkpoint_dir={run}", *export) == 0
    assert list((run / "export").glob("*.tflite"))
