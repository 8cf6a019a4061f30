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
from deeplab_keras.config import UserError, unknown_option
from deeplab_keras.export import metadata, onnx, request, saved_model, tflite
from deeplab_keras.export.check import Comparison, Runner, compare, milliseconds, runner
from deeplab_keras.export.delegates import verdicts
from deeplab_keras.export.graph import freeze, rebuilt
from deeplab_keras.export.images import Images, resize
from deeplab_keras.export.mixed_int8 import mixed
from deeplab_keras.export.request import FORMATS, OUTPUTS
from deeplab_keras.export.result import ExportedFile
from deeplab_keras.inference import Network
from deeplab_keras.inference.exported import ABOUT, LABELS
from deeplab_keras.io.writing import check_folder
from deeplab_keras.models.concat_conv import ConcatConv2D
from deeplab_keras.models.layers import require_tensorflow
from deeplab_keras.version import __version__

__all__ = ["FORMATS", "ExportedFile", "export_model"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """One export: the checkpoint, the network that is exported in its place, and what is asked of it."""

    checkpoint: LoadedCheckpoint
    exported: LoadedCheckpoint
    outputs: tuple[str, ...]
    label_type: str
    size: tuple[int, int] | None
    representative: Sequence[np.ndarray]
    mixed_agreement: float
    threads: int

    @functools.cached_property
    def frozen(self) -> Any:
        """The graph for one image of the fixed size."""
        return self._freeze(self.exported)

    @functools.cached_property
    def frozen_for_8_bits(self) -> Any:
        """The same with nothing added up that was rounded to 8 bits before without need."""
        branchwise = any(isinstance(layer, ConcatConv2D) for layer in self.exported.model.layers)
        return self._freeze(rebuilt(self.exported, branchwise=False)) if branchwise else self.frozen

    def _freeze(self, checkpoint: LoadedCheckpoint) -> Any:
        assert self.size
        shape = (1, *self.size, checkpoint.config.input_channels)
        return freeze(checkpoint.model, shape, tf.float32, self.outputs, self.label_type)

    @functools.cached_property
    def calibrated(self) -> bytes:
        """The float32 file with the ranges of the representative images."""
        return tflite.calibrate(self.frozen_for_8_bits, self.outputs, self.representative)

    @functools.cached_property
    def network(self) -> Network:
        """The Keras model itself."""
        return Network(self.checkpoint.model)

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """What goes into every export beside the network: its class names, a line each, and where it came from."""
        info, config = self.exported.info, self.exported.config
        about = {
            "made_by": f"deeplab_keras {__version__}",
            "dataset": info.to_dict(),
            "model": config.to_dict(),
            "input_size": self.size,
            "outputs": list(self.outputs),
        }
        names = "".join(f"{name}\n" for name in info.class_names)
        return {LABELS: names, ABOUT: json.dumps(about, indent=2) + "\n"}

    def write(self, kind: str, path: pathlib.Path) -> tuple[str, ...]:
        """Writes the file or folder of one format; gives the names of the layers that stay in float in a mixed one."""
        float_layers: tuple[str, ...] = ()
        if kind == "saved_model":
            saved_model.save(self.exported.model, path, self.outputs, self.files, self.label_type)
            return ()
        if kind == "onnx":
            path.write_bytes(onnx.convert(self.frozen, self.outputs, self.files))
            return ()
        if kind == "tflite_mixed":
            model, float_layers = mixed(
                self.calibrated, self.representative, self.mixed_agreement, self.threads
            )
        elif kind == "tflite_int8":
            model = tflite.quantize(self.calibrated)
        else:
            frozen = self.frozen_for_8_bits if kind == "tflite_dynamic" else self.frozen
            model = tflite.convert(frozen, self.outputs, request.FLOAT_KINDS[kind])
        info, config = self.exported.info, self.exported.config
        text = (
            f"Semantic segmentation: the class of each pixel out of {config.num_classes} of "
            f"{info.name}"
        )
        described = metadata.describe(
            model, f"{config.head} on {config.backbone}", text, __version__
        )
        path.write_bytes(tflite.pack(described, self.files))
        return float_layers

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
    label_type: str = "int32",
    representative_images: Images | None = None,
    check_images: Images | None = None,
    checked: int = request.CHECKED,
    min_agreement: float | None = None,
    max_miou_loss: float | None = None,
    mixed_agreement: float = request.MIXED_AGREEMENT,
    half_pixel_resizes: bool = False,
    keep_concatenations: bool = False,
    overwrite: bool = False,
    threads: int = 2,
    log: Callable[[str], None] = print,
) -> list[ExportedFile]:
    """Exports a model and checks every file against Keras before the file gets its name.

    Args:
        checkpoint: a checkpoint folder or workdir, or a loaded checkpoint.
        export_path: the folder for the files, named as in FORMATS; for one format also a file,
            `*.tflite` or `*.onnx`.
        formats: out of FORMATS.
        input_size: (height, width) of the one image that TFLite and ONNX files take. A SavedModel
            takes any number of images of any size.
        output: "labels", of label_type `[batch, height, width]`; "logits", float32 `[batch, height,
            width, num_classes]`; or "both".
        label_type: "int32", or "uint8", a quarter of it.
        representative_images: for tflite_int8 and tflite_mixed, at least 16 images such as the
            model will see: a split of a dataset, a folder of pictures, or uint8 arrays `[height,
            width, channels]`.
        check_images: images for the check, likewise. Default: made pictures. A split of a dataset
            has labels: then mIoU is measured too.
        checked: how many of them, evenly spread; 0: all.
        min_agreement: share of the pixels on which the labels must be Keras' own. Default: 0.995;
            for 8-bit kinds 0.
        max_miou_loss: points of mIoU that a file may be below Keras. Default: any.
        mixed_agreement: of tflite_mixed: share of the pixels of representative images on which the
            labels are those of the float32 file; layers stay in float until it is reached.
        half_pixel_resizes: resizes with aligned corners, which some delegates do not take, are made
            with half-pixel centres; the agreement tells what it costs, and has no minimum by
            default.
        keep_concatenations: PSPNet's and ASPP's 3x3 convolutions over concatenated branches stay
            one convolution each: slower, but without BATCH_MATMUL, which some delegates do not
            take. In 8-bit files they always do.
        overwrite: files that stand there are replaced.
        threads: of the runtimes in the check.
        log: gets a line for each file, and of a TFLite file its operators and what delegates make
            of them.

    Returns:
        One entry a format, in their order.

    Raises:
        UserError: an unknown format, a path that exists, an input size that the model cannot take,
            too few representative images, a runtime that is not installed, or a file that agrees
            less or loses more than is
            allowed: that file is kept, with `.failed` at the end of its name.
    """
    require_tensorflow("the export")
    targets = request.targets(pathlib.Path(export_path), list(dict.fromkeys(formats)), overwrite)
    check_folder(next(iter(targets.values())).parent, "export_path")
    if output not in OUTPUTS:
        raise unknown_option("output", output, OUTPUTS)
    request.check_label_type(label_type)
    request.check_limits(min_agreement, mixed_agreement, max_miou_loss)
    if "onnx" in targets:
        onnx.require_packages()
    needs_size = [kind for kind in targets if kind != "saved_model"]
    if needs_size and input_size is None:
        raise UserError(
            f"`formats={needs_size[0]}` needs `input_size=HEIGHT,WIDTH`, the one size that the "
            "file takes"
        )
    if not isinstance(checkpoint, LoadedCheckpoint):
        checkpoint = load_checkpoint(checkpoint)
    request.check_classes(checkpoint)
    if input_size is not None:
        request.check_size(checkpoint, input_size)
    in_8_bits = [kind for kind in targets if kind in request.INT8_KINDS]
    representative = (
        request.representative(representative_images, input_size, in_8_bits[0]) if in_8_bits else []
    )
    if checkpoint.config.quantization_aware:  # the files have an arithmetic of their own
        checkpoint = rebuilt(checkpoint, quantization_aware=False)
    changes = {"align_corners": False} if half_pixel_resizes else {}
    changes |= {"branchwise": False} if keep_concatenations else {}
    exported_network = rebuilt(checkpoint, **changes) if changes else checkpoint
    job = _Job(
        checkpoint,
        exported_network,
        OUTPUTS[output],
        label_type,
        input_size,
        representative,
        mixed_agreement,
        threads,
    )
    images, labels = request.check_images(check_images, checked, checkpoint, input_size)
    if max_miou_loss is not None and not labels:
        raise UserError(
            f"`max_miou_loss={max_miou_loss}`: needs a dataset, whose labels tell; give `dataset` "
            "and `dataset_dir`"
        )
    exported = []
    for kind, target in targets.items():
        approximate = kind in request.APPROXIMATE or half_pixel_resizes
        limit = (
            (0.0 if approximate else request.MIN_AGREEMENT)
            if min_agreement is None
            else min_agreement
        )
        logging.info("%s: being made and checked", target)
        exported.append(_export_one(job, kind, target, images, labels, limit, max_miou_loss))
        log(f"{exported[-1]}{exported[-1].report()}")
    return exported


