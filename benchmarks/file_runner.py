"""Runs a TFLite file as on a small machine: with NumPy and LiteRT, without TensorFlow."""

from __future__ import annotations

import pathlib

from benchmarks.workers import ImageContender
from deeplab_keras.inference.exported import open_interpreter


def make(path: str, threads: int) -> ImageContender:
    """Returns a TFLite file with labels as its output, run by the interpreter."""
    run = open_interpreter(pathlib.Path(path), threads).get_signature_runner()
    dtype = run.get_input_details()["image"]["dtype"]
    return ImageContender(lambda images: run(image=images.astype(dtype))["labels"])
