"""Parts of the training images that are set aside for validation: val_fraction, fold, split_by."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from contracts import raises_line, script
from data_files import mask, photograph
from PIL import Image

from deeplab_keras.config import DataConfig
from deeplab_keras.data.check import IN_ONE_PART, check_dataset
from deeplab_keras.data.datasets.folder_parts import prefix_of, require_classes_in_parts
from deeplab_keras.data.registry import open_dataset

NAMES = tuple(f"{scene}_{frame:03}" for scene in ("park", "road", "quay") for frame in range(12))


def config(root: pathlib.Path, **options: object) -> DataConfig:
    return DataConfig(dataset="folder", dataset_dir=str(root), **options)


def write(root: pathlib.Path, names=NAMES, image="images/{}.jpg", label="labels/{}.png"):
    for seed, name in enumerate(names):
        for path, pixels in ((image, photograph(8, 9, seed)), (label, mask(8, 9, seed, (0, 1, 2)))):
            file = root / path.format(name)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return root


def parts(root: pathlib.Path, **options: object) -> tuple[set[str], set[str]]:
    """The names for training and for validation."""
    train, val = (open_dataset(config(root, **options), split) for split in ("train", "val"))
    assert train.info == val.info and train.info.num_classes == 3
    return set(train.names), set(val.names)


def position(name: str, seed: int = 0) -> float:
    """The documented position of a name in [0, 1)."""
    return int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:16], 16) / 2**64


LAYOUTS = {
    "flat": ("images/{}.jpg", "labels/{}.png"),
    "only a training split": ("images/train/{}.jpg", "labels/train/{}.png"),
    "split outside": ("train/images/{}.jpg", "train/masks/{}.png"),
    "side by side": ("{}.jpg", "{}_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_part_depends_on_the_name_alone(layout, tmp_path):
    root = write(tmp_path / "set", NAMES, *LAYOUTS[layout])
    train, val = parts(root, val_fraction=0.3)
    assert val == {name for name in NAMES if position(name) < 0.3}
    assert train == set(NAMES) - val and 5 <= len(val) <= 16
    other = parts(root, val_fraction=0.3, split_seed=1)[1]
    assert other == {name for name in NAMES if position(name, 1) < 0.3} != val
    assert parts(root, val_fraction=0.3, seed=5)[1] == val, "seeds of the order change nothing"
    more = tuple(f"later_{index}" for index in range(9))
    write(root, more, *LAYOUTS[layout])
    train_later, val_later = parts(root, val_fraction=0.3)
    assert train <= train_later and val <= val_later and len(train_later | val_later) == 45
    moved = root.rename(tmp_path / "elsewhere")
    assert parts(moved, val_fraction=0.3) == (train_later, val_later)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", moved)
    assert parts(pathlib.Path(archive), val_fraction=0.3) == (train_later, val_later)


def test_lists_have_the_same_parts_after_changes(tmp_path):
    root = write(tmp_path / "set", NAMES, "images/{}.jpg", "labels/{}.png")

    def listed(names):
        lines = [f"images/{name}.jpg,labels/{name}.png" for name in names]
        (root / "train.csv").write_text("\n".join(lines))
        return parts(root, val_fraction=0.3)

    few = listed(NAMES[:20])
    write(root, ("x_1",), "more/{}.jpg", "more/{}.png")  # the common folder becomes another one
    lines = [f"images/{name}.jpg,labels/{name}.png" for name in NAMES[:20]]
    (root / "train.csv").write_text("\n".join([*lines, "more/x_1.jpg,more/x_1.png"]))
    many = parts(root, val_fraction=0.3)
    for before, after in zip(few, many, strict=True):
        assert before <= {name.removeprefix("images/") for name in after}


@pytest.mark.parametrize("split_by", ["name", "prefix"])
def test_each_image_is_in_the_validation_part_of_one_fold(split_by, tmp_path):
    names = [f"scene{scene}_{frame}" for scene in range(9) for frame in range(3)]
    root = write(tmp_path, names)
    seen: list[str] = []
    for fold in (1, 2, 3):
        train, val = parts(root, fold=f"{fold}/3", split_by=split_by)
        assert not train & val and train | val == set(names)
        seen += val
        key = prefix_of if split_by == "prefix" else str
        assert val == {name for name in names if int(position(key(name)) * 3) == fold - 1}
        if split_by == "prefix":
            assert not {name.partition("_")[0] for name in train} & {
                name.partition("_")[0] for name in val
            }
    assert sorted(seen) == sorted(names)


PREFIXES = {
    "0001TP_006690": "0001TP",
    "street_001": "street",
    "cam1-00012": "cam1",
    "frame0012": "frame",
    "frankfurt_000000_000294_leftImg8bit": "frankfurt_000000",
    "tour/a_1": "tour/a",
    "tour2/00001": "tour2/",
    "2/b": "2/b",
    "park bench": "park",
    "bench": "bench",
    "12": "",
}


@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes(name):
    assert prefix_of(name) == PREFIXES[name]


def test_versions_of_an_image_stay_together(tmp_path):
    """As in Roboflow's exports with augmentation."""
    shots = [f"{word}{index}_jpg" for index in range(12) for word in ("shot", "Shot", "SHOT")]
    names = [f"{shot}.rf.{number:x}ab" for number, shot in enumerate(shots)]
    train, val = parts(write(tmp_path, names), val_fraction=0.4)
    shots_in_val = {name.split(".")[0].lower() for name in val}
    assert not {name.split(".")[0].lower() for name in train} & shots_in_val
    assert len(val) == 3 * len(shots_in_val)
    assert shots_in_val == {
        f"shot{index}_jpg" for index in range(12) if position(f"shot{index}_jpg") < 0.4
    }


