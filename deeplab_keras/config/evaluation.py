"""The configuration of inference and evaluation."""

from __future__ import annotations

import dataclasses

from deeplab_keras.config.base import Config, option


@dataclasses.dataclass(frozen=True)
class EvalConfig(Config):
    """How to run a trained network on images of any size.

    Example:
        >>> evaluation = dk.EvalConfig(eval_scales=(0.75, 1.0, 1.25), add_flipped_images=True)
        >>> dk.Predictor(dk.load_model("runs/demo"), evaluation)(np.zeros((40, 60, 3))).shape
        (40, 60)
    """

    inference: str = option(
        "whole",
        "whole: the whole image at once; slide: overlapping windows; official: padded to "
        "`eval_crop_size`, as in the official DeepLab",
        choices=("whole", "slide", "official"),
    )
    eval_scales: tuple[float, ...] = option(
        (1.0,), "scales of the image over which predictions are averaged"
    )
    add_flipped_images: bool = option(False, "also averages the prediction of the flipped image")
    eval_crop_size: tuple[int, ...] = option(
        (512, 512),
        "size of the window (`inference='slide'`) or of the padded image "
        "(`inference='official'`), as height,width",
    )
    eval_stride: tuple[int, ...] = option(
        (), "stride of the window, as height,width; empty: two thirds of `eval_crop_size`"
    )
    eval_batch_size: int = option(4, "images per step")
    eval_short_side: int = option(
        0, "resizes the image so that its short side has this length; 0: no resize"
    )
    eval_long_side: int = option(0, "maximum length of the long side in that resize; 0: no maximum")
    eval_resize_factor: int = option(
        0,
        "with `inference='official'`: rounds the sides up to a multiple of this plus one after "
        "that resize; 0: no rounding",
    )
    palette: str = option(
        "dataset",
        "colors of the classes in pictures; color_blind: a color-blind-safe palette",
        choices=("dataset", "color_blind"),
        aliases={"colour_blind": "color_blind"},
    )

    def validate(self) -> None:
        self._require(
            bool(self.eval_scales) and all(0 < s <= 16 for s in self.eval_scales),
            "eval_scales",
            "must be one or more scales above 0 and at most 16",
        )
        self._require(
            len(self.eval_crop_size) == 2 and all(v >= 1 for v in self.eval_crop_size),
            "eval_crop_size",
            "must be two whole numbers of at least 1, the height and the width",
        )
        self._require(
            len(self.eval_stride) in (0, 2) and all(v >= 1 for v in self.eval_stride),
            "eval_stride",
            "must be two whole numbers of at least 1, the height and the width, or empty",
        )
        self._require(self.eval_batch_size >= 1, "eval_batch_size", "must be at least 1")
        for field in ("eval_short_side", "eval_long_side", "eval_resize_factor"):
            self._require(getattr(self, field) >= 0, field, "must be at least 0")
