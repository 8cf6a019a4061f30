"""predict.py: finding inputs, writing results, and errors for invalid files."""

from __future__ import annotations

import gc
import pathlib
import subprocess
import sys
import weakref
import zlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
from contracts import ROOT, as_command_line, noise, raises_line, script
from PIL import Image, features

from deeplab_keras import prediction
from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import EvalConfig, PredictConfig, UserError
from deeplab_keras.data.datasets.ade20k import ADE20K, ADE20K_151
from deeplab_keras.data.datasets.cityscapes import CITYSCAPES, LABEL_MAP
from deeplab_keras.data.datasets.voc2012 import VOC2012
from deeplab_keras.data.info import DatasetInfo, info_for_classes, pascal_palette
from deeplab_keras.inference import Predictor, open_image, open_picture
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import HOST
from deeplab_keras.prediction import Input, Results, find_inputs
from deeplab_keras.prediction import images as images_module
from deeplab_keras.prediction import results as results_module
from deeplab_keras.prediction.images import ImageJob
from deeplab_keras.prediction.inputs import IMAGES
from deeplab_keras.visualization import class_colors, colorize, legend, overlay

# Pillow 11.0 warns about the name of a feature that it does not have.
AVIF = "avif" in features.features | features.modules and features.check("avif")
COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
INFO = DatasetInfo("three", ("sky", "tree", "car"), COLORS)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(noise(height, width, 3, seed=seed).astype(np.uint8))


def put(path: pathlib.Path, height: int = 6, width: int = 9, **options: object) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(height, width, seed=zlib.crc32(path.name.encode())).save(path, **options)
    return path


def strongest_channel(classes: int = 3) -> keras.Model:
    """A network whose label is the strongest of red, green and blue; it predicts no other class."""
    image = keras.Input((None, None, 3))
    conv = keras.layers.Conv2D(classes, 1)
    model = keras.Model(image, conv(image))
    conv.set_weights(
        [np.eye(3, classes)[None, None], np.where(np.arange(classes) < 3, 0.0, -999.0)]
    )
    return model


def config(tmp_path: pathlib.Path, **values: object) -> PredictConfig:
    return PredictConfig(
        **{"checkpoint_dir": "x", "input": "x", "output": str(tmp_path / "out")} | values
    )  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., ImageJob]:
    """Predicts a folder with `strongest_channel`."""

    def run(
        source: pathlib.Path, eval_config: EvalConfig = EvalConfig(), **values: object
    ) -> ImageJob:
        settings = config(tmp_path, **values)
        found = find_inputs(str(source), settings.output)
        results = Results(settings, INFO, eval_config.palette)
        done = ImageJob(
            Predictor(strongest_channel(), eval_config),
            results,
            settings,
            Progress(len(found), "t"),
        )
        done.run(found)
        return done

    return run


# --- Inputs ---


def names(given: pathlib.Path | str, output: pathlib.Path | str = "") -> list[str]:
    return [item.name for item in find_inputs(str(given), output)]