# --- Options that cannot work ---

BAD = {
    "val_fraction=1": "val_fraction must be at least 0 and below 1",
    "val_fraction=-0.1": "val_fraction must be at least 0 and below 1",
    "val_fraction=nan": "val_fraction must be a finite number",
    "fold=0/5": "fold must be NUMBER/FOLDS, such as 1/5 to 5/5",
    "fold=6/5": "fold must be NUMBER/FOLDS, such as 1/5 to 5/5",
    "fold=1/1": "fold must be NUMBER/FOLDS, such as 1/5 to 5/5",
    "fold=2": "fold must be NUMBER/FOLDS, such as 1/5 to 5/5",
    f"fold=1/{'9' * 5000}": "fold must be NUMBER/FOLDS, such as 1/5 to 5/5",
    "split_by=scene": "split_by",
    "split_by=prefix": "split_by has no effect without --val_fraction or --fold",
    "split_seed=3": "split_seed has no effect without --val_fraction or --fold",
    "val_fraction=0.2 split_seed=-1": "split_seed must be between 0 and 4294967295",
    "val_fraction=0.2 fold=1/5": "fold cannot be combined with --val_fraction",
    "val_fraction=0.2 dataset=camvid": "val_fraction has no effect with --dataset=camvid",
}


@pytest.mark.parametrize("options", BAD, ids=lambda text: text[:20])
def test_bad_options(options):
    values = dict(option.split("=") for option in options.split())
    numbers = {"val_fraction": float, "split_seed": int}
    values = {name: numbers.get(name, str)(value) for name, value in values.items()}
    with raises_line(BAD[options]) as error:
        DataConfig(**{"dataset": "folder", **values})
    assert "\n" not in str(error.value)


