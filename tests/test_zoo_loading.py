"""Models and ImageNet backbones by name: downloaded, verified, converted, cached.

A local server replaces every host.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile

import keras
import numpy as np
import pytest
from contracts import ROOT, as_command_line, commands, label_blocks, noise, raises_line, script
from official_golden import SMALL, drawn_tensors
from PIL import Image
from test_convert_official import save_checkpoint

import deeplab_keras as dk
from deeplab_keras.checkpoints import download
from deeplab_keras.checkpoints.folder import named_weights, read_info
from deeplab_keras.config import UserError
from deeplab_keras.convert import official_deeplab, sssegmentation, torchvision
from deeplab_keras.convert.pth import write_pth
from deeplab_keras.convert.transfer import Rules, dump_weights
from deeplab_keras.models import segmentor
from deeplab_keras.zoo import downloads, loading
from deeplab_keras.zoo import official as zoo_official
from deeplab_keras.zoo import registry as zoo

NAME = "deeplabv3_mnv2_dm05_pascal_trainaug"
SMALL_CONFIG, SIZE = SMALL["mnv2_dm035_os32"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """An archive of a small network, in the format of the official ones, and its weights."""
    folder = tmp_path_factory.mktemp("release")
    model = segmentor.build_segmentor(SMALL_CONFIG, SIZE)
    tensors = drawn_tensors(model, SMALL_CONFIG)
    save_checkpoint(folder / NAME / "model.ckpt-30000", tensors)
    with tarfile.open(folder / "release.tar.gz", "w:gz") as file:
        file.add(folder / NAME, NAME)
    return (folder / "release.tar.gz").read_bytes(), tensors


@pytest.fixture
def zoo_server(server, release, cache, monkeypatch):
    """A stand-in for the official server, where one model has the small network."""
    monkeypatch.setattr(zoo_official, "ADDRESS", server.url)
    monkeypatch.setitem(zoo.MODELS, NAME, SMALL_CONFIG.replace(name=NAME))
    server.content = release[0]
    return server


def test_a_model_by_name_is_downloaded_once(zoo_server, release, cache):
    model = loading.load_model(NAME)
    kernel = named_weights(model)["aspp0_conv/kernel"]
    np.testing.assert_array_equal(kernel, release[1]["aspp0/weights"])
    archive = cache / "downloads" / zoo_official.RELEASES[NAME].file
    assert (
        archive.read_bytes() == release[0] and (archive.parent / f"{archive.name}.sha256").exists()
    )

    archive.unlink()  # from now on, the converted folder is used
    np.testing.assert_array_equal(
        named_weights(loading.load_model(NAME, (64, 64)))["aspp0_conv/kernel"], kernel
    )
    assert zoo_server.asked == [None]


def test_a_folder_converted_by_another_version_is_converted_again(zoo_server, cache, monkeypatch):
    folder = loading.checkpoint_folder(NAME)
    assert folder == cache / "models" / NAME
    monkeypatch.setitem(zoo.MODELS, NAME, SMALL_CONFIG.replace(name=NAME, dropout_rate=0.4))
    loading.checkpoint_folder(NAME)
    assert zoo_server.asked == [None]
    assert '"dropout_rate": 0.4' in (folder / "config.json").read_text()
    (folder / "config.json").write_text('{"of": "the future"}')
    assert loading.load_model(NAME) and zoo_server.asked == [None]


def test_an_archive_that_was_downloaded_manually(zoo_server, release, cache):
    zoo_server.status = 404
    with pytest.raises(UserError) as caught:
        loading.load_model(NAME)
    file = zoo_official.RELEASES[NAME].file
    assert f"{zoo_server.url}{file}" in as_command_line(caught.value) and str(
        cache / "downloads"
    ) in str(caught.value)
    (cache / "downloads" / file).write_bytes(release[0])
    assert loading.load_model(NAME).name == NAME


def test_a_download_that_is_not_a_release_is_deleted(zoo_server, cache):
    zoo_server.content = b"<html>Please log in to this network</html>"
    with raises_line("damaged or not a tar archive .*; the download from .* was deleted"):
        loading.load_model(NAME)
    assert not list(cache.rglob("*.gz")) and not (cache / "models").exists()
    path = cache / "downloads" / zoo_official.RELEASES[NAME].file
    path.write_bytes(zoo_server.content)  # a manual download is reported and kept
    with raises_line(f"{path}: damaged .*; delete it to download it again from"):
        loading.load_model(NAME)
    assert path.exists()


def test_a_release_with_the_weights_of_another_model(zoo_server, cache, monkeypatch):
    monkeypatch.setitem(zoo.MODELS, NAME, SMALL_CONFIG.replace(name=NAME, depth_multiplier=0.5))
    with raises_line("seems to need --depth_multiplier=0.35"):
        loading.load_model(NAME)
    assert not (cache / "models").exists()


def test_a_misspelled_name_and_a_missing_folder(cache):
    with raises_line(f"did you mean '{NAME}'"):
        loading.load_model(NAME[:-1])
    with raises_line("runs/nothing: no such folder"):
        loading.load_model("runs/nothing")
    with raises_line(
        "^PSPNet: no such folder; models with this in their name: pspnet_mobilenetv2os8_voc, psp",
    ):
        loading.load_model("PSPNet")
    with raises_line("^deeplabv3_voc: .* in their name: deeplabv3_mobilenetv2os8_voc, deeplabv3p"):
        loading.load_model("deeplabv3_voc")
    with raises_line("^street: no such folder; give .* name of a model, which .*list.* lists"):
        loading.load_model("street")
    for name in ("imagenet", "torchvision_mobilenet_v2"):
        with raises_line(f"^{name}: a backbone .*; train .* with --initial_checkpoint={name}"):
            loading.load_model(name)


def test_every_name_has_an_address_and_a_license():
    files = set()
    papers = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "CITATION.bib").read_text(), re.MULTILINE))
    for name in zoo.MODELS:
        found = downloads.download_of(name)
        files |= set(found.urls)
        assert all(url.startswith(("https://", "http://download.tensorflow")) for url in found.urls)
        assert found.source in ("official_deeplab", "sssegmentation", "torchvision")
        assert found.license and found.papers and found.config.startswith("https://")
        assert set(found.papers) <= papers
        assert re.fullmatch(r"(sha384:[0-9a-f]{96}|sha256:[0-9a-f]{64}|)", found.checksum)
    assert len(files) == 18 * 2 + 12 + 2
    assert downloads.download_of("deeplabv3_mnv2_pascal_train_aug").checksum
    for found in downloads.IMAGENET.values():
        assert re.fullmatch("sha256:[0-9a-f]{8}", found.checksum) and len(found.urls) == 1


# === SSSegmentation's files ===

V3 = "lrasppnet_mobilenetv3sos8_voc"


def pth(path: pathlib.Path, model: keras.Model, rules: Rules) -> bytes:
    write_pth(path, dump_weights(model, rules))
    return path.read_bytes()


@pytest.fixture
def sssegmentation_server(server, cache, tmp_path, monkeypatch):
    """Has the file of one model under the name of earlier versions."""
    monkeypatch.setattr(downloads, "SSSEGMENTATION_FILES", server.url)
    config = zoo.get_config(V3).replace(depth_multiplier=0.25, head_channels=8)
    monkeypatch.setitem(zoo.MODELS, V3, config)
    server.model = segmentor.build_segmentor(config)
    content = pth(tmp_path / "x.pth", server.model, sssegmentation.rules(config))
    server.files = {f"{V3}_train.pth": content}
    return server


def same_weights(model: keras.Model, other: keras.Model) -> bool:
    ours, theirs = named_weights(model), named_weights(other)
    return ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


def test_the_second_file_name_is_tried(sssegmentation_server, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # PyTorch is not needed
    server = sssegmentation_server
    assert same_weights(dk.load_model(V3), server.model)
    assert server.names == [f"{V3}.pth", f"{V3}_train.pth"]
    assert read_info(cache / "models" / V3).class_names[1] == "aeroplane"


@pytest.mark.parametrize("name", [f"{V3}.pth", f"{V3}_train.pth"])
def test_either_file_may_be_put_into_the_cache(name, sssegmentation_server, cache):
    server = sssegmentation_server
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / name).write_bytes(server.files[f"{V3}_train.pth"])
    assert same_weights(dk.load_model(V3), server.model) and server.names == []


def test_both_names_are_in_the_message_if_there_is_neither(sssegmentation_server, cache):
    server = sssegmentation_server
    server.files = {"another.pth": b""}
    with raises_line(
        rf"^{server.url}{V3}.pth or {server.url}{V3}_train.pth: cannot be downloaded .the server "
        rf"returned 404 Not Found.; download one of them manually, .* put it into {cache}/downloads"
    ):
        dk.load_model(V3)
    assert not list(cache.rglob("*.pth*")) or not list(cache.rglob("*.part"))
    server.names.clear()
    server.status = 500  # a server that fails may have the first file later
    server.files = {}
    with raises_line("500 .*; download one of them manually"):
        dk.load_model(V3)
    assert server.names == [f"{V3}.pth"]


def test_a_file_that_has_changed_since_its_download_is_refused(sssegmentation_server, cache):
    dk.load_model(V3)
    path = cache / "downloads" / f"{V3}_train.pth"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    (cache / "models" / V3 / "weights.npz").unlink()
    with raises_line(f"{path}: damaged or changed; delete it to download it again"):
        dk.load_model(V3)


# === torchvision's files, and ImageNet backbones ===


def test_a_torchvision_model_must_have_its_checksum(server, cache, tmp_path, monkeypatch):
    name = "lraspp_mobilenet_v3_large"
    config = zoo.get_config(name).replace(depth_multiplier=0.25, head_channels=8)
    monkeypatch.setitem(zoo.MODELS, name, config)
    monkeypatch.setattr(downloads, "PYTORCH_FILES", server.url)
    model = segmentor.build_segmentor(config)
    server.content = pth(tmp_path / "x.pth", model, torchvision.rules(config))
    with raises_line("not the expected file; it was deleted .sha256 .*, expected d234d4eae9d55d5f"):
        dk.load_model(name)
    assert server.names == [f"{name}-d234d4ea.pth"] and not list(cache.rglob("*.pth"))
    digest = download._digest(tmp_path / "x.pth", "sha256")
    monkeypatch.setitem(downloads._TORCHVISION, name, digest)
    assert same_weights(dk.load_model(name), model)
    assert read_info(cache / "models" / name).name == "voc2012"


@pytest.mark.parametrize(
    ("project", "prefix"), [("openmmlab", "backbone."), ("openmmlab", ""), ("torchvision", "")]
)
def test_an_imagenet_backbone_by_name(project, prefix, server, cache, tmp_path, monkeypatch):
    """OpenMMLab's files have a prefix or not, depending on how they were saved."""
    name = f"{project}_mobilenet_v2"
    config = zoo.get_config("fcn_mobilenetv2os8_voc").replace(depth_multiplier=0.25)
    source = segmentor.build_segmentor(config)
    rules = {"openmmlab": sssegmentation, "torchvision": torchvision}[project]
    tensors = dump_weights(source, rules.imagenet_rules(config))
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    write_pth(tmp_path / "x.pth", {f"{prefix}{name}": value for name, value in tensors.items()})
    digest = download._digest(tmp_path / "x.pth", "sha256")
    found = downloads.Download(
        (f"{server.url}{name}-{digest[:8]}.pth",), "", "", (), f"sha256:{digest[:8]}"
    )
    monkeypatch.setitem(downloads.IMAGENET, name, found)
    server.content = (tmp_path / "x.pth").read_bytes()
    started = dk.build_segmentor(config, weights=name)
    theirs, ours = named_weights(source), named_weights(started)
    for weight in ("stem_conv/kernel", "block17_project_bn/moving_variance"):
        assert (ours[weight] == theirs[weight]).all(), weight
    assert (ours["logits/kernel"] != theirs["logits/kernel"]).any()
    assert ours.keys() == theirs.keys() and len(server.names) == 1
    with raises_line(f"unknown file, folder or model '{name[:-1]}'; did you mean"):
        dk.build_segmentor(config, weights=name[:-1])


