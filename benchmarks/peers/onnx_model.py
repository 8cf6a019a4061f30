"""Runs the ONNX file of a model in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from benchmarks.workers import ImageContender


def make(path: str, runtime: str, threads: int, output: str = "labels") -> ImageContender:
    """Creates the contender of `benchmarks.models`, which runs the file up to an output."""
    start = _openvino if runtime == "openvino" else _onnxruntime
    return ImageContender(start(path, threads, output))


def _onnxruntime(path: str, threads: int, output: str) -> Callable[[np.ndarray], np.ndarray]:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([output], {"image": images.astype(np.float32)})[0]


def _openvino(path: str, threads: int, output: str) -> Callable[[np.ndarray], np.ndarray]:
    core = importlib.import_module("openvino").Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(path, "CPU", settings)
    return lambda images: compiled({"image": images.astype(np.float32)})[output]
