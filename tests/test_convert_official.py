"""Official weights from every kind of file, including real models, and files that do not fit."""

from __future__ import annotations

import io
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from contracts import SHARED, as_command_line, noise, raises_line
from official_golden import SMALL, drawn_tensors, merged_logits
from PIL import Image

from deeplab_keras.checkpoints.folder import named_weights
from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.convert import official_deeplab, official_files
from deeplab_keras.convert.initial import initialize
from deeplab_keras.convert.official_files import read_source
from deeplab_keras.convert.transfer import slots
from deeplab_keras.inference import Predictor
from deeplab_keras.models.layer_groups import layers_in_group
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.official import OFFICIAL, official_config

CONFIG, SIZE = SMALL["mnv2_dm035_os32"]
SLOTS = {
    "global_step": np.int64(30000),
    "MobilenetV2/Conv/weights/Momentum": np.zeros((3, 3, 3, 11), np.float32),
}
WEIGHTS = SHARED / "weights"
VOC_IMAGES = ("2007_000042", "2011_000003", "2011_000006", "2011_000025")


@pytest.fixture(scope="module")
def model():
    return build_segmentor(CONFIG, SIZE)


@pytest.fixture(scope="module")
def tensors(model):
    return drawn_tensors(model, CONFIG)


def save_checkpoint(prefix: pathlib.Path, tensors: dict) -> pathlib.Path:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


@pytest.fixture
def checkpoint(tmp_path, tensors):
    return save_checkpoint(tmp_path / "release" / "model.ckpt-30000", tensors | SLOTS)


@pytest.fixture
def archive(tmp_path, checkpoint):
    path = tmp_path / "release.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.add(checkpoint.parent, "release")
    return path


def same(found, expected):
    assert set(found) >= set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_checkpoint_by_prefix_file_folder_and_archive(checkpoint, archive, tensors):
    data = checkpoint.with_name(checkpoint.name + ".data-00000-of-00001")
    for path in (
        checkpoint,
        data,
        checkpoint.parent,
        checkpoint.parent.parent / "release",
        archive,
    ):
        source = read_source(path)
        assert source.kind == "TF1 checkpoint" and not source.folded
        same(source.tensors, tensors | SLOTS)
    assert str(archive) in read_source(archive).path


def test_momentum_and_global_step_are_ignored(model, checkpoint, tensors):
    proof = official_deeplab.load(model, CONFIG, str(checkpoint))
    assert set(proof.ignored) == set(SLOTS) and len(proof.rows) == len(tensors)
    np.testing.assert_array_equal(
        model.get_layer("block17_project_conv").kernel,
        tensors["MobilenetV2/expanded_conv_16/project/weights"],
    )


def frozen_graph(tensors: dict, fold: bool) -> bytes:
    """A frozen graph of convolutions with official names and separate or folded batch norms."""
    graph = tf.Graph()
    with graph.as_default():
        for name, kernel in tensors.items():
            layer, _, kind = name.rpartition("/")
            if kind not in ("weights", "depthwise_weights"):
                continue
            channels = kernel.shape[2]
            x = tf.compat.v1.placeholder(tf.float32, (1, 5, 5, channels))
            depthwise = kind == "depthwise_weights"
            norm = {
                part: tensors.get(f"{layer}/BatchNorm/{part}")
                for part in ("gamma", "beta", "moving_mean")
            }
            factor = offset = None
            if norm["gamma"] is not None and fold:
                epsilon = 1e-3 if layer.startswith("Mobilenet") else 1e-5
                factor = norm["gamma"] / np.sqrt(
                    tensors[f"{layer}/BatchNorm/moving_variance"] + np.float32(epsilon)
                )
                offset = norm["beta"] - norm["moving_mean"] * factor
                if not depthwise:  # graph transforms leave a multiplication that they cannot fold
                    kernel, factor = kernel * factor, None
            constant = tf.identity(
                tf.constant(kernel, name=f"{layer}/{kind}"), name=f"{layer}/{kind}/read"
            )
            if depthwise:
                y = tf.nn.depthwise_conv2d(
                    x, constant, (1, 1, 1, 1), "SAME", name=f"{layer}/depthwise"
                )
            else:
                y = tf.nn.conv2d(x, constant, 1, "SAME", name=f"{layer}/Conv2D")
            if factor is not None:
                y = y * tf.constant(factor)
            if offset is not None:
                y = y + tf.constant(offset)
            elif norm["gamma"] is not None:
                variance = tensors[f"{layer}/BatchNorm/moving_variance"]
                y, *_ = tf.compat.v1.nn.fused_batch_norm(
                    y, norm["gamma"], norm["beta"], norm["moving_mean"], variance, is_training=False
                )
            elif f"{layer}/biases" in tensors:
                y = tf.nn.bias_add(y, tensors[f"{layer}/biases"])
            tf.nn.relu6(y)
    return graph.as_graph_def().SerializeToString()


