"""Other settings of Keras: another backend, image data format or dtype policy."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
from contracts import ROOT, noise, raises_line, script

from deeplab_keras import cli as flags
from deeplab_keras.config import CONVENTIONS, ModelConfig
from deeplab_keras.export import export_model
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.models.layers import BatchNormalization, Normalize, ResizeTo
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.engine import find_engine
from deeplab_keras.training.losses import make_loss

SMALL = dict(num_classes=3, depth_multiplier=0.25, output_stride=32, head_channels=8)
V3 = {
    "conventions": CONVENTIONS["sssegmentation_v3"],
    **SMALL,
    "backbone": "mobilenet_v3_small",
}
NETWORKS = {
    "padding, concatenations, auxiliary head": ModelConfig(
        **SMALL,
        head="deeplab_v3_plus",
        decoder_filters=8,
        low_level_channels=(4,),
        atrous_rates=(2,),
        auxiliary_head=True,
    ),
    "squeeze and excite, a pooling window": ModelConfig(
        **V3,
        head="lraspp",
        low_level_features=("c2", "c1"),
        low_level_channels=(4, 4),
        image_pooling_size=(2, 2),
    ),
    "a pyramid of pools": ModelConfig(**{**V3, "head": "psp"}),
}


@pytest.fixture
def channels_first():
    """Sets channels_first, as a keras.json file can."""
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_first_in_keras_json_changes_nothing(name, channels_first):
    image, outputs, shapes, weights = noise(1, 64, 96, 3), [], [], None
    for data_format in ("channels_last", "channels_first"):
        keras.config.set_image_data_format(data_format)
        model = build_segmentor(NETWORKS[name], (64, 96))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        outputs.append(np.asarray(model(image, training=False)))
        shapes.append([layer.output.shape for layer in model.layers])
    assert shapes[0] == shapes[1] and outputs[1].shape == (1, 64, 96, 3)
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize(("backend", "variable"), [("torch", True), ("openvino", False)])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("predict.py", ("--input=photo.jpg", "--output=out")), ("eval.py", ()), ("vis.py", ())],
)
def test_scripts_on_another_backend_get_one_line(
    name, arguments, backend, variable, monkeypatch, capsys
):
    monkeypatch.setattr("keras.backend.backend", lambda: backend)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if variable:
        monkeypatch.setenv("KERAS_BACKEND", backend)
        monkeypatch.setattr("deeplab_keras.cli.script.load_keras", None)  # takes seconds
    assert script(name)("--checkpoint_dir=runs/none", *arguments) == 1
    source = "KERAS_BACKEND" if variable else "keras.json"
    assert capsys.readouterr().err == (
        f"error: {name} requires Keras' TensorFlow or JAX backend. Received: backend {backend}, "
        f"set by {source}; set KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax\n"
    )


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_export_on_another_backend_gets_one_line(backend, monkeypatch, capsys):
    monkeypatch.setattr("keras.backend.backend", lambda: backend)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    arguments = ("--checkpoint_dir=runs/none", "--export_path=out", "--input_size=64,64")
    assert script("export_model.py")(*arguments) == 1
    assert capsys.readouterr().err == (
        "error: export_model.py requires Keras' TensorFlow backend. Received: backend "
        f"{backend}, set by KERAS_BACKEND; set KERAS_BACKEND=tensorflow\n"
    )


def test_calls_on_another_backend_get_one_line(monkeypatch):
    monkeypatch.setattr("keras.backend.backend", lambda: "torch")
    with raises_line(
        "inference requires Keras' TensorFlow or JAX backend. Received: backend torch"
    ):
        KerasNetwork(keras.Sequential())
    with raises_line("the export requires Keras' TensorFlow backend"):
        export_model("runs/none", "out")
    with raises_line("training requires Keras' TensorFlow or JAX backend. Received: backend torch"):
        find_engine()


@pytest.mark.parametrize(
    ("package", "variable", "source"),
    [
        ("jax", "", "/keras.json (default: tensorflow)"),
        ("tensorflow", "tensorflow", "KERAS_BACKEND=tensorflow"),
        ("tensorflow", "", "/keras.json (default: tensorflow)"),
        ("jaxlib", "jax", "KERAS_BACKEND=jax"),
    ],
)
def test_a_backend_that_is_not_installed_is_named(
    package, variable, source, monkeypatch, tmp_path, capsys
):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", variable)
    monkeypatch.setattr(importlib, "import_module", missing)
    assert flags.call(["x.py"], "doc", flags.require_backend) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"error: {package} is not installed, but Keras needs it: pip install {package}; "
    )
    assert (
        error.endswith(f"{tmp_path if source[0] == '/' else ''}{source}\n")
        and error.count("\n") == 1
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("Unable to initialize backend\nxyz"), AssertionError()]
)
def test_a_machine_without_the_devices_that_jax_should_use(error, monkeypatch, capsys):
    """JAX raises these errors for JAX_PLATFORMS=foo and, without a GPU, for JAX_PLATFORMS=cuda."""

    def devices() -> None:
        raise error

    load = importlib.import_module
    jax = types.SimpleNamespace(devices=devices)
    monkeypatch.setattr(importlib, "import_module", lambda x: jax if x == "jax" else load(x))
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("JAX_PLATFORMS", "foo")
    assert flags.call(["x.py"], "doc", flags.require_backend) == 1
    reason = str(error).partition("\n")[0] or "AssertionError"
    assert capsys.readouterr().err == (
        f"error: JAX finds no device with JAX_PLATFORMS=foo ({reason}); unset JAX_PLATFORMS or set "
        "it to cpu, or set KERAS_BACKEND=tensorflow\n"
    )


# --- The dtype policy ---


@pytest.fixture
def float16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("fused", [True, False])
def test_batch_norm_learns_its_statistics_in_float16(float16, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(BatchNormalization, "_can_fuse", lambda self: False)
    x = (noise(2, 3, 2, 4) / 50).astype(np.float16)
    layer = BatchNormalization(momentum=0.9)
    output = layer(x, training=True)
    wide = x.astype(np.float64)
    assert layer.moving_mean.dtype == output.dtype == "float16"
    np.testing.assert_allclose(layer.moving_mean, 0.1 * wide.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(
        layer.moving_variance, 0.9 + 0.1 * wide.var((0, 1, 2)) * 12 / 11, rtol=1e-3
    )
    np.testing.assert_allclose(
        output, (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 1e-3), atol=3e-3
    )


@pytest.mark.slow  # .ci/run has it too
def test_a_network_trains_under_the_float16_policy(float16):
    model = build_segmentor(NETWORKS["squeeze and excite, a pooling window"], (64, 64))
    model.compile(keras.optimizers.SGD(1e-3), loss=make_loss("cross_entropy"))
    before = model.get_weights()
    history = model.fit(
        noise(2, 64, 64, 3), np.arange(2 * 64 * 64).reshape(2, 64, 64) // 9 % 3, verbose=0
    ).history
    assert 0.5 < history["loss"][0] < 3 and all(
        np.isfinite(weight).all() for weight in model.get_weights()
    )
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


IMPORTS = [
    "import deeplab_keras, keras",
    "import keras, deeplab_keras",
    "import deeplab_keras.models.layers",
]


@pytest.mark.slow  # .ci/run has it too
@pytest.mark.parametrize("imports", IMPORTS)
def test_keras_loads_a_saved_model(imports, tmp_path):
    """In whatever order, and `import deeplab_keras` alone imports no Keras."""
    image = keras.Input((8, 8, 3))
    x = Normalize((1.0,), (2.0,))(image)
    keras.Model(image, ResizeTo()([BatchNormalization()(x), image])).save(tmp_path / "m.keras")
    code = (
        f"{imports}\nimport keras\nprint('loaded', "
        f"keras.models.load_model({str(tmp_path / 'm.keras')!r}).count_params())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "loaded 12\n", done.stderr
    alone = "import sys, deeplab_keras; print('keras' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", alone],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == "False\n"
