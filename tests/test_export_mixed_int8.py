"""int8 files with their most sensitive layers in float, as few as necessary."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest
from contracts import as_command_line, raises_line

from deeplab_keras import export
from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import ModelConfig
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.export import images, mixed_int8, tflite
from deeplab_keras.inference.exported import open_interpreter

SIZE = (33, 41)
CLASSES = ("sky", "road", "car", "tree")


@pytest.fixture(scope="module")
def checkpoint():
    """Four convolutions; the outputs of one span a range too wide for 8 bits."""
    keras.utils.set_random_seed(0)
    image = x = keras.Input((*SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 255, name="normalize")(x)
    for name in ("first", "fragile", "third"):
        x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name=f"{name}_conv")(x)
    x = keras.layers.Conv2D(len(CLASSES), 1, name="logits")(x)
    model = keras.Model(image, x, name="small")
    kernel = model.get_layer("fragile_conv").kernel
    kernel.assign(np.abs(kernel) * np.array([400, 1, 1, 1, 1, 1, 1, 1]))
    after = model.get_layer("third_conv").kernel
    after.assign(after * np.array([1 / 4000, 1, 1, 1, 1, 1, 1, 1])[:, None])
    bias = model.get_layer("logits").bias
    bias.assign(
        -model.predict_on_batch(np.stack(images.synthetic_images(SIZE, 3)).astype("float32")).mean(
            (0, 1, 2)
        )
    )
    config = ModelConfig(num_classes=len(CLASSES))
    return LoadedCheckpoint(
        model, config, info_for_classes("test", CLASSES), pathlib.Path("none"), {}
    )


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    """The `ExportedFile` of each format."""
    folder, lines = tmp_path_factory.mktemp("mixed"), []
    found = export.export_model(
        checkpoint,
        folder / "out",
        formats=["tflite_int8", "tflite_mixed"],
        input_size=SIZE,
        mixed_agreement=0.97,
        representative_images=images.synthetic_images(SIZE, 3, 20),
        check_images=images.synthetic_images(SIZE, 3, 6),
        log=lines.append,
    )
    assert "warning: 8 bits lose accuracy; formats='tflite_mixed'" in lines[0]
    assert "2 layers in float: " in lines[1] and "8 bits lose" not in lines[1]
    return {file.kind: file for file in found}


def test_the_sensitive_layer_stays_in_float(files):
    int8, some = files["tflite_int8"], files["tflite_mixed"]
    assert int8.label_agreement < 0.9 and not int8.float_layers and int8.loses_accuracy
    assert some.label_agreement > 0.96
    assert set(some.float_layers) == {"fragile_conv", "third_conv"}, (
        "what gives and what takes the wide range"
    )
    kernels = [
        t
        for t in open_interpreter(some.path, 1).get_tensor_details()
        if tuple(t["shape"][1:3]) == (3, 3)
    ]
    assert sorted(t["dtype"].__name__ for t in kernels) == ["float32", "float32", "int8"]
    (details,) = open_interpreter(some.path, 1).get_input_details()
    assert details["dtype"] == np.uint8 and some.operators["DEQUANTIZE"] >= 1


def test_all_operators_are_measured_and_sorted(checkpoint):
    from deeplab_keras.export.graph import freeze

    frozen = freeze(checkpoint.model, (1, *SIZE, 3), "float32", ("labels",))
    calibrated = tflite.calibrate(frozen, ("labels",), images.synthetic_images(SIZE, 3, 16))
    names = [tensor for _, tensor in tflite.named_operators(calibrated)]

    def agrees(model):
        """Assumes that each convolution in 8 bits changes the outputs by a fixed amount."""
        quantized = {
            t["name"]
            for t in open_interpreter(model, 1).get_tensor_details()
            if t["dtype"] == np.int8
        }
        return 1 - 0.1 * max(
            (index for index, name in enumerate(names) if name in quantized), default=0
        )

    found = mixed_int8.sensitivities(calibrated, agrees)
    assert sorted(one.tensor for one in found) == sorted(names)
    assert [one.lost for one in found] == sorted(
        (one.lost for one in found), reverse=True
    ) and found[0].lost > 0.2


def test_no_more_layers_stay_in_float_than_necessary(monkeypatch):
    order = [mixed_int8.Sensitivity(f"m/layer{index}_conv/x", 0.1) for index in range(11)]
    monkeypatch.setattr(mixed_int8, "sensitivities", lambda calibrated, agrees: order)
    monkeypatch.setattr(tflite, "quantize", lambda calibrated, names=(): b"%d" % len(names))
    monkeypatch.setattr(
        mixed_int8, "_labels", lambda model, pictures, threads: np.arange(12) * (model != b"none")
    )

    def labels(model, pictures, threads):  # each float layer makes one more pixel correct
        return (
            np.arange(12)
            if model == b"float"
            else np.where(np.arange(12) <= int(model), np.arange(12), -1)
        )

    monkeypatch.setattr(mixed_int8, "_labels", labels)
    for needed in range(12):
        model, names = mixed_int8.mixed(b"float", [np.zeros((2, 2, 3))] * 5, (needed + 1) / 12)
        assert int(model) == len(names) == needed
        assert names == tuple(f"layer{index}_conv" for index in range(needed))
    model, names = mixed_int8.mixed(b"float", [np.zeros((2, 2, 3))], 1.0)
    assert len(names) == 11


def test_layers_are_named_after_their_convolution():
    fused = (
        "net_1/block1_act_1/Relu6;net_1/block1_bn_1/batchnorm/add_1;"
        "net_1/block1_depthwise_conv_1/depthwise"
    )
    assert mixed_int8.layer_name(fused) == "block1_depthwise_conv"
    assert mixed_int8.layer_name("net_1/resized_logits_1/resize/ResizeBilinear") == "resized_logits"
    assert mixed_int8.layer_name("PartitionedCall:0") == "PartitionedCall:0"


def test_limits(checkpoint, tmp_path):
    def rejected(match, **options):
        with raises_line(match) as error:
            export.export_model(
                checkpoint, tmp_path / "out", input_size=SIZE, **{"formats": ["tflite"], **options}
            )
        assert "\n" not in as_command_line(error.value)

    rejected("--mixed_agreement must be a share of the pixels, 0 to 1", mixed_agreement=99)
    rejected("--max_miou_loss must be 0 or more points of mIoU", max_miou_loss=-1)
    rejected("--max_miou_loss=1: needs a dataset", max_miou_loss=1)
    rejected(
        "--formats=tflite_mixed needs at least 16 representative images", formats=["tflite_mixed"]
    )


def test_a_file_that_loses_too_much_miou_fails(checkpoint, tmp_path):
    class Split:
        info = checkpoint.info

        def __len__(self):
            return 20

        def load(self, index):
            picture = images.synthetic_images(SIZE, 3, 20)[index]
            return picture, checkpoint.model.predict_on_batch(picture[None].astype("float32"))[
                0
            ].argmax(-1).astype("uint8")

    with raises_line(
        r"mIoU \d+\.\d+ \(Keras 100\.00\) on 20 images.*--max_miou_loss=1: do not use",
    ):
        export.export_model(
            checkpoint,
            tmp_path / "x.tflite",
            formats=["tflite_int8"],
            input_size=SIZE,
            max_miou_loss=1,
            checked=0,
            representative_images=Split(),
            check_images=Split(),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["x.tflite.failed"]
