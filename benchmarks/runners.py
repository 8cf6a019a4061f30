"""Runs our formats of a model as users run them: from images to labels or class scores."""

from __future__ import annotations

import pathlib

import tensorflow as tf

from benchmarks.workers import ImageContender


def _set_threads(threads: int) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def make_keras(path: str, size: tuple[int, int], threads: int) -> ImageContender:
    """Returns the Keras model of a checkpoint as a compiled function, as in evaluation."""
    from deeplab_keras.checkpoints.folder import load_checkpoint

    _set_threads(threads)
    model = load_checkpoint(path, size).model

    @tf.function
    def labels(images: tf.Tensor) -> tf.Tensor:
        return tf.argmax(
            model(tf.cast(images, tf.float32), training=False), -1, output_type=tf.int32
        )

    return ImageContender(lambda images: labels(images).numpy())


def make_saved_model(path: str, threads: int) -> ImageContender:
    """Returns a SavedModel, run by its serving signature."""
    _set_threads(threads)
    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]
    serve.owner = loaded  # keeps the model alive as long as its signature
    return ImageContender(lambda images: serve(image=tf.constant(images))["labels"].numpy())


def make_tflite(path: str, threads: int, output: str) -> ImageContender:
    """Returns a TFLite file, run by the interpreter, up to an output: "labels" or "logits"."""
    from deeplab_keras.inference.exported import open_interpreter

    interpreter = open_interpreter(pathlib.Path(path), threads)
    run = interpreter.get_signature_runner()
    dtype = run.get_input_details()["image"]["dtype"]
    return ImageContender(lambda images: run(image=images.astype(dtype))[output])
