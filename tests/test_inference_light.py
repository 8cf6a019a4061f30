"""Exported files without TensorFlow and Keras; NumPy's arithmetic compared with TensorFlow's."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from contracts import ROOT, noise, raises_line
from PIL import Image
from test_export import CLASSES
from test_inference_threads import SIZE, small_model
from test_without_tensorflow import BLOCKED

from deeplab_keras import export
from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import EvalConfig, ExportConfig, ModelConfig
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.export.images import synthetic_images
from deeplab_keras.inference import arrays, exported, open_network, resizing, tensors
from deeplab_keras.io import tflite_file

# --- NumPy's arithmetic ---

SIDES = (1, 2, 3, 7, 8, 16, 33, 50, 97, 129)


def test_a_resize_has_the_bits_of_tensorflows():
    """All pairs of lengths, along each side, of scores and of images."""
    random = np.random.default_rng(0)
    for source in SIDES:
        for target in SIDES:
            other = int(random.integers(1, 60)), int(random.integers(1, 60))
            for size, wanted in (
                ((source, other[0]), (target, other[1])),
                ((other[0], source), (other[1], target)),
            ):
                channels = int(random.choice([1, 3, 21, resizing.MOST_CLASSES + 1]))
                scores = (random.normal(size=(2, *size, channels)) * 9).astype(np.float32)
                image = random.integers(0, 256, (1, *size, 3)).astype(np.uint8)
                for x in (scores, image):
                    expected = x if size == wanted else tf.image.resize(x, wanted).numpy()
                    found = arrays.resize(x, wanted)
                    assert found.dtype == expected.dtype and found.flags.c_contiguous
                    np.testing.assert_array_equal(found, expected, err_msg=f"{size} {wanted}")
                aligned = tf.raw_ops.ResizeBilinear(
                    images=scores, size=wanted, align_corners=True, half_pixel_centers=False
                )
                np.testing.assert_array_equal(
                    resizing.enlarge(scores, wanted, align_corners=True), aligned
                )
                top, bottom = sorted(random.integers(0, wanted[0] + 1, 2))
                if top < bottom:
                    whole = arrays.resize(scores, wanted)
                    np.testing.assert_array_equal(
                        arrays.resize_rows(scores, wanted, top, bottom), whole[:, top:bottom]
                    )


@pytest.mark.parametrize("processors", [1, 2, 8])
def test_work_in_parallel_has_the_order_of_its_items(monkeypatch, processors):
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    threads, items = set(), list(range(40, 0, -1))

    def square(item):
        threads.add(threading.get_ident())
        time.sleep(1e-4 * item)
        return item * item

    assert arrays.in_parallel(square, iter(items)) == [item * item for item in items]
    assert len(threads) == processors and threading.get_ident() in threads
    assert arrays.in_parallel(square, []) == []
    for wrong in (40, 39, 1):
        with pytest.raises(ZeroDivisionError):
            arrays.in_parallel(lambda item, wrong=wrong: square(item) / (item != wrong), items)


@pytest.mark.parametrize("classes", [2, 19, resizing.MOST_CLASSES, resizing.MOST_CLASSES + 1, 300])
def test_a_decision_equals_tensorflows(classes):
    """With ties, for which the first class wins, and in both orders in memory."""
    scores = np.random.default_rng(0).integers(-9, 9, (2, 13, 17, classes)).astype(np.float32)
    by_class = np.ascontiguousarray(scores.swapaxes(2, 3)).swapaxes(2, 3)
    expected = [np.asarray(part) for part in tensors.decide(scores, with_confidence=True)]
    for given in (scores, by_class):
        labels, confidence = arrays.decide(given, with_confidence=True)
        assert labels.dtype == np.int32 and confidence.dtype == np.float32
        np.testing.assert_array_equal(labels, expected[0])
        np.testing.assert_array_equal(labels, scores.argmax(-1))
        np.testing.assert_array_equal(arrays.decide(given)[0], labels)
        np.testing.assert_allclose(confidence, expected[1], rtol=1e-5)


def test_probabilities_and_their_mean_equal_tensorflows():
    parts = [noise(2, 5, 6, 7, seed=seed) * scale for seed, scale in ((0, 0.1), (1, 1), (2, 0.01))]
    for part in parts:
        found = arrays.softmax(part)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, tensors.softmax(part), rtol=1e-5, atol=1e-30)
    mean = arrays.log_of_mean(parts)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, tensors.log_of_mean(parts), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(arrays.flip(parts[0]), tensors.flip(parts[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite(value):
    scores = noise(1, 3, 4, 5)
    assert arrays.is_finite(scores) and tensors.is_finite(scores)
    scores[0, 1, 2, 3] = value
    assert not arrays.is_finite(scores) and not tensors.is_finite(scores)
    large = np.full((1, 2, 2, 5), 3e38, np.float32)  # their sum overflows
    assert arrays.is_finite(large) and tensors.is_finite(large)


# --- A process without TensorFlow ---

THREADS, CALLS = 8, 160
IMAGES = [*synthetic_images(SIZE, 3, 2), *synthetic_images((40, 31), 3, 2)]
IMAGES += synthetic_images((90, 130), 3, 1)
CONFIGS = {
    "whole": {},
    "flipped": {"add_flipped_images": True},
    "slide": {"inference": "slide", "eval_scales": (1.0, 1.5)},
    "short side": {"eval_short_side": 50},
}
CODE = f"""
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import deeplab_keras as dk

