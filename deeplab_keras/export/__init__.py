"""Models for other runtimes: SavedModel, TFLite and ONNX, each checked against Keras before it gets its name."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from deeplab_keras.checkpoints.folder import LoadedCheckpoint, load_checkpoint
from deeplab_keras.config import UserError, unknown_name
from deeplab_keras.export import onnx, saved_model, tflite
from deeplab_keras.export.check import Runner, compare, percent, runner
from deeplab_keras.export.graph import freeze
from deeplab_keras.export.images import Images, made_images, read_images, resize
from deeplab_keras.inference import Network
from deeplab_keras.segmentor import check_input_size
from deeplab_keras.version import __version__
from deeplab_keras.writing import check_folder

# Format -> name of its file in the export folder.
FORMATS = {
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite_float16": "model_float16.tflite",
    "tflite_dynamic": "model_dynamic.tflite",
    "tflite_int8": "model_int8.tflite",
    "onnx": "model.onnx",
}
TFLITE_KINDS = {
    "tflite": "float32", "tflite_float16": "float16", "tflite_dynamic": "dynamic", "tflite_int8": "int8",
}  # fmt: skip
OUTPUTS = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}
# What agreement with Keras is asked for by default. Weights or arithmetic in 8 bits change labels by their nature.
MIN_AGREEMENT = 0.995
APPROXIMATE = ("tflite_dynamic", "tflite_int8")
MIN_REPRESENTATIVE, MAX_REPRESENTATIVE = 16, 100
MAX_CHECKED = 8
MAX_TENSOR = 2**31  # bytes of one tensor, which the runtimes count in 32 bits
ANY_SIZE_CHECK = (193, 257)  # size of the made pictures for a model that takes any size


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """What was written, and how it did beside Keras on the same images.

    Attributes:
        path: the file, or the folder of a SavedModel.
        kind: the format.
        bytes: its size.
        max_logit_difference: largest absolute difference of a logit.
        label_agreement: share of the pixels with the same label, 0..1.
        classes: how many different labels Keras gave on these images; of one class alone an agreement says little.
        operators: of a TFLite file: operator -> how often it stands there.
    """

    path: pathlib.Path
    kind: str
    bytes: int
    max_logit_difference: float
    label_agreement: float
    classes: int
    operators: dict[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        text = (
            f"{self.path}: {self.bytes / 1e6:.2f} MB, {percent(self.label_agreement)} of labels as Keras gives them "
            f"({self.classes} classes seen), largest logit difference {self.max_logit_difference:.2g}"
        )
        unwanted = {name: count for name, count in self.operators.items() if name.startswith(tflite.UNWANTED)}
        return text + "".join(f"; slow operator: {count} x {name}" for name, count in unwanted.items())


@dataclasses.dataclass(frozen=True)
class _Job:
    """One export: the checkpoint and what is asked of it."""

    checkpoint: LoadedCheckpoint
    outputs: tuple[str, ...]
    size: tuple[int, int] | None
    representative: Sequence[np.ndarray]
    threads: int

    @functools.cached_property
    def frozen(self) -> Any:
        """The graph for one image of the fixed size."""
        assert self.size
        shape = (1, *self.size, self.checkpoint.config.input_channels)
        return freeze(self.checkpoint.model, shape, tf.float32, self.outputs)

    @functools.cached_property
    def network(self) -> Network:
        """The Keras model itself."""
        return Network(self.checkpoint.model)

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """What goes into every export beside the network: its class names, a line each, and where it came from."""
        info, config = self.checkpoint.info, self.checkpoint.config
        about = {
            "made_by": f"deeplab_keras {__version__}", "dataset": info.to_dict(), "model": config.to_dict(),
            "input_size": self.size,
        }  # fmt: skip
        names = "".join(f"{name}\n" for name in info.class_names)
        return {"labels.txt": names, "model.json": json.dumps(about, indent=2) + "\n"}

    def write(self, kind: str, path: pathlib.Path) -> None:
        """Writes the file or folder of one format."""
        if kind == "saved_model":
            saved_model.save(self.checkpoint.model, path, self.outputs, self.files)
        elif kind == "onnx":
            path.write_bytes(onnx.convert(self.frozen, self.outputs, self.files))
        else:
            model = tflite.convert(self.frozen, self.outputs, TFLITE_KINDS[kind], self.representative)
            path.write_bytes(tflite.pack(model, self.files))

    def runner(self, kind: str, path: pathlib.Path) -> Runner:
        """The written file as a function from an image to labels and logits."""
        return runner(kind, path, self.threads)


def export_model(
    checkpoint: str | os.PathLike[str] | LoadedCheckpoint,
    export_path: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("saved_model", "tflite"),
    input_size: tuple[int, int] | None = None,
    output: str = "labels",
    representative_images: Images | None = None,
    check_images: Images | None = None,
    min_agreement: float | None = None,
    overwrite: bool = False,
    threads: int = 2,
    log: Callable[[str], None] = print,
) -> list[ExportedFile]:
    """Exports a model and checks every file against Keras before the file gets its name.

    Args:
        checkpoint: a checkpoint folder or workdir, or a loaded checkpoint.
        export_path: the folder for the files, named as in FORMATS; for one format also a file, `*.tflite` or `*.onnx`.
        formats: out of FORMATS.
        input_size: (height, width) of the one image that TFLite and ONNX files take. A SavedModel takes any number of
            images of any size.
        output: "labels", int32 `[batch, height, width]`; "logits", float32 `[batch, height, width, num_classes]`;
            or "both".
        representative_images: for tflite_int8, at least 16 images such as the model will see: a split of a dataset, a
            folder of pictures, or uint8 arrays `[height, width, channels]`.
        check_images: images for the check, likewise; the first 8 or so count. Default: made pictures.
        min_agreement: share of the pixels on which the labels must be Keras' own. Default: 0.995; for 8-bit kinds 0.
        overwrite: files that stand there are replaced.
        threads: of the runtimes in the check.
        log: gets one line a file.

    Returns:
        One entry a format, in their order.

    Raises:
        UserError: an unknown format, a path that exists, an input size that the model cannot take, too few
            representative images, a runtime that is not installed, or an agreement below the minimum: that file is
            kept, with `.failed` at the end of its name.
    """
    targets = _targets(pathlib.Path(export_path), list(dict.fromkeys(formats)), overwrite)
    check_folder(next(iter(targets.values())).parent, "export_path")
    if output not in OUTPUTS:
        raise unknown_name("--output", output, OUTPUTS)
    if min_agreement is not None and not 0 <= min_agreement <= 1:
        raise UserError(f"--min_agreement={min_agreement}: a share of the pixels, 0 to 1")
    if "onnx" in targets:
        onnx.require_packages()
    needs_size = [kind for kind in targets if kind != "saved_model"]
    if needs_size and input_size is None:
        raise UserError(f"--formats={needs_size[0]} needs --input_size=HEIGHT,WIDTH, the one size that the file takes")
    if not isinstance(checkpoint, LoadedCheckpoint):
        checkpoint = load_checkpoint(checkpoint)
    if input_size is not None:
        _check_size(checkpoint, input_size)
    representative = _representative(representative_images, input_size) if "tflite_int8" in targets else []
    job = _Job(checkpoint, OUTPUTS[output], input_size, representative, threads)
    images = _check_images(check_images, job)
    exported = []
    for kind, target in targets.items():
        limit = (0.0 if kind in APPROXIMATE else MIN_AGREEMENT) if min_agreement is None else min_agreement
        logging.info("%s: being made and checked", target)
        exported.append(_export_one(job, kind, target, images, limit))
        log(str(exported[-1]))
    return exported


# === What is asked for ===


def _targets(path: pathlib.Path, formats: Sequence[str], overwrite: bool) -> dict[str, pathlib.Path]:
    """Format -> the file or folder to be written."""
    for name in formats:
        if name not in FORMATS:
            raise unknown_name("--formats", name, FORMATS)
    if not formats:
        raise UserError(f"--formats is empty; give one or more of {', '.join(FORMATS)}")
    exists = f"--export_path={path}: exists"
    if path.suffix in (".tflite", ".onnx"):
        if len(formats) > 1 or pathlib.Path(FORMATS[formats[0]]).suffix != path.suffix:
            asked = ",".join(formats)
            raise UserError(f"--export_path={path}: no file for --formats={asked}; give a folder for several formats")
        if path.is_dir() or (path.exists() and not overwrite):
            raise UserError(f"{exists}; give another path, or --overwrite to replace the file")
        return {formats[0]: path}
    if path.exists() and not path.is_dir():
        raise UserError(f"{exists} and is a file; give a folder, or a name that ends in .tflite or .onnx")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{exists}; give another folder, or --overwrite to replace the exported files in it")
    return {name: path / FORMATS[name] for name in formats}


def _check_size(checkpoint: LoadedCheckpoint, size: tuple[int, int]) -> None:
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"--input_size={','.join(map(str, size))}: two numbers of at least 1, HEIGHT,WIDTH")
    built = checkpoint.model.input_shape[1:3]
    if None not in built and tuple(size) != tuple(built):
        raise UserError(f"--input_size={size[0]},{size[1]}: the model was built for {built[0]},{built[1]} alone")
    check_input_size(checkpoint.config, *size)
    largest = size[0] * size[1] * checkpoint.config.num_classes * 4
    if largest >= MAX_TENSOR:
        raise UserError(
            f"--input_size={size[0]},{size[1]}: too large: the class scores alone would take {largest / 2**30:.3g} GiB, and the "
            f"runtimes take less than {MAX_TENSOR >> 30} GiB a tensor; give a smaller size"
        )


def _representative(images: Images | None, size: tuple[int, int] | None) -> list[np.ndarray]:
    found = [] if images is None else read_images(images, MAX_REPRESENTATIVE)
    if len(found) < MIN_REPRESENTATIVE:
        place = f" in {os.fspath(images)}" if isinstance(images, str | os.PathLike) else ""
        raise UserError(
            f"--formats=tflite_int8 takes its ranges from at least {MIN_REPRESENTATIVE} representative images, and got "
            f"{len(found)}{place}; give --representative_dir=FOLDER of pictures, or the dataset by --dataset and --dataset_dir"
        )
    assert size
    return [resize(image, size) for image in found]


def _check_images(images: Images | None, job: _Job) -> list[np.ndarray]:
    if images is None:
        built = job.checkpoint.model.input_shape[1:3]
        size = job.size or (ANY_SIZE_CHECK if None in built else built)
        return made_images(size, job.checkpoint.config.input_channels)
    found = read_images(images, MAX_CHECKED)
    if not found:
        raise UserError("no images for the check of the export; give some, or leave them out for made pictures")
    return found


# === One format ===


def _export_one(job: _Job, kind: str, target: pathlib.Path, images: list[np.ndarray], limit: float) -> ExportedFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, failed = target.with_name(f".{target.name}.tmp"), target.with_name(f"{target.name}.failed")
    _remove(temporary)
    try:
        try:
            job.write(kind, temporary)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{target}: cannot be written ({reason}); make room, or give another --export_path") from error
        size = None if kind == "saved_model" else job.size
        difference, agreement, classes = compare(job.runner(kind, temporary), job.network, images, size)
        _remove(failed)
        path = target if agreement >= limit else failed
        _replace(temporary, path)
    finally:
        _remove(temporary)
    operators = tflite.operators(path) if kind in TFLITE_KINDS else {}
    exported = ExportedFile(path, kind, _size(path), difference, agreement, classes, operators)
    if path == failed:
        raise UserError(f"{exported}; the least allowed is --min_agreement={limit:g}: do not use this file")
    return exported


# === Files ===


def _replace(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Gives the finished file or folder its name; what stood there goes."""
    if not target.is_dir():
        os.replace(temporary, target)
        return
    aside = target.with_name(f".{target.name}.old")
    _remove(aside)
    target.rename(aside)
    temporary.rename(target)
    _remove(aside)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: pathlib.Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
