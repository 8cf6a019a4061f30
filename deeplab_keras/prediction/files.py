"""Prediction of all inputs: finds them, predicts, writes and counts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from deeplab_keras.config import EvalConfig, PredictConfig, UserError, require_instance
from deeplab_keras.inference import Predictor, allow_pixels, open_network
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import check_folder
from deeplab_keras.prediction.images import ImageJob
from deeplab_keras.prediction.inputs import Input, find_inputs
from deeplab_keras.prediction.results import Results
from deeplab_keras.prediction.video import predict_video


@dataclasses.dataclass(frozen=True)
class Summary:
    """The result of `predict`.

    Attributes:
        total: The number of images and videos found.
        skipped: The number of those with existing results.
        failed: The number of those that could not be read or predicted.
        folder: The folder of the results.
        what: The kind of inputs: "images", "videos" or "files" for both.
        failures: The inputs that failed, each with its error.
    """

    total: int
    skipped: int
    failed: int
    folder: str
    what: str = "images"
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        done = self.total - self.skipped - self.failed
        parts = [f"written: {done} of {self.total} {self.what} to {self.folder}"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return "; ".join(parts)


def predict(
    config: PredictConfig,
    eval_config: EvalConfig = EvalConfig(),
    *,
    log: Callable[[str], None] = print,
) -> Summary:
    """Predicts images and videos and writes the results.

    Reports a file that cannot be read, and continues with the others.

    Args:
        config: The model, the inputs, and the outputs.
        eval_config: How to run the model. Default: the whole image, at a single scale.
        log: Called with the summary.

    Returns:
        A `Summary` with the counts of inputs.

    Raises:
        UserError: If there is no model or no input, or if a result would replace a file or cannot
            be written.

    Example:
        >>> config = dk.PredictConfig(
        ...     checkpoint_dir="runs/demo", input="photos", output="predictions", legend=False
        ... )
        >>> summary = dk.predict(config)
        written: 1 of 1 images to predictions
        >>> summary.failed
        0
    """
    require_instance(config, PredictConfig, "config")
    require_instance(eval_config, EvalConfig, "eval_config")
    found = find_inputs(config.input, config.output)
    check_folder(config.output, "output")
    network, info = open_network(config.checkpoint_dir)
    predictor, results = Predictor(network, eval_config), Results(config, info, eval_config.palette)
    inputs = results.check(found)
    with allow_pixels(config.max_megapixels):
        failures = _images(
            predictor, results, config, [item for item in inputs if item.kind == "image"]
        )
    videos = [item for item in inputs if item.kind != "image"]
    failures |= _videos(predictor, results, config, videos)
    results.finish()
    kinds = {item.kind for item in found}
    what = "images" if kinds == {"image"} else "files" if "image" in kinds else "videos"
    skipped = len(found) - len(inputs)
    summary = Summary(len(found), skipped, len(failures), config.output, what, failures)
    log(str(summary))
    return summary


def _images(
    predictor: Predictor, results: Results, config: PredictConfig, inputs: list[Input]
) -> dict[str, str]:
    job = ImageJob(predictor, results, config, Progress(len(inputs), "predicting"))
    job.run(inputs)
    return job.failures


def _videos(
    predictor: Predictor, results: Results, config: PredictConfig, inputs: list[Input]
) -> dict[str, str]:
    failures: dict[str, str] = {}
    for item in inputs:
        try:
            predict_video(predictor, item, results, config.max_frames)
        except UserError as error:
            text = str(error)
            if not error.field and not text.startswith(item.path):
                text = f"{item.path}: {text}"
            print(f"error: {text}", file=sys.stderr)
            failures[item.path] = text
    return failures
