"""The interface of all datasets, record files and caches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from deeplab_keras.config import UserError
from deeplab_keras.data.info import DatasetInfo

if TYPE_CHECKING:
    import tensorflow as tf


class Source(Protocol):
    """Numbered pairs of image and label: a split of a dataset.

    Any object with these members can replace the result of `dk.open_dataset`. It does not have to
    inherit from this class.

    Example:
        >>> class Noise:
        ...     info = dk.data.DatasetInfo("noise", ("a", "b"), ((0, 0, 0), (255, 0, 0)))
        ...     names = ("0", "1")
        ...     def __len__(self):
        ...         return 2
        ...     def load(self, index):
        ...         rng = np.random.default_rng(index)
        ...         image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        ...         return image, rng.integers(0, 2, (32, 32), np.uint8)
        ...     def tf_load(self, index):
        ...         import tensorflow as tf
        ...         image, label = tf.numpy_function(self.load, [index], (tf.uint8, tf.uint8))
        ...         return tf.ensure_shape(image, (32, 32, 3)), tf.ensure_shape(label, (32, 32))
        >>> config = dk.DataConfig(train_crop_size=(32, 32), train_batch_size=2)
        >>> batches = dk.data.train_dataset(Noise(), config, pad_value=(127.5, 127.5, 127.5))
        >>> next(iter(batches))[0].shape
        TensorShape([2, 32, 32, 3])
    """

    @property
    def info(self) -> DatasetInfo:
        """The classes, their colors and the ignore label."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each pair, a relative path without suffix."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns image uint8 `[height, width, 3]` RGB and label uint8 `[height, width]`."""
        ...

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Does the same as `load` inside a tf.data graph."""
        ...


def require_source(source: object) -> None:
    """Raises a `UserError` if the argument `source` is not a `Source`."""
    if not all(hasattr(source, name) for name in ("info", "load", "__len__")):
        raise UserError(
            "`source` must be a dataset such as dk.open_dataset(config, split) returns, not "
            f"{type(source).__name__}"
        )
