"""Exported files agree with Keras, contain no slow operators, and are written atomically."""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import ROOT, as_command_line, noise, raises_line, ramp
from PIL import Image
from toy import registered, toy_config

from deeplab_keras import export
from deeplab_keras.checkpoints.folder import (
    LoadedCheckpoint,
    assign_weights,
    named_weights,
    save_checkpoint,
)
from deeplab_keras.config import CONVENTIONS, EvalConfig, ExportConfig, ModelConfig
from deeplab_keras.data.info import DatasetInfo, info_for_classes
from deeplab_keras.export import ExportedFile, check, delegates, images, tflite
from deeplab_keras.export.result import fitting_size
from deeplab_keras.inference import Predictor
from deeplab_keras.inference.exported import open_interpreter, packed_files
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.quantization import without_ranges
from deeplab_keras.models.segmentor import build_segmentor

SIZE = (65, 97)
CLASSES = ("sky", "road", "car", "tree", "pole")
# No dropout, and batch statistics that converge in two steps.
SMALL = dict(
    num_classes=len(CLASSES),
    depth_multiplier=0.35,
    dropout_rate=0.0,
    head_channels=16,
    backbone_bn_momentum=0.1,
    head_bn_momentum=0.1,
)
V3 = {
    "conventions": CONVENTIONS["sssegmentation_v3"],
    **SMALL,
    "backbone": "mobilenet_v3_small",
}
LRASPP = ModelConfig(
    **V3,
    head="lraspp",
    output_stride=16,
    low_level_features=("c2", "c1"),
    low_level_channels=(8, 8),
)
HEADS = {
    "fcn": ModelConfig(**SMALL, head="fcn", auxiliary_head=True, auxiliary_channels=8),
    "psp": ModelConfig(**SMALL, head="psp"),
    "deeplab_v3": ModelConfig(**SMALL, head="deeplab_v3"),
    "deeplab_v3_plus": ModelConfig(
        **SMALL, head="deeplab_v3_plus", aspp_with_separable_conv=True, decoder_filters=16
    ),
    "lraspp": LRASPP.replace(
        output_stride=8, image_pooling_size=(7, 7), image_pooling_stride=(3, 3)
    ),
    "official": ModelConfig(
        conventions=CONVENTIONS["official_deeplab"],
        **SMALL,
        head="deeplab_v3",
        atrous_rates=(),
        aspp_projection_kernel=1,
    ),
}

# For tests that do not depend on the backbone.
TOY = toy_config(**SMALL, head="deeplab_v3_plus", decoder_filters=16, aspp_with_separable_conv=True)
# Aligned corners, and resizes that are more than copies.
with registered():
    ALIGNED = TOY.replace(align_corners=True)


def lively(
    config: ModelConfig, size: tuple[int, int] = SIZE, info: DatasetInfo | None = None
) -> LoadedCheckpoint:
    """A network with random weights that predicts several classes.

    Its batch norms have learnt the statistics of their inputs, so that signals do not die away from
    layer to layer.
    """
    keras.utils.set_random_seed(1)
    model = build_segmentor(config)
    batch = np.concatenate(
        [noise(2, *size, 3), ramp(1, *size, 3), np.stack(images.synthetic_images(size, 3))]
    )
    for _ in range(2):
        model(batch, training=True)
    layers = {layer.name: layer for layer in model.layers}
    logits = layers.get(
        "logits_high", layers["logits"]
    )  # which are a sum where LR-ASPP adds scores
    bias = getattr(logits, "layer", logits).bias
    bias.assign(
        bias - model.predict_on_batch(batch).mean((0, 1, 2))
    )  # no class is above the others everywhere
    return LoadedCheckpoint(
        model, config, info or info_for_classes("test", CLASSES), pathlib.Path("none"), {}
    )


@pytest.fixture(scope="module")
def checkpoint():
    return lively(LRASPP)


@pytest.fixture(scope="module")
def toy_checkpoint(toy_backbone):
    return lively(TOY)


@pytest.fixture(scope="module")
def pictures():
    """A split of a dataset with 20 images."""

    class Pictures:
        info = info_for_classes("test", CLASSES)

        def __len__(self):
            return 20

        def load(self, index):
            return images.synthetic_images((80, 70), 3, 20)[index], noise(80, 70).astype(
                np.uint8
            ) % len(CLASSES)

    return Pictures()


@pytest.fixture(scope="module")
def exported(checkpoint, pictures, tmp_path_factory):
    """The `ExportedFile` of each format, from one export with both outputs."""
    formats = [name for name in export.FORMATS if name not in ("onnx", "tflite_mixed")]
    workdir = tmp_path_factory.mktemp("export")
    save_checkpoint(workdir / "best", checkpoint.model, checkpoint.config, checkpoint.info)
    files = export.export_model(
        workdir,
        workdir / "out",
        formats=formats,
        input_size=SIZE,
        output="both",
        representative_images=pictures,
        log=lambda line: None,
    )
    return {file.kind: file for file in files}


@pytest.fixture
def copying(monkeypatch, exported):
    """Replaces the conversion by copies of the files in `exported`."""

    def copy(job, kind, path):
        source = exported[kind].path
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)

    monkeypatch.setattr(export._Job, "write", copy)


def leftovers(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# === Agreement with Keras ===


@pytest.mark.parametrize(
    "kind, agreement, share",
    [
        ("tflite", 0.999, 1.0),
        ("tflite_float16", 0.995, 0.65),
        ("tflite_dynamic", 0.9, 0.5),
        ("tflite_int8", 0.8, 0.5),
    ],
)
def test_tflite_agrees_with_keras(exported, checkpoint, kind, agreement, share):
    file = exported[kind]
    assert file.classes >= 3, "one class everywhere would prove nothing"
    assert file.label_agreement >= agreement
    assert file.bytes <= share * exported["tflite"].bytes
    interpreter = open_interpreter(file.path, 2)
    image = images.synthetic_images(SIZE, 3, 1)[0][None]
    run = interpreter.get_signature_runner()
    outputs = run(image=image.astype(np.uint8 if kind == "tflite_int8" else np.float32))
    assert {name: (value.shape, value.dtype) for name, value in outputs.items()} == {
        "labels": ((1, *SIZE), np.int32),
        "logits": ((1, *SIZE, 5), np.float32),
    }
    expected = checkpoint.model.predict_on_batch(image.astype(np.float32))
    np.testing.assert_array_equal(outputs["labels"], outputs["logits"].argmax(-1))
    assert np.mean(outputs["labels"] == expected.argmax(-1)) >= agreement
    if kind == "tflite":
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-4 * np.ptp(expected))


def test_int8_takes_the_unmodified_bytes_of_an_image(exported):
    (details,) = open_interpreter(exported["tflite_int8"].path, 1).get_input_details()
    assert details["dtype"] == np.uint8 and details["quantization"] == (1.0, 0)
    kernels = [
        tensor
        for tensor in open_interpreter(exported["tflite_int8"].path, 1).get_tensor_details()
        if len(tensor["shape"]) == 4 and len(tensor["quantization_parameters"]["scales"]) > 1
    ]
    assert len(kernels) > 20, "every channel of a kernel has its scale"


