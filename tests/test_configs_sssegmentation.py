"""The eighteen recipes have the values of the reference's configs.

See docs/reference/sssegmentation.md#systems, docs/reference/sssegmentation.md#training and
docs/reference/sssegmentation.md#data.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from contracts import ROOT, script
from dataset_trees import TREES
from test_configs import read
from test_zoo import TABLE

from deeplab_keras.config import NORMALIZATIONS, EvalConfig
from deeplab_keras.data import pipeline
from deeplab_keras.data.registry import open_dataset
from deeplab_keras.training.optimizers import MomentumSGD, make_optimizer
from deeplab_keras.zoo import registry as zoo

# Dataset -> its name here, training split, training images, crop, short side, epochs with
# MobileNetV2 and with V3.
DATASETS = {
    "voc": ("voc2012", "trainaug", 10582, (512, 512), 512, 60, 180),
    "ade20k": ("ade20k", "train", 20210, (512, 512), 512, 130, 390),
    "cityscapes": ("cityscapes", "train", 2975, (512, 1024), 1024, 220, 660),
}
# of the reference's scripts; each GPU's loader rounds its share of the images up and drops the last
# batch
GPUS = 8
RECIPES = {name: ROOT / "configs" / name.rsplit("_", 1)[1] / f"{name}.flags" for name in TABLE}


def light(name: str) -> bool:
    return name.startswith("lraspp")


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_reference_s(name, monkeypatch):
    model, data, training = read(RECIPES[name], monkeypatch)
    dataset, split, images, crop, short, *epochs = DATASETS[name.rsplit("_", 1)[1]]
    assert model == zoo.get_config(name)
    assert (data.dataset, data.train_split, data.eval_split) == (dataset, split, "val")
    assert data.train_crop_size == crop
    assert (data.min_resize_value, data.max_resize_value) == (short, 2048)
    assert (data.min_scale_factor, data.max_scale_factor, data.scale_factor_step_size) == (
        0.5,
        2,
        0,
    )
    assert (data.crop_max_category_share, data.padding_position) == (0.75, "center")
    assert data.random_flip and data.photometric_distortion
    batch = 8 if dataset == "cityscapes" and not light(name) else 16
    assert data.train_batch_size == batch
    loader = math.ceil(images / GPUS) // (batch // GPUS)
    assert training.training_number_of_steps == epochs[light(name)] * loader
    assert (training.save_interval_steps, training.eval_interval_epochs) == (loader, 10)
    assert (training.loss, training.auxiliary_loss_weight, model.auxiliary_head) == (
        "cross_entropy",
        0.4,
        not light(name),
    )
    assert (training.label_smoothing, training.ema_momentum, training.precision) == (
        0,
        0,
        "float32",
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_test_protocol_is_the_reference_s(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    evaluation = script("eval.py").parse(f"--flagfile={RECIPES[name]}").config(EvalConfig)
    short = DATASETS[name.rsplit("_", 1)[1]][4]
    assert (evaluation.eval_short_side, evaluation.eval_long_side) == (short, 2048)
    assert (evaluation.inference, evaluation.eval_scales, evaluation.add_flipped_images) == (
        "whole",
        (1.0,),
        False,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_learning_rate_at_the_start_in_the_middle_and_at_the_end(name, monkeypatch):
    training = read(RECIPES[name], monkeypatch)[2]
    steps = training.training_number_of_steps
    optimizer = make_optimizer(training, steps)
    assert isinstance(optimizer, MomentumSGD)
    assert (optimizer.momentum, optimizer.weight_decay, optimizer.coupled) == (0.9, 5e-4, True)
    assert optimizer.no_weight_decay == () and optimizer.learning_rate_multipliers == {}
    for step in (0, steps // 2, steps - 1):
        expected = (0.01 - 1e-4) * (1 - step / steps) ** 0.9 + 1e-4
        assert float(optimizer._learning_rate(step)) == pytest.approx(expected, rel=1e-5)


def test_the_rates_that_the_reference_itself_gave(monkeypatch):
    """The values were measured with the reference's scheduler over 39660 steps.

    See docs/reference/sssegmentation.md#optimizer-and-schedule.
    """
    training = read(RECIPES["fcn_mobilenetv2os8_voc"], monkeypatch)[2]
    schedule = make_optimizer(training, training.training_number_of_steps)._learning_rate
    measured = {0: 0.01, 20000: 0.0053643, 39659: 1.00720e-4}
    assert {step: float(schedule(step)) for step in measured} == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_gives_the_reported_miou(name):
    reported = f"# mIoU reported:   {TABLE[name][-1]:.2f} on the validation set, one scale, no flip"
    assert reported in RECIPES[name].read_text().splitlines()


@pytest.mark.parametrize("dataset", DATASETS)
def test_training_batches_come_out_of_the_dataset_s_own_layout(dataset, tmp_path, monkeypatch):
    model, data, _ = read(RECIPES[f"fcn_mobilenetv2os8_{dataset}"], monkeypatch)
    TREES[data.dataset](tmp_path, size=(60, 80))
    data = data.replace(dataset_dir=str(tmp_path), train_batch_size=2)
    source = open_dataset(data, data.train_split)
    assert source.info.num_classes == model.num_classes
    images, labels = next(
        iter(pipeline.train_dataset(source, data, NORMALIZATIONS[model.normalization][0]))
    )
    assert images.shape == (2, *data.train_crop_size, 3) and labels.shape == (
        2,
        *data.train_crop_size,
    )
    assert float(images.numpy().min()) >= 0 and float(images.numpy().max()) <= 255
    ids = np.unique(labels)
    assert len(ids) > 3 and set(ids) <= {*range(model.num_classes), 255}
