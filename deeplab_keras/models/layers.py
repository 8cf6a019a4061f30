"""The layers that Keras lacks, or has in another form than the reference implementations."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deeplab_keras.config import UserError

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

PACKAGE = "deeplab_keras"
HAS_XLA = sys.platform != "win32"  # TensorFlow for Windows comes without
DATA_FORMAT = "channels_last"  # of every layer, whatever keras.json says
Tensor = Any


@keras.saving.register_keras_serializable(PACKAGE)
class Normalize(keras.layers.Layer):
    """`(image - mean) / std`, one value a channel or one for all; the first layer of every segmentor."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mean, self.std = tuple(mean), tuple(std)

    def call(self, inputs: Tensor) -> Tensor:
        scale = ops.convert_to_tensor([1 / value for value in self.std], dtype=inputs.dtype)
        return (inputs - ops.convert_to_tensor(self.mean, dtype=inputs.dtype)) * scale

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mean": self.mean, "std": self.std}


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch norm whose running variance is updated with the unbiased batch variance, as in PyTorch and TF1.

    Keras uses the biased batch variance (docs/reference/libraries.md#batch-norm).
    `freeze_statistics` is the official DeepLab's `fine_tune_batch_norm=False`: training uses the
    running statistics and leaves them unchanged, while gamma and beta still train. With
    `synchronized`, the statistics are those of the global batch, as they always are on JAX, whose
    arrays are global. On one TensorFlow device the fused kernel is used, which reduces the time of
    a training step of MobileNetV2 on the CPU to 70 %.

    Attributes:
        share: function from the momentum to the share of the old statistics that an update keeps;
            None: the momentum itself. The trainer sets it, see `warm_up`. Without it, the layer
            follows the references.
    """

    share: Callable[[float], Tensor] | None = None

    def __init__(
        self, *, freeze_statistics: bool = False, synchronized: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(
            synchronized=synchronized and keras.backend.backend() == "tensorflow", **kwargs
        )
        self.synchronized, self.freeze_statistics = synchronized, freeze_statistics

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if not training or self.freeze_statistics or not self.trainable:
            return super().call(inputs, training=False)
        if self._can_fuse():
            outputs, mean, unbiased = self._fused(inputs)
        else:
            outputs, mean, unbiased = self._composed(inputs)
        share = (
            self.momentum if self.share is None else ops.cast(self.share(self.momentum), mean.dtype)
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, unbiased)):
            new = ops.cast(moving, batch.dtype) * share + batch * (1 - share)
            moving.assign(
                ops.cast(new, moving.dtype)
            )  # under the policy "float16" the variables are rounded to it
        return outputs

    def _can_fuse(self) -> bool:
        if keras.backend.backend() != "tensorflow" or self.compute_dtype == "float64":
            return False
        return not self.synchronized or tf.distribute.get_strategy().num_replicas_in_sync == 1

    def _fused(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs, mean, unbiased, *_ = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            ops.cast(self.gamma, "float32"),
            ops.cast(self.beta, "float32"),
            epsilon=self.epsilon,
            is_training=True,
        )
        return outputs, mean, unbiased

    def _composed(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = inputs if self.compute_dtype == "float64" else ops.cast(inputs, "float32")
        axes = tuple(range(len(x.shape) - 1))
        count = _over_replicas(ops.cast(ops.prod(ops.shape(x)[:-1]), x.dtype), self.synchronized)
        # In two passes: the mean of the squares less the square of the mean, as Keras has it, loses
        # most digits where the mean is large.
        mean = _over_replicas(ops.sum(x, axis=axes), self.synchronized) / count
        variance = (
            _over_replicas(ops.sum(ops.square(x - mean), axis=axes), self.synchronized) / count
        )
        unbiased = variance * count / ops.maximum(count - 1, 1)
        outputs = ops.batch_normalization(
            x, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype), mean, unbiased

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "freeze_statistics": self.freeze_statistics}


def require_tensorflow(what: str) -> None:
    """Raises UserError where Keras runs on another backend.

    Args:
        what: what needs TensorFlow, as the subject of a sentence: "prediction".
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return
    source = "KERAS_BACKEND" if "KERAS_BACKEND" in os.environ else "keras.json"
    raise UserError(
        f"{what} runs on Keras' TensorFlow backend; the backend here is {backend}, set by "
        f"{source}: set KERAS_BACKEND=tensorflow"
    )


def warm_up(momentum: float, updates: Tensor) -> Tensor:
    """`min(momentum, (1 + updates) / (10 + updates))`: a running average that forgets its first value within a few updates.

    A momentum of 0.9997 alone takes ten thousand updates for that.
    """
    updates = ops.cast(updates, "float32")
    return ops.minimum(momentum, (1 + updates) / (10 + updates))


def _over_replicas(value: Tensor, synchronized: bool) -> Tensor:
    """The sum over all replicas of a tf.distribute step; elsewhere the value itself."""
    if not synchronized or keras.backend.backend() != "tensorflow":
        return value
    context = tf.distribute.get_replica_context()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


@functools.cache
def _native_dilation() -> bool:
    """Whether TensorFlow computes a dilated convolution, and its gradient, without cutting the image into phases.

    On a CPU only oneDNN does (seven times faster forward at dilation 36); without it the gradient
    raises. TensorFlow decides by the processor's features and by TF_ENABLE_ONEDNN_OPTS, and has no
    public way to ask.
    """
    if keras.backend.backend() != "tensorflow":
        return False
    if tf.config.list_physical_devices("GPU"):
        return True
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    except ImportError:  # the slower form is right everywhere
        return False
    return bool(IsMklEnabled())


@keras.saving.register_keras_serializable(PACKAGE)
class Conv2D(keras.layers.Conv2D):
    """Keras' convolution, with dilated kernels run natively instead of through SpaceToBatch where TensorFlow can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"data_format": DATA_FORMAT, **kwargs})

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        if (
            max(self.dilation_rate) == 1
            or self.compute_dtype == "float64"
            or not _native_dilation()
        ):
            return super().convolution_op(inputs, kernel)
        return tf.nn.conv2d(
            inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
        )


@keras.saving.register_keras_serializable(PACKAGE)
class ResizeTo(keras.layers.Layer):
    """Bilinear resize of the first input to the height and width that the second input has at run time.

    `align_corners=False` uses half-pixel centers as PyTorch and Keras do, `True` aligned corners as
    the official DeepLab does (docs/reference/official_deeplab.md#resizing). With a `scale`, the size
    of the second input is scaled by the official `scale_dimension` first.
    """

    def __init__(self, align_corners: bool = False, scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.align_corners, self.scale = align_corners, scale

    def call(self, inputs: list[Tensor]) -> Tensor:
        x, reference = inputs
        height, width = (
            scale_dimension(length, self.scale) for length in ops.shape(reference)[1:3]
        )
        return resize_bilinear(x, (height, width), self.align_corners)

    def compute_output_shape(
        self, input_shape: list[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        x, reference = input_shape
        height, width = (
            length and scale_dimension(length, self.scale) for length in reference[1:3]
        )
        return (x[0], height, width, x[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "align_corners": self.align_corners, "scale": self.scale}


def scale_dimension(length: Any, scale: float) -> Any:
    """Length of a side after scaling, the corner pixels kept: `int((length - 1) * scale + 1)` (official DeepLab)."""
    if isinstance(length, int):
        return int((length - 1) * scale + 1)
    return (
        length
        if scale == 1
        else ops.cast(ops.floor(ops.cast(length - 1, "float32") * scale + 1), "int32")
    )


def resize_bilinear(x: Tensor, size: tuple[Any, Any], align_corners: bool = False) -> Tensor:
    """`[batch, h, w, channels]` resized to `[batch, *size, channels]`, bilinear, in the dtype of `x`."""
    known = all(
        isinstance(length, int) for length in size
    )  # else only at run time, in a model for any size
    if known and tuple(x.shape[1:3]) == tuple(size):
        return x
    double = (
        keras.backend.standardize_dtype(x.dtype) == "float64"
    )  # TensorFlow's own would round it to float32
    if keras.backend.backend() == "tensorflow" and not double:
        if align_corners:
            size = tf.stack(list(size))
            y = tf.raw_ops.ResizeBilinear(
                images=x, size=size, align_corners=True, half_pixel_centers=False
            )
        else:  # keras.ops' resize refuses a size that is not known yet
            y = tf.image.resize(x, tf.stack(list(size)), "bilinear")
        return tf.cast(y, x.dtype)
    if not align_corners and not double:
        return ops.cast(
            ops.image.resize(x, size, interpolation="bilinear", data_format=DATA_FORMAT), x.dtype
        )
    dtype = "float64" if double else "float32"
    rows = interpolation(ops.shape(x)[1], size[0], align_corners, dtype)
    columns = interpolation(ops.shape(x)[2], size[1], align_corners, dtype)
    return ops.cast(ops.einsum("ih,bhwc,jw->bijc", rows, ops.cast(x, dtype), columns), x.dtype)


def interpolation(source: Any, target: Any, align_corners: bool, dtype: str) -> Tensor:
    """`[target, source]` weights, with the first and last samples on each other or with half-pixel centres."""
    positions, source_length = ops.arange(target, dtype=dtype), ops.cast(source, dtype)
    if align_corners:
        positions = positions * ((source_length - 1) / ops.cast(ops.maximum(target - 1, 1), dtype))
    else:
        positions = ops.clip(
            (positions + 0.5) * (source_length / ops.cast(target, dtype)) - 0.5,
            0,
            source_length - 1,
        )
    distance = ops.abs(positions[:, None] - ops.arange(source, dtype=dtype)[None])
    return ops.maximum(1 - distance, 0)


@keras.saving.register_keras_serializable(PACKAGE)
class AdaptiveAveragePooling(keras.layers.Layer):
    """PyTorch's AdaptiveAvgPool2d(bins): bin i of n over length L is [floor(iL/n), ceil((i+1)L/n)); bins may overlap."""

    def __init__(self, bins: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bins = bins

    def call(self, inputs: Tensor) -> Tensor:
        if self.bins == 1:
            return ops.mean(inputs, axis=(1, 2), keepdims=True)
        _, height, width, _ = ops.shape(inputs)
        rows, columns = (
            ops.cast(self._weights(length), inputs.dtype) for length in (height, width)
        )
        return ops.einsum("jw,biwc->bijc", columns, ops.einsum("ih,bhwc->biwc", rows, inputs))

    def _weights(self, length: Any) -> Tensor:
        bins = ops.arange(self.bins)
        start = bins * length // self.bins
        end = -(-(bins + 1) * length // self.bins)
        index = ops.arange(length)
        dtype = keras.config.floatx()
        inside = ops.cast((index[None] >= start[:, None]) & (index[None] < end[:, None]), dtype)
        return inside / ops.cast(end - start, dtype)[:, None]

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (input_shape[0], self.bins, self.bins, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bins": self.bins}


@keras.saving.register_keras_serializable(PACKAGE)
class WindowPooling(keras.layers.AveragePooling2D):
    """The mean over a window that moves by a stride, without padding; an image below the window is told as what it is.

    Args:
        pool_size: the window, in feature pixels.
        output_stride: pixels of the image to a feature pixel.
        crop_size: the window in pixels of the image, if it was given so.
        **kwargs: as of AveragePooling2D.
    """

    def __init__(
        self,
        pool_size: tuple[int, ...],
        *,
        output_stride: int,
        crop_size: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(pool_size, **{"data_format": DATA_FORMAT, **kwargs})
        self.output_stride, self.crop_size = output_stride, tuple(crop_size)

    def call(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[1:3]
        if (
            height is not None and width is not None
        ):  # a model for any size may know it only at run time
            self.check_size(height * self.output_stride, width * self.output_stride)
        return super().call(inputs)

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError for an image of this size, if the window does not fit into its features."""
        check_window(height, width, tuple(self.pool_size), self.output_stride, self.crop_size)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_stride": self.output_stride,
            "crop_size": self.crop_size,
        }


def check_window(
    height: int,
    width: int,
    window: tuple[int, ...],
    output_stride: int,
    crop_size: tuple[int, ...] = (),
) -> None:
    """Raises UserError for an image whose features are smaller than the window of image pooling."""
    smallest = [(length - 1) * output_stride + 1 for length in window]
    if height >= smallest[0] and width >= smallest[1]:
        return
    flag, fitting = "image_pooling_crop_size", f"{height},{width}"
    if not crop_size:
        flag, fitting = (
            "image_pooling_size",
            f"{-(-height // output_stride)},{-(-width // output_stride)}",
        )
    error = UserError(
        f"input size {height}x{width} is too small for "
        f"`{flag}={','.join(map(str, crop_size or window))}` at "
        f"`output_stride={output_stride}`: the smallest is {smallest[0]}x{smallest[1]}; "
        f"give a larger size, `{flag}={fitting}`, or `{flag}=` (empty) for global pooling"
    )
    error._keras_call_info_injected = True  # type: ignore[attr-defined]  # else Keras adds the image's values to the line
    raise error


@keras.saving.register_keras_serializable(PACKAGE)
def q_sigmoid(x: Tensor) -> Tensor:
    """The official DeepLab's gate, relu6(x + 3) * 0.16667 (docs/reference/official_deeplab.md#activations)."""
    return ops.relu6(x + 3) * 0.16667