def test_parts_that_are_empty(tmp_path):
    root = write(tmp_path, NAMES[:4])
    with raises_line("val_fraction=0.0001: none of the 4 images are in the validation part; give "):
        open_dataset(config(root, val_fraction=0.0001), "val")
    with raises_line("val_fraction=0.9999: none of the 4 images are in the training part; give "):
        open_dataset(config(root, val_fraction=0.9999), "train")
    free = next(f for f in range(1, 100) if all(int(position(n) * 99) != f - 1 for n in NAMES[:4]))
    with raises_line(
        f"fold={free}/99: none of the 4 images are in the validation part; give anoth"
    ):
        open_dataset(config(root, fold=f"{free}/99"), "train")
    with raises_line("split_by=prefix: all 4 images have the prefix 'park', so they cannot be div"):
        open_dataset(config(root, val_fraction=0.5, split_by="prefix"), "train")


def of_class(value: int) -> np.ndarray:
    return np.full((8, 9), value, np.uint8)


@pytest.mark.parametrize(
    ("part", "other"), [("training", "validation"), ("validation", "training")]
)
def test_a_class_in_one_part_only(part, other, tmp_path, caplog):
    """Class 2 is in park_000 only, classes 0 and 1 are everywhere."""
    root = write(tmp_path, NAMES)
    (root / "classes.txt").write_text("ground\nwater\nboat\n")
    for name in NAMES:
        half = np.where(np.arange(8)[:, None] < 4, of_class(0), of_class(2 * (name == NAMES[0])))
        Image.fromarray(half.astype(np.uint8)).save(root / f"labels/{name}.png")
    at = int(position(NAMES[0]) * 2)  # the fold of two that validates on park_000
    data = config(root, fold=f"{at + 1 if part == 'training' else 2 - at}/2")
    sources = [open_dataset(data, split) for split in ("train", "val")]
    with raises_line(
        f"fold={data.fold}: the {part} part has no pixel of 'boat', which the {other} part has; "
        "give another --split_seed, or fewer folds"
    ):
        require_classes_in_parts(*sources, data)
    problems = check_dataset(data).problems
    assert [problem.kind for problem in problems] == [IN_ONE_PART]
    assert f"the {part} part has no pixel of 'boat'" in problems[0].message
    fraction = config(root, val_fraction=0.5)
    parts_of_it = [open_dataset(fraction, split) for split in ("train", "val")]
    caplog.clear()
    require_classes_in_parts(*parts_of_it, fraction)
    empty = "training" if position(NAMES[0]) < 0.5 else "validation"
    assert f"the {empty} part has no pixel of 'boat'" in caplog.text.replace("`", "")
    # A class without a pixel in either part is accepted.
    Image.fromarray(of_class(0)).save(root / f"labels/{NAMES[0]}.png")
    require_classes_in_parts(*(open_dataset(data, split) for split in ("train", "val")), data)
    assert not check_dataset(data).problems


