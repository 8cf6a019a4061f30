"""Every model of the zoo as SavedModel and TFLite file, and the VOC ones in every kind; the slow lane."""

from __future__ import annotations

import keras
import pytest
from test_export import lively

from deeplab_keras import export, get_config, list_models
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.export import images, tflite
from deeplab_keras.segmentor import check_input_size

pytestmark = pytest.mark.slow

VOC = [name for name in list_models() if name.endswith("os8_voc")]
OFFICIAL = ["deeplabv3_mnv2_dm05_pascal_trainval", "deeplab_mnv3_small_cityscapes_trainfine"]


@pytest.fixture(autouse=True)
def memory():
    """What one model took is free before the next one comes."""
    yield
    keras.backend.clear_session()


def smallest(config: ModelConfig) -> tuple[int, int]:
    """An odd size, so that nothing divides evenly, that the model's pooling window fits into."""
    for size in ((97, 129), (209, 241), (401, 433), (777, 777), (769, 1537)):
        try:
            check_input_size(config, *size)
        except UserError:
            continue
        return size
    raise AssertionError("a window larger than any image")


def exported(name, folder, formats, **options):
    """Format -> ExportedFile, of a model of random weights that gives several classes."""
    config = get_config(name).replace(dropout_rate=0.0, backbone_bn_momentum=0.1, head_bn_momentum=0.1)
    size = smallest(config)
    info = info_for_classes("test", [f"class {index}" for index in range(config.num_classes)])
    source = lively(config, size, info)
    files = export.export_model(
        source, folder / "out", formats=formats, input_size=size, check_images=images.made_images(size, 3, 2),
        representative_images=images.made_images(size, 3, 16), log=print, **options,
    )  # fmt: skip
    for file in files:
        assert file.classes >= 3, "one class everywhere would prove nothing"
        assert not any(operator.startswith(tflite.UNWANTED) for operator in file.operators), file.operators
        assert "CUSTOM" not in file.operators
    return {file.kind: file for file in files}


@pytest.mark.parametrize("name", list_models())
def test_every_model_becomes_a_saved_model_and_a_tflite_file(name, tmp_path):
    files = exported(name, tmp_path, ["saved_model", "tflite"])
    assert files["saved_model"].label_agreement >= 0.999 and files["tflite"].label_agreement >= 0.999
    xnnpack = files["tflite"].verdicts[0]
    assert xnnpack.delegate == "XNNPACK (CPU)" and xnnpack.pieces == 1 and set(xnnpack.stopped_by) <= {"ARG_MAX"}


@pytest.mark.parametrize("name", [*VOC, *OFFICIAL])
def test_every_kind(name, tmp_path):
    """Random weights are undecided nearly everywhere; what 8 bits cost a trained network is in docs/results.md."""
    kinds = ["tflite", "tflite_float16", "tflite_dynamic", "tflite_int8"]
    files = exported(name, tmp_path, kinds, min_agreement=0.0)
    assert files["tflite"].label_agreement >= 0.999
    assert files["tflite_float16"].label_agreement >= 0.95
    assert files["tflite_int8"].label_agreement >= 0.3
    sizes = [files[kind].bytes for kind in kinds]
    assert sizes[0] > 1.7 * sizes[1] and sizes[1] > 1.5 * sizes[2] and sizes[3] < 0.4 * sizes[0]