# === Everything that takes a checkpoint takes a name ===


@pytest.fixture
def dataset(tmp_path):
    """Five classes, as the small network has."""
    root = tmp_path / "set"
    labels = label_blocks(3, 64, 64, classes=5, block=16)
    for index, label in enumerate(labels):
        picture = 60 * label[..., None] + noise(64, 64, 3, seed=index) / 16
        for folder, values in (("images", picture), ("labels", label)):
            (root / folder / "val").mkdir(parents=True, exist_ok=True)
            path = root / folder / "val" / f"{index}.png"
            Image.fromarray(values.astype(np.uint8)).save(path)
    (root / "classes.txt").write_text("".join(f"class_{index}\n" for index in range(5)))
    return root


@pytest.mark.parametrize("all_scripts", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_scripts_take_a_name(all_scripts, zoo_server, dataset, tmp_path, monkeypatch, capsys):
    """Results go to runs/NAME, which does not hide the model from the next script."""
    monkeypatch.chdir(tmp_path)
    data = ("--dataset=folder", f"--dataset_dir={dataset}")
    model = f"--checkpoint_dir={NAME}"
    assert script("eval.py")(model, *data) == 0
    printed = capsys.readouterr().out
    assert f"written: runs/{NAME}/eval_val/metrics.json" in printed
    pictures = f"--input={dataset}/images/val"
    assert script("predict.py")(model, pictures, "--output=out") == 0
    assert (tmp_path / "out" / "0_labels.png").exists()
    assert len(zoo_server.names) == 1
    if not all_scripts:
        return
    assert script("vis.py")(model, *data, "--vis_samples=1") == 0
    assert len(list((tmp_path / "runs" / NAME / "vis").iterdir())) >= 3
    export = ("--export_path=m.tflite", "--formats=tflite", "--input_size=64,64")
    assert script("export_model.py")(model, *data, *export) == 0
    assert script("eval.py")(f"--compare={NAME},{NAME}", *data) == 0
    assert len(zoo_server.names) == 1

    # The same labels from Python, by name, by path and from the exported file.
    image = np.asarray(Image.open(dataset / "images/val/0.png"))
    stored = np.asarray(Image.open("out/0_labels.png"))
    np.testing.assert_array_equal(dk.Predictor(NAME)(image), stored)
    np.testing.assert_array_equal(dk.Predictor("cache/models/" + NAME)(image), stored)
    assert np.mean(dk.Predictor("m.tflite")(image) == stored) > 0.995
    dk.load_model(NAME).save("m.keras")
    np.testing.assert_array_equal(dk.Predictor("m.keras")(image), stored)
    source = dk.open_dataset(dk.DataConfig(dataset="folder", dataset_dir=str(dataset)), "val")
    report = dk.evaluate(NAME, source, progress=False)
    written = json.loads((tmp_path / f"runs/{NAME}/eval_val/metrics.json").read_text())
    assert written["miou"] == pytest.approx(report.miou)


def test_another_number_of_classes(zoo_server, caplog):
    released = dk.load_model(NAME)
    model = dk.load_model(NAME, num_classes=2)
    ours, theirs = named_weights(model), named_weights(released)
    assert model.output_shape[-1] == 2 and ours.keys() == theirs.keys()
    differing = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert differing == {"logits/kernel", "logits/bias"}
    assert all((ours[name] == theirs[name]).all() for name in ours.keys() - differing)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == (f"{NAME} has 5 classes, not 2: random weights in logits; train them before use")
    assert dk.load_model(NAME, num_classes=5).output_shape[-1] == 5
    with raises_line("num_classes must be a whole number"):
        dk.load_model(NAME, num_classes="2")


def test_a_folder_of_results_does_not_hide_the_model(zoo_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME / "eval_val").mkdir(parents=True)
    assert loading.is_name(NAME) and dk.load_model(NAME).name == NAME


# === Every name, at its real size ===


def released(name: str, folder: pathlib.Path) -> tuple[str, bytes, dict[str, np.ndarray]]:
    """Returns a file as the authors would release it, its name, and its tensors by their names."""
    found, config = downloads.download_of(name), zoo.get_config(name)
    model, file = segmentor.build_segmentor(config), found.urls[-1].rpartition("/")[2]
    if found.source == "official_deeplab":
        tensors = drawn_tensors(model, config)
        save_checkpoint(folder / name / "model.ckpt-30000", tensors)
        with tarfile.open(folder / file, "w:gz", compresslevel=1) as archive:
            archive.add(folder / name, name)
        return file, (folder / file).read_bytes(), tensors
    rules = {"sssegmentation": sssegmentation, "torchvision": torchvision}[found.source]
    tensors = dump_weights(model, rules.rules(config))
    write_pth(folder / file, tensors)
    return file, (folder / file).read_bytes(), tensors


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_name_loads(name, server, cache, tmp_path, monkeypatch):
    for place in ("SSSEGMENTATION_FILES", "PYTORCH_FILES"):
        monkeypatch.setattr(downloads, place, server.url)
    monkeypatch.setattr(zoo_official, "ADDRESS", server.url)
    file, content, tensors = released(name, tmp_path)
    server.files = {file: content}
    found = downloads.download_of(name)
    monkeypatch.setattr(
        loading, "download_of", lambda name: dataclasses.replace(found, checksum="")
    )
    model = dk.load_model(name)
    rules = {
        "official_deeplab": official_deeplab,
        "sssegmentation": sssegmentation,
        "torchvision": torchvision,
    }[found.source]
    loaded = dump_weights(model, rules.rules(zoo.get_config(name)))
    assert loaded.keys() <= tensors.keys()
    assert all((loaded[tensor] == tensors[tensor]).all() for tensor in loaded)
    assert model.name == name and model.output_shape[-1] == zoo.get_config(name).num_classes
    keras.backend.clear_session()


@pytest.mark.slow
@pytest.mark.parametrize("start", downloads.IMAGENET)
def test_every_imagenet_backbone_starts_a_recipe(start, server, cache, tmp_path, monkeypatch):
    config = next(
        config
        for config in zoo.SSSEGMENTATION.values()
        if start.endswith(config.backbone) or start.endswith(f"{config.backbone}_small")
    )
    rules = sssegmentation if start.startswith("openmmlab") else torchvision
    model = segmentor.build_segmentor(config)
    tensors = dump_weights(model, rules.imagenet_rules(config))
    write_pth(tmp_path / "x.pth", tensors)
    server.content = (tmp_path / "x.pth").read_bytes()
    found = dataclasses.replace(
        downloads.IMAGENET[start], urls=(f"{server.url}{start}.pth",), checksum=""
    )
    monkeypatch.setitem(downloads.IMAGENET, start, found)
    started = dk.build_segmentor(config, weights=start)
    loaded = dump_weights(started, rules.imagenet_rules(config))
    assert loaded.keys() == tensors.keys()
    assert all((loaded[tensor] == tensors[tensor]).all() for tensor in loaded)
    keras.backend.clear_session()


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000])
def test_a_name_that_is_too_long(name, cache):
    with raises_line("cannot be read .File name too long|no such folder|no such file"):
        dk.load_model(name)
    with raises_line("cannot be read|no such"):
        dk.build_segmentor("lrasppnet_mobilenetv3sos8_voc", weights=name)


