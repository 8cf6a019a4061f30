"""Class names, palettes, and their conversion to and from JSON."""

from __future__ import annotations

import json

import pytest
from contracts import as_command_line

from deeplab_keras.config import UserError
from deeplab_keras.data.datasets.camvid import CAMVID
from deeplab_keras.data.info import DatasetInfo, info_for_classes, pascal_palette

VOC_COLORS = (
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
    (0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0),
    (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0),
    (0, 192, 0), (128, 192, 0), (0, 64, 128),
)  # fmt: skip


def test_the_pascal_palette_equals_that_of_the_voc_devkit():
    palette = pascal_palette(256)
    assert palette[:21] == VOC_COLORS
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_json_and_back():
    info = DatasetInfo(
        "mine", ("a", "b c", "d"), ((0, 0, 0), (1, 2, 3), (255, 255, 255)), ignore_label=7
    )
    assert DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert DatasetInfo.from_dict(json.loads(json.dumps(CAMVID.to_dict()))) == CAMVID


def test_info_for_classes():
    info = info_for_classes("mine", ["a", "b"], ignore_label=9)
    assert (info.num_classes, info.palette, info.ignore_label) == (2, ((0, 0, 0), (128, 0, 0)), 9)
    assert info_for_classes("mine", ["a", "b"], [(1, 2, 3), (4, 5, 6)]).palette == (
        (1, 2, 3),
        (4, 5, 6),
    )


def test_different_spellings_of_a_name_are_the_same_class():
    old = info_for_classes("mine", ["colour_000000", "grey_128", "Traffic_light"])
    new = info_for_classes("mine", ["color_000000", "gray_128", "traffic light"])
    assert old.renamed(new) == []
    assert old.renamed(info_for_classes("mine", ["color_000001", "gray_128", "car"])) == [0, 2]


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        (
            (),
            (),
            "dataset 'x' has 0 classes; at least 2 are required: add the background as a "
            "separate class",
        ),
        (
            ("a",),
            ((0, 0, 0),),
            "dataset 'x' has 1 class; at least 2 are required: add the background as a "
            "separate class",
        ),
        (("a",) * 257, ((0, 0, 0),) * 257, "dataset 'x' has 257 classes; 2 to 256 are allowed"),
        (
            ("a", "b"),
            ((0, 0, 0),),
            ("dataset 'x' has 2 classes but 1 colors; give one color per class"),
        ),
        (
            ("a", "b"),
            ((0, 0, 256), (0, 0, 0)),
            (
                "dataset 'x' has a color outside 0..255 in its palette; colors are RGB with values "
                "0 to 255"
            ),
        ),
    ],
)
def test_wrong_infos(names, palette, message):
    with pytest.raises(UserError) as error:
        DatasetInfo("x", names, palette)
    assert as_command_line(error.value) == message
