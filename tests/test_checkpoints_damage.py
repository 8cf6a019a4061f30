"""Damaged and malicious weight files of other projects get one line each, without much memory."""

from __future__ import annotations

import io
import resource
import tarfile
import zipfile

import flatbuffers
import h5py
import numpy as np
import pytest
import tensorflow as tf
from contracts import as_command_line, noise, raises_line
from tensorflow.lite.python import schema_py_generated as schema

from deeplab_keras.config import ModelConfig
from deeplab_keras.convert import keras_applications, official_files
from deeplab_keras.convert.official_files import read_source
from deeplab_keras.convert.pth import read_pth
from deeplab_keras.io.tflite_file import check_tflite

STATE = {"layer.weight": noise(16, 8, seed=1), "layer.bn.running_var": noise(16, seed=2) + 1}


def save_pth(path, state):
    import torch

    torch.save(
        {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in state.items()
        },
        path,
    )
    return path


# === .pth ===


@pytest.mark.package("torch")
def test_flipped_bits_in_the_values_of_a_pth_are_found(tmp_path):
    path = save_pth(tmp_path / "good.pth", STATE)
    content = bytearray(path.read_bytes())
    start = content.index(STATE["layer.weight"].tobytes())
    for place in range(start, start + STATE["layer.weight"].nbytes, 37):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "bad.pth").write_bytes(damaged)
        with raises_line("bad.pth: .*does not match its checksum; download it again"):
            read_pth(tmp_path / "bad.pth")
    np.testing.assert_array_equal(read_pth(path)["layer.weight"], STATE["layer.weight"])


@pytest.mark.package("torch")
def test_a_small_pth_cannot_take_gigabytes(tmp_path):
    import torch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expanded = torch.zeros(1).expand(40_000, 30_000)
    same = torch.zeros(250_000)
    for name, state in {
        "one": {"weight": expanded},
        "many": {f"part{index}": same for index in range(1000)},
        "sparse": {"weight": torch.zeros(3, 3).to_sparse()},
    }.items():
        torch.save(state, tmp_path / f"{name}.pth")
        message = "larger than its stored values|more than the file has"
        if name == "sparse":
            message = "weight is not a plain tensor: torch._utils._rebuild_sparse_tensor"
        with raises_line(message) as caught:
            read_pth(tmp_path / f"{name}.pth")
        assert "\n" not in as_command_line(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.package("torch")
def test_a_compressed_pth_is_not_unpacked(tmp_path):
    path = save_pth(tmp_path / "good.pth", STATE)
    with (
        zipfile.ZipFile(path) as good,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in good.namelist():
            packed.writestr(name, good.read(name))
    with raises_line("is compressed, which torch.save never does"):
        read_pth(tmp_path / "packed.pth")


@pytest.mark.package("torch")
@pytest.mark.parametrize(
    "name, value",
    [("layer.weight", np.nan), ("layer.weight", np.inf), ("layer.bn.running_var", -0.5)],
)
def test_a_pth_with_impossible_values(tmp_path, name, value):
    state = {key: array.copy() for key, array in STATE.items()}
    state[name].reshape(-1)[3] = value
    path = save_pth(tmp_path / "bad.pth", state)
    with raises_line(f"bad.pth: .*{name}.*(NaN or infinite|negative variance)"):
        read_pth(path)


# === TF1 checkpoints, archives, HDF5 ===


def save_checkpoint(prefix, tensors):
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


@pytest.mark.parametrize(
    "name, value", [("a/weights", np.nan), ("a/BatchNorm/moving_variance", -1.0)]
)
def test_a_checkpoint_with_impossible_values(tmp_path, name, value):
    tensors = {"a/weights": noise(3, 4), "a/BatchNorm/moving_variance": noise(4) + 1}
    tensors[name].reshape(-1)[0] = value
    with raises_line(f"{name}.*(NaN or infinite|negative variance)"):
        read_source(save_checkpoint(tmp_path / "model.ckpt", tensors))


def test_a_checkpoint_that_declares_more_than_it_has(tmp_path):
    prefix = save_checkpoint(tmp_path / "model.ckpt", {"a/weights": np.zeros((64, 64), np.float32)})
    data = tmp_path / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:100])
    with raises_line("its index declares 16384 bytes of tensors, but its files have"):
        read_source(prefix)


def test_an_archive_with_too_large_content(tmp_path, monkeypatch):
    monkeypatch.setattr(official_files, "LARGEST_RATIO", 0)
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for index in range(3):
            member = tarfile.TarInfo(f"{index}.pb")
            member.size = 100 << 20
            file.addfile(member, io.BytesIO(bytes(member.size)))
    with raises_line("bomb.tar.gz: unpacks to more than 256 MiB, larger than any release"):
        read_source(path)


