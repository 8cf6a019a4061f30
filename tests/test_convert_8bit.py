"""Weights of 8-bit TFLite files and quantization-aware graphs."""

from __future__ import annotations

import pathlib

import flatbuffers
import numpy as np
import official_graphs
import pytest
import tensorflow as tf
from contracts import SHARED, noise, raises_line
from official_golden import drawn_tensors
from PIL import Image
from tensorflow.lite.python import schema_py_generated as schema

from deeplab_keras.convert import official_deeplab
from deeplab_keras.convert.agreement import synthetic_images
from deeplab_keras.convert.conversion import convert
from deeplab_keras.convert.fake_quant import without_rounding
from deeplab_keras.convert.frozen_graph import FrozenGraph
from deeplab_keras.convert.tflite_weights import TFLiteGraph
from deeplab_keras.convert.transfer import dump_weights
from deeplab_keras.inference import Predictor
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.zoo.official import OFFICIAL, official_config

v1 = tf.compat.v1
KERNEL = np.random.default_rng(1).normal(0.1, 0.5, (3, 3, 3, 8)).astype(np.float32)
KERNEL *= np.linspace(0.2, 3, 8, dtype=np.float32)  # channels with different scales
BIAS = np.linspace(-2, 3, 8, dtype=np.float32)
IMAGE = noise(1, 9, 9, 3) / 127.5 - 1


