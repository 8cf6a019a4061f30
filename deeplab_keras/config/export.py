"""The configuration of export: which files to write, and how to check them."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class ExportConfig(Config):
    """Which files to export from a checkpoint, and how to check them.

    Example:
        >>> config = dk.ExportConfig("runs/demo", "export", formats=("tflite",))
        >>> config.output
        'labels'
    """

    checkpoint_dir: str = option(
        "", "a workdir (its best checkpoint), a checkpoint folder, or the name of a model"
    )
    export_path: str = option(
        "", "folder for the files; for a single format also the name of a .tflite or .onnx file"
    )
    formats: tuple[str, ...] = option(
        ("saved_model", "tflite"),
        "saved_model, tflite, tflite_float16, tflite_dynamic, tflite_int8, tflite_mixed, onnx",
    )
    input_size: tuple[int, ...] = option(
        (),
        "input size of TFLite and ONNX files, as height,width; default: the most common size in "
        "the validation split",
    )
    resize: str = option(
        "stretch",
        "how images get the input size: stretched, or with their aspect ratio kept and the rest "
        "filled (letterbox)",
        choices=("stretch", "letterbox"),
    )
    output: str = option("labels", "outputs of the files", choices=("labels", "logits", "both"))
    output_at: str = option(
        "image",
        "size of the outputs: that of the image, or that of the head's class scores, which an app "
        "enlarges itself: 64 times fewer bytes at stride 8",
        choices=("image", "head"),
    )
    label_type: str = option("int32", "dtype of the labels", choices=("int32", "uint8"))
    calibrate: bool = option(
        False,
        "divides the class scores by one temperature, fitted on the validation split, so that "
        "probabilities match the share of correct pixels; labels do not change",
    )
    representative_dir: str = option(
        "",
        "images for the ranges of tflite_int8 and tflite_mixed; default: the training split",
    )
    mixed_agreement: float = option(
        0.99,
        "tflite_mixed: keeps layers in float until this share of labels agrees with float32",
    )
    check_images: int = option(
        8, "images of the validation split for the check of each file; 0: all"
    )
    min_agreement: float | None = option(
        None,
        "share of labels that must agree with Keras; default: 0.995, and 0 for 8-bit files and "
        "with `half_pixel_resizes`",
    )
    max_miou_loss: float | None = option(
        None, "points of mIoU that a file may lose compared with Keras; default: no limit"
    )
    half_pixel_resizes: bool = option(
        False,
        "replaces resizes with aligned corners, which some delegates lack, by resizes with "
        "half-pixel centers; changes labels",
    )
    keep_concatenations: bool = option(
        False,
        "keeps 3x3 convolutions over concatenated branches (PSPNet, ASPP): slower, but without "
        "BATCH_MATMUL, which NNAPI lacks",
    )
    overwrite: bool = option(False, "replaces existing files")
    threads: int = option(2, "threads of the runtimes during the check")

    def validate(self) -> None:
        self._require(
            len(self.input_size) in (0, 2) and all(length >= 1 for length in self.input_size),
            "input_size",
            "must be two whole numbers of at least 1, the height and the width",
        )
        self._require(
            self.check_images >= 0, "check_images", "must be at least 1, or 0 for all images"
        )
        for field in ("min_agreement", "mixed_agreement"):
            share = getattr(self, field)
            self._require(
                share is None or 0 <= share <= 1, field, "must be a share of the pixels, 0 to 1"
            )
        self._require(
            self.max_miou_loss is None or self.max_miou_loss >= 0,
            "max_miou_loss",
            "must be 0 or more points of mIoU",
        )
        self._require(1 <= self.threads <= 1024, "threads", "must be between 1 and 1024")

    def require(self, *fields: str) -> None:
        """Raises UserError if one of these is empty: `checkpoint_dir`, `export_path`."""
        what = {
            "checkpoint_dir": "the `train_logdir` of a training run",
            "export_path": "a folder for the files",
        }
        for field in fields:
            self._require_given(field, what[field])