def test_a_frozen_graph_with_whole_batch_norms(tmp_path, tensors):
    path = tmp_path / "frozen_inference_graph.pb"
    path.write_bytes(frozen_graph(tensors, fold=False))
    source = read_source(tmp_path)
    assert source.kind == "frozen graph" and not source.folded
    assert set(source.tensors) == set(tensors)
    same(source.tensors, tensors)


@pytest.mark.slow
def test_a_frozen_graph_with_folded_batch_norms_computes_the_same(tmp_path, model, tensors):
    path = tmp_path / "graph.pb"
    path.write_bytes(frozen_graph(tensors, fold=True))
    source = read_source(path)
    assert source.folded and set(source.tensors) == set(tensors)
    images = noise(1, *SIZE, 3)
    outputs = []
    for values in (tensors, source.tensors):
        official_deeplab.load_official(model, CONFIG, values, origin="test")
        outputs.append(merged_logits(model, images))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-4 * outputs[0].std())


def test_initial_weights_cannot_be_a_graph(tmp_path, model, tensors):
    path = tmp_path / "graph.pb"
    path.write_bytes(frozen_graph(tensors, fold=True))
    before = named_weights(model)
    with raises_line(r"graph\.pb: initial weights cannot be a frozen graph.* convert it first"):
        initialize(model, CONFIG, str(path))
    same(named_weights(model), before)


def test_a_file_without_head_only_fills_the_backbone(model, tensors):
    backbone = {name: value for name, value in tensors.items() if name.startswith("Mobilenet")}
    backbone |= {"MobilenetV2/Conv_1/weights": np.zeros((1, 1, 112, 1280), np.float32)}
    backbone |= {"MobilenetV2/Logits/Conv2d_1c_1x1/biases": np.zeros(1001, np.float32)}
    averages = {f"{name}/ExponentialMovingAverage": value for name, value in backbone.items()}
    before = named_weights(model)["logits/kernel"]
    proof = official_deeplab.load_official(model, CONFIG, backbone | averages, origin="ImageNet")
    assert {row.target.split("_")[0].rstrip("0123456789") for row in proof.rows} == {
        "stem",
        "block",
    }
    np.testing.assert_array_equal(named_weights(model)["logits/kernel"], before)


def test_initial_weights_of_other_classes_skip_the_classifiers(checkpoint, tensors):
    config = CONFIG.replace(num_classes=11, auxiliary_head=True)
    model = build_segmentor(config, SIZE)
    before = named_weights(model)
    initialize(model, config, str(checkpoint))
    after = named_weights(model)
    np.testing.assert_array_equal(after["aspp0_conv/kernel"], tensors["aspp0/weights"])
    fresh = {name for name in after if np.array_equal(after[name], before[name])}
    assert {name.split("/")[0].split("_")[0] for name in fresh} == {"logits", "auxiliary"}


def test_initial_weights_with_another_head_only_fill_the_backbone(checkpoint, tensors):
    config = CONFIG.replace(head="fcn", head_channels=16)
    model = build_segmentor(config, SIZE)
    before = named_weights(model)
    initialize(model, config, str(checkpoint), skip_layers=layers_in_group(model, "head"))
    after = named_weights(model)
    np.testing.assert_array_equal(after["stem_conv/kernel"], tensors["MobilenetV2/Conv/weights"])
    same(
        after, {name: value for name, value in before.items() if name.startswith(("fcn", "logits"))}
    )