def test_a_folder_is_searched_recursively(tmp_path):
    for name in (
        "b.JPG",
        "a/c.png",
        "a/d/e.webp",
        ".hidden.png",
        ".trash/f.png",
        "out/g.png",
        "film.mp4",
        "notes.txt",
    ):
        put(tmp_path / name, format="PNG")
    assert names(tmp_path, tmp_path / "out") == ["b", "film", "a/c", "a/d/e"]
    assert [item.kind for item in find_inputs(str(tmp_path), tmp_path / "out")] == [
        "image",
        "video",
        "image",
        "image",
    ]
    assert "out/g" in names(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    photos = tmp_path / "photos"
    for name in (
        "photos/a.png",
        "photos/real/r.png",
        "elsewhere/b.png",
        "elsewhere/deep/c.png",
        "other/d.png",
    ):
        put(tmp_path / name)
    for link, target in {
        "photos/camera1": tmp_path / "elsewhere",
        "photos/z": tmp_path / "elsewhere",
        "photos/again": photos / "real",
        "photos/up": tmp_path,
        "photos/self": photos,
        "photos/none": tmp_path / "none",
        "elsewhere/back": photos,
        "elsewhere/deep/other": tmp_path / "other",
        "photos/.hidden": tmp_path / "other",
    }.items():
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    expected = ["a", "camera1/b", "camera1/deep/c", "camera1/deep/other/d", "real/r"]
    assert names(photos) == expected
    (tmp_path / "linked").symlink_to(photos)
    assert names(tmp_path / "linked") == expected
    assert names(photos, photos / "real") == [name for name in expected if name != "real/r"], (
        "the results' folder"
    )


def test_a_pattern_finds_a_file_once_if_links_form_a_cycle(tmp_path):
    put(tmp_path / "photos/a.png"), put(tmp_path / "photos/real/b.png")
    (tmp_path / "photos/self").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/c.png").symlink_to("a.png")
    assert names(tmp_path / "photos/**/*.png") == ["a", "c", "real/b"]


def test_a_pattern_keeps_the_folders_that_it_matches(tmp_path):
    for name in ("x/a/1.png", "x/b/2.png", "x/b/c/3.png", "y/4.png"):
        put(tmp_path / name)
    assert names(tmp_path / "x/*/*.png") == ["a/1", "b/2"]
    assert names(tmp_path / "x/**/*.png") == ["a/1", "b/2", "b/c/3"]
    assert names(tmp_path / "*/4.png") == ["y/4"]


def test_a_file_can_have_any_name(tmp_path, monkeypatch):
    assert names(put(tmp_path / "a[1].png")) == ["a[1]"]
    assert names(put(tmp_path / "scan", format="PNG")) == ["scan"]
    monkeypatch.chdir(tmp_path)
    assert names("camera") == ["camera"] and find_inputs("camera:2")[0] == Input(
        "2", "camera_2", "camera"
    )


def test_names_that_differ_only_in_the_suffix_keep_it(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "sub/a.png", "c.png.png"):
        put(tmp_path / name)
    assert names(tmp_path) == ["a.jpg", "a.png", "b", "c.png.png", "sub/a"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{}/none.png", "--input={}/none.png: no such file or folder"),
        ("{}/none*.png", "contains no image or video; supported are .apng .avif .bmp"),
        ("{}", "--input={}: contains no image or video, among 1 other files"),
    ],
)
def test_nothing_found(tmp_path, given, message):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError) as error:
        find_inputs(given.format(tmp_path))
    assert message.format(tmp_path) in as_command_line(error.value)


# --- Outputs ---


def test_every_output_of_an_image(job, tmp_path):
    image = np.asarray(Image.open(put(tmp_path / "in/sub/a.png", 7, 11)))
    job(
        tmp_path / "in",
        outputs=("labels", "color", "overlay", "probabilities"),
        legend=False,
        probability_type="float32",
    )
    out = tmp_path / "out/sub"
    labels = np.asarray(Image.open(out / "a_labels.png"))
    assert labels.dtype == np.uint8 and (labels == image.argmax(-1)).all()
    assert (np.asarray(Image.open(out / "a_color.png")) == np.array(COLORS)[labels]).all()
    assert (np.asarray(Image.open(out / "a_overlay.png")) == overlay(image, labels, INFO)).all()
    with np.load(out / "a_probabilities.npz", allow_pickle=False) as file:
        assert file["class_names"].tolist() == ["sky", "tree", "car"]
        probabilities = file["probabilities"]
    scores = np.exp(image.astype(np.float64) - image.max(-1, keepdims=True))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, scores / scores.sum(-1, keepdims=True), atol=1e-6)
    assert sorted(path.name for path in out.iterdir()) == [
        "a_color.png",
        "a_labels.png",
        "a_overlay.png",
        "a_probabilities.npz",
    ]