def test_batch_norm_folds_and_hard_swish_fuses(exported, checkpoint):
    operators = exported["tflite"].operators
    kinds = [type(layer).__name__ for layer in checkpoint.model.layers]
    assert operators["CONV_2D"] == kinds.count("Conv2D")
    assert operators["DEPTHWISE_CONV_2D"] == kinds.count("DepthwiseConv2D")
    swishes = [
        layer.name
        for layer in checkpoint.model.layers
        if getattr(layer, "activation", None) is not None
    ]
    swishes = [
        name for name in swishes if "hard_s" in checkpoint.model.get_layer(name).activation.__name__
    ]
    gates = [
        name
        for name in swishes
        if checkpoint.model.get_layer(name).activation.__name__ == "hard_sigmoid"
    ]
    assert operators["HARD_SWISH"] == len(swishes) - len(gates) > 5
    # The remaining additions are residuals and one per gate. A batch norm would be a
    # multiplication and an addition.
    assert operators["ADD"] <= kinds.count("Add") + len(gates)
    assert not any(name.startswith(tflite.UNWANTED) for name in operators)
    assert "slow operator" not in str(exported["tflite"])


def test_verdicts_on_delegates(exported):
    file, int8 = exported["tflite"], exported["tflite_int8"]
    by_name = {verdict.delegate: verdict for verdict in file.verdicts}
    assert (
        list(by_name["XNNPACK (CPU)"].stopped_by) == ["ARG_MAX"]
        and by_name["XNNPACK (CPU)"].pieces == 1
    )
    assert list(by_name["GPU (TFLite's delegate)"].stopped_by) == ["ARG_MAX"]
    assert (
        not by_name["GPU and WebGPU (LiteRT)"].stopped_by
        and not by_name["NNAPI (Android 11 and later)"].stopped_by
    )
    resizes = by_name["NNAPI (Android 10)"].stopped_by["RESIZE_BILINEAR with half-pixel centers"]
    assert len(resizes) == file.operators["RESIZE_BILINEAR"] and resizes[-1].tensor == "logits"
    assert len(by_name["Edge TPU"].stopped_by["float operator"]) == sum(file.operators.values())
    assert by_name["Edge TPU"].pieces == 0 and "runs nothing: " in str(by_name["Edge TPU"])
    assert not by_name["NPU of Qualcomm (LiteRT)"].stopped_by
    assert list(by_name["NPU of MediaTek (LiteRT)"].stopped_by) == ["ARG_MAX"]
    stopped = {verdict.delegate: verdict.stopped_by for verdict in int8.verdicts}
    assert set(stopped["Edge TPU"]) == {
        "ARG_MAX",
        "HARD_SWISH",
        "float operator",
    }  # the logits are a float output
    assert len(stopped["Edge TPU"]["float operator"]) == 1
    assert "HARD_SWISH" in stopped["XNNPACK (CPU)"] and int8.verdicts[0].pieces > 5
    report = file.report().splitlines()
    assert (
        f"{file.operators['CONV_2D']} CONV_2D" in report[1]
        and "runs all in 1 piece except 1 x ARG_MAX" in report[2]
    )
    assert "runs the whole graph" in report[4] and exported["saved_model"].report() == ""


@pytest.mark.parametrize("kind", ["tflite", "tflite_dynamic", "tflite_int8"])
def test_the_pieces_of_a_rule_are_counted_as_tflite_counts_them(exported, kind):
    """XNNPACK's pieces are measured, so they are the oracle."""
    xnnpack = exported[kind].verdicts[0]
    left = {operator.tensor for found in xnnpack.stopped_by.values() for operator in found}
    operators = delegates.read_operators(exported[kind].path)
    supported = [operator.tensor not in left for operator in operators]
    assert delegates.partition(operators, supported) == xnnpack.pieces
    assert delegates.partition(operators, [True] * len(operators)) == 1
    assert delegates.partition(operators, [False] * len(operators)) == 0


def test_pieces_of_branches():
    """a -> b -> d and a -> c -> d: without b, c runs together with a."""
    a, b, c, d = (
        delegates.Operator("ADD", name, (), inputs=inputs, outputs=(output,))
        for name, inputs, output in (("a", (), 1), ("b", (1,), 2), ("c", (1,), 3), ("d", (2, 3), 4))
    )
    assert delegates.partition([a, b, c, d], [True, False, True, True]) == 2
    assert delegates.partition([a, b, c, d], [False, True, True, False]) == 1
    assert delegates.partition([a, b, d], [True, False, True]) == 2


def test_every_rule_is_data_with_a_source_that_the_documentation_names():
    page = (ROOT / "docs" / "export.md").read_text()
    assert len({rule.delegate for rule in delegates.RULES}) == len(delegates.RULES)
    for rule in delegates.RULES:
        assert rule.source.startswith("https://") and f"]({rule.source})" in page
        assert f"| {rule.delegate} |" in page


def test_a_layer_with_several_operators_is_listed_once():
    operators = [
        delegates.Operator(name, tensor, ())
        for name, tensor in (
            ("MUL", "net/normalize/mul"),
            ("SUB", "net/normalize/sub"),
            ("CONV_2D", "net/stem_conv/convolution"),
            ("ADD", "logits"),
        )
    ]
    assert (
        str(delegates.Verdict("X", {"in float": operators}))
        == "X: runs all except 4 x in float (normalize, stem_conv, logits)"
    )


@pytest.mark.slow
def test_half_pixel_resizes_replace_aligned_corners(toy_backbone, tmp_path):
    source = lively(ALIGNED)
    lines = []
    plain, changed = (
        export.export_model(
            source,
            tmp_path / f"{changed}.tflite",
            formats=["tflite"],
            input_size=SIZE,
            half_pixel_resizes=changed,
            keep_concatenations=True,
            output="logits",
            label_type="uint8",
            log=lines.append,
        )[0]
        for changed in (False, True)
    )
    old = [verdict for verdict in plain.verdicts if verdict.delegate == "NNAPI (Android 10)"][
        0
    ].stopped_by
    new = [verdict for verdict in changed.verdicts if verdict.delegate == "NNAPI (Android 10)"][
        0
    ].stopped_by
    assert list(old) == ["RESIZE_BILINEAR with aligned corners"] and list(new) == [
        "RESIZE_BILINEAR with half-pixel centers"
    ]
    assert (
        not plain.verdicts[0].stopped_by and "ARG_MAX" not in plain.operators
    )  # with only logits, XNNPACK runs everything
    assert plain.label_agreement >= 0.999 > changed.label_agreement > 0.5
    assert '"align_corners": false' in packed_files(changed.path)["model.json"]


@pytest.mark.slow
def test_concatenations_are_kept_in_8_bits_and_on_request(toy_backbone, tmp_path, pictures):
    source, lines = lively(toy_config(**SMALL, head="psp")), []
    kinds = ["tflite", "tflite_dynamic", "tflite_int8"]
    options = dict(input_size=SIZE, representative_images=pictures, log=lines.append)
    files = export.export_model(
        source, tmp_path / "either", formats=kinds, min_agreement=0.0, **options
    )
    whole = export.export_model(
        source, tmp_path / "whole", formats=["tflite"], keep_concatenations=True, **options
    )[0]
    branchwise, *in_8_bits = (file.operators for file in files)
    assert (
        branchwise["BATCH_MATMUL"] > whole.operators.get("BATCH_MATMUL", 0)
        and "CONCATENATION" not in branchwise
    )
    assert all(operators["CONCATENATION"] == 1 for operators in (whole.operators, *in_8_bits))
    assert min(files[0].label_agreement, whole.label_agreement) >= 0.999


