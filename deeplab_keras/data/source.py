"""What every dataset, record file and cache is to the rest of the code."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import tensorflow as tf

from deeplab_keras.data.info import DatasetInfo


class Source(Protocol):
    """Numbered pairs of image and label: one split of one dataset."""

    @property
    def info(self) -> DatasetInfo:
        """Classes, colours and ignore label."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each pair, as a relative path without suffix."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 `[height, width, 3]` RGB and label uint8 `[height, width]`."""
        ...

    def tf_load(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The same as a part of a tf.data graph."""
        ...
