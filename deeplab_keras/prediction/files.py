"""The whole of predict.py: find, predict, write, count."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable

from deeplab_keras.checkpoints.folder import load_checkpoint
from deeplab_keras.config import EvalConfig, PredictConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.inference import Network, Predictor, allow_pixels, is_exported, open_exported
from deeplab_keras.io.progress import Progress
from deeplab_keras.io.writing import check_folder
from deeplab_keras.prediction.images import ImageJob
from deeplab_keras.prediction.inputs import Input, find_inputs
from deeplab_keras.prediction.results import Results
from deeplab_keras.prediction.video import predict_video


@dataclasses.dataclass(frozen=True)
class Summary:
    """What came of it.

    Attributes:
        total: images and videos that were found.
        skipped: of them, those whose results were there.
        failed: those that could not be read or predicted; each was named.
        folder: where the results are.
        what: what was counted.
    """

    total: int
    skipped: int
    failed: int
    folder: str
    what: str = "images"

    def __str__(self) -> str:
        done = self.total - self.skipped - self.failed
        parts = [f"written: {done} of {self.total} {self.what} to {self.folder}"]
        if self.skipped:
            parts.append(f"{self.skipped} were there already")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return "; ".join(parts)


def predict(
    config: PredictConfig,
    eval_config: EvalConfig = EvalConfig(),
    *,
    log: Callable[[str], None] = print,
) -> Summary:
    """Predicts files, and writes what is asked for; a file that cannot be read is named, and the others go on.

    Args:
        config: the model, the files, and what is written where.
        eval_config: how the model is run.
        log: gets the summary.

    Raises:
        UserError: nothing to predict, no model, a result that would replace a file, or one that
            cannot be written.
    """
    found = find_inputs(config.input, config.output)
    check_folder(config.output, "output")
    network, info = open_network(config.checkpoint_dir)
    predictor, results = Predictor(network, eval_config), Results(config, info, eval_config.palette)
    inputs = results.check(found)
    with allow_pixels(config.max_megapixels):
        failed = _images(
            predictor, results, config, [item for item in inputs if item.kind == "image"]
        )
    failed += _videos(predictor, results, config, [item for item in inputs if item.kind != "image"])
    kinds = {item.kind for item in found}
    what = "images" if kinds == {"image"} else "files" if "image" in kinds else "videos"
    summary = Summary(len(found), len(found) - len(inputs), failed, config.output, what)
    log(str(summary))
    return summary


def open_network(path: str) -> tuple[Network, DatasetInfo]:
    """The network at a path, and its classes: of a checkpoint, a workdir or an exported model.

    Raises:
        UserError: none is there, or it is broken.
    """
    if is_exported(path):
        network = open_exported(path)
        return network, network.info
    exports = [file for file in sorted(pathlib.Path(path).glob("*")) if is_exported(file)]
    if exports and not any(pathlib.Path(path).rglob("weights.npz")):
        raise UserError(
            f"{path}: holds exported models; give one of them: `checkpoint_dir={exports[0]}`"
        )
    checkpoint = load_checkpoint(path)
    return Network(checkpoint.model), checkpoint.info


def _images(
    predictor: Predictor, results: Results, config: PredictConfig, inputs: list[Input]
) -> int:
    job = ImageJob(predictor, results, config, Progress(len(inputs), "predicting"))
    job.run(inputs)
    return job.failed


def _videos(
    predictor: Predictor, results: Results, config: PredictConfig, inputs: list[Input]
) -> int:
    failed = 0
    for item in inputs:
        try:
            predict_video(predictor, item, results, config.max_frames)
        except UserError as error:
            text = str(error)
            print(
                f"error: {text if error.field or text.startswith(item.path) else f'{item.path}: {text}'}",
                file=sys.stderr,
            )
            failed += 1
    return failed
