"""All models of the zoo as SavedModel and TFLite, and the VOC models in all formats (slow)."""

from __future__ import annotations

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
from test_export import lively

from deeplab_keras import export, get_config, list_models
from deeplab_keras.checkpoints.folder import LoadedCheckpoint, assign_weights, named_weights
from deeplab_keras.config import ModelConfig, UserError
from deeplab_keras.data.datasets.synthetic import SPLITS, SYNTHETIC, make_scene
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.export import images, tflite
from deeplab_keras.models.segmentor import build_segmentor, check_input_size

pytestmark = pytest.mark.slow

SMALL = (97, 129)  # odd, so that nothing divides evenly

VOC = [name for name in list_models() if name.endswith("os8_voc")]
OFFICIAL = ["deeplabv3_mnv2_dm05_pascal_trainval", "deeplab_mnv3_small_cityscapes_trainfine"]


@pytest.fixture(autouse=True)
def memory():
    """Frees the memory of each model before the next one."""
    yield
    keras.backend.clear_session()


def smallest(config: ModelConfig) -> tuple[int, int]:
    """Returns an odd size that is at least as large as the model's pooling window."""
    for size in (SMALL, (209, 241), (401, 433), (777, 777), (769, 1537)):
        try:
            check_input_size(config, *size)
        except UserError:
            continue
        return size
    raise AssertionError("a window larger than any image")


def scenes(split: str, count: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns synthetic scenes with their labels."""
    pairs = [make_scene(0, SPLITS[split], index, *size) for index in range(count)]
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def taught(config: ModelConfig, info: DatasetInfo, steps: int = 128) -> LoadedCheckpoint:
    """A network trained for a minute or two on synthetic scenes."""
    keras.utils.set_random_seed(1)
    model = build_segmentor(config)
    pictures, labels = scenes("train", 64, SMALL)
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=SYNTHETIC.ignore_label
    )
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss,
        jit_compile=False,
    )
    model.fit(pictures.astype(np.float32), labels, batch_size=8, epochs=steps // 8, verbose=0)
    return LoadedCheckpoint(model, config, info, pathlib.Path("none"), {})


def exported(name, folder, formats, trained=False, **options):
    """Returns the `ExportedFile` of each format, for a model that predicts several classes.

    Its weights come from a twin with a small pooling window, so that small pictures do: no weight
    depends on the window.
    """
    momentum = 0.9 if trained else 0.1
    config = get_config(name).replace(
        dropout_rate=0.0, backbone_bn_momentum=momentum, head_bn_momentum=momentum
    )
    size = smallest(config)
    info = info_for_classes("test", [f"class {index}" for index in range(config.num_classes)])
    small = {
        "image_pooling_size": (3, 3),
        "image_pooling_crop_size": (),
        "image_pooling_stride": (2, 2),
    }
    window = small if config.image_pooling_window else {}
    if trained:
        twin = taught(config.replace(**window), info)
        checked, representative = scenes("val", 4, size)[0], scenes("train", 16, size)[0]
    else:
        twin = lively(config.replace(**window), SMALL, info)
        checked, representative = images.synthetic_images(size, 3, 2), ()
    source = dataclasses.replace(twin, model=build_segmentor(config), config=config)
    assign_weights(source.model, named_weights(twin.model), "test")
    files = export.export_model(
        source,
        folder / "out",
        formats=formats,
        input_size=size,
        check_images=list(checked),
        representative_images=list(representative),
        log=print,
        **options,
    )
    for file in files:
        assert file.classes >= 3, "one class everywhere would prove nothing"
        assert not any(operator.startswith(tflite.UNWANTED) for operator in file.operators), (
            file.operators
        )
        assert "CUSTOM" not in file.operators
    return {file.kind: file for file in files}


@pytest.mark.parametrize("name", list_models())
def test_every_model_becomes_a_saved_model_and_a_tflite_file(name, tmp_path):
    files = exported(name, tmp_path, ["saved_model", "tflite"])
    assert (
        files["saved_model"].label_agreement >= 0.999 and files["tflite"].label_agreement >= 0.999
    )
    xnnpack = files["tflite"].verdicts[0]
    assert (
        xnnpack.delegate == "XNNPACK (CPU)"
        and xnnpack.pieces == 1
        and set(xnnpack.stopped_by) <= {"ARG_MAX"}
    )


@pytest.mark.parametrize("name", [*VOC, *OFFICIAL])
def test_every_kind(name, tmp_path):
    """On scenes not used for training. docs/results.md has the loss of 8 bits for real networks."""
    kinds = ["tflite", "tflite_float16", "tflite_dynamic", "tflite_int8"]
    files = exported(name, tmp_path, kinds, trained=True, min_agreement=0.0)
    assert files["tflite"].label_agreement >= 0.999
    assert files["tflite_float16"].label_agreement >= 0.995
    assert files["tflite_int8"].label_agreement >= 0.85
    sizes = [files[kind].bytes for kind in kinds]
    assert sizes[0] > 1.7 * sizes[1] and sizes[1] > 1.5 * sizes[2] and sizes[3] < 0.4 * sizes[0]