@pytest.mark.parametrize("kind", ["tflite", "saved_model"])
def test_labels_can_be_uint8(toy_checkpoint, tmp_path, kind):
    (file,) = export.export_model(
        toy_checkpoint,
        tmp_path / "out",
        formats=[kind],
        input_size=SIZE,
        label_type="uint8",
        log=lambda line: None,
    )
    assert file.label_agreement >= 0.999
    picture = images.synthetic_images(SIZE, 3, 1)[0]
    found = Predictor(file.path)
    assert (
        found.network.runtime.labels(picture[None].astype(found.network.runtime.dtype)).dtype
        == np.uint8
    )
    labels = found.predict_batch(picture[None])
    assert (labels == Predictor(toy_checkpoint.model).predict_batch(picture[None])).mean() >= 0.999


@pytest.mark.slow
def test_quantization_aware_networks_are_exported_without_simulated_quantization(tmp_path):
    config = HEADS["psp"].replace(quantization_aware=True)
    aware = lively(config)
    plain = build_segmentor(HEADS["psp"])
    assign_weights(plain, without_ranges(named_weights(aware.model)), "test")
    (file,) = export.export_model(
        aware, tmp_path / "x.tflite", formats=["tflite"], input_size=SIZE, output="logits"
    )
    assert (
        file.label_agreement >= 0.999
        and 'quantization_aware": false' in packed_files(file.path)["model.json"]
    )
    picture = images.synthetic_images(SIZE, 3, 1)[0][None].astype(np.float32)
    _, logits = check.runner("tflite", file.path, 1)(picture[0])
    expected = plain.predict_on_batch(picture)[0]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))
    assert np.abs(aware.model.predict_on_batch(picture)[0] - expected).max() > 1e-3 * np.ptp(
        expected
    )


def test_the_tflite_file_contains_the_class_names(exported):
    files = packed_files(exported["tflite"].path)
    assert files["labels.txt"].splitlines() == list(CLASSES)
    assert '"palette"' in files["model.json"]


def test_files_with_labels_only_are_checked_by_their_hidden_logits(
    checkpoint, exported, tmp_path, capsys
):
    path = tmp_path / "small.tflite"
    (file,) = export.export_model(checkpoint, path, formats=["tflite"], input_size=SIZE)
    assert file.path == path and leftovers(tmp_path) == ["small.tflite"]
    assert list(open_interpreter(path, 1).get_signature_runner().get_output_details()) == ["labels"]
    assert file.label_agreement >= 0.999 and 0 < file.max_logit_difference < 1e-3
    report = capsys.readouterr().out
    assert report == f"{file}{file.report()}\n"
    assert report.endswith(
        "\n  MediaPipe: needs scores instead of labels; export with output='logits'\n"
    )
    assert "MediaPipe" not in exported["tflite"].report(), "it has logits too"
    labels, logits = check.runner("tflite", path, 2)(images.synthetic_images(SIZE, 3, 1)[0])
    np.testing.assert_array_equal(labels, logits.argmax(-1))
    assert len(np.unique(labels)) >= 3

    picture, other = (
        images.synthetic_images(SIZE, 3, 1)[0],
        images.synthetic_images((90, 70), 3, 1)[0],
    )
    alone, with_logits = Predictor(path), Predictor(exported["tflite"].path)
    found = alone(other)
    assert (found == with_logits(other)).all() and len(np.unique(found)) >= 3
    alone.network._compiled = None  # logits are not needed for an image of the file's input size
    assert (alone(picture) == labels).all() and (with_logits(picture) == labels).all()


# === Predictor ===


def agreement(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a == b).mean())


@pytest.mark.parametrize(
    "kind, least", [("tflite", 0.999), ("tflite_int8", 0.8), ("saved_model", 0.999)]
)
def test_predictor_with_a_file_agrees_with_keras(exported, checkpoint, kind, least):
    found, keras_model = Predictor(exported[kind].path), Predictor(checkpoint.model)
    assert found.network.info == checkpoint.info and found.network.num_classes == len(CLASSES)
    batch = np.stack(images.synthetic_images(SIZE, 3, 3))
    expected = keras_model.predict_batch(batch)
    assert len(np.unique(expected)) >= 3
    assert agreement(found.predict_batch(batch), expected) >= least
    labels, probabilities = found.labels_and_probabilities(batch)
    assert agreement(labels, expected) >= least
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    other = images.synthetic_images((80, 120), 3, 1)[0]
    if kind == "saved_model":  # any input size
        assert found.network.input_size is None
        mirrored = EvalConfig(add_flipped_images=True, eval_scales=(0.75, 1.0))
        assert (
            agreement(
                Predictor(exported[kind].path, mirrored)(other),
                Predictor(checkpoint.model, mirrored)(other),
            )
            >= 0.99
        )
    else:
        assert found.network.input_size == SIZE
        with raises_line("--eval_scales=0.5"):
            Predictor(exported[kind].path, EvalConfig(eval_scales=(0.5, 1.0)))(other)
    assert agreement(found(other), keras_model(other)) >= (0.999 if kind == "saved_model" else 0.7)
    assert (
        agreement(found(other[..., 0]), found(np.repeat(other[..., :1], 3, -1))) == 1.0
    )  # a gray image


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.tflite", None, "no such file; give a .tflite"),
        (
            "model.h5",
            b"x",
            "not a model; give a checkpoint folder, a workdir, a .keras, .tflite or .onnx file",
        ),
        ("empty.tflite", b"", "empty.tflite: truncated, damaged or not a TFLite file"),
        ("noise.tflite", bytes(range(256)), "noise.tflite: truncated, damaged or not"),
    ],
)
def test_invalid_exports_get_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with raises_line(message) as error:
        Predictor(tmp_path / name)
    assert "\n" not in as_command_line(error.value)


def test_foreign_and_damaged_files_are_refused(exported, tmp_path):
    content = exported["tflite"].path.read_bytes()
    (tmp_path / "bare.tflite").write_bytes(content[: content.index(b"PK\x03\x04")])
    with raises_line("does not contain model.json; give a file that export_model.py wrote"):
        Predictor(tmp_path / "bare.tflite")
    shutil.copytree(exported["saved_model"].path, tmp_path / "cut")
    (tmp_path / "cut/saved_model.pb").write_bytes(
        (tmp_path / "cut/saved_model.pb").read_bytes()[:1000]
    )
    with raises_line("cut: damaged or not a SavedModel"):
        Predictor(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["tflite", "saved_model"])
