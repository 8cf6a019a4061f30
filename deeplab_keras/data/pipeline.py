"""From a source to batches: order, augmentation, batching, prefetching, and naming the file when something breaks.

The training stream is endless and numbered. Which image stands at a position follows from the seed and the pass over
the data, how it is augmented from the seed and the position; so a stream that starts at step n gives exactly the
batches that an undisturbed one gives from step n on.
"""

from __future__ import annotations

import re

import tensorflow as tf

from deeplab_keras.config import DataConfig, UserError
from deeplab_keras.data import Source, official_transforms, transforms
from deeplab_keras.data.files import in_threads

FOREVER = tf.int64.max
# All conditions and loops here are written as tf.cond and tf.while_loop, so that AutoGraph's seconds can be saved.
plain_graph = tf.autograph.experimental.do_not_convert
FILE_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.DataLossError,
    tf.errors.UnknownError,
)


def epoch_order(seed: int, epoch: tf.Tensor, count: int) -> tf.Tensor:
    """The order of the images in one pass over the data: int64 `[count]`, a permutation."""
    # Negative, so that no pass shares its random numbers with the augmentation of a position.
    key = tf.stack([tf.cast(seed, tf.int64), -1 - tf.cast(epoch, tf.int64)])
    return tf.cast(tf.argsort(tf.random.stateless_uniform([count], key), stable=True), tf.int64)


def sample_stream(count: int, seed: int, start: int = 0) -> tf.data.Dataset:
    """Endless pairs (position, image index) from the position `start` on."""

    @plain_graph
    def one_pass(epoch: tf.Tensor) -> tf.data.Dataset:
        positions = epoch * count + tf.range(count, dtype=tf.int64)
        return tf.data.Dataset.from_tensor_slices((positions, epoch_order(seed, epoch, count)))

    return tf.data.Dataset.range(start // count, FOREVER).flat_map(one_pass).skip(start % count)


def train_dataset(
    source: Source,
    config: DataConfig,
    pad_value: tuple[float, float, float],
    *,
    batch_size: int | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """The endless stream of augmented training batches.

    Args:
        source: where images come from.
        config: augmentation, crop, batch size and seed.
        pad_value: colour around images smaller than the crop: the mean of the model's normalization.
        batch_size: in place of the config's.
        start_step: the number of batches that were already trained on.

    Returns:
        Batches (image float32 `[batch, height, width, 3]` in 0..255, label int32 `[batch, height, width]`).
    """
    batch_size = batch_size or config.train_batch_size
    augment = official_transforms.augment if config.preprocessing == "official" else transforms.augment

    @plain_graph
    def make_sample(position: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = source.tf_load(index)
        draws = transforms.draw(config.seed, position)
        return augment(image, label, draws, config, pad_value, source.info.ignore_label)

    dataset = sample_stream(len(source), config.seed, start_step * batch_size)
    dataset = dataset.map(make_sample, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return _sharded_by_data(dataset.prefetch(tf.data.AUTOTUNE))


def eval_dataset(source: Source) -> tf.data.Dataset:
    """Each pair once, in order, as it is.

    Returns:
        Samples (image uint8 `[height, width, 3]`, label int32 `[height, width]`, name).
    """
    names = tf.constant(source.names)

    @plain_graph
    def load(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image, label = source.tf_load(index)
        return image, tf.cast(label, tf.int32), names[index]

    dataset = tf.data.Dataset.range(len(source)).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return _sharded_by_data(dataset.prefetch(tf.data.AUTOTUNE))


def _sharded_by_data(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Several workers each take their part of every batch; there are no files that could be dealt out."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)


def user_error(error: Exception, source: Source) -> UserError | None:
    """The user's mistake behind an error that came out of tf.data, which hides the file's name; None if it is no such.

    Where the error does not tell, every pair is loaded until one fails.
    """
    if isinstance(error, UserError):
        return error
    if not isinstance(error, tf.errors.OpError):
        return None
    if match := re.search(r"(?:UserError|BrokenFileError): (.+)", error.message):
        return UserError(match[1])
    if isinstance(error, FILE_ERRORS):
        return next((found for _, found in in_threads(source.load, range(len(source))) if found), None)
    return None
