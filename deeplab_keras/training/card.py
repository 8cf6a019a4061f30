"""The model card of a run: what was trained, how, and how good it is, as Markdown.

What is not known is left out or called "not measured".
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import pathlib
import re
import shlex
import statistics
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from deeplab_keras.checkpoints import folder
from deeplab_keras.config import DataConfig, TrainConfig, UserError
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.page import Picture
from deeplab_keras.evaluation.report import Report, escape_markdown
from deeplab_keras.inference import Predictor
from deeplab_keras.io.writing import write_text
from deeplab_keras.models.multiply_adds import count_multiply_adds
from deeplab_keras.models.segmentor import build_segmentor
from deeplab_keras.training.run import Run
from deeplab_keras.visualization import save_png

CARD, PICTURES = "model_card.md", "model_card"
CONFUSIONS = 5
SIZES = 16  # images whose most common size is the usual one
CALLS = 5


def write_card(
    run: Run,
    report: Report,
    worst: Sequence[Picture],
    predictor: Predictor,
    training: TrainConfig,
    data: DataConfig,
    sources: tuple[Source, Source],
) -> None:
    """Writes model_card.md and its pictures to the workdir.

    Args:
        run: The run, whose model has the weights of the report.
        report: The last evaluation.
        worst: The images with the lowest mIoU, drawn.
        predictor: The predictor of the evaluation, for the latency.
        training: The settings of the run.
        data: The settings of the data.
        sources: The training and the validation images.

    Raises:
        UserError: A file cannot be written.
    """
    path = run.workdir.path
    failures = []
    for old in (path / PICTURES).glob("worst_*.png"):
        old.unlink()
    for number, (score, picture) in enumerate(worst, start=1):
        file = f"{PICTURES}/worst_{number}.png"
        save_png(path / file, picture)
        name = escape_markdown(score.name)
        failures += [f"{name}: mIoU {100 * score.miou:.2f}", "", f"![{name}]({file})", ""]
    image = _usual_image(sources[1])
    title = report.model or f"{run.config.head} on {run.config.backbone}"
    sections = {
        "Model": _model(run, image.shape[:2]),
        "Data": _data(run, data, sources),
        "Recipe": _recipe(run, training, data, len(sources[0])),
        "Cost": _cost(run, predictor, image),
        "Scores": _scores(run, report),
        "Largest confusions": _confusions(report),
        "Worst images": [
            "Image, label, prediction, errors and confidence of the validation images with the "
            "lowest mIoU.",
            "",
            *failures,
        ]
        if failures
        else [],
    }
    lines = [f"# {escape_markdown(title)}", ""]
    for heading, content in sections.items():
        if content:
            lines += [f"## {heading}", "", *content, ""]
    write_text(path / CARD, "\n".join(lines).rstrip() + "\n")


def _model(run: Run, size: tuple[int, ...]) -> list[str]:
    config = run.config
    total = sum(
        math.prod(variable.shape)
        for name, variable in folder.model_variables(run.model).items()
        if not name.endswith(("/moving_mean", "/moving_variance"))
    )
    trained = sum(math.prod(weight.shape) for weight in run.model.trainable_weights)
    lines = [
        f"* architecture: {config.head} on {config.backbone}, depth multiplier "
        f"{config.depth_multiplier:g}, output stride {config.output_stride} "
        "([config.json](config.json) has all settings)",
        f"* parameters: {total:,}, of which {trained:,} were trained",
        f"* input: `[batch, height, width, {config.input_channels}]`, RGB in 0..255; the network "
        "normalizes it",
        f"* output: logits `[batch, height, width, {config.num_classes}]`",
    ]
    height, width = size
    # Image pooling may require a larger input.
    with contextlib.suppress(UserError):
        count = count_multiply_adds(build_segmentor(config, (height, width)))
        lines.insert(2, f"* multiply-adds at {height}x{width}: {count:,}")
    return lines


def _data(run: Run, data: DataConfig, sources: tuple[Source, Source]) -> list[str]:
    info, splits = run.info, (data.train_split, data.eval_split)
    parts = [
        f"* {use}: {len(source)} images ({escape_markdown(split)})"
        for use, source, split in zip(("training", "validation"), sources, splits, strict=True)
    ]
    return [
        f"* dataset: {escape_markdown(info.name)}",
        *parts,
        f"* classes: {info.num_classes}; pixels labeled {info.ignore_label} are ignored",
    ]


def _recipe(run: Run, training: TrainConfig, data: DataConfig, images: int) -> list[str]:
    path, batch = run.workdir.path, data.train_batch_size
    start = training.tf_initial_checkpoint
    epochs = run.step * batch / images
    lines = [
        f"* initial weights: {escape_markdown(start) if start else 'random'}",
        *_teacher(run),
        f"* seed: {data.seed}",
        f"* steps: {run.step} of {run.total_steps}, {epochs:.3g} epochs",
        f"* batch size: {batch}",
        f"* precision: {training.precision}",
    ]
    if not run.workdir.flags_text:
        return [*lines, "* trained from Python; [config.json](config.json) has all settings"]
    command = shlex.join(_environment(path)["command"])
    return [
        *lines,
        "",
        "The command of the last start, and its flags. "
        "`deeplab-keras train --flagfile=flags.txt --train_logdir=NEW_FOLDER` repeats the run.",
        "",
        *_fenced(command),
        "",
        *_fenced(run.workdir.flags_text),
    ]


def _teacher(run: Run) -> list[str]:
    if run.teacher is None:
        return []
    name, digest = list(run.teacher.files.hashes.items())[-1]
    return [f"* teacher: {escape_markdown(str(run.teacher))}, SHA-256 of {name}: {digest}"]


def _cost(run: Run, predictor: Predictor, image: np.ndarray) -> list[str]:
    meter, found = run.meter, _environment(run.workdir.path)
    meter.update()
    duration = "not measured (the run was started by an older version)"
    if not math.isnan(meter.seconds):
        starts = "1 start" if meter.starts == 1 else f"{meter.starts} starts"
        duration = f"{_duration(meter.seconds)} in {starts}, with compilation and validation"
    energy = "not measured"
    if not math.isnan(meter.joules):
        energy = f"{meter.joules / 3600:.3g} Wh of the processors (RAPL), with all other programs"
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    height, width, _ = image.shape
    return [
        f"* training time: {duration}",
        f"* energy: {energy}",
        f"* latency: {1000 * _latency(predictor, image):.1f} ms for an image of {height}x{width}, "
        f"median of {CALLS} calls of `dk.Predictor` on this machine",
        f"* machine: {escape_markdown(found['machine'])}, {found['processors']} processors",
        f"* versions: Python {found['python']}, {versions}; Keras backend "
        f"{keras.backend.backend()}",
        f"* last start: {found['started']}",
    ]


def _scores(run: Run, report: Report) -> list[str]:
    lines = [
        f"Of the weights after step {run.step} ([metrics.json](metrics.json)), in percent.",
    ]
    best = run.workdir.path / folder.BEST / folder.METRICS
    if best.is_file():
        scores = json.loads(best.read_text())
        lines[0] += (
            f" `best` has the weights after step {scores['step']}, which had the highest "
            f"validation mIoU, {100 * scores['miou']:.2f}."
        )
    if report.expected_calibration_error is None:
        lines += ["", "Calibration: not measured."]
    return [*lines, "", report.to_markdown().rstrip()]


def _confusions(report: Report) -> list[str]:
    found = [
        f"* {100 * share:.2f} % of the pixels of {escape_markdown(label)} were predicted as "
        f"{escape_markdown(prediction)}"
        for label, prediction, share, _ in report.confusions(CONFUSIONS)
    ]
    return ["In descending order of the number of pixels.", "", *found] if found else []


def _usual_image(source: Source) -> np.ndarray:
    """Returns one of the images with the most common size, uint8 `[height, width, 3]`."""
    count = min(SIZES, len(source))
    images = [source.load(index * len(source) // count)[0] for index in range(count)]
    ((shape, _),) = collections.Counter(image.shape for image in images).most_common(1)
    return next(image for image in images if image.shape == shape)


def _latency(predictor: Predictor, image: np.ndarray) -> float:
    """Returns the median seconds of some calls, after a first one that may compile."""
    predictor(image)
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        predictor(image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _environment(path: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "environment.json").read_text())
    return found


def _fenced(text: str) -> list[str]:
    """Returns a code block, whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return [f"{fence}text", text.rstrip("\n"), fence]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"