def test_a_label_file_of_the_wrong_length_is_refused(exported, tmp_path, kind):
    path = tmp_path / exported[kind].path.name
    if kind == "tflite":
        content = exported[kind].path.read_bytes()
        path.write_bytes(content[: content.index(b"PK\x03\x04")])
        files = packed_files(exported[kind].path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model.json", files["model.json"])
            archive.writestr("labels.txt", "Himmel\nStrasse\n")
    else:
        shutil.copytree(exported[kind].path, path)
        (path / "assets.extra/labels.txt").write_text("Himmel\nStrasse\n")
    with raises_line(r"its labels\.txt has 2 lines, and the network 5 classes; write one") as error:
        Predictor(path)
    assert "\n" not in as_command_line(error.value)


def test_saved_model_takes_any_size_and_batch(exported, checkpoint):
    file = exported["saved_model"]
    assert file.label_agreement >= 0.999 and file.classes >= 3
    signatures = tf.saved_model.load(str(file.path)).signatures
    assert set(signatures) == {"serving_default", "labels", "logits", "probabilities"}
    batch = np.stack(images.synthetic_images((71, 130), 3, 3))
    outputs = {name: signatures[name](image=tf.constant(batch)) for name in signatures}
    expected = checkpoint.model.predict_on_batch(batch.astype(np.float32))
    assert set(outputs["serving_default"]) == {"labels", "logits"}
    np.testing.assert_allclose(outputs["logits"]["logits"], expected, atol=1e-4 * np.ptp(expected))
    np.testing.assert_allclose(
        outputs["probabilities"]["probabilities"], tf.nn.softmax(expected), atol=1e-4
    )
    assert outputs["labels"]["labels"].dtype == tf.int32
    assert np.mean(outputs["labels"]["labels"] == expected.argmax(-1)) >= 0.999
    assert (file.path / "assets.extra/labels.txt").read_text().splitlines() == list(CLASSES)
    assert file.bytes == sum(path.stat().st_size for path in file.path.rglob("*") if path.is_file())


@pytest.mark.slow
def test_saved_model_serves_without_this_package(exported, tmp_path):
    """A process that cannot import this package answers the request in docs/export.md."""
    pictures = images.synthetic_images((50, 60), 3, 2)
    (tmp_path / "image.json").write_text(json.dumps({"inputs": np.stack(pictures).tolist()}))
    (tmp_path / "serve.py").write_text(
        "import json, sys\n"
        "sys.modules['deeplab_keras'] = None\n"  # makes an import raise
        "import numpy as np, tensorflow as tf\n"
        "serve = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
        "(spec,) = serve.structured_input_signature[1].values()\n"
        "assert spec.name == 'image' and spec.dtype == tf.uint8 and spec.shape.as_list() == "
        "[None, None, None, 3]\n"
        "body = json.load(open('image.json'))\n"
        "outputs = serve(image=tf.constant(np.array(body['inputs'], spec.dtype.as_numpy_dtype)))\n"
        "json.dump({'outputs': {name: value.numpy().tolist() for name, value in "
        "outputs.items()}}, open('answer.json', 'w'))\n"
    )
    subprocess.run(
        [sys.executable, "-P", "serve.py", exported["saved_model"].path], cwd=tmp_path, check=True
    )
    answer = json.loads((tmp_path / "answer.json").read_text())["outputs"]
    run = check.runner("saved_model", exported["saved_model"].path, 1)
    np.testing.assert_array_equal(answer["labels"], [run(picture)[0] for picture in pictures])
    np.testing.assert_allclose(
        answer["logits"], [run(picture)[1] for picture in pictures], atol=1e-4
    )


def test_the_dockerfile_copies_what_the_export_writes(exported):
    lines = (ROOT / "docs/serving/Dockerfile").read_text().splitlines()
    (copied,) = [line.split() for line in lines if line.startswith("COPY")]
    assert (exported["saved_model"].path.parent / copied[1] / "saved_model.pb").is_file()
    name = next(line.partition("=")[2] for line in lines if line.startswith("ENV MODEL_NAME"))
    assert copied[2] == f"/models/{name}/1", "a version's number, where the server looks for it"
    assert f"/v1/models/{name}:predict" in (ROOT / "docs/export.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_every_head_converts_without_slow_operators(head, pictures, tmp_path):
    source = lively(HEADS[head])
    kinds = ("saved_model", "tflite", "tflite_float16", "tflite_int8")
    files = export.export_model(
        source,
        tmp_path / "out",
        formats=kinds,
        input_size=SIZE,
        representative_images=pictures,
        min_agreement=0.4,
    )  # a random network has nearly equal scores, so float16 and int8 change labels
    for file in files:
        assert not any(name.startswith(tflite.UNWANTED) for name in file.operators), file.operators
        assert file.classes >= 2
    by_kind = {file.kind: file for file in files}
    assert by_kind["saved_model"].label_agreement >= 0.999
    assert by_kind["tflite"].label_agreement >= 0.999
    assert by_kind["tflite_float16"].label_agreement >= 0.98


@pytest.mark.skipif(
    importlib.util.find_spec("tf2onnx") is None, reason="the extra onnx is not installed"
)
@pytest.mark.parametrize("output", [pytest.param("labels", marks=pytest.mark.slow), "both"])
def test_onnx_agrees_with_keras(checkpoint, tmp_path, output, caplog, monkeypatch):
    path = tmp_path / "model.onnx"
    monkeypatch.setattr(tf.get_logger(), "propagate", True)
    (file,) = export.export_model(
        checkpoint, path, formats=["onnx"], input_size=SIZE, output=output
    )
    assert not [record for record in caplog.records if "deprecated" in record.getMessage()]
    assert file.label_agreement >= 0.999 and file.classes >= 3 and file.max_logit_difference < 1e-3
    batch, other = (
        np.stack(images.synthetic_images(SIZE, 3, 2)),
        images.synthetic_images((80, 120), 3, 1)[0],
    )
    found, expected = Predictor(path), Predictor(checkpoint.model)
    assert found.network.info == checkpoint.info
    assert agreement(found.predict_batch(batch), expected.predict_batch(batch)) >= 0.999
    assert agreement(found(other), expected(other)) >= 0.7


# === The check ===


def test_compare_counts_labels_and_differences():
    image = keras.Input((None, None, 3))
    model = keras.Model(
        image, keras.layers.Identity()(image)
    )  # the label of a pixel is its strongest channel
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0], picture[2:, :, 1] = 10, 20  # two classes

    def wrong_in_one_row(image):
        logits = image.astype(np.float32)
        logits[0, :, 2] += 15
        return logits.argmax(-1), logits

    found = check.compare(wrong_in_one_row, KerasNetwork(model), [picture])
    assert (found.max_logit_difference, found.label_agreement, found.classes, found.miou_loss) == (
        15.0,
        0.75,
        2,
        None,
    )
    found = check.compare(wrong_in_one_row, KerasNetwork(model), [picture], (8, 5))
    assert (found.max_logit_difference, found.label_agreement, found.images) == (15.0, 0.875, 1)
    broken = check.compare(
        lambda image: (image.argmax(-1), image * np.nan), KerasNetwork(model), [picture] * 2
    )
    assert np.isnan(broken.max_logit_difference)

    truth = np.repeat([[0], [0], [1], [255]], 5, 1).astype(
        np.uint8
    )  # Keras is correct on all counted pixels
    found = check.compare(wrong_in_one_row, KerasNetwork(model), [picture], None, [truth])
    assert (
        found.keras_miou == 1.0 and found.miou == (5 / 10 + 5 / 5 + 0) / 3
    )  # class 2 is a false positive
    assert found.miou_loss == pytest.approx(50)
    assert (
        check.compare(wrong_in_one_row, KerasNetwork(model), [picture], (8, 5), [truth]).miou
        == (15 / 20 + 1 + 0) / 3
    )


@pytest.mark.parametrize(("added", "rows_wrong"), [(15, 0), (25, 1)])
def test_a_file_is_also_compared_at_the_images_own_size(added, rows_wrong):
    """The file gets a 4x5 image resized to 8x5; its resized scores are means of two rows."""
    image = keras.Input((None, None, 3))
    network = KerasNetwork(keras.Model(image, keras.layers.Identity()(image)))
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0], picture[2:, :, 1] = 10, 20

    def wrong_in_one_row(image):
        logits = image.astype(np.float32)
        logits[0, :, 2] += added  # half of it remains for class 2, and class 0 has 10
        return logits.argmax(-1), logits

    truth = np.repeat([[0], [0], [1], [255]], 5, 1).astype(np.uint8)
    found = check.compare(wrong_in_one_row, network, [picture], (8, 5), [truth]).own_size
    right = 10 - 5 * rows_wrong
    expected = (right / 10 + 1 + 0) / 3 if rows_wrong else 1.0
    assert found == check.OwnSize(1 - rows_wrong / 4, 1, 1, (4, 5), pytest.approx(expected), 1.0)
    others = [
        picture,
        np.zeros((16, 10, 3), np.uint8),
        np.zeros((8, 10, 3), np.uint8),
        np.zeros((8, 10, 3), np.uint8),
    ]
    found = check.compare(wrong_in_one_row, network, others, (8, 5)).own_size
    assert (found.images, found.stretched, found.example, found.miou) == (4, 3, (8, 10), None)
    assert check.compare(wrong_in_one_row, network, [picture], (4, 5)).own_size is None, (
        "the images have the file's size"
    )
    assert check.compare(wrong_in_one_row, network, [picture], None).own_size is None, (
        "the file takes any size"
    )
    fixed = keras.Input((8, 5, 3))
    model = KerasNetwork(keras.Model(fixed, keras.layers.Identity()(fixed)))
    assert check.compare(wrong_in_one_row, model, [picture], (8, 5)).own_size is None, (
        "Keras has no other size"
    )


