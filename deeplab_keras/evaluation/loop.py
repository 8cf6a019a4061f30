"""Evaluation of a model on a dataset's split: the loop over its images."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig, UserError
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.metrics import Scores, count_pixels
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Network, Predictor
from deeplab_keras.io.progress import Progress

LOADER_THREADS = 4  # for each device
MAX_AHEAD = 2  # batches in work beside one for each device, so that they do not fill the memory
Batch = tuple[list[int], np.ndarray, np.ndarray]


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
    details: Details | None = None,
    devices: Sequence[str] = (),
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
        details: gets every image's counts, and those of boundaries and confidence; costs time.
        devices: names of the devices that share the batches, see `find_devices`; none: the one that
            TensorFlow takes.

    Raises:
        UserError: no image, no labelled pixel, another number of classes than the model's, a label
            outside the classes, or what the source raises for a broken file.
    """
    network = Network.of(model)
    info = info or source.info
    count = len(source) if limit is None else min(limit, len(source))
    where = f"dataset {info.name!r}" + (f", split {split!r}" if split else "")
    if count < 1:
        raise UserError(f"{where}: no image to evaluate; check `eval_split` and `dataset_dir`")
    if network.num_classes != info.num_classes:
        raise UserError(
            f"{where} has {info.num_classes} classes and the model {network.num_classes}; "
            "give the dataset that the model was trained on"
        )
    predictor, loaded = (
        Predictor(network, config),
        batches(source, count, config.eval_batch_size, info, len(devices) or 1),
    )
    matrix = np.zeros((info.num_classes, info.num_classes), np.int64)
    bar, done = Progress(count, "evaluation") if progress else None, 0
    for images, found in _counted(predictor, loaded, source, info, details, devices or [None]):
        matrix += found
        done += images
        if bar:
            bar.update(done, **({"mIoU": Scores.from_matrix(matrix).miou} if matrix.any() else {}))
    if not matrix.any():
        raise UserError(
            f"{where}: every pixel of the {count} images has the ignore label "
            f"{info.ignore_label}; check the labels"
        )
    report = Report.from_matrix(matrix, info, count, model=model_name or network.name, split=split)
    return details.complete(report) if details else report


def find_devices(count: int = 0) -> tuple[str, ...]:
    """Names of the devices that can share an evaluation: the visible GPUs; without one, TensorFlow's logical CPUs.

    Args:
        count: so many of them; 0: all.

    Raises:
        UserError: there are not so many.
    """
    found = [
        device.name
        for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    ]
    if count > len(found):
        kind = found[0].split(":")[-2]
        raise UserError(
            f"`eval_devices={count}`: TensorFlow sees {len(found)} {kind} here; give at most "
            "that, or 0 for all"
        )
    return tuple(found[:count] if count else found)


Prediction = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _counted(
    predictor: Predictor,
    loaded: Iterator[Batch],
    source: Source,
    info: DatasetInfo,
    details: Details | None,
    devices: Sequence[str | None],
) -> Iterator[tuple[int, np.ndarray]]:
    """The number of images and the confusion matrix of each batch: a thread a device predicts, another one counts."""

    def predict(device: str | None, images: np.ndarray, labels: np.ndarray) -> Prediction:
        with tf.device(
            device
        ):  # the weights stay where they are, and are copied for each batch: they are small
            if details is None:
                predictions, labels = predictor.compare(images, labels)
                return labels, predictions, None
            predictions, labels, confidence = predictor.compare_with_confidence(images, labels)
            return labels, predictions, confidence

    def count(indices: list[int], predicted: Future[Prediction]) -> np.ndarray:
        labels, predictions, confidence = predicted.result()
        if details is None or confidence is None:
            return count_pixels(labels, predictions, info.num_classes, info.ignore_label)
        return details.add([source.names[i] for i in indices], labels, predictions, confidence)

    runners, counter = [ThreadPoolExecutor(1) for _ in devices], ThreadPoolExecutor(1)
    waiting: collections.deque[tuple[int, Future[np.ndarray]]] = collections.deque()
    try:
        for number, (indices, images, labels) in enumerate(loaded):
            turn = number % len(devices)
            predicted = runners[turn].submit(predict, devices[turn], images, labels)
            waiting.append((len(images), counter.submit(count, indices, predicted)))
            while len(waiting) >= len(devices) + MAX_AHEAD:
                size, future = waiting.popleft()
                yield size, future.result()
        for size, future in waiting:
            yield size, future.result()
    finally:
        for pool in (*runners, counter):
            pool.shutdown(cancel_futures=True)


def batches(
    source: Source, count: int, batch_size: int, info: DatasetInfo, devices: int = 1
) -> Iterator[Batch]:
    """The first `count` pairs, those of equal size together; every pair once, in no particular order; for so many devices.

    Yields:
        Their indices, images uint8 `[batch, height, width, 3]` and labels uint8 `[batch, height,
        width]`.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]] = {}
    ahead = _loaded_ahead(source, count, 2 * batch_size * devices, info, LOADER_THREADS * devices)
    for index, (image, label) in enumerate(ahead):
        group = waiting.setdefault(image.shape, [])
        group.append((index, image, label))
        if len(group) == batch_size:
            yield _stacked(waiting.pop(image.shape))
        elif (
            sum(map(len, waiting.values())) > 4 * batch_size
        ):  # so that many sizes do not fill the memory
            yield _stacked(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    yield from map(_stacked, waiting.values())


def _stacked(pairs: list[tuple[int, np.ndarray, np.ndarray]]) -> Batch:
    indices, images, labels = zip(*pairs, strict=True)
    return list(indices), np.stack(images), np.stack(labels)


def _loaded_ahead(
    source: Source, count: int, ahead: int, info: DatasetInfo, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs in order, read by threads while the network runs; at most `ahead` of them wait."""

    def load(index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = source.load(index)
        _check_pair(source.names[index], image, label, info)
        return image, label

    with ThreadPoolExecutor(threads) as pool:
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
        raise UserError(
            f"{name}: the label is {sizes[0]} and the image {sizes[1]}; both must have one size"
        )
    present = np.flatnonzero(np.bincount(label.ravel()))
    strange = [int(i) for i in present if i >= info.num_classes and i != info.ignore_label]
    if strange:
        raise UserError(
            f"{name}: the label holds {', '.join(map(str, strange[:8]))}; allowed are 0 to "
            f"{info.num_classes - 1} and "
            f"the ignore label {info.ignore_label}; check the label files or `ignore_label`"
        )
