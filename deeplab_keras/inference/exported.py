"""Exported models (TFLite, ONNX, SavedModel) with the same interface as a Keras model.

An exported file contains its classes and its config, so `open_exported` needs only its path.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pathlib
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from deeplab_keras.config import NORMALIZATIONS, ModelConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.inference import arrays
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.resizing import (
    enlarge,
    enlarge_labels,
    letterbox_size,
    pad_to,
    resize,
)
from deeplab_keras.io.foreign import reading
from deeplab_keras.io.progress import without_noise
from deeplab_keras.io.tflite_file import (
    NO_RUNTIME,
    check_tflite,
    output_names,
    with_input_as_output,
)

AGAIN = "export it again"
EXTRAS = "assets.extra"  # the folder of a SavedModel with the two text files
ABOUT, LABELS = "model.json", "labels.txt"  # the text files stored with every export
Path = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """An exported file, opened in its runtime. Several threads may call it at the same time.

    Attributes:
        dtype: The dtype of the images.
        size: The (height, width) of the images, or `None` for any size.
        files: The text files stored with the network, by name.
        logits: Function from images `[batch, height, width, channels]` to logits, float32 `[batch,
            height, width, num_classes]`.
        labels: Function from images to labels, int32 or uint8 `[batch, height, width]`; `None` if
            labels are not an output of the file.
        has_logits: Whether logits are an output of the file. Otherwise `logits` reads them inside
            its graph.
    """

    dtype: Any
    size: tuple[int, int] | None
    files: Mapping[str, str]
    logits: Callable[[np.ndarray], np.ndarray]
    labels: Callable[[np.ndarray], np.ndarray] | None
    has_logits: bool = True


class ExportedNetwork(Network):
    """An exported file as a `Network`, whose scores are NumPy arrays.

    The outputs of a file may have the size of the head's class scores (`output_at="head"`). Logits
    are then enlarged like in the network itself, and labels by nearest neighbor.

    Args:
        path: The file or folder.
        runtime: The opened file.

    Attributes:
        info: The classes that the network was trained on.
        path: The file or folder.

    Raises:
        UserError: The file has no description of its model, or its label file, which users may
            edit, has the wrong number of lines.
    """

    arithmetic = arrays

    def __init__(self, path: Path, runtime: Runtime) -> None:
        if ABOUT not in runtime.files:
            raise UserError(
                f"{os.fspath(path)}: does not contain {ABOUT}; give a file that "
                "`export_model.py` wrote"
            )
        with reading(path, f"an export: its {ABOUT}", "give a file that `export_model.py` wrote"):
            about = json.loads(runtime.files[ABOUT])
            model = about["model"]
            if model.keys() == {"name", "input_channels"}:  # not a network of `build_segmentor`
                channels = int(model["input_channels"])
                self._mean = tuple(map(float, about["pad_value"]))
            else:
                config = ModelConfig.from_saved(model)
                channels, self._mean = (
                    config.input_channels,
                    NORMALIZATIONS[config.normalization][0],
                )
            self.info = DatasetInfo.from_dict(about["dataset"])
            # Files of earlier versions do not have these keys.
            self._at_head = {"image": False, "head": True}[about.get("output_at", "image")]
            self._align_corners = bool(about.get("align_corners", False))
            self.letterbox = {"stretch": False, "letterbox": True}[about.get("resize", "stretch")]
        names = runtime.files.get(LABELS, "\n".join(self.info.class_names)).splitlines()
        if len(names) != len(self.info.class_names):
            raise UserError(
                f"{os.fspath(path)}: its {LABELS} has {len(names)} lines, and the network "
                f"{len(self.info.class_names)} classes; write one class name per line into it, in "
                "the order of the classes"
            )
        self.path, self.runtime = pathlib.Path(path), runtime
        super().__init__(self.path.name, runtime.size, channels, self.info.num_classes)

    @property
    def pad_value(self) -> tuple[float, ...]:
        return self._mean

    def _logits(self, images: Any) -> np.ndarray:
        logits = self.runtime.logits(self._prepared(images)).astype(np.float32, copy=False)
        return enlarge(logits, images.shape[1:3], self._align_corners) if self._at_head else logits

    @property
    def before_resize(self) -> Network:
        if not self._at_head:
            return self
        head = copy.copy(self)
        head._at_head = False
        return head

    @property
    def ends_with_resize(self) -> bool:
        return self._at_head and not self._align_corners

    def own_labels(self, images: Any) -> np.ndarray | None:
        """Returns the file's own labels, int32 `[batch, height, width]`.

        Returns `None` if labels are not an output of the file, if the images have another size, or
        if the logits of the file are better, because both outputs have the size of the head's.
        """
        if self.runtime.labels is None or (self._at_head and self.runtime.has_logits):
            return None
        size = tuple(images.shape[1:3])
        if self._at_head:
            run_size = self.input_size or size
            shown = letterbox_size(size, run_size) if self.letterbox else run_size
            x = pad_to(resize(images, shown), run_size, self.pad_value)
            labels = self.runtime.labels(self._prepared(x))
            labels = enlarge_labels(labels, run_size, self._align_corners)
            labels = enlarge_labels(labels[:, : shown[0], : shown[1]], size)
            return labels.astype(np.int32, copy=False)
        if self.input_size not in (None, size):
            return None
        return self.runtime.labels(self._prepared(images)).astype(np.int32, copy=False)

    def _prepared(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        if self.runtime.dtype == np.uint8 and images.dtype != np.uint8:
            images = np.clip(np.round(images), 0, 255)
        return np.ascontiguousarray(images, self.runtime.dtype)


def is_exported(path: Path) -> bool:
    """Returns whether a path is that of an exported model and not of a checkpoint."""
    return has_own_runtime(path) or (pathlib.Path(path) / "saved_model.pb").is_file()


def has_own_runtime(path: Path) -> bool:
    """Returns whether a path is that of a file that LiteRT or ONNX Runtime runs."""
    return pathlib.Path(path).suffix in (".tflite", ".onnx")


def open_exported(path: Path, threads: int = 0) -> ExportedNetwork:
    """Opens an exported file as a `Network`.

    Args:
        path: A .tflite or .onnx file, or the folder of a SavedModel.
        threads: The number of threads for TFLite and ONNX files; 0 for all processors.

    Raises:
        UserError: The file does not exist, is damaged or was not written by `export_model`, or its
            runtime is not installed.
    """
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise UserError(
            f"{path}: no such file; give a .tflite or .onnx file, or the folder of a SavedModel"
        )
    if not is_exported(path):
        raise UserError(
            f"{path}: not an exported model; give a .tflite or .onnx file, or the folder of a "
            "SavedModel (load_model opens checkpoints)"
        )
    kind = "saved_model" if path.is_dir() else path.suffix[1:]
    return ExportedNetwork(path, open_runtime(kind, path, threads))


def open_runtime(kind: str, path: pathlib.Path, threads: int = 0) -> Runtime:
    """Opens a file of any name in the runtime of its format.

    Args:
        kind: "saved_model", "onnx", or a name that starts with "tflite".
        path: The file or folder.
        threads: The number of threads for TFLite and ONNX files; 0 for all processors.

    Raises:
        UserError: The file is damaged, or its runtime is not installed.
    """
    threads = threads or os.cpu_count() or 1
    if kind == "saved_model":
        from deeplab_keras.inference.saved_model import open_saved_model  # imports TensorFlow

        return open_saved_model(path)
    return _open_onnx(path, threads) if kind == "onnx" else _open_tflite(path, threads)


def _one_by_one(run: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Turns a function of a batch of one image into a function of any batch."""

    def run_all(images: np.ndarray) -> np.ndarray:
        if len(images) == 1:  # without a copy of the result
            return run(images)
        return np.concatenate([run(image[None]) for image in images])

    return run_all