def text_at_own_size(own: check.OwnSize, size: tuple[int, int]) -> str:
    compared = check.FileAgreement(1.0, 0.9999, 5, 8, own.miou and 0.7, own.miou and 0.7, own)
    return str(ExportedFile(pathlib.Path("x"), "tflite", 1, compared, input_size=size))


def test_the_warning_about_the_aspect_ratio_has_both_numbers():
    text = text_at_own_size(check.OwnSize(0.84, 8, 8, (320, 480), 0.61, 0.76), (257, 257))
    assert (
        "; at the images' own size mIoU 61.00 (Keras 76.00); warning: "
        "input_size=257,257 changes the aspect" in text
    )
    assert (
        "of 8 of 8 images (most are 320x480): mIoU 61.00 instead of 76.00; "
        "input_size=209,313 keeps it" in text
    )
    text = text_at_own_size(check.OwnSize(0.84, 8, 3, (640, 480)), (512, 512))
    assert (
        "at the images' own size 84.000 % of labels agree with Keras; warning: "
        "input_size=512,512" in text
    )
    assert (
        "of 3 of 8 images (most are 640x480): 84.000 % of labels agree instead of 99.990 %" in text
    )
    assert "input_size=592,440 keeps it" in text
    text = text_at_own_size(check.OwnSize(0.84, 8, 0, (320, 480), 0.75, 0.76), (160, 240))
    assert "at the images' own size mIoU 75.00 (Keras 76.00)" in text and "warning" not in text


@pytest.mark.parametrize(
    ("shape", "size"),
    [((320, 480), (257, 257)), ((1080, 1920), (512, 512)), ((500, 375), (513, 513))],
)
def test_the_suggested_size_keeps_the_ratio_and_the_number_of_pixels(shape, size):
    height, width = fitting_size(shape, size)
    assert height % 8 == size[0] % 8 and width % 8 == size[1] % 8
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.02)
    assert height * width == pytest.approx(size[0] * size[1], rel=0.05)


def test_the_warning_about_8_bits():
    def told(kind, agreement, miou=None):
        compared = check.FileAgreement(1.0, agreement, 5, 8, miou, miou and 0.7)
        return "8 bits lose accuracy" in str(ExportedFile(pathlib.Path("x"), kind, 1, compared))

    assert told("tflite_int8", 0.97) and not told("tflite_int8", 0.99) and not told("tflite", 0.97)
    assert told("tflite_int8", 0.99, 0.68) and not told(
        "tflite_int8", 0.97, 0.691
    )  # mIoU decides, if it is known


def test_percent_never_rounds_up():
    assert check.percent(0.999999) == "99.999 %"
    assert check.percent(1.0) == "100.000 %"


def test_a_file_that_fails_its_check_is_kept_as_failed(checkpoint, copying, pictures, tmp_path):
    with raises_line(r"model_int8\.tflite\.failed.*--min_agreement=1: do not use"):
        export.export_model(
            checkpoint,
            tmp_path / "out",
            formats=["tflite_int8"],
            input_size=SIZE,
            representative_images=pictures,
            min_agreement=1.0,
        )
    assert leftovers(tmp_path) == ["out", "out/model_int8.tflite.failed"]


def test_no_partial_file_is_left(checkpoint, copying, tmp_path, monkeypatch):
    def full(kind, path, threads):
        raise OSError("disk full")

    monkeypatch.setattr(export, "runner", full)
    with pytest.raises(OSError):
        export.export_model(checkpoint, tmp_path / "x.tflite", formats=["tflite"], input_size=SIZE)
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_reported_with_the_path(checkpoint, tmp_path, monkeypatch):
    def full(job, kind, path):
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export._Job, "write", full)
    with raises_line(r"x\.tflite: cannot be written \(No space left on device\); free some space"):
        export.export_model(checkpoint, tmp_path / "x.tflite", formats=["tflite"], input_size=SIZE)
    assert leftovers(tmp_path) == []


def test_overwrite_replaces_a_folder(checkpoint, copying, tmp_path):
    old = tmp_path / "saved_model"
    old.mkdir()
    (old / "old").touch()
    (tmp_path / "other.txt").touch()
    export.export_model(
        checkpoint, tmp_path, formats=["saved_model"], overwrite=True, log=lambda line: None
    )
    assert not (old / "old").exists() and (old / "saved_model.pb").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt", "saved_model"]


# === Mistakes ===


def rejected(checkpoint, path, match, **options):
    with raises_line(match) as error:
        export.export_model(
            checkpoint, path, **{"formats": ["tflite"], "input_size": SIZE, **options}
        )
    assert "\n" not in as_command_line(error.value)


