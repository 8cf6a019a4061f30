"""The config of predict.py: what is predicted, and what is written of it."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class PredictConfig(Config):
    """Files in, files out."""

    checkpoint_dir: str = option(
        "",
        "a workdir (its best checkpoint), a checkpoint folder, or an exported model: a .tflite or "
        ".onnx file, a SavedModel folder",
    )
    input: str = option(
        "",
        "an image or video, a folder with its subfolders, a pattern like 'photographs/**/*.jpg', "
        "or camera (camera:1 for the second)",
    )
    output: str = option("", "folder for the results; subfolders are kept")
    outputs: tuple[str, ...] = option(
        (),
        "what is written; empty: labels,colour,overlay of images, overlay of videos",
        choices=("labels", "colour", "overlay", "probabilities"),
    )
    submission: str = option(
        "",
        "writes what a benchmark's server takes, instead of outputs",
        choices=("", "cityscapes", "voc", "ade20k"),
    )
    legend: bool = option(True, "draws the classes that are there below the overlay")
    probability_type: str = option(
        "float16", "of the numbers in *_probabilities.npz", choices=("float16", "float32")
    )
    tile_size: tuple[int, ...] = option(
        (),
        "larger images are predicted in tiles of this height,width; empty: 1024,1024 above 12.5 "
        "megapixels (with `inference='slide'` 25), unless the image is resized first",
    )
    tile_overlap: int = option(128, "pixels that a tile sees beyond its edges")
    max_megapixels: int = option(
        200, "larger images are refused, because a small file may hold one that fills the memory"
    )
    max_frames: int = option(
        0, "a video or the camera ends after so many frames; 0: at its end, or by Ctrl-C"
    )
    overwrite: bool = option(False, "replaces results of an earlier call")
    skip_existing: bool = option(
        False, "leaves out what has its results already: goes on after a call that was stopped"
    )
    threads: int = option(4, "that read images, and as many that write results")

    def validate(self) -> None:
        self._require_given(
            "checkpoint_dir", "the `train_logdir` of a training, or an exported file"
        )
        self._require_given("input", "an image, a video, a folder, a pattern, or camera")
        self._require_given("output", "a folder for the results")
        self._require(
            not (self.submission and self.outputs),
            "submission",
            "cannot be combined with `outputs`",
        )
        self._require(
            len(self.tile_size) in (0, 2) and all(v >= 1 for v in self.tile_size),
            "tile_size",
            "must be two whole numbers of at least 1, the height and the width, or empty",
        )
        self._require(self.tile_overlap >= 0, "tile_overlap", "must be at least 0")
        self._require(
            1 <= self.max_megapixels <= 100_000, "max_megapixels", "must be between 1 and 100000"
        )
        self._require(self.max_frames >= 0, "max_frames", "must be at least 0")
        self._require(1 <= self.threads <= 64, "threads", "must be between 1 and 64")
        self._require(
            not (self.overwrite and self.skip_existing),
            "skip_existing",
            "cannot be combined with `overwrite`",
        )
