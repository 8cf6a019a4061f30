"""The evaluation loop over the images of a dataset."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from deeplab_keras.config import EvalConfig, UserError, require_instance
from deeplab_keras.data.info import DatasetInfo
from deeplab_keras.data.source import Source, require_source
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.metrics import Scores, count_pixels
from deeplab_keras.evaluation.report import Report
from deeplab_keras.inference import Network, Predictor, as_network
from deeplab_keras.io.progress import Progress

LOADER_THREADS = 4  # per device
MAX_AHEAD = 2  # batches in progress in addition to one per device, a limit for memory
Batch = tuple[list[int], np.ndarray, np.ndarray]


def evaluate(
    model: keras.Model | Network | str | os.PathLike[str],
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
    """Evaluates a model on a dataset, at the labels' own size.

    Args:
        model: A model, or a `Network` to evaluate it repeatedly without compiling it again, or what
            `dk.Predictor` opens: the name of a model of the zoo, or a path.
        source: The images and labels, for example from `dk.open_dataset`.
        config: How to run the model. Default: the whole image, at a single scale.
        info: The classes. Default: those of the source.
        model_name: The model's name in the report. Default: `model.name`.
        split: The split's name in the report.
        progress: Whether to show a progress line with the mIoU so far.
        limit: The number of images to evaluate, the first ones. Default: all.
        details: Collects the counts of each image, of boundaries and of confidence, which takes
            extra time.
        devices: Names of the devices that share the batches, see `find_devices`. Default:
            the backend's default device.

    Returns:
        The `Report`.

    Raises:
        UserError: If there are no images or no labeled pixels, the model has another number of
            classes, a label is not a class, or a file is damaged.

    Example:
        >>> source = dk.open_dataset(dk.DataConfig(dataset="synthetic"), "val")
        >>> report = dk.evaluate(dk.load_model("runs/demo"), source, limit=4, progress=False)
        >>> report.images, len(report.per_class_iou)
        (4, 10)
        >>> 0 <= report.miou <= 1
        True
    """
    require_source(source)
    require_instance(config, EvalConfig, "config")
    network = as_network(model)
    info = info or source.info
    count = len(source) if limit is None else min(limit, len(source))
    where = f"dataset {info.name!r}" + (f", split {split!r}" if split else "")
    if count < 1:
        raise UserError(f"{where}: no images to evaluate; check `eval_split` and `dataset_dir`")
    if network.num_classes != info.num_classes:
        raise UserError(
            f"{where} has {info.num_classes} classes and the model {network.num_classes}; "
            "give the dataset that the model was trained on"
        )
    predictor = Predictor(network, config)
    loaded = batches(source, count, config.eval_batch_size, info, len(devices) or 1)
    matrix = np.zeros((info.num_classes, info.num_classes), np.int64)
    bar = Progress(count, "evaluation") if progress else None
    done = 0
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
    """Returns the names of the devices that can share an evaluation.

    These are the visible accelerators or, without one, the logical CPUs.

    Args:
        count: The number of devices, or 0 for all.

    Raises:
        UserError: Fewer devices are available.
    """
    if keras.backend.backend() == "tensorflow":
        config = tf.config
        devices = config.list_logical_devices("GPU") or config.list_logical_devices("CPU")
        found = [device.name for device in devices]
    else:
        found = keras.distribution.list_devices()
    if count > len(found):
        kind = found[0].split(":")[-2].upper()
        raise UserError(
            f"`eval_devices={count}`: only {len(found)} {kind} available; give at most that, or 0 "
            "for all"
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
    """Yields the number of images and the confusion matrix of each batch.

    One thread per device predicts, and another thread counts.
    """

    def predict(device: str | None, images: np.ndarray, labels: np.ndarray) -> Prediction:
        # The weights stay on their device and are copied for each batch, because they are small.
        with contextlib.nullcontext() if device is None else keras.device(device):
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
    """Yields batches of pairs of equal size, in no particular order.

    Args:
        source: The images and labels.
        count: The number of pairs, the first ones of the source; each occurs once.
        batch_size: The largest number of pairs in a batch.
        info: The classes.
        devices: The number of devices that share the batches.

    Yields:
        The indices of the pairs, the images, uint8 `[batch, height, width, 3]`, and the labels,
        uint8 `[batch, height, width]`.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray, np.ndarray]]] = {}
    ahead = _loaded_ahead(source, count, 2 * batch_size * devices, info, LOADER_THREADS * devices)
    for index, (image, label) in enumerate(ahead):
        group = waiting.setdefault(image.shape, [])
        group.append((index, image, label))
        if len(group) == batch_size:
            yield _stacked(waiting.pop(image.shape))
        elif sum(map(len, waiting.values())) > 4 * batch_size:  # a limit for many different sizes
            yield _stacked(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    yield from map(_stacked, waiting.values())


def _stacked(pairs: list[tuple[int, np.ndarray, np.ndarray]]) -> Batch:
    indices, images, labels = zip(*pairs, strict=True)
    return list(indices), np.stack(images), np.stack(labels)


def _loaded_ahead(
    source: Source, count: int, ahead: int, info: DatasetInfo, threads: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs in order, read by threads while the network runs, at most `ahead` in advance."""

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
    """Raises UserError if a label has another size than its image, or unknown values."""
    if image.shape[:2] != label.shape:
        sizes = ["x".join(map(str, shape)) for shape in (label.shape, image.shape[:2])]
        raise UserError(
            f"{name}: the label is {sizes[0]} and the image {sizes[1]}; both must have the same "
            "size"
        )
    present = np.flatnonzero(np.bincount(label.ravel()))
    strange = [int(i) for i in present if i >= info.num_classes and i != info.ignore_label]
    if strange:
        raise UserError(
            f"{name}: the label has the values {', '.join(map(str, strange[:8]))}; allowed are 0 "
            f"to {info.num_classes - 1} and the ignore label {info.ignore_label}; check the label "
            "files or `ignore_label`"
        )
