"""The full check of a dataset: its counts against plain NumPy, all mistakes, and the report."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from contracts import SHARED, raises_line, script
from data_files import CLASSES, mask, photograph, truncate, write_dataset
from dataset_trees import TREES
from PIL import Image

from deeplab_keras.config import DataConfig, TrainConfig
from deeplab_keras.data.check import NOT_OPENED, check_dataset
from deeplab_keras.data.check.findings import inverse_log, median_frequency
from deeplab_keras.data.check.notes import IN_TWO_SPLITS
from deeplab_keras.data.files.pairs import IdsUserError, SizeUserError
from deeplab_keras.data.files.reading import BrokenFileError, MissingFileError, NoMaskUserError
from deeplab_keras.visualization import dataset_report


@pytest.fixture
def dataset(tmp_path):
    root = write_dataset(tmp_path / "photos", count=4)
    write_dataset(root, "val", 2, suffix=".png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for path in (root / "images/val").iterdir():  # images that differ from the training split
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return root


def checked(root, *splits, **changes):
    config = DataConfig(**({"dataset": "folder", "dataset_dir": str(root)} | changes))
    return check_dataset(config, splits or ("train", "val"))


def test_a_correct_dataset_is_counted(dataset):
    result = checked(dataset)
    assert not result.wrong and result.notes == ()
    train, val = result.splits
    masks = [np.asarray(Image.open(path)) for path in sorted((dataset / "labels/train").iterdir())]
    assert train.pairs == len(train.scans) == 4 and val.pairs == 2
    assert train.pixels.tolist() == [sum(int((ids == i).sum()) for ids in masks) for i in range(3)]
    assert train.ignored == sum(int((ids == 255).sum()) for ids in masks) and train.strange == 0
    assert train.images.tolist() == [4, 4, 4] and train.total == sum(ids.size for ids in masks)
    assert dict(train.sizes()) == {(30, 20): 1, (32, 21): 1, (34, 22): 1, (36, 23): 1}
    shares = result.to_dict()["splits"][0]["classes"]
    assert shares["floor"]["share"] == pytest.approx(train.pixels[1] / train.total)
    assert result.to_dict()["splits"][0]["width"] == {"smallest": 30, "median": 33.0, "largest": 36}


def test_every_mistake_is_found_at_once(dataset, tmp_path):
    images, labels = dataset / "images/train", dataset / "labels/train"
    truncate(images / "pic_0.jpg")
    (labels / "pic_1.png").unlink()
    Image.fromarray(mask(22, 35)).save(labels / "pic_2.png")
    Image.fromarray(mask(23, 36, ids=(0, 1, 7))).save(labels / "pic_3.png")
    shutil.copy(images / "pic_3.jpg", dataset / "images/val/copy.jpg")
    Image.fromarray(mask(23, 36)).save(dataset / "labels/val/copy.png")
    Image.fromarray(photograph(20, 30)).save(dataset / "labels/val/pic_0.png")
    result = checked(dataset, "train", "val", "test")
    found = {(problem.split, problem.kind) for problem in result.problems}
    assert found == {
        ("train", BrokenFileError.kind),
        ("train", MissingFileError.kind),
        ("train", SizeUserError.kind),
        ("train", IdsUserError.kind),
        ("val", IN_TWO_SPLITS),
        ("val", NoMaskUserError.kind),
        ("test", NOT_OPENED),
    }
    assert len(result.problems) == 7 and all(
        "\n" not in problem.message for problem in result.problems
    )
    twice = next(problem.message for problem in result.problems if problem.kind == IN_TWO_SPLITS)
    assert twice == (
        "val/copy: the same image as train/pic_3, so scores on it are meaningless; "
        "remove it from one of the splits"
    )
    assert result.splits[0].strange == int((mask(23, 36, ids=(0, 1, 7)) == 7).sum())
    assert result.label_weights() == {}, "made of wrong counts they would mislead"
    text = dataset_report.summary(result)
    assert "problem: unreadable files: 1" in text and "label_weights" not in text


def test_broken_masks_do_not_hide_others_if_classes_are_inferred(dataset):
    (dataset / "classes.txt").unlink()
    truncate(dataset / "labels/train/pic_1.png")
    result = checked(dataset)
    assert [problem.kind for problem in result.problems] == [BrokenFileError.kind]
    assert result.info.num_classes == 3


def test_no_split_at_all_is_one_error(dataset):
    with raises_line("it has no split 'a'"):
        checked(dataset, "a", "b")


LOOKS = {
    "luminances": ((0, 38, 75), "luminances of the colors of photos"),
    "shifted": ((1, 2, 3), "shifted by one"),
    "binary": ((0, 255), "black-and-white masks of two classes"),
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_likely_mistake(name, dataset):
    ids, says = LOOKS[name]
    for path in (dataset / "labels").rglob("*.png"):
        height, width = np.asarray(Image.open(path)).shape
        Image.fromarray(mask(height, width, ids=ids)).save(path)
    result = checked(dataset)
    assert result.wrong and says in result.looks_like
    assert says in dataset_report.page(result) and says in dataset_report.summary(result)


def test_notes(dataset):
    for path in (dataset / "labels/train").iterdir():
        ids = np.full(np.asarray(Image.open(path)).shape, 1, np.uint8)
        Image.fromarray(ids).save(path)
    Image.fromarray(np.full((23, 36), 255, np.uint8)).save(dataset / "labels/train/pic_3.png")
    shutil.copy(dataset / "images/train/pic_0.jpg", dataset / "images/train/again.jpg")
    shutil.copy(dataset / "labels/train/pic_0.png", dataset / "labels/train/again.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(photograph(21, 32)).save(dataset / "images/train/pic_1.jpg", exif=exif)
    result = checked(dataset)
    assert result.problems == () and not result.wrong
    assert list(result.notes) == [
        "train: 2 classes (wall, lamp) without pixels, which cannot be learned",
        "train: id 0, 'wall', never occurs; do the ids start at 1?",
        "val: 2 classes (wall, lamp) that train does not have",
        "train: 1 mask (pic_3) without a labeled pixel",
        "train: 1 image (pic_0) identical to another image of the split",
        (
            "train: 1 image (pic_1) with an EXIF orientation, which is applied only if the mask's "
            "size matches it"
        ),
    ]


def test_an_ignored_id_0_may_be_absent(tmp_path):
    TREES["ade20k"](tmp_path)
    noted = " ".join(checked(tmp_path, "val", dataset="ade20k_151").notes)
    assert "other" in noted and "counted from 1" not in noted


def test_label_maps_and_other_sources(tmp_path):
    masks = TREES["cityscapes"](tmp_path)
    result = checked(tmp_path, "val", dataset="cityscapes")
    ids = masks["frankfurt/frankfurt_000000_000294"]
    assert not result.wrong and result.splits[0].pixels[2] == (ids == 11).sum() > 0
    assert (
        result.splits[0].ignored == np.isin(ids, [*range(7), 9, 10, 14, 15, 16, 18, 29, 30]).sum()
    )
    drawn = check_dataset(
        DataConfig(train_samples=3, eval_samples=2, synthetic_size=(40, 40)), ("train", "val")
    )
    assert [split.pairs for split in drawn.splits] == [3, 2] and not drawn.wrong


# --- Weights ---


def test_weights_match_the_formulas_of_the_papers():
    """Two images of 100 labeled pixels: 60 and 50 of class 0, 40 of class 1, 50 of class 2."""
    pixels, counted = np.array([110, 40, 50, 0]), np.array([200, 100, 100, 0])
    assert median_frequency(pixels, counted) == pytest.approx((0.5 / 0.55, 0.5 / 0.4, 1.0, 1.0))
    expected = [1 / np.log(1.02 + share) for share in (0.55, 0.2, 0.25)] + [1.0]
    assert inverse_log(pixels) == pytest.approx(expected)


def test_training_accepts_the_weights_flags_of_the_report(dataset):
    result = checked(dataset)
    for weights in result.label_weights().values():
        command = script("train.py").parse(dataset_report.flag_of(weights))
        assert command.config(TrainConfig).label_weights == pytest.approx(weights, rel=1e-3)


def test_advice_for_rare_classes(dataset):
    """Of 9600 labeled pixels, 100 are of class 2 and 200 of class 1, all in one of four images."""
    assert "advice" not in str(checked(dataset)), "no class is rare"
    for index in range(4):
        ids = np.zeros((40, 60), np.uint8)
        if index == 0:
            ids[:5, :20], ids[5:10, :40] = 2, 1
        Image.fromarray(photograph(40, 60, seed=index)).save(
            dataset / f"images/train/pic_{index}.jpg"
        )
        Image.fromarray(ids).save(dataset / f"labels/train/pic_{index}.png")
    result = checked(dataset)
    assert result.rare_classes() == pytest.approx({CLASSES[2]: 100 / 9600, CLASSES[1]: 200 / 9600})
    # Frequencies 9300/9600, 200/2400 and 100/2400; the median is that of class 1.
    weights = [np.sqrt(200 / 2400 / f) for f in (9300 / 9600, 200 / 2400, 100 / 2400)]
    numbers = ",".join(f"{weight:.4g}" for weight in weights)
    flags = f"--loss=cross_entropy+dice --label_weights={numbers}"
    line = f"advice: for rare classes ({CLASSES[2]} 1.04%, {CLASSES[1]} 2.08%): {flags}"
    assert line in str(result).splitlines()
    training = script("train.py").parse(*flags.split()).config(TrainConfig)
    assert training.loss == "cross_entropy+dice" and training.label_weights == pytest.approx(
        weights, rel=1e-3
    )


# --- The report ---


def test_the_contact_sheet_shows_every_present_class(tmp_path):
    root = write_dataset(tmp_path / "photos", count=30)
    for index, path in enumerate(sorted((root / "labels/train").iterdir())):
        shape = np.asarray(Image.open(path)).shape
        Image.fromarray(
            np.full(shape, 1 if index == 13 else 2 if index == 17 else 0, np.uint8)
        ).save(path)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    split = checked(root, "train").splits[0]
    chosen = dataset_report.choose_samples(split, 5)
    names = [split.scans[place].name for place in chosen]
    order = sorted(path.stem for path in (root / "labels/train").iterdir())
    assert len(chosen) == len(set(chosen)) == 5 and chosen == sorted(chosen)
    assert {order[13], order[17]} <= set(names)
    assert len(dataset_report.choose_samples(split, 99)) == 30


def test_the_contact_sheets_colors(dataset):
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(dataset / "labels/train/pic_0.png")
    result = checked(dataset)
    sheet = dataset_report.contact_sheet(result.splits[0], result.info)
    share = (sheet == dataset_report.STRANGE).all(-1).sum() / (dataset_report.SIDE**2 * 20 / 30)
    assert sheet.ndim == 3 and 0.4 < share < 0.6, "half of a thumbnail of 20x30 is striped"
    assert (sheet[-40:] == result.info.palette[1]).all(-1).any(), "the legend"


def test_the_script_writes_its_report_and_sets_the_exit_status(dataset, tmp_path, capsys):
    (dataset / "classes.txt").write_text("<b>wall</b>\nfloor\nlamp & co\n")
    arguments = (f"--dataset_dir={dataset}", "--dataset=folder", f"--output={tmp_path}/report")
    assert script("check_dataset.py")(*arguments) == 0
    page = (tmp_path / "report/report.html").read_text()
    assert (
        "No problems found." in page and "&lt;b&gt;wall&lt;/b&gt;" in page and "<b>wall" not in page
    )
    assert (tmp_path / "report/contact_sheet.png").exists() and 'src="contact_sheet.png"' in page
    assert "default-src 'none'" in page, "the browser runs no script and loads nothing"
    assert "advice" not in capsys.readouterr().out, "no class is rare"
    truncate(dataset / "images/train/pic_0.jpg")
    assert script("check_dataset.py")(*arguments) == 1
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["wrong"] and report["problems"][0]["kind"] == BrokenFileError.kind
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error
        == f"error: --dataset_dir={dataset}: 1 problem; {tmp_path}/report/report.html shows it"
    )


def test_of_many_classes_only_those_present_are_listed(dataset):
    (dataset / "classes.txt").write_text("\n".join(f"class number {i}" for i in range(60)))
    text = dataset_report.summary(checked(dataset))
    assert "class number 2 " in text and "class number 3 " not in text
    assert dataset_report.page(checked(dataset)).count("class number") == 60 + 5, (
        "the page lists all, a note five"
    )


@pytest.mark.shared
def test_the_real_samples_have_no_problems():
    for dataset, folder, splits in (
        ("voc2012", "voc2012_sample", ("train", "val")),
        ("ade20k", "ade20k_sample", ("val",)),
        ("cityscapes", "cityscapes_sample", ("val",)),
    ):
        result = checked(SHARED / "data" / folder, *splits, dataset=dataset)
        assert not result.wrong and all(split.strange == 0 for split in result.splits)