def test_mistakes_are_reported_before_anything_is_written(checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    rejected(
        checkpoint, out, r"unknown --formats 'tflit'; did you mean 'tflite'\?", formats=["tflit"]
    )
    rejected(checkpoint, out, r"--formats is empty", formats=[])
    rejected(checkpoint, out, r"unknown --output 'label'", output="label")
    rejected(
        checkpoint, out, r"--min_agreement must be a share of the pixels, 0 to 1", min_agreement=99
    )
    rejected(
        checkpoint,
        out,
        r"unknown --label_type 'uint16'; did you mean 'uint8'\?",
        label_type="uint16",
    )
    rejected(checkpoint, out, r"--formats=tflite needs --input_size=HEIGHT,WIDTH", input_size=None)
    rejected(
        checkpoint,
        out,
        r"--input_size must be two whole numbers of at least 1, .*=0,5",
        input_size=(0, 5),
    )
    rejected(
        checkpoint,
        out,
        r"--input_size must be two whole numbers of at least 1, .*=5",
        input_size=(5,),
    )
    rejected(
        checkpoint,
        out,
        r"--input_size=99999,99999: too large: .* less than 2 GiB",
        input_size=(99999, 99999),
    )
    rejected(checkpoint, out, r"Received: 0; give --representative_dir=", formats=["tflite_int8"])
    rejected(
        checkpoint,
        out,
        r"Received: 0 in .*; give --rep",
        formats=["tflite_int8"],
        representative_images=tmp_path,
    )
    (tmp_path / "file").touch()
    rejected(
        checkpoint, tmp_path / "file" / "a", r"--export_path=.*/a: .*/file is a file; give a folder"
    )
    (tmp_path / "file").unlink()
    few = images.synthetic_images(SIZE, 3, 15)
    rejected(
        checkpoint,
        out,
        r"at least 16 .*Received: 15",
        formats=["tflite_int8"],
        representative_images=few,
    )
    rejected(checkpoint, out, r"nowhere: no such folder", check_images=tmp_path / "nowhere")
    rejected(checkpoint, out, r"no images for the check", check_images=tmp_path)
    for wrong in (3, np.zeros((4, 4, 3), np.uint8)):
        rejected(
            checkpoint, out, r"a list of arrays or a split of a dataset, not", check_images=wrong
        )
    rejected(tmp_path / "none", out, r"none: no such folder; give a checkpoint")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rejected(
        checkpoint,
        out,
        r"needs the packages onnx, tf2onnx, onnxruntime; install them with pip install onnxr",
        formats=["onnx"],
    )
    assert leftovers(tmp_path) == []


def test_options_replace_those_of_a_config(checkpoint, copying, tmp_path):
    config = ExportConfig(formats=["tflite"], input_size=SIZE, export_path=tmp_path / "from_config")
    (file,) = export.export_model(checkpoint, config=config, log=lambda line: None)
    assert file.path == tmp_path / "from_config/model.tflite"
    (file,) = export.export_model(
        checkpoint, tmp_path / "out", config, formats=["saved_model"], log=lambda line: None
    )
    assert file.path == tmp_path / "out/saved_model"
    with raises_line("unknown ExportConfig field 'format'; did you mean 'formats'.* known: .*thre"):
        export.export_model(checkpoint, tmp_path / "b", format="tflite")
    with raises_line("--formats must be a list, not str"):
        export.export_model(checkpoint, tmp_path / "b", formats="tflite")
    with raises_line("--export_path is required: a folder for the files"):
        export.export_model(checkpoint, formats=["tflite"], input_size=SIZE)


def test_a_size_that_the_model_cannot_take(checkpoint, tmp_path):
    config = LRASPP.replace(image_pooling_size=(7, 7), image_pooling_stride=(3, 3))
    windowed = LoadedCheckpoint(
        build_segmentor(config), config, checkpoint.info, checkpoint.path, {}
    )
    rejected(
        windowed, tmp_path / "out", r"input size 65x97 is too small for --image_pooling_size=7,7"
    )
    fixed = LoadedCheckpoint(
        build_segmentor(LRASPP, (33, 33)), LRASPP, checkpoint.info, checkpoint.path, {}
    )
    rejected(
        fixed, tmp_path / "out", r"--input_size=65,97: the model was built for 33x33 only; give"
    )


def test_layers_that_a_user_added_are_exported(toy_checkpoint, tmp_path):
    """A layer selects three of five classes."""
    checkpoint = toy_checkpoint
    kept = np.eye(5, 3, dtype=np.float32)[None, None]
    layer = keras.layers.Conv2D(3, 1, use_bias=False, name="own")
    model = keras.Model(checkpoint.model.input, layer(checkpoint.model.output))
    layer.set_weights([kept])
    changed = dataclasses.replace(checkpoint, model=model)
    with raises_line("the model outputs 3 classes, its config has 5 and its class list 5"):
        export.export_model(changed, tmp_path / "out", formats=["tflite"], input_size=SIZE)
    changed = dataclasses.replace(
        changed,
        config=checkpoint.config.replace(num_classes=3),
        info=info_for_classes("test", CLASSES[:3]),
    )
    export.export_model(
        changed, tmp_path / "out", formats=["tflite"], input_size=SIZE, log=lambda line: None
    )
    picture = images.synthetic_images(SIZE, 3, 1)[0]
    expected = (
        checkpoint.model(picture[None].astype(np.float32))[0]
        .numpy()[..., :3]
        .argmax(-1)
        .astype(np.uint8)
    )
    assert agreement(Predictor(tmp_path / "out/model.tflite")(picture), expected) >= 0.999


def with_own_layer(model: keras.Model, scale: float = 1.0) -> keras.Model:
    """The model with its scores in reverse order, by a layer that its config does not describe."""
    classes = model.output_shape[-1]
    layer = keras.layers.Conv2D(classes, 1, use_bias=False, name="own")
    changed = keras.Model(model.input, layer(model.output), name="changed")
    layer.set_weights([scale * np.eye(classes, dtype=np.float32)[None, None, ::-1]])
    return changed


@pytest.mark.parametrize("kind", ["tflite", "saved_model"])
def test_models_in_memory_are_exported(toy_checkpoint, tmp_path, kind):
    model, path = with_own_layer(toy_checkpoint.model), tmp_path / export.FORMATS[kind]
    options = dict(formats=[kind], input_size=SIZE, resize="letterbox", log=lambda line: None)
    (file,) = export.export_model(model, tmp_path, class_names=CLASSES[::-1], **options)
    assert file.path == path and file.label_agreement >= 0.999
    predictor, picture = Predictor(path), images.synthetic_images(SIZE, 3, 1)[0]
    assert predictor.info.class_names == tuple(CLASSES[::-1])
    assert predictor.network.pad_value == pytest.approx(toy_checkpoint.model.pad_value)
    expected = len(CLASSES) - 1 - Predictor(toy_checkpoint.model)(picture)
    assert agreement(predictor(picture), expected) >= 0.999 and len(np.unique(expected)) >= 3


def test_models_of_other_layers_are_exported(tmp_path):
    """One class per color channel, so the label is that of the brightest channel."""
    image = keras.Input((None, None, 3))
    scores = keras.layers.Rescaling(1 / 255)(image)
    model = keras.Sequential([keras.Model(image, scores, name="inner"), keras.layers.Softmax()])
    picture = images.synthetic_images(SIZE, 3, 1)[0]
    options = dict(formats=["tflite"], input_size=SIZE, log=lambda line: None)
    export.export_model(model, tmp_path / "a.tflite", **options)
    predictor = Predictor(tmp_path / "a.tflite")
    assert predictor.info.class_names == ("class_0", "class_1", "class_2")
    assert predictor.network.pad_value == (0.0, 0.0, 0.0)
    assert agreement(predictor(picture), picture.argmax(-1).astype(np.uint8)) >= 0.999
    with raises_line("--class_names: 2 names for a model with 3 classes; give one name per class"):
        export.export_model(model, tmp_path / "b.tflite", class_names=["a", "b"], **options)
    with raises_line("--output_at=head: the model .* does not end with the resize"):
        export.export_model(model, tmp_path / "b.tflite", output_at="head", **options)
    with raises_line("must be a path, the name of a model, a loaded checkpoint or a keras.Model"):
        export.export_model(3, tmp_path / "b.tflite", **options)


def scores_of(x: object, *, size: int = 1, **options: object) -> object:
    return keras.layers.Conv2D(3, size, **options)(x)


def test_a_softmax_at_the_end_is_left_out(tmp_path):
    """Otherwise, `probabilities` would compute a second one."""
    image = keras.Input((None, None, 3))
    logits = scores_of(image)
    softmax = keras.Model(image, keras.layers.Softmax()(logits))
    options = dict(formats=["tflite"], input_size=SIZE, log=lambda line: None)
    (file,) = export.export_model(softmax, tmp_path / "a.tflite", **options)
    picture = images.synthetic_images(SIZE, 3, 1)[0]
    expected = softmax.predict_on_batch(picture[None].astype(np.float32))[0]
    np.testing.assert_allclose(Predictor(file.path).probabilities(picture), expected, atol=1e-5)
    inside = keras.Model(image, scores_of(image, activation="softmax", name="last"))
    with raises_line("the layer 'last' ends with a softmax, but files return logits; build it"):
        export.export_model(inside, tmp_path / "b.tflite", **options)


IMAGE = keras.Input((None, None, 3))
FOUR = keras.Input(batch_shape=(4, 64, 64, 3))
HALF = keras.Input((None, 32, 3))
OTHER = keras.Input((None, None, 3))
NOT_EXPORTED = {
    "two inputs": ([IMAGE, OTHER], lambda: scores_of(IMAGE + OTHER), "and a single output"),
    "a dictionary": (IMAGE, lambda: {"x": scores_of(IMAGE)}, "a single output, no dictionary"),
    "one fixed side": (HALF, lambda: scores_of(HALF), "with both sides fixed or none"),
    "a fixed batch": (FOUR, lambda: scores_of(FOUR), "for any batch size"),
    "smaller": (IMAGE, lambda: scores_of(IMAGE, size=3), "has scores of .* add a resize"),
    "half": (IMAGE, lambda: scores_of(IMAGE, dtype="float16"), "computes in float16"),
}


@pytest.mark.parametrize(
    "name, kind",
    # SavedModels can have float16.
    [(name, "tflite") for name in NOT_EXPORTED]
    + [(name, "saved_model") for name in NOT_EXPORTED if name != "half"],
)
def test_models_that_cannot_be_exported(tmp_path, name, kind):
    inputs, output, message = NOT_EXPORTED[name]
    size = None if kind == "saved_model" else (64, 64)
    with raises_line(message):
        export.export_model(
            keras.Model(inputs, output()), tmp_path / "out", formats=[kind], input_size=size
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["tflite", "saved_model"])
def test_weights_that_are_not_finite(tmp_path, kind, value):
    """The check used to name a temporary file."""
    first = keras.layers.Conv2D(3, 1, name="first")
    model = keras.Model(IMAGE, scores_of(first(IMAGE)), name="mine")
    first.bias.assign([0, value, 0])
    with raises_line("the model 'mine' has weights that are NaN or infinite, in its layer 'first'"):
        export.export_model(model, tmp_path / "out", formats=[kind], input_size=SIZE)
    assert not (tmp_path / "out").exists()


def python_code(x: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(lambda value: 2 * value, [x], tf.float32), x.shape)


NOT_FUNCTIONS = {
    "numpy_function": (python_code, "calls Python code; write the layer with keras.ops"),
    "py_function": (
        lambda x: tf.ensure_shape(tf.py_function(lambda y: y, [x], tf.float32), x.shape),
        "its operation 'mine.*/own.*/EagerPyFunc' calls Python code",
    ),
    "random": (
        lambda x: x + keras.random.normal(keras.ops.shape(x)),
        "draws random numbers or changes variables, also with training=False; do so only",
    ),
    "dropout": (lambda x: keras.random.dropout(x, 0.5), "draws random numbers"),
    "tf.random": (lambda x: x + tf.random.normal(tf.shape(x)), "draws random numbers"),
    "in a function": (tf.function(lambda x: x + tf.random.normal(tf.shape(x))), "draws random"),
    "clock": (lambda x: x + tf.cast(tf.timestamp(), tf.float32), "the clock; compute with const"),
    "file": (lambda x: x + tf.strings.to_number(tf.io.read_file("x")), "reads a table, a file"),
}


@pytest.mark.parametrize("kind", ["saved_model", "tflite_int8"])
@pytest.mark.parametrize("name", NOT_FUNCTIONS)
def test_models_that_are_no_function_of_the_image(tmp_path, name, kind):
    """A SavedModel with Python code would run in this process only, and 8-bit files may differ."""
    call, message = NOT_FUNCTIONS[name]
    layer = keras.layers.Lambda(call, output_shape=lambda shape: shape, name="own")
    model = keras.Model(IMAGE, scores_of(layer(IMAGE)), name="mine")
    with raises_line(f"the model 'mine' cannot be exported: .*{message}"):
        export.export_model(model, tmp_path / "out", formats=[kind], input_size=SIZE)
    assert not (tmp_path / "out").exists()


def bits(x: tf.Tensor) -> tf.Tensor:
    return x + tf.cast(tf.bitwise.bitwise_and(tf.cast(x, tf.int32), 3), tf.float32)


@pytest.mark.parametrize(
    "call, kind, message",
    [
        (bits, "tflite", "TFLite has no operation BitwiseAnd; replace the layers with it, or give"),
        (bits, "tflite_int8", "TFLite has no operation BitwiseAnd"),
        pytest.param(
            lambda x: x + tf.math.lgamma(1 + abs(x)),
            "onnx",
            "ONNX has no operation Lgamma; .* --formats=saved_model",
            marks=pytest.mark.package("onnxruntime"),
        ),
    ],
)
def test_operations_that_a_format_lacks(tmp_path, call, kind, message):
    model = keras.Model(IMAGE, scores_of(keras.layers.Lambda(call)(IMAGE)))
    options = dict(input_size=SIZE, representative_images=images.synthetic_images(SIZE, 3, 16))
    with raises_line(message):
        export.export_model(model, tmp_path / "out", formats=[kind], **options)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "names", ["abc", {"a", "b", "c"}, 3, [1, 2, 3], ["a", "b", "c\nd"], ["a", " ", "c"]]
)
def test_class_names_that_cannot_be_lines_of_a_file(tmp_path, names):
    model = keras.Model(IMAGE, scores_of(IMAGE))
    with raises_line("--class_names"):
        export.export_model(
            model, tmp_path / "out", formats=["tflite"], input_size=SIZE, class_names=names
        )


