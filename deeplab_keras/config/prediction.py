"""The configuration of prediction on files."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class PredictConfig(Config):
    """Which files to segment, and which results to write.

    Example:
        >>> dk.PredictConfig(checkpoint_dir="runs/demo", input="photos", output="results")
        PredictConfig(checkpoint_dir='runs/demo', input='photos', output='results', ...)
    """

    checkpoint_dir: str = option(
        "",
        "a workdir (for its best checkpoint), a checkpoint folder, the name of a model, or an "
        "exported model: a .tflite or .onnx file, or a SavedModel folder",
    )
    input: str = option(
        "",
        "an image, a video, a folder (searched with its subfolders), a pattern such as "
        "'photos/**/*.jpg', or camera (camera:1 for the second one)",
    )
    output: str = option("", "folder for the results; keeps the subfolders of the input")
    outputs: tuple[str, ...] = option(
        (),
        "what to write; empty: labels,color,overlay for images, overlay for videos",
        choices=("labels", "color", "overlay", "probabilities", "coco", "labelme"),
        aliases={"colour": "color"},
    )
    coco_shapes: str = option(
        "rle",
        "form of the regions with `outputs='coco'`; rle: exact run lengths; polygons: outlines",
        choices=("rle", "polygons"),
    )
    polygon_tolerance: float = option(
        0.75,
        "largest distance in pixels of the polygons for labeling tools from the outline of their "
        "region; 0: exact, with many points",
    )
    submission: str = option(
        "",
        "writes files in the format of a benchmark server instead of `outputs`",
        choices=("", "cityscapes", "voc", "ade20k"),
    )
    legend: bool = option(True, "adds a legend of the predicted classes below the overlay")
    probability_type: str = option(
        "float16", "dtype of the arrays in *_probabilities.npz", choices=("float16", "float32")
    )
    tile_size: tuple[int, ...] = option(
        (),
        "height,width of the tiles in which larger images are predicted; empty: 1024,1024 above "
        "12.5 megapixels (25 with `inference='slide'`), unless the image is resized first",
    )
    tile_overlap: int = option(128, "overlap of neighboring tiles in pixels, on each side")
    max_megapixels: int = option(
        200, "refuses larger images, because a small file can exhaust the memory when decoded"
    )
    max_frames: int = option(
        0, "stops a video or the camera after this number of frames; 0: no limit"
    )
    overwrite: bool = option(False, "replaces results of an earlier run")
    skip_existing: bool = option(
        False, "skips inputs that already have results, to resume an interrupted run"
    )
    threads: int = option(
        4, "number of threads that read images, and of threads that write results"
    )

    def validate(self) -> None:
        self._require_given(
            "checkpoint_dir", "the `train_logdir` of a training run, or an exported file"
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
        self._require(
            0 <= self.polygon_tolerance <= 100, "polygon_tolerance", "must be between 0 and 100"
        )
        self._require(
            not (self.skip_existing and "coco" in self.outputs),
            "skip_existing",
            "cannot be combined with `outputs='coco'`, because one file has the results of all "
            "images",
        )
        self._require(self.max_frames >= 0, "max_frames", "must be at least 0")
        self._require(1 <= self.threads <= 64, "threads", "must be between 1 and 64")
        self._require(
            not (self.overwrite and self.skip_existing),
            "skip_existing",
            "cannot be combined with `overwrite`",
        )