def test_training_refuses_a_fold_without_a_class(tmp_path, capsys):
    root = write(tmp_path / "set", NAMES)
    (root / "classes.txt").write_text("ground\nwater\nboat\n")
    for name in NAMES:
        Image.fromarray(of_class(int(name == NAMES[0]))).save(root / f"labels/{name}.png")
    fold = f"{int(position(NAMES[0]) * 2) + 1}/2"
    status = script("train.py")(
        f"--dataset_dir={root}", "--dataset=folder", f"--fold={fold}", "--epochs=1",
        f"--train_logdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert status == 1
    assert f"--fold={fold}: the training part has no pixel of 'water'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["val", "Valid"])
def test_a_dataset_with_a_validation_split(name, tmp_path):
    root = write(tmp_path, NAMES, "images/train/{}.jpg", "labels/train/{}.png")
    write(root, ("v_1", "v_2"), f"images/{name}/{{}}.jpg", f"labels/{name}/{{}}.png")
    with raises_line(
        "val_fraction=0.2 has no effect: .* has the split 'val'; leave the option out"
    ):
        open_dataset(config(root, val_fraction=0.2), "train")
    assert check_dataset(config(root, fold="1/5"), ["train", "val"]).wrong
    # An evaluation on another split of a dataset without a validation split.
    (root / f"images/{name}").rename(root / "images/test")
    (root / f"labels/{name}").rename(root / "labels/test")
    source = open_dataset(config(root, val_fraction=0.2, eval_split="test"), "test")
    assert source.names == ("v_1", "v_2")
    assert len(open_dataset(config(root, val_fraction=0.2), "train")) < len(NAMES)
    # The images that a run was trained on.
    train = parts(root, val_fraction=0.2)[0]
    assert (
        set(open_dataset(config(root, val_fraction=0.2, eval_split="train"), "train").names)
        == train
    )


def test_the_option_is_named_if_the_images_are_not_sorted_into_splits(tmp_path):
    root = write(tmp_path, NAMES[:4])
    says = "splits for --train_split and --eval_split: none; --val_fraction=0.2 sets a fifth of"
    with raises_line(says):
        open_dataset(config(root), "train")
    write(root, NAMES[4:8], "images/city/{}.jpg", "labels/city/{}.png")  # a folder, but no split
    with raises_line("splits for .*: city; --val_fraction=0.2 sets a fifth of"):
        open_dataset(config(root), "train")
    assert len(parts(root, val_fraction=0.5)[0] | parts(root, val_fraction=0.5)[1]) == 8
    write(root, NAMES[:4], "images/training/{}.jpg", "labels/training/{}.png")
    with raises_line(
        "it has no split 'train'; splits for .*: city, training"
    ):  # not mixed with others
        open_dataset(config(root, val_fraction=0.2), "train")


def test_records_in_the_folder_have_their_own_splits(tmp_path):
    root = write(tmp_path / "set")
    (tmp_path / "records").mkdir()
    for split in ("train", "val"):
        arguments = (f"--dataset_dir={root}", "--dataset=folder", f"--splits={split}")
        build = script("build_tfrecords.py")
        assert build(*arguments, "--val_fraction=0.3", f"--output_dir={tmp_path}/records") == 0
    records = DataConfig(dataset="tfrecord", dataset_dir=str(tmp_path / "records"))
    assert set(open_dataset(records, "val").names) == parts(root, val_fraction=0.3)[1]
    with raises_line("val_fraction has no effect on the records in"):
        open_dataset(config(tmp_path / "records", val_fraction=0.3), "train")


# --- Training ---


@pytest.mark.slow
def test_a_run_records_its_parts(tiny_flags, tmp_path, capsys):
    """Training, resuming, evaluation and pictures use the same images."""
    root = write(tmp_path / "set")
    run = tmp_path / "run"
    scenes = ("park", "road", "quay")
    seed = next(n for n in range(1, 99) if 0 < sum(position(s, n) < 0.3 for s in scenes) < 3)
    data = ("--dataset=folder", f"--dataset_dir={root}")
    train = (
        *tiny_flags,
        *data,
        "--val_fraction=0.3",
        "--split_by=prefix",
        f"--split_seed={seed}",
        f"--train_logdir={run}",
    )
    options = {"val_fraction": 0.3, "split_by": "prefix", "split_seed": seed}
    held_out = parts(root, **options)[1]
    assert len({name.partition("_")[0] for name in held_out}) in (1, 2)
    assert script("train.py")(*train, "--training_number_of_steps=1") == 0
    saved = json.loads((run / "config.json").read_text())["data"]
    assert {name: saved[name] for name in options} == options
    assert script("train.py")(*train, "--training_number_of_steps=1", "--split_seed=0") == 1
    assert (
        f"has a run with split_seed={seed}, but this one has split_seed=0"
        in capsys.readouterr().err
    )
    assert script("eval.py")(f"--checkpoint_dir={run}", f"--eval_logdir={tmp_path}/eval") == 0
    report = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert report["images"] == len(held_out)


def test_a_link_to_itself_is_skipped(tmp_path):
    root = write(tmp_path / "set", NAMES, "images/{}.jpg", "labels/{}.png")
    before = parts(root, val_fraction=0.3)
    (root / "images/self").symlink_to("self")
    (root / "images/loop").symlink_to(root / "images")
    assert parts(root, val_fraction=0.3) == before