def test_classes_of_a_checkpoint_are_its_own(toy_checkpoint, tmp_path):
    with raises_line("--class_names cannot be combined with a checkpoint"):
        export.export_model(toy_checkpoint, tmp_path / "out", class_names=["a"])


@pytest.mark.slow
def test_models_in_memory_are_exported_in_8_bits_and_with_other_resizes(tmp_path, pictures):
    """As the unchanged network from its config: one convolution over the concatenated maps."""
    with registered():
        source = lively(toy_config(**SMALL, head="psp", align_corners=True))
    options = dict(input_size=SIZE, representative_images=pictures, log=lambda line: None)
    kinds = ["tflite", "tflite_int8", "onnx"]
    path = tmp_path / "plain"
    plain = export.export_model(
        source, path, formats=kinds, half_pixel_resizes=True, min_agreement=0.0, **options
    )
    changed = export.export_model(
        with_own_layer(source.model),
        tmp_path / "changed",
        formats=kinds,
        half_pixel_resizes=True,
        min_agreement=0.0,
        **options,
    )
    picture = images.synthetic_images(SIZE, 3, 1)[0]
    for before, after, least in zip(plain, changed, (0.999, 0.97, 0.999), strict=True):
        expected = len(CLASSES) - 1 - Predictor(before.path)(picture)
        assert agreement(Predictor(after.path)(picture), expected) >= least
    assert changed[1].operators["CONCATENATION"] == 1
    assert "BATCH_MATMUL" not in changed[1].operators
    resizes = [verdict for verdict in changed[0].verdicts if "Android 10" in verdict.delegate]
    assert "RESIZE_BILINEAR with half-pixel centers" in resizes[0].stopped_by
    assert "RESIZE_BILINEAR with aligned corners" not in resizes[0].stopped_by