def convolved(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return tf.nn.relu(tf.nn.conv2d(IMAGE, kernel, 1, "SAME") + bias).numpy()


def eight_bits(per_channel: bool, unsigned: bool = False) -> bytes:
    """A TFLite file of one convolution with int8 or uint8 weights and features."""
    spec = tf.TensorSpec((1, 9, 9, 3))

    @tf.function(input_signature=[spec])
    def network(x):
        x = tf.nn.conv2d(x, KERNEL, 1, "SAME", name="MobilenetV2/Conv/Conv2D")
        return tf.nn.relu(tf.nn.bias_add(x, BIAS))

    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: [[IMAGE]]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    converter._experimental_disable_per_channel = not per_channel
    model = schema.ModelT.InitFromPackedBuf(converter.convert(), 0)
    for tensor in model.subgraphs[0].tensors if unsigned else ():
        if tensor.type == schema.TensorType.INT8:
            tensor.type = schema.TensorType.UINT8
            tensor.quantization.zeroPoint = tensor.quantization.zeroPoint + 128
            buffer = model.buffers[tensor.buffer]
            if buffer.data is not None and len(buffer.data):
                buffer.data = (np.asarray(buffer.data, np.uint8) + 128).astype(np.uint8)
    return packed(model)


def packed(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("per_channel, unsigned", [(True, False), (False, False), (False, True)])
def test_weights_are_within_half_a_step_of_the_float_weights(tmp_path, per_channel, unsigned):
    path = tmp_path / "model.tflite"
    path.write_bytes(eight_bits(per_channel, unsigned))
    graph = TFLiteGraph(path)
    (convolution,) = graph.network.convolutions
    assert graph.quantized
    largest = np.abs(KERNEL).max((0, 1, 2) if per_channel else None)
    step = np.broadcast_to(largest / 127, KERNEL.shape)
    assert (np.abs(convolution.kernel - KERNEL) <= 0.501 * step).all()
    assert np.abs(convolution.kernel - KERNEL).max() > 0
    np.testing.assert_allclose(convolution.vectors["offset"], BIAS, atol=step.max() * 2 / 255)


@pytest.mark.parametrize("unsigned", [False, True])
def test_a_file_runs_with_and_without_rounding(tmp_path, unsigned):
    path = tmp_path / "model.tflite"
    path.write_bytes(eight_bits(not unsigned, unsigned))
    graph = TFLiteGraph(path)
    (convolution,) = graph.network.convolutions
    output, feed = [graph.network.logits], {graph.image: IMAGE}
    expected = convolved(convolution.kernel, convolution.vectors["offset"])
    (exact,) = graph.run(output, feed, rounded=False)
    np.testing.assert_allclose(exact, expected, atol=1e-5 * expected.max())
    (rounded,) = graph.run(output, feed)
    step = convolved(KERNEL, BIAS).max() / 255
    difference = np.abs(rounded - exact)
    assert rounded.dtype == np.float32 and 0.1 * step < difference.max() < 10 * step


def test_weights_with_other_bits_are_refused(tmp_path):
    path = tmp_path / "model.tflite"
    model = schema.ModelT.InitFromPackedBuf(eight_bits(per_channel=False), 0)
    kernel = next(t for t in model.subgraphs[0].tensors if tuple(t.shape) == (8, 3, 3, 3))
    kernel.type = schema.TensorType.INT16
    model.buffers[kernel.buffer].data = np.repeat(model.buffers[kernel.buffer].data, 2)
    path.write_bytes(packed(model))
    with raises_line(r"quantized file which neither has float nor 8-bit weights \(.* is int16\)"):
        TFLiteGraph(path)


def test_an_integer_bias_without_scales_is_refused(tmp_path):
    path = tmp_path / "model.tflite"
    model = schema.ModelT.InitFromPackedBuf(eight_bits(per_channel=False), 0)
    model.subgraphs[0].tensors[int(model.subgraphs[0].inputs[0])].quantization = None
    path.write_bytes(packed(model))
    with raises_line("is an integer bias without scales; export the file again"):
        TFLiteGraph(path).network  # noqa: B018


@pytest.mark.parametrize("scale", [0.0, -0.1])
def test_scales_that_are_not_positive_are_refused(tmp_path, scale):
    path = tmp_path / "model.tflite"
    model = schema.ModelT.InitFromPackedBuf(eight_bits(per_channel=False), 0)
    kernel = next(t for t in model.subgraphs[0].tensors if tuple(t.shape) == (8, 3, 3, 3))
    kernel.quantization.scale = [scale]
    path.write_bytes(packed(model))
    with raises_line(r"model\.tflite: damaged \(tensor \d+ has a scale that is not positive\)"):
        TFLiteGraph(path).network  # noqa: B018


# === Quantization-aware graphs ===


def quantization_aware(graph: v1.GraphDef) -> v1.GraphDef:
    """Rewrites a frozen graph as `quantize.create_eval_graph` does, with TF1's names."""
    result = v1.GraphDef()
    result.CopyFrom(graph)
    nodes = {node.name: node for node in result.node}

    def add(kind: str, name: str, *inputs: str) -> str:
        node = result.node.add(name=name, op=kind, input=inputs)
        if not kind.startswith("FakeQuant"):
            node.attr["T"].type = tf.float32.as_datatype_enum
        return name

    def constant(name: str, value: np.ndarray) -> str:
        node = result.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
        return name

    def rounded(tensor: str, name: str, low: float, high: float) -> str:
        limits = [constant(f"{name}/{k}", np.float32(v)) for k, v in (("min", low), ("max", high))]
        return add("FakeQuantWithMinMaxVars", name, tensor, *limits)

    for norm in [node for node in result.node if node.op == "FusedBatchNormV3"]:
        source, gamma, beta, mean, variance = norm.input
        layer = norm.name.removesuffix("/BatchNorm/FusedBatchNormV3")
        fold = f"{layer}/BatchNorm_Fold"
        epsilon = constant(f"{fold}/add/y", np.float32(norm.attr["epsilon"].f))
        root = add("Rsqrt", f"{fold}/Rsqrt", add("AddV2", f"{fold}/add", variance, epsilon))
        scale = add("Mul", f"{fold}/mul", gamma, root)
        bias = add("Sub", f"{fold}/bias", beta, add("Mul", f"{fold}/mul_1", mean, scale))
        before = nodes[source]
        convolution = nodes[before.input[0]] if before.op == "BatchToSpaceND" else before
        if convolution.op == "DepthwiseConv2dNative":
            shape = constant(f"{fold}/shape", np.array([-1, 1], np.int32))
            scale = add("Reshape", f"{fold}/scale_reshape", scale, shape)
            result.node[-1].attr["Tshape"].type = tf.int32.as_datatype_enum
        kernel = add("Mul", f"{layer}/mul_fold", convolution.input[1], scale)
        convolution.input[1] = rounded(kernel, f"{layer}/weights_quant", -3, 3)
        added = add("Add", f"{layer}/add_fold", source, bias)
        name = norm.name
        norm.Clear()
        limits = [constant(f"{layer}/act/{k}", np.float32(v)) for k, v in (("a", -9), ("b", 9))]
        norm.name, norm.op = name, "FakeQuantWithMinMaxVars"
        norm.input.extend([added, *limits])
    return result


@pytest.fixture(scope="module")
def network():
    config = official_config(
        depth_multiplier=0.35, num_classes=5, atrous_rates=(2,), aspp_convs_filters=16
    )
    tensors = drawn_tensors(build_segmentor(config), config)
    graph = official_graphs.frozen(tensors, (65, 97), output_stride=16, rates=(2,))
    return config, tensors, graph


@pytest.mark.slow
def test_the_rounding_of_a_graph_is_removed(network):
    _, _, graph = network
    aware = quantization_aware(graph)
    image = synthetic_images((65, 97))[0]
    expected = official_graphs.run(graph, image)
    exact = official_graphs.run(without_rounding(aware), image)
    np.testing.assert_allclose(exact, expected, atol=2e-5 * np.abs(expected).max())
    difference = np.abs(official_graphs.run(aware, image) - expected).max()
    assert difference > 0.01 * np.abs(expected).max(), "the graph does not round"


@pytest.mark.slow
def test_a_quantization_aware_graph_has_the_trained_weights_and_statistics(network, tmp_path):
    config, tensors, graph = network
    path = tmp_path / "graph.pb"
    path.write_bytes(quantization_aware(graph).SerializeToString())
    assert FrozenGraph(path).quantized
    model, proof = convert("official_deeplab", str(path), config)
    found = dump_weights(model, official_deeplab.rules(config))
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    text = str(proof)
    assert "The frozen graph rounds to 8 bits. Without rounding, it and the model were run" in text
    assert "The model is an approximation of the frozen graph with rounding: " in text
    assert "These images are synthetic; on photographs" in text
    _, proof = convert("official_deeplab", str(path), config, check=False)
    assert "rounds to 8 bits, so the model is an approximation of it" in str(proof)


@pytest.mark.slow
def test_an_8_bit_network_is_compared_without_rounding(network, tmp_path):
    config, tensors, _ = network
    graph = official_graphs.frozen(tensors, (65, 97), output_stride=16, rates=(2,), raw=False)
    path = tmp_path / "model.tflite"
    images = [image[None] / np.float32(127.5) - 1 for image in synthetic_images((65, 97))]
    path.write_bytes(official_graphs.tflite(graph, images=images))
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(synthetic_images((80, 100))):
        Image.fromarray(image).save(folder / f"{index}.png")
    _, proof = convert("official_deeplab", str(path), config, check_photos=folder)
    text = str(proof)
    assert "Without rounding, it and the model were run: 100.0000 % of the labels are equal" in text
    assert "(3 images of 65x97, LiteRT compared with Keras)" in text and "synthetic" not in text


def test_images_for_the_check(tmp_path):
    config = OFFICIAL["deeplab_mnv3_small_cityscapes_trainfine"]
    with raises_line("--check_photos: weights of --source=torchvision come without a graph"):
        convert("torchvision", "a.pth", config, check_photos=[IMAGE])
    with raises_line("--check_photos=.*: 0 images; give at least 1"):
        convert("official_deeplab", "a.pb", config, check_photos=tmp_path)


# === Real files ===

THIRD_PARTY = SHARED / "weights" / "third_party"


@pytest.mark.slow
@pytest.mark.shared
def test_the_edgetpu_model():
    folder, config = THIRD_PARTY / "edgetpu_slim_8bit", OFFICIAL["edgetpu-deeplab-slim"]
    with raises_line("seems to need --finegrain_classification_mode=true .not false."):
        convert("official_deeplab", str(folder), config)
    model, proof = convert(
        "official_deeplab", str(folder), config.replace(finegrain_classification_mode=True)
    )
    assert "Without rounding, it and the model were run: 100.0000 %" in str(proof)
    image = np.asarray(Image.open(folder / "cityscapes_segmentation.bmp").convert("RGB"))
    theirs = labels_of(next(folder.glob("*.tflite")), image)
    assert np.mean(Predictor(model)(image) == theirs) >= 0.97


def labels_of(path: pathlib.Path, image: np.ndarray) -> np.ndarray:
    """The labels of an 8-bit file that takes the bytes of an image."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]


@pytest.mark.slow
@pytest.mark.shared
def test_the_quantization_aware_mobilenet_v3():
    folder = THIRD_PARTY / "mnv3_small_5_classes"
    path = folder / "frozen_inference_graph_q.pb"
    config = OFFICIAL["deeplab_mnv3_small_cityscapes_trainfine"].replace(
        num_classes=5, image_pooling_crop_size=(385, 769)
    )
    model, proof = convert("official_deeplab", str(path), config)
    assert "Without rounding, it and the model were run: 100.0000 %" in str(proof)
    stored = FrozenGraph(path)
    for name, value in dump_weights(model, official_deeplab.rules(config)).items():
        np.testing.assert_array_equal(stored.constant(name), value, err_msg=name)
    with np.load(folder / "expected.npz") as expected:
        images = [expected["road_image"], expected["city_image"]]
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        definition = v1.GraphDef.FromString(path.read_bytes())
        tf.import_graph_def(definition, name="")
        theirs = [session.run("ArgMax:0", {"ImageTensor:0": image[None]})[0] for image in images]
    ours = [Predictor(model)(image) for image in images]
    assert np.mean(np.array(ours) == np.array(theirs)) >= 0.97