images = [np.load(f"image{{index}}.npy") for index in range({len(IMAGES)})]
found = {{}}
for name in sys.argv[1:]:
    for config, options in {CONFIGS!r}.items():
        predictor = dk.Predictor(name, dk.EvalConfig(**options))
        for index, image in enumerate(images):
            found[f"{{name}} {{config}} {{index}}"] = predictor(image)
    predictor = dk.Predictor(name)
    assert predictor.info.class_names == {CLASSES!r}, predictor.info
    found[f"{{name}} probabilities"] = predictor.probabilities(images[-1])
    found[f"{{name}} confidence"] = predictor.labels_and_confidence(images[-1][None])[1]

    start = threading.Barrier({THREADS})
    def work(thread):
        start.wait()
        return sum(
            np.array_equal(
                predictor(images[number % len(images)]),
                found[f"{{name}} whole {{number % len(images)}}"])
            for number in range(thread, thread + {CALLS}))
    with ThreadPoolExecutor({THREADS}) as pool:
        assert sum(pool.map(work, range({THREADS}))) == {THREADS * CALLS}
np.savez("found.npz", **found)

from deeplab_keras.cli.script import call_command
for name in sys.argv[1:]:
    argv = [f"--checkpoint_dir={{name}}", "--input=photo.png", f"--output={{name}}_out"]
    outputs = "--outputs=labels,color,overlay,labelme"
    assert call_command("predict", ["predict.py", *argv, outputs]) == 0
for options in (
    ["--checkpoint_dir=run"],
    [f"--checkpoint_dir={{sys.argv[1]}}", "--inference=official", "--eval_crop_size=65,65"],
):
    options += ["--input=photo.png", "--output=out"]
    assert call_command("predict", ["predict.py", *options]) == 1
try:
    dk.Predictor("run")
except dk.UserError as error:
    print("Predictor:", error)
packages = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps(sorted(packages & {{"tensorflow", "keras"}})))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Exported files and images."""
    folder = tmp_path_factory.mktemp("light")
    info = info_for_classes("test", CLASSES)
    config = ModelConfig(num_classes=len(CLASSES))
    checkpoint = LoadedCheckpoint(small_model(), config, info, pathlib.Path(), {})
    # Written without the checks of `export_model`, which take longer than these tests.
    for name, output in (("logits", "logits"), ("labels", "labels")):
        options = ExportConfig(input_size=SIZE, output=output)
        source = Exportable.of(checkpoint)
        job = export._Job(source, source, options, synthetic_images(SIZE, 3, 4))
        job.write("tflite", folder / f"{name}.tflite")
        if importlib.util.find_spec("tf2onnx"):
            job.write("onnx", folder / f"{name}.onnx")
    for index, image in enumerate(IMAGES):
        np.save(folder / f"image{index}.npy", image)
    Image.fromarray(IMAGES[-1]).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def without_tensorflow(folder) -> subprocess.CompletedProcess:
    """A process in which neither TensorFlow nor Keras can be imported."""
    (folder / "path").mkdir()
    blocked = BLOCKED.replace('("tensorflow"', '("tensorflow", "keras"')
    (folder / "path/sitecustomize.py").write_text(blocked)
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".tflite", ".onnx"))
    return subprocess.run(
        [sys.executable, "-c", CODE, *names],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}/path:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.package("ai_edge_litert")
def test_a_file_runs_where_tensorflow_cannot_be_imported(without_tensorflow):
    assert without_tensorflow.returncode == 0, without_tensorflow.stderr
    *_, told, imported = without_tensorflow.stdout.splitlines()
    assert json.loads(imported) == []
    assert told == (
        "Predictor: run: checkpoints and names of models need the package keras; pip install "
        "tensorflow keras, or give a .tflite or .onnx file, which needs neither"
    )
    errors = [line for line in without_tensorflow.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and set(errors) == {
        "error: needs Keras and TensorFlow, which are not installed; pip install tensorflow keras "
        "(predict.py runs .tflite and .onnx files without them)"
    }


def tensorflows_labels(name: pathlib.Path, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The labels and probabilities of a file at the image's size, resized by TensorFlow."""
    runtime = exported.open_runtime(name.suffix[1:], name)
    x = tf.image.resize(image[None], SIZE) if image.shape[:2] != SIZE else image[None]
    x = np.clip(np.round(x), 0, 255) if runtime.dtype == np.uint8 else np.asarray(x)
    scores = tf.image.resize(runtime.logits(x.astype(runtime.dtype)), image.shape[:2])
    return tf.argmax(scores, -1)[0].numpy(), tf.nn.softmax(scores)[0].numpy()