# === Models that are part of the package ===

BUILT_IN = """
import socket

def refuse(*arguments):
    raise AssertionError("no network")

socket.socket.connect = refuse
import numpy as np
import deeplab_keras as dk
predictor = dk.Predictor("synthetic_demo")
scenes = dk.open_dataset(dk.DataConfig(dataset="synthetic", eval_samples=64), "val")
counts = np.zeros((10, 10), np.int64)
for index in range(0, 64, 8):
    image, label = scenes.load(index)
    labels = predictor(image)
    seen = label < 10
    np.add.at(counts, (label[seen], labels[seen]), 1)
hits = np.diagonal(counts)
print((hits / (counts.sum(0) + counts.sum(1) - hits)).mean(), *predictor.info.class_names)
"""


def test_the_built_in_model_needs_no_network(tmp_path):
    """In a fresh process with an empty cache. The scores are counted here, on 8 of 64 scenes."""
    done = subprocess.run(
        [sys.executable, "-c", BUILT_IN],
        env={**os.environ, "DEEPLAB_KERAS_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    miou, *names = done.stdout.split()
    scores = json.loads((zoo.bundled_folder("synthetic_demo") / "metrics.json").read_text())
    assert abs(float(miou) - scores["miou"]) < 0.03 and scores["images"] == 64
    assert names[:3] == ["sand", "water", "grass"] and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_built_in_model_has_its_scores():
    source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
    report = dk.evaluate(dk.load_model("synthetic_demo"), source, progress=False)
    scores = json.loads((zoo.bundled_folder("synthetic_demo") / "metrics.json").read_text())
    assert abs(report.miou - scores["miou"]) < 1e-4 and report.images == scores["images"]


def test_the_built_in_model_is_a_model_of_the_zoo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (name,) = zoo.BUNDLED
    path = zoo.bundled_folder(name)
    assert loading.is_name(name) and loading.initial_weights(name) == str(path)
    assert zoo.list_models()[-1] == name and zoo.get_config(name).num_classes == 10
    assert sum(file.stat().st_size for file in path.iterdir()) < 2e6
    assert script("list_models.py")("--match=synthetic") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("10  - (built in)")
    with raises_line("did you mean 'synthetic_demo'"):
        dk.load_model("synthetic_dmo")
    assert script("vis.py")(f"--checkpoint_dir={name}", "--vis_samples=1") == 0
    assert len(list((tmp_path / "runs" / name / "vis").glob("*_panel.png"))) == 1


def test_a_model_that_cannot_be_built_in_answers_with_its_command():
    (name,) = zoo.NOT_BUNDLED
    for use in (dk.load_model, dk.Predictor, dk.get_config, loading.initial_weights):
        with raises_line(
            rf"^{name}: .*CC BY-NC.*train\.py --flagfile=configs/camvid/.*runs/camvid"
        ):
            use(name)
    ((called, arguments),) = commands(zoo.NOT_BUNDLED[name].replace("`", "").partition(": ")[2])
    assert called == "train.py" and script(called).parse(*arguments[:3])
    assert (ROOT / arguments[0].partition("=")[2]).is_file()