# === One format ===


def _export_one(
    job: _Job,
    kind: str,
    target: pathlib.Path,
    images: list[np.ndarray],
    labels: list[np.ndarray],
    limit: float,
    max_miou_loss: float | None,
) -> ExportedFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, failed = (
        target.with_name(f".{target.name}.tmp"),
        target.with_name(f"{target.name}.failed"),
    )
    _remove(temporary)
    try:
        try:
            float_layers = job.write(kind, temporary)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{target}: cannot be written ({reason}); make room, or give another `export_path`"
            ) from error
        size = None if kind == "saved_model" else job.size
        run = job.runner(kind, temporary)
        compared = compare(run, job.network, images, size, labels, job.checkpoint.info.ignore_label)
        first = resize(images[0], size) if size else images[0]
        took = milliseconds(kind, temporary, job.threads, first)
        _remove(failed)
        broken = _broken_limit(compared, limit, max_miou_loss)
        path = failed if broken else target
        _replace(temporary, path)
    finally:
        _remove(temporary)
    in_tflite = kind.startswith("tflite")
    exported = ExportedFile(
        path,
        kind,
        _size(path),
        compared,
        took,
        tflite.operators(path) if in_tflite else {},
        float_layers or (),
        tuple(verdicts(path, job.threads)) if in_tflite else (),
        size,
    )
    if broken:
        raise UserError(f"{exported}; {broken}: do not use this file")
    return exported


def _broken_limit(compared: Comparison, min_agreement: float, max_miou_loss: float | None) -> str:
    """The limit that a file breaks, or nothing."""
    if not compared.label_agreement >= min_agreement:
        return f"the least allowed is `min_agreement={min_agreement:g}`"
    if (
        max_miou_loss is not None
        and compared.miou_loss is not None
        and not compared.miou_loss <= max_miou_loss
    ):
        return f"the most allowed is `max_miou_loss={max_miou_loss:g}`"
    return ""


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
