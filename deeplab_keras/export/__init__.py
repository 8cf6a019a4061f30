"""Export to SavedModel, TFLite and ONNX, with a check of each file against Keras."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.checkpoints.folder import LoadedCheckpoint
from deeplab_keras.config import ExportConfig, UserError, require_instance
from deeplab_keras.export import metadata, onnx, request, saved_model, tflite
from deeplab_keras.export.calibration import Calibration, calibrate
from deeplab_keras.export.check import (
    AtHead,
    FileAgreement,
    compare,
    enlarging,
    milliseconds,
    runner,
)
from deeplab_keras.export.delegates import verdicts
from deeplab_keras.export.exportable import Exportable
from deeplab_keras.export.graph import freeze, head_of
from deeplab_keras.export.images import Fit, Images
from deeplab_keras.export.mixed_int8 import mixed
from deeplab_keras.export.request import FORMATS
from deeplab_keras.export.result import ExportedFile
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.inference.exported import ABOUT, LABELS, ExportedNetwork, open_runtime
from deeplab_keras.inference.keras_network import KerasNetwork
from deeplab_keras.io.writing import check_folder
from deeplab_keras.models.layers import require_backend
from deeplab_keras.version import __version__

logger = logging.getLogger(__name__)

__all__ = ["FORMATS", "ExportedFile", "export_model"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """One export.

    Attributes:
        source: The model that files are compared with.
        exported: The model that is converted: the same, or one that computes in another way.
        config: The options of the export.
        representative: Images for the ranges of int8 files, uint8 `[height, width, channels]`.
        calibration: The temperature that is part of the model, if it was fitted.
    """

    source: Exportable
    exported: Exportable
    config: ExportConfig
    representative: Sequence[np.ndarray] = ()
    calibration: Calibration | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """The (height, width) of the input of TFLite and ONNX files."""
        return request.input_size(self.config)

    @property
    def fit(self) -> Fit | None:
        """How images get this size."""
        return request.fit(self.config, self.exported)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return request.OUTPUTS[self.config.output]

    @functools.cached_property
    def frozen(self) -> Any:
        """The graph for one image of the fixed size."""
        return self._freeze(self.exported)

    @functools.cached_property
    def frozen_for_8_bits(self) -> Any:
        """The same graph with unsplit convolutions, so that no partial sums are rounded."""
        if not self.exported.branchwise:
            return self.frozen
        return self._freeze(self.exported.changed(branchwise=False))

    def _freeze(self, source: Exportable) -> Any:
        assert self.size
        shape = (1, *self.size, source.channels)
        model = self._with_outputs(source.model)
        return freeze(model, shape, tf.float32, self.outputs, self.config.label_type)

    def _with_outputs(self, model: keras.Model) -> keras.Model:
        """The model, or with `output_at="head"` the model before its last resize."""
        return head_of(model)[0] if self.config.output_at == "head" else model

    @functools.cached_property
    def calibrated(self) -> bytes:
        """The float32 file with the ranges of its tensors on the representative images."""
        return tflite.calibrate(self.frozen_for_8_bits, self.outputs, self.representative)

    @functools.cached_property
    def network(self) -> Network:
        """The Keras model."""
        return KerasNetwork(self.source.model)

    @functools.cached_property
    def files(self) -> dict[str, str]:
        """The text files stored with every export: class names, one per line, and its origin."""
        info = self.exported.info
        about: dict[str, Any] = {
            "made_by": f"deeplab_keras {__version__}",
            "dataset": info.to_dict(),
            "model": self.exported.description,
            "input_size": self.size,
            "outputs": list(self.outputs),
            "output_at": self.config.output_at,
            "resize": self.config.resize,
        }
        if self.exported.config is None or (self.fit and self.fit.color):
            about["pad_value"] = list(self.exported.pad_value)
        if self.config.output_at == "head":  # how to enlarge the outputs
            about["align_corners"] = head_of(self.exported.model)[1]
        if self.calibration:
            about["calibration"] = dataclasses.asdict(self.calibration)
        names = "".join(f"{name}\n" for name in info.class_names)
        return {LABELS: names, ABOUT: json.dumps(about, indent=2) + "\n"}

    def write(self, kind: str, path: pathlib.Path) -> tuple[str, ...]:
        """Writes the file or folder of a format; returns the float layers of a mixed int8 file."""
        if kind == "saved_model":
            model, label_type = self._with_outputs(self.exported.model), self.config.label_type
            saved_model.save(model, path, self.outputs, self.files, label_type)
            return ()
        if kind == "onnx":
            path.write_bytes(onnx.convert(self.frozen, self.outputs, self.files))
            return ()
        model, float_layers = self._tflite(kind)
        info = self.exported.info
        text = (
            f"Semantic segmentation: the class of each pixel out of {info.num_classes} of "
            f"{info.name}"
        )
        described = metadata.describe(model, self.exported.architecture, text, __version__)
        path.write_bytes(tflite.pack(described, self.files))
        return float_layers

    def _tflite(self, kind: str) -> tuple[bytes, tuple[str, ...]]:
        if kind == "tflite_mixed":
            agreement, threads = self.config.mixed_agreement, self.config.threads
            return mixed(self.calibrated, self.representative, agreement, threads)
        if kind == "tflite_int8":
            return tflite.quantize(self.calibrated), ()
        frozen = self.frozen_for_8_bits if kind == "tflite_dynamic" else self.frozen
        return tflite.convert(frozen, self.outputs, request.FLOAT_KINDS[kind]), ()

    def compare(
        self, kind: str, path: pathlib.Path, images: list[np.ndarray], labels: list[np.ndarray]
    ) -> FileAgreement:
        """The written file compared with Keras."""
        threads, head, predict = self.config.threads, None, None
        if self.config.output_at == "head":
            model, _ = head_of(self.source.model)
            _, align_corners = head_of(self.exported.model)
            head = AtHead(KerasNetwork(model), align_corners, "logits" in self.outputs)
        if head or self.config.resize != "stretch":
            predict = Predictor(ExportedNetwork(path, open_runtime(kind, path, threads)))
        return compare(
            runner(kind, path, threads),
            self.network,
            images,
            None if kind == "saved_model" else self.fit,
            labels,
            self.source.info.ignore_label,
            head=head,
            predict=predict,
            smallest=self.source.smallest,
        )

    def min_agreement(self, kind: str) -> float:
        """The share of labels that a file of this format must have in common with Keras."""
        if self.config.min_agreement is not None:
            return self.config.min_agreement
        approximate = kind in request.APPROXIMATE or self.config.half_pixel_resizes
        return 0.0 if approximate else request.MIN_AGREEMENT


def export_model(
    checkpoint: str | os.PathLike[str] | LoadedCheckpoint | keras.Model,
    export_path: str | os.PathLike[str] | None = None,
    config: ExportConfig | None = None,
    *,
    class_names: Sequence[str] = (),
    representative_images: Images | None = None,
    check_images: Images | None = None,
    checked: int | None = None,
    log: Callable[[str], None] = print,
    **options: Any,
) -> list[ExportedFile]:
    """Exports a model and checks each file against Keras before the file gets its name.

    Args:
        checkpoint: A checkpoint folder, a workdir, the name of a model of the zoo, a loaded
            checkpoint, or any `keras.Model` from images `[batch, height, width, channels]` in
            0..255 to one score per pixel and class. `config.checkpoint_dir` is not used.
        export_path: The folder for the files, which get the names in FORMATS. For a single format
            also a file, `*.tflite` or `*.onnx`. Default: `config.export_path`.
        config: The formats, the input size and the limits of the check. Default: `ExportConfig()`.
        class_names: The names of the classes of a `keras.Model`. Default: `class_0`, `class_1` and
            so on. A checkpoint has its own.
        representative_images: Images for the ranges of tflite_int8 and tflite_mixed files, at least
            16, similar to those that the model will see: a split of a dataset, a folder of images,
            or a list of what `dk.Predictor` takes, such as uint8 arrays `[height, width,
            channels]`. Default: `config.representative_dir`.
        check_images: Images for the check, of the same kinds. With a split of a dataset, which has
            labels, the check also measures mIoU, and `calibrate` fits its temperature on all of the
            split. Default: synthetic images.
        checked: The number of images for the check, evenly spaced in `check_images`; 0 for all.
            Default: `config.check_images`.
        log: Called with one line per file, followed for TFLite files by its operators and by what
            delegates do with them.
        **options: Other fields of `ExportConfig`, which replace those of `config`, for example
            `formats`, `input_size`, `output`, `output_at`, `label_type`, `calibrate`,
            `min_agreement`, `half_pixel_resizes` and `overwrite`.

    Returns:
        One `ExportedFile` per format, in the order of `formats`.

    Raises:
        UserError: If an option or a format is unknown, the path exists, the model cannot take the
            input size, there are too few representative images, or a runtime is not installed. Also
            if a file fails its check; it is then kept as `<name>.failed`.

    Example:
        >>> files = dk.export_model(
        ...     "runs/demo",
        ...     "phone.tflite",
        ...     formats=["tflite"],
        ...     input_size=(64, 64),
        ...     log=lambda line: None,
        ... )
        >>> files[0].path.name, files[0].label_agreement > 0.99
        ('phone.tflite', True)

        A model in memory, here with scores that are twice as large:

        >>> model = dk.load_model("runs/demo")
        >>> scores = keras.layers.Rescaling(2.0)(model.output)
        >>> changed = keras.Model(model.input, scores, name="mine")
        >>> files = dk.export_model(
        ...     changed,
        ...     "mine.tflite",
        ...     class_names=dk.Predictor("runs/demo").info.class_names,
        ...     formats=["tflite"],
        ...     input_size=(64, 64),
        ...     log=lambda line: None,
        ... )
        >>> dk.Predictor("mine.tflite").info.num_classes
        10
    """
    require_backend("the export")
    config = _merged(config, export_path, checked, options)
    targets = request.targets(
        pathlib.Path(config.export_path), list(dict.fromkeys(config.formats)), config.overwrite
    )
    check_folder(next(iter(targets.values())).parent, "export_path")
    if "onnx" in targets:
        onnx.require_packages()
    source = Exportable.of(checkpoint, class_names)
    job = _prepared(source, config, targets, representative_images, check_images)
    images, labels = request.check_images(check_images, config.check_images, job.source, job.size)
    if config.max_miou_loss is not None and not labels:
        raise UserError(
            f"`max_miou_loss={config.max_miou_loss:g}`: needs a dataset with labels for the check; "
            "give `dataset` and `dataset_dir`"
        )
    exported = []
    for kind, target in targets.items():
        logger.info("%s: converting and checking", target)
        exported.append(_export_one(job, kind, target, images, labels))
        log(f"{exported[-1]}{exported[-1].report()}")
    return exported


def _merged(
    config: ExportConfig | None,
    export_path: str | os.PathLike[str] | None,
    checked: int | None,
    options: dict[str, Any],
) -> ExportConfig:
    """Returns the config with the arguments of a call."""
    if config is not None:
        require_instance(config, ExportConfig, "config")
    if "checkpoint_dir" in options:
        raise UserError(
            "`checkpoint_dir` is not an option of export_model, which takes the checkpoint as its "
            "first argument"
        )
    if options.get("input_size", ()) is None:
        options = options | {"input_size": ()}
    if export_path is not None:
        options = options | {"export_path": export_path}
    if checked is not None:
        options = options | {"check_images": checked}
    config = (config or ExportConfig()).replace(**options)
    config.require("export_path")
    return config


def _prepared(
    source: Exportable,
    config: ExportConfig,
    targets: dict[str, pathlib.Path],
    representative_images: Images | None,
    check_images: Images | None,
) -> _Job:
    """Checks that a model can be exported with these options, and prepares it."""
    source.check_weights()
    if config.output_at == "head":
        head_of(source.model)  # raises an error if the model has no such outputs
    needs_size = [kind for kind in targets if kind != "saved_model"]
    if needs_size and not config.input_size:
        config = config.replace(input_size=request.usual_size(check_images, source) or ())
    for kind in needs_size[:1]:
        source.check_dtypes(kind)
    size = request.input_size(config)
    if needs_size and size is None:
        raise UserError(
            f"`formats={needs_size[0]}` needs `input_size=HEIGHT,WIDTH`, the fixed size of its "
            "input; without it, the most common size of the images of the check is used, and there "
            "are none"
        )
    if size is not None:
        request.check_size(source, size)
    else:
        source.check_size(*source.usual_size)
    representative: Sequence[np.ndarray] = ()
    in_8_bits = [kind for kind in targets if kind in request.INT8_KINDS]
    if in_8_bits:
        images = representative_images
        if images is None:
            images = config.representative_dir or None
        fit = request.fit(config, source)
        representative = request.representative(images, fit, in_8_bits[0], source.channels)
    if source.quantization_aware:  # exported files quantize in their own way
        source = source.changed(quantization_aware=False)
    calibration = None
    if config.calibrate:
        source, calibration = calibrate(source, request.split(check_images))
    changes = {"align_corners": False} if config.half_pixel_resizes else {}
    changes |= {"branchwise": False} if config.keep_concatenations else {}
    exported = source.changed(**changes) if changes else source
    return _Job(source, exported, config, representative, calibration)


# === One format ===


def _export_one(
    job: _Job,
    kind: str,
    target: pathlib.Path,
    images: list[np.ndarray],
    labels: list[np.ndarray],
) -> ExportedFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    failed = target.with_name(f"{target.name}.failed")
    _remove(temporary)
    try:
        try:
            float_layers = job.write(kind, temporary)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{target}: cannot be written ({reason}); free some space, or give another "
                "`export_path`"
            ) from error
        fit = enlarging(images[0], job.source.smallest) if kind == "saved_model" else job.fit
        compared = job.compare(kind, temporary, images, labels)
        first = fit.image(images[0]) if fit else images[0]
        took = milliseconds(kind, temporary, job.config.threads, first)
        _remove(failed)
        broken = _broken_limit(compared, job.min_agreement(kind), job.config.max_miou_loss)
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
        float_layers,
        tuple(verdicts(path, job.config.threads)) if in_tflite else (),
        fit.size if fit else None,
        job.calibration,
        job.outputs,
    )
    if broken:
        raise UserError(f"{exported}; the check failed, {broken}: do not use this file")
    return exported


def _broken_limit(
    compared: FileAgreement, min_agreement: float, max_miou_loss: float | None
) -> str:
    """The limit that a file does not meet, or an empty string."""
    converted = compared.label_agreement if compared.at_head is None else compared.at_head
    if not converted >= min_agreement:  # also if it is NaN
        return f"the agreement is below `min_agreement={min_agreement:g}`"
    if (
        max_miou_loss is not None
        and compared.miou_loss is not None
        and not compared.miou_loss <= max_miou_loss
    ):
        return f"the loss of mIoU is above `max_miou_loss={max_miou_loss:g}`"
    return ""


# === Files ===


def _replace(temporary: pathlib.Path, target: pathlib.Path) -> None:
    """Gives the finished file or folder its name, replacing an existing one."""
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
