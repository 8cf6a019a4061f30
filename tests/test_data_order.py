"""The order of the images: a different permutation in each epoch, without bias."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from deeplab_keras.data.order import shuffled


def passes(count: int, number: int, seed: int = 0) -> np.ndarray:
    return (
        shuffled(tf.range(count * number, dtype=tf.int64), count, seed)
        .numpy()
        .reshape(number, count)
    )


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 15, 16, 17, 64, 65, 1000])
def test_every_epoch_is_a_permutation(count):
    np.testing.assert_array_equal(np.sort(passes(count, 5)), np.tile(np.arange(count), (5, 1)))


def test_epochs_and_seeds_differ():
    orders = [order.tobytes() for seed in (0, 1, -1, 2**40) for order in passes(50, 3, seed)]
    assert len(set(orders)) == 12


@pytest.mark.parametrize("count", [3, 8, 50])
def test_every_image_occurs_at_every_position_and_after_every_other(count):
    number = 4000
    orders = passes(count, number, seed=3)
    places, follows = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(places, (np.broadcast_to(np.arange(count), orders.shape), orders), 1)
    np.add.at(follows, (orders[:, :-1], orders[:, 1:]), 1)
    expected = number / count
    assert ((places - expected) ** 2 / expected).sum() / (
        count - 1
    ) ** 2 < 5  # chi squared by its degrees of freedom
    pairs = follows[~np.eye(count, dtype=bool)]
    assert ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum() / (len(pairs) - 1) < 5


def test_a_distant_position_is_computed_directly():
    count, far = 1_281_167, 10**15
    order = tf.function(lambda positions: shuffled(positions, count, 7), autograph=False)
    positions = tf.range(far, far + 1000, dtype=tf.int64)
    found = order(positions).numpy()
    assert found.min() >= 0 and found.max() < count and len(np.unique(found)) == 1000
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.15
    np.testing.assert_array_equal(order(positions[500:501]), found[500:501])
