"""One predictor called from many threads, with invalid calls in between, equals a single thread."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf
from contracts import noise, raises_line
from test_export import CLASSES
from test_inference import pointwise_model

from deeplab_keras import export
from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import EvalConfig, ExportConfig, ModelConfig, UserError
from deeplab_keras.data.info import info_for_classes
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.export.images import synthetic_images
from deeplab_keras.inference import Predictor, open_exported, predict_logits
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.io.progress import without_noise
from deeplab_keras.models.layers import ResizeTo

THREADS = 8
SIZE = (33, 49)
KINDS = ["keras", "saved_model", "tflite", "tflite_int8", "onnx"]
IMAGES = synthetic_images(SIZE, 3, 4) + synthetic_images((40, 31), 3, 2)
BATCH = np.stack(IMAGES[:1])
# Invalid batches that once reached TensorFlow. The first two made a tf.function keep its lock.
MALFORMED = {
    "one image": BATCH[0],
    "channels": np.zeros((1, 8, 8, 5), np.uint8),
    "no images": BATCH[:0],
    "no height": BATCH[:, :0],
    "NaN": np.full((1, 8, 8, 3), np.nan, np.float32),
    "infinite": np.full((1, 8, 8, 3), np.inf),
    "below 0": -np.ones((1, 8, 8, 3)),
    "0..1": np.full((1, 8, 8, 3), 0.5, np.float32),
    "16 bits": np.full((1, 8, 8, 3), 3000, np.uint16),
    "text": np.full((1, 8, 8, 3), "a"),
    "objects": np.full((1, 8, 8, 3), None),
    "a list": [[1]],
    "ragged": [[1], [1, 2]],
    "bool": np.ones((1, 8, 8, 3), bool),
    "complex": np.ones((1, 8, 8, 3), complex),
}


def small_model() -> keras.Model:
    """A network of two convolutions for any size that predicts several classes."""
    keras.utils.set_random_seed(2)
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.Conv2D(8, 3, 2, padding="same", activation="relu")(
        keras.layers.Rescaling(1 / 127.5, -1)(image)
    )
    scores = keras.layers.Conv2D(len(CLASSES), 3, padding="same", name="logits")(x)
    return keras.Model(image, ResizeTo(name="resized_logits")([scores, image]))


@pytest.fixture(scope="module")
def predictors(tmp_path_factory) -> dict[str, Predictor]:
    """The predictor of each kind. The .tflite and .onnx files have a fixed input size."""
    info = info_for_classes("test", CLASSES)
    checkpoint = LoadedCheckpoint(
        small_model(), ModelConfig(num_classes=len(CLASSES)), info, pathlib.Path(), {}
    )
    folder = tmp_path_factory.mktemp("threads")
    # Written without the checks of `export_model`, which take longer than these tests.
    source = Exportable.of(checkpoint)
    job = export._Job(source, source, ExportConfig(input_size=SIZE), synthetic_images(SIZE, 3, 16))
    found = {"keras": Predictor(checkpoint.model)}
    for kind in KINDS[1:]:
        if kind != "onnx" or importlib.util.find_spec("tf2onnx"):
            path = folder / export.FORMATS[kind]
            job.write(kind, path)
            found[kind] = Predictor(path)
    return found


def refused(predictor: Predictor, name: str) -> bool:
    """Returns whether all methods for batches refuse a malformed batch with one line."""
    for call in (
        predictor.predict_batch,
        predictor.labels_and_probabilities,
        predictor.labels_and_confidence,
    ):
        try:
            call(MALFORMED[name])
        except UserError as error:
            assert "\n" not in str(error), error
        else:
            return False
    return True


def equal_answers(predictor: Predictor, calls: int) -> int:
    """Counts the calls of all threads whose labels and probabilities equal those of one thread."""
    labels, probabilities = (
        [predictor(image) for image in IMAGES],
        [predictor.probabilities(image) for image in IMAGES],
    )
    assert all(len(np.unique(found)) > 1 for found in labels)
    names, start = list(MALFORMED), threading.Barrier(THREADS)

    def work(thread: int) -> int:
        start.wait()
        right = 0
        for call in range(calls):
            number = thread + call
            index = number % len(IMAGES)
            if number % 5 == 0:
                assert refused(predictor, names[number // 5 % len(names)])
            if number % 2:
                right += np.array_equal(predictor(IMAGES[index]), labels[index])
            else:
                right += np.allclose(
                    predictor.probabilities(IMAGES[index]), probabilities[index], rtol=0, atol=1e-6
                )
        return right

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(work, range(THREADS)))


def available(predictors: dict[str, Predictor], kind: str) -> Predictor:
    if kind not in predictors:
        pytest.skip("the extra onnx is not installed")
    return predictors[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_threads_equal_one_thread(predictors, kind):
    assert equal_answers(available(predictors, kind), 20) == THREADS * 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_calls_from_threads_equal_one_thread(predictors, kind):
    predictor = available(predictors, kind)
    right = [equal_answers(predictor, 160) for _ in range(20)]
    print(
        f"{kind}: {sum(right)} of {20 * THREADS * 160} answers of {THREADS} threads are those of "
        "one thread"
    )
    assert right == [THREADS * 160] * 20


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("kind", ["keras", "tflite"])
def test_a_malformed_batch_is_refused(predictors, kind, name):
    assert refused(predictors[kind], name)


def test_a_batch_can_have_the_dtypes_and_channels_of_an_image(predictors):
    predictor = predictors["keras"]
    expected = predictor.predict_batch(BATCH)
    with_alpha = np.concatenate([BATCH, 7 * np.ones_like(BATCH[..., :1])], -1)
    for same in (BATCH.astype(np.int64), BATCH.astype(np.float64), with_alpha, BATCH.tolist()):
        np.testing.assert_array_equal(predictor.predict_batch(same), expected)
    grey = BATCH[..., :1]
    np.testing.assert_array_equal(
        predictor.predict_batch(grey), predictor.predict_batch(np.repeat(grey, 3, -1))
    )


@pytest.mark.parametrize("shape", [(8, 9, 3), (1, 8, 9, 4), (1, 2, 8, 9, 3)])
def test_a_network_refuses_a_shape_without_keeping_its_lock(shape):
    """tf.function acquires its lock before it binds its inputs, and keeps it if they do not fit."""
    network = KerasNetwork(pointwise_model())
    predict_logits(network, BATCH)
    with raises_line(r"images of shape .*; must be \[batch, height, width, 3\]"):
        network(np.zeros(shape, np.float32))
    other = threading.Thread(target=predict_logits, args=(network, BATCH), daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()


def test_noise_is_suppressed_by_one_thread_at_a_time(capfd):
    """Overlapping contexts would leave stderr redirected to a deleted file."""

    def hold(_: int) -> None:
        for _ in range(20):
            with without_noise():
                pass

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(hold, range(THREADS)))
    os.write(2, b"still there\n")
    assert "still there" in capfd.readouterr().err


def test_the_first_call_from_all_threads_at_once(predictors):
    """No function is traced and no interpreter for logits is opened before."""
    image = noise(*SIZE, 3).astype(np.uint8)
    for source in (pointwise_model(), predictors["tflite"].network.path):
        expected, fresh = Predictor(source).probabilities(image), Predictor(source)
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(
                pool.map(lambda _, fresh=fresh: fresh.probabilities(image), range(THREADS))
            )
        assert all(np.allclose(one, expected, atol=1e-6) for one in found), source


# --- Foreign SavedModels, and paths ---


def test_a_savedmodel_of_keras_predicts_like_its_model(tmp_path):
    for number, size in enumerate([(None, None), SIZE]):
        model, path = pointwise_model(size), tmp_path / f"model{number}"
        model.export(path, verbose=False)
        exported, expected = Predictor(path), Predictor(model)
        assert exported.info.class_names[:2] == ("class_0", "class_1")
        assert exported.network.input_size == expected.network.input_size
        for image in IMAGES:
            np.testing.assert_array_equal(exported(image), expected(image))
            np.testing.assert_allclose(
                exported.probabilities(image), expected.probabilities(image), atol=1e-6
            )
    with raises_line("not written by export_model.py but, for example, by Keras' model.export"):
        open_exported(path)  # it needs the names of the classes
    with raises_line("does not store the color that the model normalizes to 0"):
        Predictor(path, EvalConfig(inference="official", eval_crop_size=(65, 65)))(IMAGES[0])


def test_another_savedmodel_gets_one_line(tmp_path):
    class Doubled(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3])])
        def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": 2 * x}

    module = Doubled()
    tf.saved_model.save(module, str(tmp_path / "bare"))
    tf.saved_model.save(module, str(tmp_path / "rows"), signatures=module.double)
    for name in ("bare", "rows"):
        with raises_line(f"{name}: neither export_model.py nor Keras' model.export of a segment"):
            Predictor(tmp_path / name)


@pytest.mark.parametrize("name", ["run [1]", "what?", "a*b"])
def test_a_wildcard_in_the_path_of_a_savedmodel_is_refused(predictors, name, tmp_path):
    with raises_line("TensorFlow treats .* as wildcards and cannot read a SavedModel there"):
        export.request.targets(tmp_path / name, ["tflite", "saved_model"], False)
    assert export.request.targets(tmp_path / name, ["tflite"], False)
    shutil.copytree(predictors["saved_model"].network.path, tmp_path / name)
    with raises_line("as wildcards; move the SavedModel to a path without them"):
        Predictor(tmp_path / name)