# --- TFLite ---


def open_interpreter(model: pathlib.Path | bytes, threads: int, **options: Any) -> Any:
    """Opens a TFLite model and allocates its tensors.

    Uses LiteRT's interpreter if ai-edge-litert is installed, otherwise TensorFlow's.

    Args:
        model: A .tflite file, or the content of one.
        threads: The number of threads.
        **options: Options of the interpreter.

    Raises:
        UserError: Neither package is installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = _interpreter_of_tensorflow()
    # In this order: without_noise admits one thread at a time; catch_warnings is not thread-safe.
    with without_noise(), warnings.catch_warnings():
        # Warnings about the move to ai-edge-litert, and about the memory for keeping all tensors.
        warnings.simplefilter("ignore")
        options |= (
            {"model_content": model} if isinstance(model, bytes) else {"model_path": str(model)}
        )
        interpreter = Interpreter(num_threads=threads, **options)
        interpreter.allocate_tensors()
    return interpreter


def _interpreter_of_tensorflow() -> Any:
    try:
        with without_noise():
            import tensorflow as tf
    except ImportError as error:
        raise UserError(NO_RUNTIME) from error
    return tf.lite.Interpreter


def packed_files(path: pathlib.Path) -> dict[str, str]:
    """Returns the text files packed into a TFLite file, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def _open_tflite(path: pathlib.Path, threads: int) -> Runtime:
    """Opens a TFLite file.

    If labels are the file's only output, what the argmax reads becomes a second output, in memory
    only.

    An interpreter has a single set of tensors, so calls from several threads run one after the
    other. An interpreter per thread would need that memory once per thread and gain little, because
    one call already uses all processors.
    """
    check_tflite(path)
    with reading(path, "an exported TFLite file", AGAIN):
        content = path.read_bytes()
        has_logits, index = "logits" in output_names(content), -1
        if has_logits:
            interpreter = open_interpreter(path, threads)
        else:
            content, index = with_input_as_output(content, "ARG_MAX")
            interpreter = open_interpreter(content, threads)
        run = interpreter.get_signature_runner()
        (details,) = run.get_input_details().values()
        outputs = run.get_output_details()
        files = packed_files(path) if zipfile.is_zipfile(path) else {}
        hidden = None if has_logits else _values_of(interpreter, index)
    lock = threading.Lock()

    def logits(batch: np.ndarray) -> np.ndarray:
        with lock:
            found = run(image=batch)
            return hidden() if hidden else found["logits"]

    def own_labels(batch: np.ndarray) -> np.ndarray:
        with lock:
            return run(image=batch)["labels"]

    _, height, width, _ = details["shape"]
    labels = _one_by_one(own_labels) if "labels" in outputs else None
    size = (int(height), int(width))
    return Runtime(details["dtype"], size, files, _one_by_one(logits), labels, has_logits)