def test_pictures_are_written_in_strips(job, tmp_path, monkeypatch):
    """Drawing and writing a picture in strips equals drawing it at once, including the legend."""
    image = np.asarray(Image.open(put(tmp_path / "a.png", 70, 90)))
    job(tmp_path / "a.png")
    whole = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "out").iterdir()}
    assert (
        set(whole) == {"a_labels.png", "a_color.png", "a_overlay.png"}
        and len(whole["a_overlay.png"]) > 70 + 8
    )
    labels = image.argmax(-1)
    assert (whole["a_overlay.png"][:70, :90] == overlay(image, labels, INFO)).all()
    below = legend(INFO, [0, 1, 2], 90)
    assert (whole["a_overlay.png"][78:] == below).all() and (
        whole["a_overlay.png"][70:78] == 255
    ).all()
    assert (whole["a_overlay.png"][:70, 90:] == 255).all(), "where a name is wider than the image"
    monkeypatch.setattr(results_module, "STRIP_ROWS", 9)
    rows, made = [], Results.picture
    monkeypatch.setattr(
        Results,
        "picture",
        lambda self, kind, *given: rows.append(len(given[1])) or made(self, kind, *given),
    )
    job(tmp_path / "a.png", overwrite=True)
    assert rows == 2 * [9, 9, 9, 9, 9, 9, 9, 7]
    for name, expected in whole.items():
        assert (np.asarray(Image.open(tmp_path / "out" / name)) == expected).all(), name


def test_a_huge_picture_is_freed_before_the_next_is_read(job, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "AHEAD", 100)
    monkeypatch.setattr(images_module, "HUGE", {"whole": 100})
    held: list[weakref.ref] = []
    alive = []

    def opened(path):
        gc.collect()
        alive.append(sum(picture() is not None for picture in held))
        found = open_picture(path)
        held.append(weakref.ref(found))
        return found

    monkeypatch.setattr(images_module, "open_picture", opened)
    for index in range(3):
        put(tmp_path / f"in/{index}.png", 20, 30)
    assert job(tmp_path / "in").done == 3
    # On Python 3.13, TensorFlow keeps the frames of the call that traced the network, and thereby
    # the first picture.
    kept_by_tensorflow = 1 if sys.version_info >= (3, 13) else 0
    assert alive == [0, kept_by_tensorflow, kept_by_tensorflow]


def test_probabilities_are_float16_by_default(job, tmp_path):
    job(put(tmp_path / "a.png"), outputs=("probabilities",))
    with np.load(tmp_path / "out/a_probabilities.npz") as file:
        assert file["probabilities"].dtype == np.float16


@pytest.mark.parametrize("palette", ["dataset", "color_blind"])
def test_the_legend_has_the_palette(job, tmp_path, palette):
    image = Image.fromarray(np.full((300, 400, 3), (10, 250, 20), np.uint8))  # only a tree
    image.save(tmp_path / "a.png")
    job(tmp_path / "a.png", EvalConfig(palette=palette))
    tree, sky = class_colors(INFO, palette)[[1, 0]]
    assert (np.asarray(Image.open(tmp_path / "out/a_color.png")) == tree).all()
    drawn = np.asarray(Image.open(tmp_path / "out/a_overlay.png"))
    assert (
        drawn[:300, :400]
        == overlay(np.asarray(image), np.ones((300, 400), np.uint8), INFO, palette=palette)
    ).all()
    assert (drawn[300:] == tree).all(-1).sum() > 50 and not (drawn[300:] == sky).all(-1).any()


