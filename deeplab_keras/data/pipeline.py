"""Builds training batches from a source: order, augmentation, batching and prefetching.

The training stream is endless and numbered. The image at a position depends only on the seed and
the epoch, and its augmentation only on the seed and the position. So a stream that starts at step n
yields exactly the batches that an uninterrupted stream yields from step n on.
"""

from __future__ import annotations

import os
import re

import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.config.data import MIXED
from deeplab_keras.data import service
from deeplab_keras.data.augment import geometry as transforms
from deeplab_keras.data.augment import official as official_transforms
from deeplab_keras.data.augment import strong as strong_transforms
from deeplab_keras.data.files.pairs import FileSource, in_threads
from deeplab_keras.data.order import shuffled
from deeplab_keras.data.source import Source

FOREVER = tf.int64.max
# All conditions and loops are written as tf.cond and tf.while_loop, so AutoGraph, which takes
# seconds, is not needed.
plain_graph = tf.autograph.experimental.do_not_convert
FILE_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.DataLossError,
    tf.errors.UnknownError,
)


def sample_stream(
    count: int, seed: int, batch_size: int, start_step: int = 0, part: tuple[int, int] = (0, 1)
) -> tf.data.Dataset:
    """Returns an endless dataset of pairs (position, image index).

    Args:
        count: The number of images.
        seed: The seed of the order.
        batch_size: The number of positions per step.
        start_step: The first step.
        part: (i, n): only the positions of the i-th of n equal parts of each step.
    """
    index, parts = part
    size = batch_size // parts

    @plain_graph
    def one_step(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        positions = step * batch_size + index * size + tf.range(size, dtype=tf.int64)
        return positions, shuffled(positions, count, seed)

    return tf.data.Dataset.range(start_step, FOREVER).map(one_step).unbatch()


def train_dataset(
    source: Source,
    config: DataConfig,
    pad_value: tuple[float, float, float],
    *,
    start_step: int = 0,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Returns the endless stream of augmented training batches.

    Args:
        source: A `Source`, such as the result of `open_dataset`.
        config: A `DataConfig` with the augmentation, the crop size, the batch size and the seed.
        pad_value: RGB color of the padding of images smaller than the crop, usually
            `model.pad_value`, the mean of the model's normalization.
        start_step: Number of batches that were already used for training. Defaults to 0.
        part: Tuple (i, n): yields only the i-th of n equal parts of each batch, for one of n
            workers. The concatenated parts are the batch that a single worker gets. Defaults to
            (0, 1).

    Returns:
        A `tf.data.Dataset` of batches (image, label): image float32 `[batch, height, width, 3]` in
        0..255, label int32 `[batch, height, width]` with class ids and the ignore label.

    Raises:
        UserError: The batch size is not divisible by the number of parts, or the `data_service`
            does not respond or cannot read the source.

    Example:
        >>> config = dk.DataConfig(
        ...     dataset="synthetic", synthetic_size=(64, 64), train_crop_size=(48, 48),
        ...     train_batch_size=2, train_samples=8)
        >>> source = dk.data.open_dataset(config, "train")
        >>> batches = dk.data.train_dataset(source, config, pad_value=(127.5, 127.5, 127.5))
        >>> image, label = next(iter(batches))
        >>> image.shape, label.shape
        (TensorShape([2, 48, 48, 3]), TensorShape([2, 48, 48]))
    """
    batch_size = config.train_batch_size
    mixing = strong_transforms.uses_mixing(config)
    size = _part_size(batch_size, part[1], MIXED if mixing else 1)

    @plain_graph
    def make_sample(position: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, ...]:
        image, label = source.tf_load(index)
        sample = _augment(image, label, position, config, pad_value, source.info.ignore_label)
        return (*sample, position) if mixing else sample

    @plain_graph
    def mix(
        images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return strong_transforms.augment_group(images, labels, positions[0] // MIXED, config)

    dataset = sample_stream(len(source), config.seed, batch_size, start_step, part)
    dataset = dataset.map(
        make_sample, num_parallel_calls=_parallel_calls(config), deterministic=True
    )
    if mixing:
        dataset = dataset.batch(MIXED, drop_remainder=True)
        dataset = dataset.map(
            mix, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).unbatch()
    dataset = dataset.batch(size, drop_remainder=True)
    if config.data_service:
        service.require_portable(source.tf_load, f"`dataset={config.dataset}`")
        dataset = service.distribute(dataset, config.data_service)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    if not config.data_service:
        dataset = dataset.with_options(_threads())
    return _sharded_by_data(dataset)


def _parallel_calls(config: DataConfig) -> int:
    """Returns the number of samples to prepare in parallel.

    There are two per core, because some wait for the disk.
    TensorFlow's automatic choice left a fifth of two cores idle. It is still used if other machines
    prepare the batches.
    """
    return tf.data.AUTOTUNE if config.data_service else 2 * _cores()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> tf.data.Options:
    """Returns options for a private thread pool with one thread per sample prepared in parallel.

    Operations are not split over threads. With TensorFlow's shared threads, which the training step
    also uses, the pipeline had 20 % fewer images/s on two cores.
    """
    options = tf.data.Options()
    options.threading.private_threadpool_size = 2 * _cores()
    options.threading.max_intra_op_parallelism = 1
    return options


def _part_size(batch_size: int, parts: int, multiple: int) -> int:
    if batch_size % (parts * multiple):
        among = f" among {parts} workers" if parts > 1 else ""
        groups = (
            f" in groups of {multiple}, which `cut_mix` and `mosaic` mix" if multiple > 1 else ""
        )
        fitting = max(batch_size // (parts * multiple), 1) * parts * multiple
        raise UserError(
            f"`train_batch_size={batch_size}`: cannot be divided{among}{groups}; give {fitting}"
        )
    return batch_size // parts


def _augment(
    image: tf.Tensor,
    label: tf.Tensor,
    position: tf.Tensor,
    config: DataConfig,
    pad_value: tuple[float, float, float],
    ignore_label: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    augment = (
        official_transforms.augment if config.preprocessing == "official" else transforms.augment
    )

    def more(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return strong_transforms.augment_single(
            image, label, position, config, pad_value, ignore_label
        )

    draws = transforms.draw(config.seed, position)
    wanted = more if strong_transforms.uses_single(config) else None
    return augment(image, label, draws, config, pad_value, ignore_label, wanted)


def _sharded_by_data(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Makes workers take parts of each batch, as there are no files that could be distributed."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def user_error(error: Exception, source: Source) -> UserError | None:
    """Returns the user's mistake behind an error raised by tf.data; None if there is none.

    tf.data hides the name of the file. If it is not in the message, pairs are loaded until one
    fails.
    """
    if isinstance(error, UserError):
        return error
    if not isinstance(error, tf.errors.OpError):
        return None
    if match := re.search(r"(?:UserError|BrokenFileError): (.+)", error.message):
        return UserError(match[1])
    if isinstance(error, FILE_ERRORS):
        return next(
            (
                found
                for _, found in in_threads(lambda index: _try(source, index), range(len(source)))
                if found
            ),
            None,
        )
    return None


def _try(source: Source, index: int) -> None:
    """Loads a pair with `load` and `tf_load`.

    Raises:
        UserError: One of the two cannot read a file. TensorFlow refuses some damaged JPEG files
            that Pillow reads.
    """
    source.load(index)
    try:
        source.tf_load(tf.constant(index))
    except tf.errors.OpError as error:
        name = source.images[index] if isinstance(source, FileSource) else source.names[index]
        reason = next(iter(error.message.splitlines()), "").rpartition("}} ")[2][:120]
        raise UserError(
            f"{name}: TensorFlow cannot decode it ({reason}); save the image again, or remove the "
            "pair"
        ) from error
