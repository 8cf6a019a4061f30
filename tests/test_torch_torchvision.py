"""torchvision's classifiers as backbones, and its two segmentation models."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from contracts import ROOT, raises_line, script

from benchmarks.golden import draw, images
from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.cli import Command
from deeplab_keras.config import ModelConfig
from deeplab_keras.convert.conversion import convert

pytestmark = pytest.mark.torch
WHOLE = ("lraspp", "deeplabv3")


def preset(kind: str) -> str:
    return f"--flagfile={ROOT}/configs/base/torchvision_{kind}_mobilenet_v3_large.flags"


@functools.cache
def module(name: str):
    """Returns the PyTorch module with weights drawn by their names, so that all differ."""
    import torch
    import torchvision_reference as reference

    if name in WHOLE:
        built = reference.Segmentation(name)
    else:
        built = (
            reference.MobileNetV2()
            if name == "mobilenet_v2"
            else reference.MobileNetV3(name.split("_")[-1])
        )
    state = {}
    for key, tensor in built.state_dict().items():
        shape = list(tensor.shape)
        scale, kind = (
            (1.6 / max(np.prod(shape[1:]), 1)) ** 0.5 if len(shape) > 1 else 0.1,
            "conv_kernel",
        )
        if len(shape) == 1 and key.endswith(("weight", "running_var")):
            kind = "bn_gamma"
        state[key] = torch.from_numpy(draw(key, shape, kind, scale)) if shape else tensor
    built.load_state_dict(state)
    return built.eval()


def prepared(pictures: np.ndarray):
    """Normalizes like torchvision's transforms: to 0..1, then with mean and standard deviation."""
    import torch

    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return torch.from_numpy(
        ((pictures / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    )


def nhwc(tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


def test_the_modules_have_as_many_parameters_as_torchvision_publishes():
    import torchvision_reference as reference

    for name, count in reference.PARAMETERS.items():
        kind = name.removesuffix("_mobilenet_v3_large")
        assert sum(p.numel() for p in module(kind if kind in WHOLE else name).parameters()) == count


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("size", [(129, 193), (128, 192)])
def test_whole_models(kind, size, tmp_path):
    import torch

    torch.save(module(kind).state_dict(), tmp_path / "tv.pth")
    arguments = (preset(kind), f"--checkpoint={tmp_path}/tv.pth", f"--output={tmp_path}/ours")
    assert script("convert_checkpoint.py")("--source=torchvision", *arguments) == 0
    loaded, pictures = load_checkpoint(tmp_path / "ours"), images(*size)
    assert loaded.info.class_names[15] == "person"
    scores, auxiliary = module(kind)(prepared(pictures))
    layers = {"logits": nhwc(scores)} | (
        {} if auxiliary is None else {"auxiliary_logits": nhwc(auxiliary)}
    )
    view = keras.Model(
        loaded.model.input, {name: loaded.model.get_layer(name).output for name in layers}
    )
    for name, found in view(pictures.astype(np.float32)).items():
        difference = np.abs(np.asarray(found) - layers[name]).max() / layers[name].std()
        print(
            f"torchvision {kind} {name} {size}: largest difference {difference:.1e} of the "
            "standard deviation"
        )
        assert found.shape == layers[name].shape and difference < 1e-4


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_classifiers_give_the_backbone(name, tmp_path):
    import torch

    torch.save(module(name).state_dict(), tmp_path / "tv.pth")
    epsilon = 1e-5 if name == "mobilenet_v2" else 1e-3
    config = ModelConfig(
        backbone=name, head="fcn", head_channels=8, output_stride=32, backbone_bn_epsilon=epsilon
    )
    model, proof = convert("torchvision", str(tmp_path / "tv.pth"), config)
    assert "logits" in proof.skipped_layers and any(
        key.startswith("classifier.") for key in proof.ignored
    )
    layers = module(name).features
    last, depth = (
        ("block17_project_bn", 18) if name == "mobilenet_v2" else ("last_act", len(layers))
    )
    for size in ((129, 193), (128, 192)):
        found = keras.Model(model.input, model.get_layer(last).output)(
            images(*size).astype(np.float32)
        )
        expected = nhwc(layers[:depth](prepared(images(*size))))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_mobilenet_v2_that_is_older_than_torchvision_gives_the_same_features(zipped, tmp_path):
    """The blocks of those are one flat sequence, numbered by PyTorch."""
    import copy

    import torch

    network = copy.deepcopy(module("mobilenet_v2"))
    for block in network.features[1:18]:
        layers = []
        for part in block.conv:
            layers += part if isinstance(part, torch.nn.Sequential) else [part]
        block.conv = torch.nn.Sequential(*layers)
    assert "features.2.conv.7.running_var" in network.state_dict()
    content = {"epoch": 1, "arch": "mobilenet_v2", "state_dict": network.state_dict()}
    path = tmp_path / "old.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    config = ModelConfig(head="fcn", head_channels=8, output_stride=32, backbone_bn_epsilon=1e-5)
    model, _ = convert("torchvision", str(path), config)
    found = keras.Model(model.input, model.get_layer("block17_project_bn").output)(
        images(129, 193).astype(np.float32)
    )
    expected = nhwc(network.features[:18](prepared(images(129, 193))))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_two_tensors_swapped_in_the_file_give_other_features(tmp_path):
    import torch

    state = dict(module("mobilenet_v3_small").state_dict())
    one, other = "features.5.block.3.0.weight", "features.6.block.3.0.weight"
    assert state[one].shape == state[other].shape
    state[one], state[other] = state[other], state[one]
    torch.save(state, tmp_path / "tv.pth")
    config = ModelConfig(
        backbone="mobilenet_v3_small",
        head="fcn",
        head_channels=8,
        output_stride=32,
        backbone_bn_epsilon=1e-3,
    )
    model, _ = convert("torchvision", str(tmp_path / "tv.pth"), config)
    found = keras.Model(model.input, model.get_layer("last_act").output)(
        images(129, 193).astype(np.float32)
    )
    expected = nhwc(module("mobilenet_v3_small").features(prepared(images(129, 193))))
    assert np.abs(found - expected).max() > 0.1 * np.std(expected)


def test_another_file_is_named(tmp_path):
    import torch

    torch.save(module("lraspp").state_dict(), tmp_path / "tv.pth")
    config = Command(["convert_checkpoint.py", preset("deeplabv3")], ModelConfig).model_config()
    with raises_line("it seems to be torchvision's lraspp_mobilenet_v3_large, 21 classes"):
        convert("torchvision", str(tmp_path / "tv.pth"), config)