def test_batches_and_tiles_do_not_change_results(job, tmp_path, monkeypatch):
    calls = []
    whole = Predictor.predict_batch
    monkeypatch.setattr(
        Predictor, "predict_batch", lambda self, x: calls.append(x.shape[:3]) or whole(self, x)
    )
    sizes = [(8, 12), (8, 12), (12, 8), (8, 12), (12, 8), (20, 30), (20, 30)]
    expected = {}
    for index, (height, width) in enumerate(sizes):
        expected[f"{index}_labels.png"] = np.asarray(
            Image.open(put(tmp_path / f"in/{index}.png", height, width))
        ).argmax(-1)
    job(
        tmp_path / "in",
        EvalConfig(eval_batch_size=2),
        outputs=("labels",),
        tile_size=(16, 16),
        tile_overlap=2,
    )
    tiles = [(2, 20, 20)] * 4  # of two images
    assert sorted(calls) == sorted([(2, 8, 12), (1, 8, 12), (2, 12, 8), *tiles])
    for name, labels in expected.items():
        assert (np.asarray(Image.open(tmp_path / "out" / name)) == labels).all(), name
    calls.clear()
    monkeypatch.setattr(images_module, "HUGE", {"whole": 500, "slide": 700})
    job(put(tmp_path / "big.png", 20, 30), outputs=("labels",))
    job(put(tmp_path / "big2.png", 20, 30), EvalConfig(eval_short_side=10), outputs=("labels",))
    assert calls == [(1, 20, 30)] * 2
    assert (
        np.asarray(Image.open(tmp_path / "out/big_labels.png"))
        == open_image(tmp_path / "big.png").argmax(-1)
    ).all()


def test_automatic_tiles_are_reported(job, tmp_path, monkeypatch, capsys):
    """Tiles can change labels compared with the whole image."""
    monkeypatch.setattr(images_module, "HUGE", {"whole": 500, "slide": 700})
    put(tmp_path / "big.png", 20, 30)
    job(tmp_path / "big.png", outputs=("labels",))
    told = (
        f"{tmp_path}/big.png: 30x20, above 0.0005 megapixels, is predicted in tiles of "
        "1024x1024; see tile_size\n"
    )
    assert capsys.readouterr().err.startswith(told)
    for config, options in [
        (EvalConfig(inference="slide"), {}),
        (EvalConfig(), {"tile_size": (16, 16)}),
    ]:
        job(tmp_path / "big.png", config, outputs=("labels",), overwrite=True, **options)
        assert "in tiles" not in capsys.readouterr().err


def test_a_photo_of_a_phone_is_predicted_at_once():
    assert images_module.HUGE["whole"] >= 4032 * 3024


def test_few_pictures_wait_at_a_time(job, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "AHEAD", 200)
    monkeypatch.setattr(images_module, "TOGETHER", 60)
    for index in range(8):
        put(tmp_path / f"in/{index}.png", 5 + index % 3, 9 + index % 2)
    assert job(tmp_path / "in", outputs=("labels",)).done == 8
    assert len(list((tmp_path / "out").iterdir())) == 8


def test_probabilities_of_a_huge_image_are_refused(job, tmp_path, monkeypatch, capsys):
    put(tmp_path / "in/big.png", 40, 40)
    put(tmp_path / "in/small.png", 8, 8)
    assert job(tmp_path / "in", outputs=("probabilities",), tile_size=(16, 16)).failed == 1
    assert "big.png: --outputs" not in capsys.readouterr().err
    monkeypatch.setattr(images_module, "MAX_PROBABILITIES", 1000)
    assert job(tmp_path / "in", outputs=("probabilities",)).failed == 1
    assert "big.png: its probabilities take 0.0 GiB" in capsys.readouterr().err


# --- Existing files ---


def test_existing_results_are_not_replaced_by_default(tmp_path):
    first, second = (Input(str(tmp_path / f"{name}.png"), name) for name in "ab")
    results = Results(config(tmp_path), INFO)
    assert results.check([first, second]) == [first, second]
    for kind in ("labels", "color", "overlay"):
        put(tmp_path / f"out/a_{kind}.png")
    put(tmp_path / "out/b_labels.png")
    with raises_line(r"a_labels.png \(and 3 more\) exists; give --overwrite"):
        results.check([first, second])
    assert Results(config(tmp_path, overwrite=True), INFO).check([first, second]) == [first, second]
    assert Results(config(tmp_path, skip_existing=True), INFO).check([first, second]) == [second]