def channels(scope: str, **layers: int) -> dict[str, np.ndarray]:
    """Kernels with these numbers of output channels.

    The official numbers are in docs/reference/official_deeplab.md#backbones.
    """
    names = {layer: layer if layer.startswith("Conv") else f"{layer}/project" for layer in layers}
    return {
        f"{scope}/{names[layer]}/weights": np.zeros((1, 1, 1, count))
        for layer, count in layers.items()
    }


def v2(*counts: int) -> dict[str, np.ndarray]:
    layers = ("Conv", "expanded_conv", "expanded_conv_1", "expanded_conv_16")
    return channels("MobilenetV2", **dict(zip(layers, counts, strict=True)))


HEAD = {"aspp0/weights": np.zeros((1, 1, 1, 256)), "logits/semantic/biases": np.zeros(5)}
ATROUS = {f"aspp{i}_depthwise/depthwise_weights": np.zeros((3, 3, 1, 1)) for i in (1, 2)}
LRASPP_HEAD = {
    "image_pooling/biases": np.zeros(128),
    "aspp0/weights": np.zeros((1, 1, 288, 128)),
    "decoder/feature_projection0/weights": np.zeros((1, 1, 88, 19)),
    "decoder/decoder_conv0/biases": np.zeros(19),
}
SMALL_SEG = (
    channels("MobilenetV3", Conv=16, expanded_conv_3=40, expanded_conv_10=48, Conv_1=288)
    | LRASPP_HEAD
)


@pytest.mark.parametrize(
    "values, options",
    [
        (v2(32, 16, 24, 320) | HEAD, {"depth_multiplier": 1.0}),
        (v2(16, 8, 12, 160) | HEAD, {"depth_multiplier": 0.5}),
        (v2(16, 8, 16, 160), {"depth_multiplier": 0.5, "channel_divisor": 8}),
        (v2(11, 6, 8, 112) | HEAD | {"logits/semantic/biases": np.zeros(7)}, {"num_classes": 7}),
        (v2(11, 6, 8, 112) | HEAD | ATROUS, {"atrous_rates": 2}),
        (
            SMALL_SEG,
            {"backbone": "mobilenet_v3_small_seg", "head": "lraspp", "num_classes": 19},
        ),
        (
            channels("MobilenetV3", Conv=16, expanded_conv_11=112, expanded_conv_14=80, Conv_1=480),
            {"backbone": "mobilenet_v3_large_seg"},
        ),
        (
            channels(
                "MobilenetV3", Conv=16, expanded_conv_11=112, expanded_conv_14=160, Conv_1=960
            ),
            {"backbone": "mobilenet_v3_large"},
        ),
        (
            channels(
                "MobilenetEdgeTPU", Conv=24, expanded_conv_9=72, expanded_conv_21=144, Conv_1=960
            ),
            {"backbone": "mobilenet_edgetpu", "depth_multiplier": 0.75},
        ),
    ],
)
def test_the_error_about_another_variant_names_its_options(model, values, options):
    assert options.items() <= official_deeplab.identify(values).items()
    with pytest.raises(UserError) as caught:
        official_deeplab.load_official(model, CONFIG, values, origin="model.ckpt")
    message = as_command_line(caught.value)
    assert "\n" not in message and message.startswith("model.ckpt seems to need")
    flags = {"backbone": "model_variant", "channel_divisor": "divisible_by"}
    for name in options:
        assert name in str(caught.value) and f"--{flags.get(name, name)}" in message


def test_small_for_large(model):
    config = SMALL["mnv3_large_seg_os32"][0]
    with raises_line(r"--model_variant=mobilenet_v3_small_seg \(not mobilenet_v3_large_seg\)"):
        official_deeplab.load_official(model, config, SMALL_SEG, origin="x")


def test_identify(tensors):
    assert official_deeplab.identify(tensors) == {
        "backbone": "mobilenet_v2",
        "depth_multiplier": 0.35,
        "channel_divisor": 1,
        "num_classes": 5,
        "head_channels": 256,
        "head": "deeplab_v3",
        "atrous_rates": 0,
    }
    assert official_deeplab.identify({"something/else": np.zeros(3)}) == {}


def test_a_missing_tensor_is_an_error_and_nothing_is_assigned(model, tensors):
    before = named_weights(model)
    rest = dict(list(tensors.items())[:-1])
    with raises_line("1 missing"):
        official_deeplab.load_official(model, CONFIG, rest, origin="x")
    same(named_weights(model), before)


