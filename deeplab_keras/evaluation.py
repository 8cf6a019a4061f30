"""Evaluation of a model on a dataset's split: the loop, and the report with its JSON and its table."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.data import Source
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.metrics import Scores, count_pixels
from deeplab_keras.progress import Progress

LOADER_THREADS = 4
BAR_WIDTH = 20


@dataclasses.dataclass(frozen=True)
class Report:
    """What a model scored; the keys of metrics.json.

    Attributes:
        miou: mean IoU over the classes that are in the labels or the predictions.
        pixel_accuracy: share of the pixels with the right class.
        mean_accuracy: mean recall over the classes in the labels.
        frequency_weighted_iou: mean IoU weighted by the classes' shares of the labelled pixels.
        per_class_iou: class name -> IoU; None for a class that is in neither the labels nor the predictions.
        confusion_matrix: pixel counts, rows: label, columns: prediction.
        images: number of images.
        model: name of the model.
        dataset: name of the dataset.
        split: name of the split.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    per_class_iou: dict[str, float | None]
    confusion_matrix: tuple[tuple[int, ...], ...]
    images: int
    model: str = ""
    dataset: str = ""
    split: str = ""

    @classmethod
    def from_matrix(
        cls, matrix: np.ndarray, info: DatasetInfo, images: int, *, model: str = "", split: str = ""
    ) -> Report:
        """The report of a confusion matrix, int `[num_classes, num_classes]`."""
        scores = Scores.from_matrix(matrix)
        return cls(
            miou=scores.miou,
            pixel_accuracy=scores.pixel_accuracy,
            mean_accuracy=scores.mean_accuracy,
            frequency_weighted_iou=scores.frequency_weighted_iou,
            per_class_iou=dict(zip(_distinct(info.class_names), scores.per_class_iou, strict=True)),
            confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
            images=images,
            model=model,
            dataset=info.name,
            split=split,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "confusion_matrix": [list(row) for row in self.confusion_matrix]}

    def to_json(self) -> str:
        """JSON text with one line a row of the confusion matrix."""
        rows = ",\n    ".join(json.dumps(row) for row in self.confusion_matrix)
        text = json.dumps({**self.to_dict(), "confusion_matrix": None}, indent=2)
        return text.replace('"confusion_matrix": null', f'"confusion_matrix": [\n    {rows}\n  ]') + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The inverse of `to_json`; other keys are left out, as a checkpoint's metrics.json holds some."""
        names = [field.name for field in dataclasses.fields(cls)]
        values = {name: value for name, value in json.loads(text).items() if name in names}
        return cls(**{**values, "confusion_matrix": tuple(map(tuple, values["confusion_matrix"]))})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, complete or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        path = pathlib.Path(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(self.to_json(), encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise UserError(f"{path}: cannot be written ({error.strerror}); give another path or make room") from error

    def table(self) -> str:
        """All scores in per cent as text, one class a line."""
        matrix = np.array(self.confusion_matrix, np.float64)
        hits, labelled, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
        width = max(len("class"), *(min(len(name), 32) for name in self.per_class_iou))
        lines = [f"{'class':<{width}} {'IoU':>6} {'precision':>9} {'recall':>6} {'pixels':>6}   all in per cent"]
        for i, (name, iou) in enumerate(self.per_class_iou.items()):
            precision, recall = _share(hits[i], predicted[i]), _share(hits[i], labelled[i])
            values = (iou, precision, recall, _share(labelled[i], matrix.sum()))
            cells = " ".join(_percent(value, size) for value, size in zip(values, (6, 9, 6, 6), strict=True))
            lines.append(f"{name[:32]:<{width}} {cells}   {'#' * round(BAR_WIDTH * (iou or 0))}".rstrip())
        about = [f"{self.images} image{'s' * (self.images != 1)}", self.dataset, self.split, self.model]
        totals = {
            "mIoU": self.miou,
            "pixel accuracy": self.pixel_accuracy,
            "mean accuracy": self.mean_accuracy,
            "frequency-weighted IoU": self.frequency_weighted_iou,
        }
        summary = ", ".join(f"{name} {100 * value:.2f}" for name, value in totals.items())
        return "\n".join([", ".join(filter(None, about)), *lines, summary]) + "\n"


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _percent(value: float | None, width: int) -> str:
    return "-".rjust(width) if value is None else f"{100 * value:{width}.2f}"


def _distinct(names: tuple[str, ...]) -> list[str]:
    """The class names; one that stands there twice (ADE20k's short names) gets its id behind it."""
    counts = collections.Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]


def evaluate(
    model: keras.Model | Network,
    source: Source,
    config: EvalConfig = EvalConfig(),
    *,
    info: DatasetInfo | None = None,
    model_name: str = "",
    split: str = "",
    progress: bool = True,
    limit: int | None = None,
) -> Report:
    """Runs a model over a source and compares its labels with the source's, at the labels' own size.

    Args:
        model: a model, or a Network to evaluate it repeatedly without compiling it each time.
        source: images and labels.
        config: how the model is run.
        info: the classes; default the source's.
        model_name: the model's name in the report; default the model's own.
        split: the split's name in the report.
        progress: shows a progress line with the mIoU so far.
        limit: evaluates only so many images, the first ones.

    Raises:
        UserError: no image, no labelled pixel, another number of classes than the model's, a label outside the classes,
            or what the source raises for a broken file.
    """
    network = Network.of(model)
    info = info or source.info
    count = len(source) if limit is None else min(limit, len(source))
    where = f"dataset {info.name!r}" + (f", split {split!r}" if split else "")
    if count < 1:
        raise UserError(f"{where}: no image to evaluate; check --eval_split and --dataset_dir")
    if network.num_classes != info.num_classes:
        raise UserError(
            f"{where} has {info.num_classes} classes and the model {network.num_classes}; "
            "give the dataset that the model was trained on"
        )
    predictor = Predictor(network, config)
    matrix = np.zeros((info.num_classes, info.num_classes), np.int64)
    bar, done = Progress(count, "evaluation") if progress else None, 0
    for images, labels in batches(source, count, config.eval_batch_size, info):
        predictions, labels = predictor.compare(images, labels)
        matrix += count_pixels(labels, predictions, info.num_classes, info.ignore_label)
        done += len(images)
        if bar:
            bar.update(done, mIoU=Scores.from_matrix(matrix).miou)
    if not matrix.any():
        raise UserError(
            f"{where}: every pixel of the {count} images has the ignore label {info.ignore_label}; check the labels"
        )
    return Report.from_matrix(matrix, info, count, model=model_name or network.name, split=split)


def batches(source: Source, count: int, batch_size: int, info: DatasetInfo) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first `count` pairs, those of equal size together; every pair once, in no particular order.

    Yields:
        Images uint8 `[batch, height, width, 3]` and labels uint8 `[batch, height, width]`.
    """
    waiting: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
    for image, label in _loaded_ahead(source, count, 2 * batch_size, info):
        group = waiting.setdefault(image.shape, [])
        group.append((image, label))
        if len(group) == batch_size:
            yield _stacked(waiting.pop(image.shape))
        elif sum(map(len, waiting.values())) > 4 * batch_size:  # so that many sizes do not fill the memory
            yield _stacked(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    yield from map(_stacked, waiting.values())


def _stacked(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*pairs, strict=True)
    return np.stack(images), np.stack(labels)


def _loaded_ahead(
    source: Source, count: int, ahead: int, info: DatasetInfo
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs in order, read by threads while the network runs; at most `ahead` of them wait."""

    def load(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = source.load(index)
        _check_pair(source.names[index], image, label, info)
        return image, label

    with ThreadPoolExecutor(LOADER_THREADS) as pool:
        futures: collections.deque[Future[tuple[np.ndarray, np.ndarray]]] = collections.deque()
        try:
            for index in range(count):
                futures.append(pool.submit(load, index))
                if len(futures) > ahead:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _check_pair(name: str, image: np.ndarray, label: np.ndarray, info: DatasetInfo) -> None:
    """Raises UserError for a label of another size than its image or with ids that are no class."""
    if image.shape[:2] != label.shape:
        sizes = ["x".join(map(str, shape)) for shape in (label.shape, image.shape[:2])]
        raise UserError(f"{name}: the label is {sizes[0]} and the image {sizes[1]}; both must have one size")
    present = np.flatnonzero(np.bincount(label.ravel()))
    strange = [int(i) for i in present if i >= info.num_classes and i != info.ignore_label]
    if strange:
        raise UserError(
            f"{name}: the label holds {', '.join(map(str, strange[:8]))}; allowed are 0 to {info.num_classes - 1} and "
            f"the ignore label {info.ignore_label}; check the label files or --ignore_label"
        )