def test_partial_files_of_a_killed_call_are_removed(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    left = [
        put(tmp_path / "out" / folder / f".a_labels.png.{HOST}.{killed.pid}.tmp", format="PNG")
        for folder in ("", "sub")
    ]
    for values in ({}, {"skip_existing": True}):
        Results(config(tmp_path, outputs=("labels",), **values), INFO).check(
            [Input("sub/a.jpg", "sub/a")]
        )
        assert [path.exists() for path in left] == [True, False], "only beside results of this call"
        left[1].touch()


def test_an_input_is_never_replaced(tmp_path):
    put(tmp_path / "out/a.png")
    put(tmp_path / "out/a_labels.png")
    with raises_line("a_labels.png is an input and would be replaced"):
        Results(config(tmp_path, overwrite=True), INFO).check(
            find_inputs(str(tmp_path / "out"), tmp_path / "out")
        )


# --- Submissions ---


def submitted(
    tmp_path: pathlib.Path, kind: str, info: DatasetInfo, name: str, labels: np.ndarray
) -> Image.Image:
    results = Results(config(tmp_path, submission=kind), info)
    item = Input(f"{name}.png", name)
    results.write(item, np.zeros((*labels.shape, 3), np.uint8), labels, None)
    (file,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert file == results.files(item)["submission"]
    return Image.open(file)


def test_cityscapes_submissions_have_label_ids_and_the_server_s_names(tmp_path):
    labels = np.arange(19, dtype=np.uint8).reshape(1, 19)
    written = np.asarray(
        submitted(
            tmp_path, "cityscapes", CITYSCAPES, "berlin/berlin_000000_000019_leftImg8bit", labels
        )
    )
    assert written.tolist() == [
        [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    ]
    assert [LABEL_MAP[label_id] for label_id in written[0]] == list(range(19))
    assert (
        tmp_path / "out/berlin_000000_000019_pred_labelIds.png"
    ).is_file()  # exactly one CITY_SEQUENCE_FRAME*.png
    with raises_line("its name must be CITY_SEQUENCE_FRAME_leftImg8bit"):
        Results(config(tmp_path, submission="cityscapes"), CITYSCAPES).files(
            Input("holiday.png", "holiday")
        )


def test_voc_submissions_are_palette_pictures_in_the_devkit_s_folder(tmp_path):
    labels = np.arange(21, dtype=np.uint8).reshape(3, 7)
    written = submitted(tmp_path, "voc", VOC2012, "2008_000006", labels)
    assert (tmp_path / "out/results/VOC2012/Segmentation/comp6_test_cls/2008_000006.png").is_file()
    assert written.mode == "P" and (np.asarray(written) == labels).all()
    assert (np.asarray(written.convert("RGB")) == np.array(pascal_palette(21))[labels]).all()


@pytest.mark.parametrize(("info", "first"), [(ADE20K, 0), (ADE20K_151, 1)])
def test_ade20k_submissions_count_from_one(tmp_path, info, first):
    labels = np.arange(first, first + 150, dtype=np.uint8).reshape(10, 15)
    written = submitted(tmp_path, "ade20k", info, "ADE_test_00000001", labels)
    assert written.mode == "L" and np.asarray(written).ravel().tolist() == list(range(1, 151))
    assert (tmp_path / "out/ADE_test_00000001.png").is_file()


@pytest.mark.parametrize(
    ("kind", "info"),
    [
        ("cityscapes", VOC2012),
        ("voc", CITYSCAPES),
        ("ade20k", VOC2012),
        ("ade20k", info_for_classes("n", ["a"] * 151)),
    ],
)
def test_submissions_of_other_classes_are_refused(tmp_path, kind, info):
    with raises_line(rf"^--submission={kind}: the model has .* give a model that was trained on"):
        Results(config(tmp_path, submission=kind), info)


def test_two_images_of_the_same_name_are_refused_in_a_submission(tmp_path):
    found = [Input("north/1.jpg", "north/1"), Input("south/1.jpg", "south/1")]
    with raises_line("north/1.jpg and south/1.jpg would both be written to 1.png"):
        Results(config(tmp_path, submission="voc"), VOC2012).check(found)


def test_images_of_all_formats_are_found_and_predicted(job, tmp_path):
    """All suffixes that are searched for, written by Pillow if it can, else as another format."""
    known = Image.registered_extensions()
    wanted = dict.fromkeys(IMAGES, "PNG") | {
        suffix: known[suffix] for suffix in IMAGES if known.get(suffix) in Image.SAVE
    }
    if not AVIF:
        del wanted[".avif"]
    assert {
        "AVIF",
        "BMP",
        "GIF",
        "JPEG",
        "JPEG2000",
        "PCX",
        "PPM",
        "QOI",
        "SGI",
        "TGA",
        "TIFF",
        "WEBP",
    } - set(wanted.values()) <= {"AVIF"} | ({"QOI"} - Image.SAVE.keys())  # Pillow 11 writes no QOI
    expected = {}
    for suffix, kind in wanted.items():
        path = tmp_path / "in" / f"of_{suffix[1:]}{suffix}"
        path.parent.mkdir(exist_ok=True)
        picture(12, 16).save(path, kind)
        with Image.open(path) as stored:  # lossy formats change pixels
            expected[path.stem] = np.asarray(stored.convert("RGB")).argmax(-1)
    done = job(tmp_path / "in", outputs=("labels",))
    assert (done.done, done.failed) == (len(wanted), 0)
    for name, labels in expected.items():
        assert (np.asarray(Image.open(tmp_path / "out" / f"{name}_labels.png")) == labels).all(), (
            name
        )


@pytest.mark.skipif(not AVIF, reason="this Pillow has no AVIF")
def test_a_damaged_avif_file_does_not_affect_others(job, tmp_path, capsys):
    """Truncated, zeroed and flipped bytes; Pillow determines which files can still be decoded."""
    source, random = tmp_path / "in", np.random.default_rng(0)
    source.mkdir()
    picture(48, 64).save(tmp_path / "whole.avif", quality=90)
    whole = (tmp_path / "whole.avif").read_bytes()
    pixels = whole.index(b"mdat")
    bad, kinds = set(), set()
    for index in range(120):
        data = bytearray(whole)
        start, end = ((0, 40), (40, pixels), (pixels, len(data)))[index // 4 % 3]
        where = random.integers(start, end, size=int(random.integers(1, 4)))
        if index % 4 == 0:
            del data[where[0] :]
        elif index % 4 == 1:
            data[where[0] : where[0] + 200] = bytes(len(data[where[0] : where[0] + 200]))
        else:
            for place in where:
                data[place] ^= int(random.integers(1, 256))
        path = source / f"damaged_{index:03}.avif"
        path.write_bytes(data)
        try:
            with Image.open(path) as opened:
                opened.load()
        except Exception as error:
            bad.add(path.name)
            kinds.add(type(error).__name__)
    assert 20 < len(bad) < 120 and {"RuntimeError", "UnidentifiedImageError"} <= kinds, (
        len(bad),
        kinds,
    )
    put(source / "good_first.png", 12, 16)
    (source / "good_last.avif").write_bytes(whole)

    done = job(source, outputs=("labels",))
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert (done.done, done.failed, len(errors)) == (122, len(bad), len(bad))
    assert {
        pathlib.Path(line.removeprefix("error: ").split(": ")[0]).name for line in errors
    } == bad
    written = {path.name.removesuffix("_labels.png") for path in (tmp_path / "out").iterdir()}
    assert (
        written == {path.stem for path in source.iterdir() if path.name not in bad}
        and {"good_first", "good_last"} <= written
    )


TURNS = {  # EXIF orientation -> function that makes the stored pixels upright
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize(
    "kind", ["JPEG", "MPO", "PNG", "PNG with the note behind its pixels", "WEBP", "TIFF"]
)
def test_exif_orientation_in_all_formats(job, tmp_path, kind):
    source, suffix = (
        tmp_path / "in",
        {"JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "TIFF": "tif"}.get(kind, "png"),
    )
    source.mkdir()
    flags = {
        "MPO": {"save_all": True, "append_images": [picture(12, 16)]},
        "WEBP": {"lossless": True},
    }.get(kind, {})
    expected = {}
    for turn, upright in TURNS.items():
        exif, path = Image.Exif(), source / f"turn_{turn}.{suffix}"
        exif[0x0112] = turn
        picture(12, 16).save(path, kind.split()[0], exif=exif, **flags)
        if "behind" in kind:
            data = path.read_bytes()
            at = data.index(b"eXIf") - 4
            note = data[at : at + 12 + int.from_bytes(data[at : at + 4])]
            path.write_bytes(data.replace(note, b"")[:-12] + note + data[-12:])
        with Image.open(path) as stored:
            assert stored.format == kind.split()[0]
            pixels = np.asarray(
                stored if suffix == "jpg" else picture(12, 16)
            )  # Pillow rotates some other formats itself
        expected[path.stem] = upright(pixels).argmax(-1)
    assert job(source, outputs=("labels",)).failed == 0
    for name, labels in expected.items():
        found = np.asarray(Image.open(tmp_path / "out" / f"{name}_labels.png"))
        assert found.shape == labels.shape and (found == labels).all(), name


# --- The command ---


@pytest.mark.slow
def test_the_command_on_a_mixed_folder(tiny_run, tmp_path):
    """Mixed sizes and modes, names with spaces and umlauts, and damaged files."""
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "süd").mkdir(parents=True)
    base = picture(40, 60)
    base.save(folder / "a b.png")
    base.save(folder / "same.png")
    base.convert("L").resize((33, 47)).save(folder / "same.jpg")
    base.convert("RGBA").save(folder / "süd" / "clear.png")
    base.convert("P").save(folder / "süd" / "few.gif")
    base.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(np.asarray(base.convert("L"), np.uint16) * 257).save(folder / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held in portrait orientation
    base.save(folder / "turned.jpg", exif=turned)
    (folder / "broken.jpg").write_bytes((folder / "same.jpg").read_bytes()[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image")

    flags = (f"--checkpoint_dir={tiny_run}", f"--input={folder}", f"--output={out}")
    command = [sys.executable, "tests/toy.py", "scripts/predict.py", *flags]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 3 and all(
        any(name in line for line in errors) for name in ("broken.jpg", "empty.png", "text.png")
    )
    assert "Traceback" not in done.stderr and "images/s" in done.stderr
    assert done.stdout.splitlines()[-1] == f"written: 8 of 11 images to {out}; 3 failed"
    sizes = {
        str(path.relative_to(out)): Image.open(path).size for path in out.rglob("*_labels.png")
    }
    assert sizes == {
        "a b_labels.png": (60, 40),
        "same.png_labels.png": (60, 40),
        "same.jpg_labels.png": (33, 47),
        "print_labels.png": (60, 40),
        "deep_labels.png": (60, 40),
        "turned_labels.png": (40, 60),
        "süd/clear_labels.png": (60, 40),
        "süd/few_labels.png": (60, 40),
    }
    assert len([path for path in out.rglob("*") if path.is_file()]) == 3 * 8
    labels = np.asarray(Image.open(out / "a b_labels.png"))
    checkpoint = load_checkpoint(tiny_run)
    assert (labels == Predictor(checkpoint.model)(base)).all()
    assert (
        np.asarray(Image.open(out / "a b_color.png")) == colorize(labels, checkpoint.info)
    ).all()


def test_resuming_with_skip_existing(tiny_run, tmp_path, capsys):
    put(tmp_path / "in/a.png", 33, 40)
    arguments = [
        f"--checkpoint_dir={tiny_run}",
        f"--input={tmp_path}/in",
        f"--output={tmp_path}/out",
        "--outputs=labels",
    ]
    assert script("predict.py")(*arguments) == 0
    put(tmp_path / "in/b.png", 33, 40)
    assert script("predict.py")(*arguments) == 1
    assert "a_labels.png exists" in capsys.readouterr().err
    assert script("predict.py")(*arguments, "--skip_existing") == 0
    assert "written: 1 of 2 images" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_labels.png",
        "b_labels.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--outputs=labels,pictures"],
            "unknown --outputs 'pictures'; known: coco, color, labelme, labels, overlay, "
            "probabilities",
        ),
        (
            ["--outputs=labels", "--submission=voc"],
            "--submission cannot be combined with --outputs",
        ),
        (
            ["--outputs=coco", "--skip_existing"],
            "--skip_existing cannot be combined with --outputs",
        ),
        (["--polygon_tolerance=-1"], "--polygon_tolerance must be between 0 and 100"),
        (["--submission=coco"], "unknown --submission 'coco'; "),
        (["--palette=red"], "unknown --palette 'red'; known: color_blind, dataset"),
        (["--tile_size=5"], "Received: --tile_size=5"),
        (["--overwrite", "--skip_existing"], "--skip_existing cannot be combined with --overwrite"),
        (["--eval_stride=999,999", "--inference=slide"], "--eval_stride=999,999 leaves gaps"),
        (["--submission=voc"], "--submission=voc: the model has the"),
    ],
)
def test_mistakes_get_one_line(tiny_run, tmp_path, capsys, arguments, message):
    for name in "abc":
        put(tmp_path / f"in/{name}.png", 40, 40)
    given = (f"--checkpoint_dir={tiny_run}", f"--input={tmp_path}/in", f"--output={tmp_path}/out")
    assert script("predict.py")(*given, *arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_max_megapixels(tiny_run, tmp_path, capsys, recwarn):
    """The flag raises Pillow's own limit."""
    Image.new("RGB", (1100, 1000)).save(tmp_path / "large.png")
    given = (
        f"--checkpoint_dir={tiny_run}",
        f"--input={tmp_path}/large.png",
        f"--output={tmp_path}/out",
    )
    before = Image.MAX_IMAGE_PIXELS
    assert script("predict.py")(*given, "--max_megapixels=1") == 1
    assert "large.png: more than 1 megapixels; raise --max_megapixels" in capsys.readouterr().err
    assert script("predict.py")(*given, "--max_megapixels=2", "--outputs=labels") == 0
    assert before == Image.MAX_IMAGE_PIXELS
    assert not [w for w in recwarn.list if issubclass(w.category, Image.DecompressionBombWarning)]


def test_a_picture_is_opened_upright_and_detached_from_its_file(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(6, 9).save(tmp_path / "a.png", exif=turned)
    opened = open_picture(tmp_path / "a.png")
    (tmp_path / "a.png").unlink()
    assert opened.size == (6, 9)
    assert (np.asarray(opened) == np.rot90(np.asarray(picture(6, 9)), -1)).all()


def test_predict_in_python(tiny_run, tmp_path):
    lines: list[str] = []
    put(tmp_path / "a.png", 40, 40)
    settings = PredictConfig(
        checkpoint_dir=str(tiny_run), input=str(tmp_path / "a.png"), output=str(tmp_path / "out")
    )
    summary = prediction.predict(settings, log=lines.append)
    assert (summary.total, summary.failed, summary.skipped) == (1, 0, 0) and lines == [str(summary)]