def spoil_shard(checkpoint):
    checkpoint.with_name(checkpoint.name + ".data-00000-of-00001").unlink()
    return checkpoint


def spoil_index(checkpoint):
    checkpoint.with_name(checkpoint.name + ".index").write_bytes(b"nothing")
    return checkpoint


def spoil_data(checkpoint):
    data = checkpoint.with_name(checkpoint.name + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[:1000])
    return checkpoint


def only_data(checkpoint):
    checkpoint.with_name(checkpoint.name + ".index").unlink()
    return checkpoint.parent


@pytest.mark.parametrize(
    "spoil, message",
    [
        (spoil_shard, "data-00000-of-00001: missing"),
        (spoil_index, "damaged or not a TF1 checkpoint"),
        (spoil_data, "its index declares .* bytes of tensors, but its files have"),
        (only_data, r"\.index: missing"),
        (lambda checkpoint: checkpoint.parent / "model.ckpt-1", "no such checkpoint"),
        (lambda checkpoint: checkpoint.parent / "model.pb", "no such file"),
        (lambda checkpoint: checkpoint.parent / "model.tar.gz", "no such file"),
    ],
)
def test_broken_checkpoints(checkpoint, spoil, message):
    with raises_line(message) as caught:
        read_source(spoil(checkpoint))
    assert "\n" not in as_command_line(caught.value)


def test_a_truncated_archive(archive):
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with raises_line("damaged or not a tar archive"):
        read_source(archive)


