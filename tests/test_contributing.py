"""The example backbone, head and dataset of CONTRIBUTING.md work as written there."""

from __future__ import annotations

import re

import keras
import numpy as np
import pytest
from contracts import ROOT, label_blocks, noise, raises_line, script
from PIL import Image

from deeplab_keras.config import (
    OUTPUT_STRIDES,
    DataConfig,
    ModelConfig,
    backbones,
    heads,
)
from deeplab_keras.data.datasets.catalog import FILES, open_files
from deeplab_keras.data.registry import DATASETS, open_dataset
from deeplab_keras.models.backbones import BACKBONES, build_backbone
from deeplab_keras.models.heads import HEADS
from deeplab_keras.training.optimizers import BACKBONE, LAST_LAYERS

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BACKBONE_MODULE, HEAD_MODULE, USAGE, DATASET_MODULE = re.findall(
    r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL
)


def run(source: str) -> dict:
    names: dict = {}
    exec(compile(source, "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", run(BACKBONE_MODULE)["plain"])
    monkeypatch.setitem(backbones.BACKBONES, "plain", backbones.BackboneConfig)
    monkeypatch.setitem(HEADS, "context", run(HEAD_MODULE)["context"])
    monkeypatch.setitem(heads.HEADS, "context", heads.HeadConfig)


@pytest.fixture
def roads(monkeypatch, tmp_path):
    """The folder of a synthetic dataset with the example's layout."""
    monkeypatch.setitem(FILES, "roads", run(DATASET_MODULE)["find_roads"])
    monkeypatch.setitem(DATASETS, "roads", open_files)
    for seed, split in enumerate(("train", "val")):
        for folder in ("images", "masks"):
            (tmp_path / split / folder).mkdir(parents=True)
        image = noise(24, 32, 3, seed=seed).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / split / f"images/{split}_1.jpg")
        ids = label_blocks(1, 24, 32, classes=3, seed=seed, ignore_label=None)[0]
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / split / f"masks/{split}_1.png")
    return tmp_path


def test_the_network_computes_logits(network, capsys):
    model = run(USAGE)["model"]
    assert "(1, 129, 193, 4)" in capsys.readouterr().out
    assert model.get_layer("logits").output.shape == (None, 9, 13, 4)
    layers = [layer.name for layer in model.layers if layer.weights]
    head = {name for name in layers if not re.search(BACKBONE, name)}
    assert head == {"context_conv", "context_bn", "logits"} and len(layers) == 12 + len(head)
    assert all(any(part in name for part in (*LAST_LAYERS, "context")) for name in head)
    assert '"plain": plain.plain' in PAGE and '"context": context.context' in PAGE


@pytest.mark.parametrize("output_stride", OUTPUT_STRIDES)
def test_the_backbone_keeps_its_contract(network, output_stride):
    config = ModelConfig(backbone="plain", output_stride=output_stride)
    features = build_backbone(keras.Input((65, 98, 3)), config)
    for level, channels in enumerate((16, 24, 32, 64, 96), start=1):
        stride = min(2**level, output_stride)
        assert features[f"c{level}"].shape == (None, -(-65 // stride), -(-98 // stride), channels)


def test_the_dataset_opens_and_passes_the_check(roads, capsys):
    source = open_dataset(DataConfig(dataset="roads", dataset_dir=str(roads)), "train")
    assert source.names == ("train_1",) and source.info.class_names == ("background", "road")
    stored = np.asarray(Image.open(roads / "train/masks/train_1.png"))
    np.testing.assert_array_equal(source.load(0)[1], np.where(stored == 2, 255, stored))
    arguments = ("--dataset=roads", f"--dataset_dir={roads}", f"--output={roads}/report")
    assert script("check_dataset.py")(*arguments) == 0
    assert "train: 1 of 1 pairs read" in capsys.readouterr().out
    assert '"roads": find_roads' in PAGE


def test_the_dataset_s_mistakes_get_one_line(roads):
    (roads / "val/masks/val_1.png").rename(roads / "elsewhere.png")
    (roads / "val/masks").rmdir()
    with raises_line("the folder val/masks of the dataset roads is not in it; expected: {train"):
        open_dataset(DataConfig(dataset="roads", dataset_dir=str(roads)), "val")


def test_the_places_of_the_page_exist():
    table = PAGE.partition("## Where things go")[2].partition("## Add a backbone")[0]
    rows = re.findall(
        r"^\| \S.*?\| `(\S+)`.*?\| (?:`(\w+)` in (?:`(\S+)`|the same file))?", table, re.M
    )
    assert len(rows) >= 6
    for path, name, other in rows:
        known = re.split(r"[A-Z]", path)[0]  # of deeplab_keras/models/heads/NAME.py the folder
        assert (ROOT / known).exists(), path
        if name:
            registry = ROOT / "deeplab_keras" / other if other else ROOT / path
            assert re.search(rf"^{name}\b.* = ", registry.read_text(), re.M), (name, registry)