@pytest.mark.slow
def test_quantization_aware_models_in_memory_are_exported_in_float(tmp_path):
    aware = lively(HEADS["psp"].replace(quantization_aware=True))
    plain = build_segmentor(HEADS["psp"])
    assign_weights(plain, without_ranges(named_weights(aware.model)), "test")
    export.export_model(
        with_own_layer(aware.model),
        tmp_path / "x.tflite",
        formats=["tflite"],
        input_size=SIZE,
        output="logits",
        log=lambda line: None,
    )
    picture = images.synthetic_images(SIZE, 3, 1)[0][None].astype(np.float32)
    _, logits = check.runner("tflite", tmp_path / "x.tflite", 1)(picture[0])
    expected = plain.predict_on_batch(picture)[0][..., ::-1]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))


def test_existing_files_are_not_overwritten(checkpoint, tmp_path):
    (tmp_path / "full").mkdir()
    for name in ("full/model.tflite", "a.tflite", "file"):
        (tmp_path / name).touch()
    before = leftovers(tmp_path)
    rejected(checkpoint, tmp_path / "full", r"full: exists; give another folder, or --overwrite")
    rejected(
        checkpoint, tmp_path / "a.tflite", r"a\.tflite: exists; give another path, or --overwrite"
    )
    rejected(checkpoint, tmp_path / "file", r"file: exists and is a file", overwrite=True)
    rejected(
        checkpoint,
        tmp_path / "b.tflite",
        r"not a file name for --formats=saved_model",
        formats=["saved_model"],
    )
    rejected(
        checkpoint,
        tmp_path / "b.tflite",
        r"not a file name for --formats=tflite,onnx",
        formats=["tflite", "onnx"],
    )
    assert leftovers(tmp_path) == before


# === Images ===


def test_images_from_a_folder_are_evenly_spaced(tmp_path):
    for index in range(10):
        Image.new("L", (4, 3), index).save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").touch()
    found = images.read_images(tmp_path, 4)
    assert [int(image[0, 0, 0]) for image in found] == [0, 3, 6, 9] and found[0].shape == (3, 4, 3)
    assert len(images.read_images(tmp_path, 99)) == 10
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with raises_line(r"bad\.jpg: cannot be decoded"):
        images.read_images(tmp_path, 99)


def test_images_of_an_export_are_converted_as_a_predictor_does(tmp_path):
    """Otherwise, the ranges of an 8-bit file were those of other images, or missing."""
    rgb = ramp(1, 5, 7, 3)[0].astype(np.uint8)
    rgba = np.concatenate([rgb, rgb[..., :1]], -1)
    (gray,) = images.read_images([rgb[..., 0]], 1)
    np.testing.assert_array_equal(gray, np.repeat(rgb[..., :1], 3, -1))
    for given in (rgba, rgb.astype(np.int64), np.clip(rgb + 0.4, 0, 255), Image.fromarray(rgba)):
        (found,) = images.read_images([given], 1)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, rgb)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_images([tmp_path / "a.png"], 1)[0], rgb)
    (luma,) = images.read_images(tmp_path, 1, channels=1)
    expected = rgb @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(luma[..., 0], expected, rtol=0, atol=0.6)
    with raises_line(r"a\.png: image with 3 channels; the model takes 4"):
        images.read_images(tmp_path, 1, channels=4)


@pytest.mark.parametrize(
    "image, message",
    [
        (noise(5, 7, 2).astype(np.uint8), "image with 2 channels; the model takes 3"),
        (257 * noise(5, 7, 3).astype(np.uint16), "must be 0 to 255; divide 16-bit values by 257"),
        (noise(5, 7, 3) / 255, "multiply by 255"),
        (np.full((5, 7, 3), np.nan), "must be 0 to 255"),
        (np.zeros((0, 7, 3), np.uint8), r"image of shape \(0, 7, 3\)"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"image of shape \(2, 5, 7, 3\)"),
        (None, r"image of shape \(\)"),
        ("none.png", r"none\.png: cannot be decoded \(No such file or directory\); replace"),
    ],
)
def test_images_that_cannot_be_those_of_an_export(tmp_path, image, message):
    model = keras.Model(IMAGE, scores_of(IMAGE))
    good = images.synthetic_images(SIZE, 3, 16)
    for given in ({"representative_images": [image] * 16}, {"check_images": [image]}):
        options = dict(formats=["tflite_int8"], input_size=SIZE, representative_images=good)
        with raises_line(message):
            export.export_model(model, tmp_path / "out", **options | given)
    assert not (tmp_path / "out").exists()


def test_synthetic_images_vary_and_are_reproducible():
    first, again = images.synthetic_images((40, 30), 3), images.synthetic_images((40, 30), 3)
    np.testing.assert_array_equal(first, again)
    assert all(
        image.dtype == np.uint8 and image.shape == (40, 30, 3) and image.std() > 20
        for image in first
    )
    assert not np.array_equal(first[0], first[1])