def _values_of(interpreter: Any, index: int) -> Callable[[], np.ndarray]:
    """Returns a function that reads a tensor of logits, in float32 if it is quantized."""
    details = next(
        tensor for tensor in interpreter.get_tensor_details() if tensor["index"] == index
    )
    scale, zero = details["quantization"]

    def values() -> np.ndarray:
        found = interpreter.get_tensor(index)
        return (found.astype(np.float32) - zero) * np.float32(scale) if scale else found

    return values


# --- ONNX ---


def _open_onnx(path: pathlib.Path, threads: int) -> Runtime:
    """Opens an ONNX file.

    If labels are its only output, the input of the argmax becomes a second output, in memory only.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path}: needs the package {error.name}; pip install onnx onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with reading(path, "an ONNX file", AGAIN):
        model = onnx.load(str(path))
        names = [output.name for output in model.graph.output]
        scores, axis = "logits", -1
        if scores not in names:
            argmax = next(node for node in model.graph.node if node.op_type == "ArgMax")
            scores, axis = (
                argmax.input[0],
                next(value.i for value in argmax.attribute if value.name == "axis"),
            )
            model.graph.output.append(onnx.ValueInfoProto(name=scores))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def logits(batch: np.ndarray) -> np.ndarray:
        return np.moveaxis(session.run([scores], {"image": batch})[0], axis, -1)

    files = {entry.key: entry.value for entry in model.metadata_props}
    _, height, width, _ = session.get_inputs()[0].shape
    labels = (
        _one_by_one(lambda batch: session.run(["labels"], {"image": batch})[0])
        if "labels" in names
        else None
    )
    size = (int(height), int(width))
    return Runtime(np.float32, size, files, _one_by_one(logits), labels, "logits" in names)
