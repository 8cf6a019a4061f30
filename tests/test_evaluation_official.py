"""The released VOC model, evaluated by the scripts: the official graph's confusion matrix."""

from __future__ import annotations

import json

import numpy as np
import pytest
from contracts import SHARED, script
from PIL import Image

from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import EvalConfig
from deeplab_keras.inference import Predictor

WEIGHTS = SHARED / "weights/deeplabv3_mnv2_pascal_trainval"
DATA = SHARED / "data/voc2012_sample"
VOC = DATA / "VOCdevkit/VOC2012"
OFFICIAL = ("--inference=official", "--eval_crop_size=513,513")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    path = tmp_path_factory.mktemp("official") / "voc"
    arguments = (
        "--source=official_deeplab",
        "--model=deeplabv3_mnv2_pascal_trainval",
        f"--checkpoint={WEIGHTS}",
    )
    assert script("convert_checkpoint.py")(*arguments, f"--output={path}") == 0
    return path


@pytest.mark.shared
def test_the_confusion_matrix_is_the_official_one(converted, tmp_path):
    data = ("--dataset=voc2012", f"--dataset_dir={DATA}", "--eval_split=trainval", "--nodetails")
    assert (
        script("eval.py")(
            f"--checkpoint_dir={converted}", *data, *OFFICIAL, f"--eval_logdir={tmp_path}"
        )
        == 0
    )
    found = json.loads((tmp_path / "metrics.json").read_text())
    expected = json.loads((WEIGHTS / "expected.json").read_text())
    with np.load(WEIGHTS / "expected.npz") as golden:
        assert found["confusion_matrix"] == golden["confusion"].tolist()
    assert found["miou"] == pytest.approx(expected["miou_over_classes_present"], abs=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-12)


@pytest.mark.slow  # the confusion matrix above has all counted labels
@pytest.mark.shared
def test_the_only_other_label_is_an_ignored_tie(converted):
    """One of 711500 pixels has another label, where two scores are equal up to rounding."""
    predictor = Predictor(
        load_checkpoint(converted).model,
        EvalConfig(inference="official", eval_crop_size=(513, 513)),
    )
    others, nearest = [], np.inf
    with np.load(WEIGHTS / "expected.npz") as golden:
        for path in sorted((VOC / "SegmentationClass").glob("*.png")):
            image = np.asarray(Image.open(VOC / "JPEGImages" / f"{path.stem}.jpg"))
            truth, (height, width) = np.asarray(Image.open(path)), image.shape[:2]
            padded = np.full((1, 513, 513, 3), 127.5, np.float32)
            padded[0, :height, :width] = image
            scores = np.sort(predictor.network(padded)[0, :height, :width].numpy(), -1)
            lead = scores[..., -1] - scores[..., -2]
            for row, column in np.argwhere(predictor(image) != golden[f"labels_{path.stem}"]):
                others.append((path.stem, int(row), int(column), int(truth[row, column])))
                assert lead[row, column] < 1e-4, "the two graphs' logits are at most that far apart"
            nearest = min(nearest, lead[truth != 255].min())
    print(f"other labels: {others}; of the counted pixels the closest decision is by {nearest:.1e}")
    assert len(others) <= 1 and all(truth == 255 for *_, truth in others)