@pytest.mark.parametrize(
    "name, link", [("../evil.index", ""), ("/tmp/evil.index", ""), ("a/evil.index", "../../x")]
)
def test_an_archive_that_would_write_outside_of_its_folder(tmp_path, name, link):
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo(name)
        if link:
            member.type, member.linkname = tarfile.SYMTYPE, link
        file.addfile(member, io.BytesIO(b""))
    with raises_line("would write outside"):
        read_source(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.tar.gz"]


def test_folders_and_archives_without_weights(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with raises_line("no TF1 checkpoint"):
        read_source(empty)
    (tmp_path / "bad.tflite").write_bytes(b"no TFLite file")
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as file:
        file.add(tmp_path / "bad.tflite", "release/bad.tflite")
    # Without the temporary folder.
    with raises_line(
        r"/bad\.tar\.gz: release/bad\.tflite: truncated, damaged or not a TFLite file"
    ):
        read_source(tmp_path / "bad.tar.gz")
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz") as file:
        file.add(empty, "empty")
    with raises_line("no checkpoint, frozen graph or .tflite"):
        read_source(tmp_path / "empty.tar.gz")
    for name in ("a.index", "b.index"):
        (empty / name).write_bytes(b"")
    with raises_line("several files with weights"):
        read_source(empty)


@pytest.mark.parametrize("name", ["model.pb", "model.tflite"])
def test_a_damaged_graph(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x0b" * 100)
    with raises_line("damaged or not a") as caught:
        read_source(tmp_path / name)
    assert "\n" not in as_command_line(caught.value)


def tflite_of(layers: dict[str, np.ndarray], quantize: bool) -> bytes:
    """A TFLite file of successive convolutions with these names, in float or in 8 bits."""

    @tf.function(input_signature=[tf.TensorSpec((1, 8, 8, 3))])
    def network(x):
        for name, kernel in layers.items():
            with tf.name_scope(name):
                x = tf.nn.bias_add(
                    tf.nn.conv2d(x, kernel, 1, "SAME", name="Conv2D"),
                    np.ones(kernel.shape[-1], np.float32),
                )
        return x

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantize else []
    return converter.convert()


def test_a_tflite_with_8_bit_weights(tmp_path):
    path = tmp_path / "model.tflite"
    layers = {
        "MobilenetV2/Conv": noise(3, 3, 3, 64) / 255,
        "logits/semantic": noise(1, 1, 64, 21, seed=1) / 255,
    }
    for quantize in (False, True):
        path.write_bytes(tflite_of(layers, quantize=quantize))
        found = read_source(path).tensors
        assert found["logits/semantic/biases"].shape == (21,)
        for layer, kernel in layers.items():
            step = np.abs(kernel).max() / 127 if quantize else 0
            np.testing.assert_allclose(found[f"{layer}/weights"], kernel, rtol=0, atol=0.501 * step)
    path.write_bytes(tflite_of({"what": layers["MobilenetV2/Conv"]}, quantize=False))
    assert read_source(path).tensors == {}
    with raises_line("do not have the names of an official DeepLab"):
        official_deeplab.load(build_segmentor(CONFIG), CONFIG, str(path), check=False)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9])
def test_a_truncated_tflite(tmp_path, part):
    """An interpreter silently crashes the process on such a file."""
    path = tmp_path / "model.tflite"
    content = tflite_of({"MobilenetV2/Conv": noise(3, 3, 3, 64) / 255}, quantize=False)
    path.write_bytes(content[: int(part * len(content))])
    for read in (read_source, Predictor):
        with raises_line("model.tflite: truncated, damaged or not a TFLite file"):
            read(path)


@pytest.mark.parametrize(
    "start, advice",
    [
        (b"\x89HDF\r\n", "HDF5 file .* --source=keras_applications"),
        (b"PK\x03\x04", "zip file.* --source=sssegmentation"),
        (b"\x1f\x8b\x08", r"give it a name that ends in \.tar\.gz"),
        (b"\xff\xd8\xff\xe0", "JPEG image"),
        (b"any other thing", "damaged or not a TF1 checkpoint"),
    ],
)
def test_a_file_of_another_kind(tmp_path, start, advice):
    path = tmp_path / "weights"
    path.write_bytes(start + bytes(200))
    with raises_line(f"{path}: .*{advice}") as caught:
        read_source(path)
    assert "\n" not in as_command_line(caught.value)


def test_a_damaged_archive(tmp_path):
    for content in (b"", b"<html>Log in</html>"):
        path = tmp_path / "release.tar.gz"
        path.write_bytes(content)
        with raises_line("damaged or not a tar archive .ReadError.*; download") as caught:
            read_source(path)
        assert "\n" not in as_command_line(caught.value)


def test_is_official_file(checkpoint, archive, tmp_path):
    for path in (checkpoint, checkpoint.parent, archive, tmp_path / "x.pb"):
        assert official_files.is_official_file(str(path))
    shutil.rmtree(checkpoint.parent)
    assert not official_files.is_official_file(str(tmp_path))
    assert not official_files.is_official_file("imagenet")


# === The real models ===


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_voc_model():
    config = OFFICIAL["deeplabv3_mnv2_pascal_trainval"]
    model = build_segmentor(config)
    folder = WEIGHTS / "deeplabv3_mnv2_pascal_trainval"
    proof = official_deeplab.load(model, config, str(folder))
    assert len(proof.rows) == 272 and proof.ignored == ("global_step",)
    predictor = Predictor(model, EvalConfig(inference="official", eval_crop_size=(513, 513)))
    images = SHARED / "data" / "voc2012_sample"
    right = pixels = same_labels = 0
    with np.load(folder / "expected.npz") as expected:
        for name in VOC_IMAGES:
            (jpeg,), (mask,) = (list(images.rglob(f"{name}.{ending}")) for ending in ("jpg", "png"))
            image, truth = np.asarray(Image.open(jpeg)), np.asarray(Image.open(mask))
            padded = np.full((1, 513, 513, 3), 127.5, np.float32)
            padded[0, : image.shape[0], : image.shape[1]] = image
            scores = predictor.network.before_resize(padded)
            np.testing.assert_allclose(scores, expected[f"logits_{name}"], rtol=0, atol=1e-3)
            labels = predictor(image)
            same_labels += np.sum(labels == expected[f"labels_{name}"])
            counted = truth != 255
            right += np.sum(labels[counted] == truth[counted])
            pixels += counted.sum()
        total = sum(expected[f"labels_{name}"].size for name in VOC_IMAGES)
    assert same_labels / total >= 0.9999
    assert right / pixels == pytest.approx(0.9593, abs=1e-4)


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_tflite_model():
    config = official_config(depth_multiplier=0.5, output_stride=8)
    model = build_segmentor(config, (257, 257))
    folder = WEIGHTS / "deeplabv3_mnv2_dm05_257"
    official_deeplab.load(model, config, str(folder / "deeplabv3.tflite"))
    predictor = Predictor(model)
    # The second pair is mirrored and rotated; the network gets it upright.
    for pair, upright in {
        "rotation0": lambda x: x,
        "rotation90_flop": lambda x: np.rot90(x, 1)[:, ::-1],
    }.items():
        image = np.asarray(Image.open(folder / f"segmentation_input_{pair}.jpg").convert("RGB"))
        expected = np.asarray(Image.open(folder / f"segmentation_golden_{pair}.png"))
        assert np.mean(predictor(upright(image)).astype(int) * 10 == upright(expected)) >= 0.999, (
            pair
        )


@pytest.mark.shared
def test_the_real_tflite_model_without_its_depth_multiplier():
    config = official_config(output_stride=8)
    with raises_line(r"--depth_multiplier=0.5 \(not 1.0\)"):
        path = WEIGHTS / "deeplabv3_mnv2_dm05_257" / "deeplabv3.tflite"
        official_deeplab.load(build_segmentor(config), config, str(path))


# Names that no available file has. They follow the official source code (refine_by_decoder and
# get_branch_logits in model.py).
DECODER_NAMES = {
    "separable": (
        dict(decoder_output_stride=(8, 4)),
        "decoder/feature_projection0 decoder/decoder_conv0_depthwise "
        "decoder/decoder_conv0_pointwise "
        "decoder/decoder_conv1_depthwise decoder/decoder_conv1_pointwise "
        "decoder/feature_projection0_1 "
        "decoder/decoder_conv0_1_depthwise decoder/decoder_conv0_1_pointwise "
        "decoder/decoder_conv1_1_depthwise "
        "decoder/decoder_conv1_1_pointwise",
    ),
    "plain": (
        dict(decoder_output_stride=(4,), decoder_use_separable_conv=False),
        "decoder/feature_projection0 decoder/decoder_conv0/decoder_conv0_1 "
        "decoder/decoder_conv0/decoder_conv0_2",
    ),
    "sum": (
        dict(decoder_output_stride=(4,), decoder_use_sum_merge=True),
        "decoder/feature_projection0 decoder/decoder_split_sep_conv0_depthwise "
        "decoder/decoder_split_sep_conv0_pointwise",
    ),
    "plain sum": (
        dict(
            decoder_output_stride=(4,), decoder_use_sum_merge=True, decoder_use_separable_conv=False
        ),
        "decoder/feature_projection0 decoder/decoder_conv0",
    ),
}


@pytest.mark.parametrize("case", DECODER_NAMES)
def test_names_of_decoders(case):
    flags, expected = DECODER_NAMES[case]
    table = official_deeplab.rules(official_config(**flags))
    stages = ("decoder", "decoder2")[: len(flags["decoder_output_stride"])]
    convs = [f"conv{i}" for i in ((1,) if flags.get("decoder_use_sum_merge") else (1, 2))]
    halves = (
        ("_depthwise", "_pointwise") if flags.get("decoder_use_separable_conv", True) else ("",)
    )
    ours = [f"{stage}_low_level" for stage in stages]
    ours += [f"{stage}_{conv}{half}" for stage in stages for conv in convs for half in halves]

    def names(kind: str) -> set[str]:
        return {table.find(f"{layer}_{kind}")[1] for layer in ours}

    assert names("conv") == set(expected.split())
    assert names("bn") == {f"{name}/BatchNorm" for name in expected.split()}


def test_names_of_several_classifiers():
    config = official_config(
        depth_multiplier=0.35, aspp_with_batch_norm=False, atrous_rates=(2, 4), logits_kernel_size=3
    )
    model = build_segmentor(config, (33, 33))
    wanted = [slot.source for slot in slots(model, official_deeplab.rules(config))]
    found = {name for name in wanted if not name.startswith("Mobile")}
    assert found == {
        f"logits/semantic{end}/{part}" for end in ("", "_1") for part in ("weights", "biases")
    }
    assert [model.get_layer(f"logits{i}").dilation_rate for i in (0, 1)] == [(2, 2), (4, 4)]
    assert model.get_layer("logits0").kernel.shape[:2] == (3, 3)