def test_an_hdf5_file_that_declares_gigabytes(tmp_path):
    path = tmp_path / "large.weights.h5"
    with h5py.File(path, "w") as file:
        # HDF5 stores nothing for values that were never written.
        file.create_dataset("layers/conv/vars/0", (1 << 15, 1 << 15), "float32")
    with raises_line("declares 4096 MiB of weights in 0 MiB"):
        keras_applications._read(ModelConfig(depth_multiplier=0.35), str(path), "checkpoint")


# === .tflite ===


@pytest.fixture(scope="module")
def tflite():
    @tf.function(input_signature=[tf.TensorSpec((1, 9, 9, 3))])
    def network(x):
        x = tf.nn.relu6(
            tf.nn.bias_add(
                tf.nn.conv2d(x, noise(3, 3, 3, 4) / 255, 2, "SAME"), np.ones(4, np.float32)
            )
        )
        return tf.argmax(tf.nn.avg_pool2d(x, 2, 1, "VALID"), -1)

    return tf.lite.TFLiteConverter.from_concrete_functions(
        [network.get_concrete_function()], tf.Module()
    ).convert()


def first(model, kind):
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    wanted = getattr(schema.BuiltinOperator, kind)
    return next(
        operator
        for operator in model.subgraphs[0].operators
        if codes[operator.opcodeIndex] == wanted
    )


def kernel(model):
    return model.subgraphs[0].tensors[first(model, "CONV_2D").inputs[1]]


def assign(find, **values):
    def change(model):
        for name, value in values.items():
            setattr(find(model), name, value)

    return change


def nan_kernel(model):
    buffer = model.buffers[kernel(model).buffer]
    buffer.data = np.frombuffer(
        np.full(len(buffer.data) // 4, np.nan, np.float32).tobytes(), np.uint8
    )


IMPOSSIBLE = {
    "a stride of 0": assign(lambda m: first(m, "CONV_2D").builtinOptions, strideH=0),
    "a window of 0": assign(lambda m: first(m, "AVERAGE_POOL_2D").builtinOptions, filterWidth=0),
    "a negative stride": assign(lambda m: first(m, "AVERAGE_POOL_2D").builtinOptions, strideW=-1),
    "no options": assign(lambda m: first(m, "CONV_2D"), builtinOptions=None, builtinOptionsType=0),
    "options of another kind": assign(
        lambda m: first(m, "CONV_2D"),
        builtinOptions=schema.AddOptionsT(),
        builtinOptionsType=schema.BuiltinOptions.AddOptions,
    ),
    "an input beyond the tensors": assign(
        lambda m: first(m, "CONV_2D"), inputs=np.array([0, 900, 1], np.int32)
    ),
    "a negative input": assign(
        lambda m: first(m, "CONV_2D"), inputs=np.array([0, -7, 1], np.int32)
    ),
    "an output beyond the tensors": assign(
        lambda m: first(m, "CONV_2D"), outputs=np.array([900], np.int32)
    ),
    "no outputs": assign(lambda m: first(m, "CONV_2D"), outputs=None),
    "an operator beyond the codes": assign(lambda m: first(m, "CONV_2D"), opcodeIndex=50),
    "a larger kernel than its values": assign(kernel, shape=np.array([4, 3, 3, 300], np.int32)),
    "a negative size": assign(kernel, shape=np.array([4, 3, -3, 3], np.int32)),
    "another type": assign(kernel, type=schema.TensorType.INT64),
    "an unknown type": assign(kernel, type=90),
    "a buffer beyond the buffers": assign(kernel, buffer=4000),
    "an input of the graph beyond": assign(
        lambda m: m.subgraphs[0], inputs=np.array([400], np.int32)
    ),
    "an output that nothing makes": lambda m: m.subgraphs[0].operators.pop(),
    "no graph": assign(lambda m: m, subgraphs=[]),
    "a cycle": lambda m: m.subgraphs[0].operators.reverse(),
    "NaN": nan_kernel,
}


def packed(model):
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_tflite_file_with_impossible_contents(tflite, tmp_path, name):
    path = tmp_path / "model.tflite"
    path.write_bytes(tflite)
    check_tflite(path)
    model = schema.ModelT.InitFromPackedBuf(tflite, 0)
    path.write_bytes(packed(model))
    check_tflite(path)
    IMPOSSIBLE[name](model)
    path.write_bytes(packed(model))
    with raises_line(
        "model.tflite: truncated, damaged or not a TFLite file .*; download, copy"
    ) as caught:
        check_tflite(path)
    assert "\n" not in as_command_line(caught.value)