@pytest.mark.package("ai_edge_litert")
def test_the_labels_are_those_of_tensorflows_resize(without_tensorflow, folder):
    with np.load(folder / "found.npz") as found:
        names = {key.partition(" ")[0] for key in found}
        assert {"logits.tflite", "labels.tflite"} <= names
        for name in names:
            for index, image in enumerate(IMAGES):
                expected, probabilities = tensorflows_labels(folder / name, image)
                np.testing.assert_array_equal(found[f"{name} whole {index}"], expected)
                assert len(np.unique(expected)) > 1
            np.testing.assert_allclose(found[f"{name} probabilities"], probabilities, atol=1e-6)
            np.testing.assert_allclose(found[f"{name} confidence"][0], probabilities.max(-1),
                                       atol=1e-6)  # fmt: skip
            written = folder / f"{name}_out/photo_labels.png"
            np.testing.assert_array_equal(np.asarray(Image.open(written)), expected)


@pytest.mark.package("ai_edge_litert")
def test_the_labels_are_those_of_a_process_with_tensorflow(without_tensorflow, folder):
    from deeplab_keras.inference import Predictor

    with np.load(folder / "found.npz") as found:
        for name in sorted({key.partition(" ")[0] for key in found}):
            network, _ = open_network(folder / name)
            for config, options in CONFIGS.items():
                predictor = Predictor(network, EvalConfig(**options))
                for index, image in enumerate(IMAGES):
                    np.testing.assert_array_equal(
                        predictor(image), found[f"{name} {config} {index}"]
                    )


@pytest.mark.package("ai_edge_litert")
@pytest.mark.parametrize("appended", [0, 1, 2, 3])
def test_an_output_is_added_in_the_bytes_of_a_file(folder, appended):
    """All other bytes stay, and the new output is what the argmax reads."""
    content = (folder / "labels.tflite").read_bytes() + bytes(appended)
    assert tflite_file.output_names(content) == ["labels"]
    changed, index = tflite_file.with_input_as_output(content, "ARG_MAX")
    different = [place for place, old in enumerate(content) if changed[place] != old]
    assert len(changed) - len(content) <= 4 + 3 * 4 and max(different) - min(different) < 4
    picture = IMAGES[0][None].astype(np.float32)
    found = {}
    for name, model, options in (
        ("changed", changed, {}),
        ("all", folder / "labels.tflite", {"experimental_preserve_all_tensors": True}),
    ):
        interpreter = exported.open_interpreter(model, 1, **options)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
        interpreter.invoke()
        labels, *more = (output["index"] for output in interpreter.get_output_details())
        assert more == ([index] if name == "changed" else [])
        found[name] = interpreter.get_tensor(labels), interpreter.get_tensor(index)
    for new, old in zip(found["changed"], found["all"], strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(found["all"][1].argmax(-1), found["all"][0])


@pytest.mark.package("ai_edge_litert")
def test_a_file_with_labels_only_is_opened_by_one_interpreter(folder, monkeypatch):
    """A second one took its memory and half of the time until the first label map."""
    opened, open_interpreter = [], exported.open_interpreter
    monkeypatch.setattr(
        exported,
        "open_interpreter",
        lambda *given, **options: opened.append(given) or open_interpreter(*given, **options),
    )
    network, _ = open_network(folder / "labels.tflite")
    assert network.own_labels(IMAGES[0][None]).shape == (1, *SIZE)
    assert network(IMAGES[0][None].astype(np.float32)).shape == (1, *SIZE, len(CLASSES))
    assert len(opened) == 1


def test_a_missing_runtime_is_one_line(folder, monkeypatch):
    tensorflow = ("tensorflow", "tensorflow.lite.python")
    for package in ("ai_edge_litert", "ai_edge_litert.interpreter", *tensorflow):
        monkeypatch.setitem(sys.modules, package, None)
    for opened in (tflite_file.check_tflite, lambda path: exported.open_interpreter(path, 1)):
        with raises_line(r"^\.tflite files need LiteRT; pip install ai-edge-litert$"):
            opened(folder / "logits.tflite")
