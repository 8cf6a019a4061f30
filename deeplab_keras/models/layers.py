"""Layers that Keras lacks, or that differ from Keras' layers in the reference implementations."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import keras
from keras import ops

from deeplab_keras.config import UserError, wrong_backend

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

PACKAGE = "deeplab_keras"
HAS_XLA = sys.platform != "win32"  # TensorFlow for Windows does not include XLA
DATA_FORMAT = "channels_last"  # used by every layer, regardless of keras.json
Tensor = Any


@keras.saving.register_keras_serializable(PACKAGE)
class Normalize(keras.layers.Layer):
    """Computes `(image - mean) / std`. The first layer of a segmentor.

    Args:
        mean: One value per channel, or one for all channels.
        std: One value per channel, or one for all channels.
        **kwargs: Arguments of every layer.
    """

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
    """Batch norm that updates the running variance with the unbiased batch variance.

    This is what PyTorch and TF1 do. Keras uses the biased batch variance
    (docs/reference/libraries.md#batch-norm). On a single TensorFlow device, the layer uses the
    fused kernel, which reduces the time of a training step of MobileNetV2 on the CPU to 70 %.

    Args:
        freeze_statistics: Whether training uses the running statistics without updating them, while
            gamma and beta are still trained. This is the official DeepLab's
            `fine_tune_batch_norm=False`.
        synchronized: Whether the statistics are those of the global batch. On JAX they always are,
            because its arrays are global.
        **kwargs: Arguments of `keras.layers.BatchNormalization`.

    Attributes:
        share: Function from the momentum to the share of the old statistics that an update keeps.
            `None` uses the momentum, as the references do. `dk.train` sets it, see `warm_up`.
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
            # Under the policy "float16", the variables are float16 too.
            moving.assign(ops.cast(new, moving.dtype))
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
        total = sum_over_replicas if self.synchronized else lambda value: value
        count = total(ops.cast(ops.prod(ops.shape(x)[:-1]), x.dtype))
        # In two passes. Keras subtracts the square of the mean from the mean of the squares, which
        # loses most digits if the mean is large.
        mean = total(ops.sum(x, axis=axes)) / count
        variance = total(ops.sum(ops.square(x - mean), axis=axes)) / count
        unbiased = variance * count / ops.maximum(count - 1, 1)
        outputs = ops.batch_normalization(
            x, mean, variance, axis=-1, offset=self.beta, scale=self.gamma, epsilon=self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype), mean, unbiased

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "freeze_statistics": self.freeze_statistics}


def require_backend(what: str, backends: Collection[str] = ("tensorflow",)) -> None:
    """Raises `UserError` if Keras uses a different backend.

    Args:
        what: What requires the backend, as the subject of a sentence, such as "prediction".
        backends: The backends that it works on.
    """
    backend = keras.backend.backend()
    if backend in backends:
        return
    source = "KERAS_BACKEND" if "KERAS_BACKEND" in os.environ else "keras.json"
    raise wrong_backend(what, backend, source, backends)


def warm_up(momentum: float, updates: Tensor) -> Tensor:
    """Returns the momentum of a running average after a number of updates.

    The value is `min(momentum, (1 + updates) / (10 + updates))`. The average forgets its initial
    value within a few updates, where a constant momentum of 0.9997 takes ten thousand.
    """
    updates = ops.cast(updates, "float32")
    return ops.minimum(momentum, (1 + updates) / (10 + updates))


def sum_over_replicas(value: Any) -> Any:
    """Returns the sum of a tensor over all replicas, or the tensor outside a distributed step."""
    if keras.backend.backend() != "tensorflow":
        return value
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


@functools.cache
def _has_dilation_gradient() -> bool:
    """Returns whether TensorFlow has the gradients of dilated convolutions in float32.

    On a CPU, this requires oneDNN. TensorFlow uses it depending on the processor's features and on
    TF_ENABLE_ONEDNN_OPTS, and has no public API to query it.
    """
    if tf.config.list_physical_devices("GPU"):
        return True
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    except ImportError:  # the slower implementation always works
        return False
    return bool(IsMklEnabled())


@keras.saving.register_keras_serializable(PACKAGE)
class Conv2D(keras.layers.Conv2D):
    """Keras' convolution, with native dilation instead of SpaceToBatch under TensorFlow.

    JAX on a CPU computes 1x1 convolutions as matrix products, which are faster there.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"data_format": DATA_FORMAT, **kwargs})

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        pointwise = self.kernel_size == self.strides == (1, 1) and self.groups == 1
        if pointwise and _on_jax_cpu():
            return ops.matmul(inputs, kernel[0, 0])
        if max(self.dilation_rate) == 1 or keras.backend.backend() != "tensorflow":
            return super().convolution_op(inputs, kernel)

        def convolve(x: Tensor, kernel: Tensor) -> Tensor:
            return tf.nn.conv2d(x, kernel, 1, self.padding.upper(), dilations=self.dilation_rate)

        if self.compute_dtype != "float64" and _has_dilation_gradient():
            return convolve(inputs, kernel)

        @tf.custom_gradient
        def with_gradient(x: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
            def gradient(upstream: Tensor) -> list[Tensor]:
                with tf.GradientTape() as tape:
                    tape.watch([x, kernel])
                    outputs = _sum_of_taps(x, kernel, self.dilation_rate, self.padding)
                return tape.gradient(outputs, [x, kernel], upstream)

            return convolve(x, kernel), gradient

        return with_gradient(tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel))


def _sum_of_taps(x: Tensor, kernel: Tensor, dilation: tuple[int, int], padding: str) -> Tensor:
    """Returns a dilated convolution as the sum of a 1x1 convolution per element of the kernel."""
    reach = [rate * (size - 1) for rate, size in zip(dilation, kernel.shape[:2], strict=True)]
    if padding == "same":
        x = tf.pad(x, [[0, 0], *([total // 2, total - total // 2] for total in reach), [0, 0]])
    height, width = (tf.shape(x)[axis] - reach[axis - 1] for axis in (1, 2))
    return tf.add_n(
        [
            tf.nn.conv2d(
                x[:, top : top + height, left : left + width],
                kernel[row : row + 1, column : column + 1],
                1,
                "VALID",
            )
            for row, top in enumerate(range(0, reach[0] + 1, dilation[0]))
            for column, left in enumerate(range(0, reach[1] + 1, dilation[1]))
        ]
    )


@keras.saving.register_keras_serializable(PACKAGE)
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' depthwise convolution, computed as a sum of products by JAX on a CPU.

    XLA has no fast depthwise convolutions for CPUs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"data_format": DATA_FORMAT, **kwargs})

    def call(self, inputs: Tensor) -> Tensor:
        if self.depth_multiplier > 1 or self.data_format != DATA_FORMAT or not _on_jax_cpu():
            return super().call(inputs)
        x = _sum_of_products(
            inputs,
            ops.convert_to_tensor(self.kernel)[..., 0],
            self.strides,
            self.dilation_rate,
            self.padding,
        )
        x = x + ops.convert_to_tensor(self.bias) if self.use_bias else x
        return self.activation(x)


def _on_jax_cpu() -> bool:
    if keras.backend.backend() != "jax":
        return False
    return all(name.startswith("cpu") for name in keras.distribution.list_devices())


def _sum_of_products(
    x: Tensor,
    kernel: Tensor,
    strides: tuple[int, int],
    dilation: tuple[int, int],
    padding: str,
) -> Tensor:
    """Returns a depthwise convolution as the sum of one product per element of the kernel.

    Half precision is summed in float32.

    Args:
        x: The images, `[batch, height, width, channels]`. Height and width must be known.
        kernel: The kernel, `[rows, columns, channels]`.
        strides: Vertical and horizontal stride.
        dilation: Vertical and horizontal dilation rate.
        padding: "same" or "valid".
    """
    dtype = keras.backend.standardize_dtype(x.dtype)
    sum_dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
    kernel = ops.cast(kernel, sum_dtype)
    padded, parts = [], []  # per axis: rows to add before and after; the part that a tap reads
    for side, size, stride, rate in zip(
        x.shape[1:3], kernel.shape[:2], strides, dilation, strict=True
    ):
        reach = rate * (size - 1) + 1
        outputs = -(-side // stride) if padding == "same" else (side - reach) // stride + 1
        last = (outputs - 1) * stride
        missing = max(0, last + reach - side)
        padded.append((missing // 2, missing - missing // 2))
        parts.append([slice(tap, tap + last + 1, stride) for tap in range(0, reach, rate)])
    x = ops.pad(x, ((0, 0), *padded, (0, 0)))
    total = sum(
        ops.cast(x[:, rows, columns], sum_dtype) * kernel[row, column]
        for row, rows in enumerate(parts[0])
        for column, columns in enumerate(parts[1])
    )
    return ops.cast(total, dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class ResizeTo(keras.layers.Layer):
    """Resizes the first input to the height and width of the second input, bilinearly.

    Args:
        align_corners: Whether to align corners, as the official DeepLab does
            (docs/reference/official_deeplab.md#resizing). If `False`, uses half-pixel centers, as
            PyTorch and Keras do.
        scale: Factor on the size of the second input, see `scale_dimension`.
        **kwargs: Arguments of every layer.
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
    """Returns `int((length - 1) * scale + 1)`, the official DeepLab's length of a scaled side."""
    if isinstance(length, int):
        return int((length - 1) * scale + 1)
    return (
        length
        if scale == 1
        else ops.cast(ops.floor(ops.cast(length - 1, "float32") * scale + 1), "int32")
    )


def resize_bilinear(x: Tensor, size: tuple[Any, Any], align_corners: bool = False) -> Tensor:
    """Resizes `[batch, h, w, channels]` to `[batch, *size, channels]`, bilinearly.

    The result has the dtype of `x`.
    """
    # In a model for any size, the size is only known at run time.
    known = all(isinstance(length, int) for length in size)
    if known and tuple(x.shape[1:3]) == tuple(size):
        return x
    # TensorFlow's operation would round float64 to float32.
    double = keras.backend.standardize_dtype(x.dtype) == "float64"
    if keras.backend.backend() == "tensorflow" and not double:
        if align_corners:
            size = tf.stack(list(size))
            y = tf.raw_ops.ResizeBilinear(
                images=x, size=size, align_corners=True, half_pixel_centers=False
            )
        else:  # keras.ops.image.resize requires a size that is known when the graph is built
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
    """Returns the weights of a bilinear resize along one side, `[target, source]`.

    Args:
        source: Length of the side before.
        target: Length of the side after.
        align_corners: Whether the first and last samples stay in place. If `False`, uses half-pixel
            centers.
        dtype: The dtype of the weights.
    """
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
    """PyTorch's `AdaptiveAvgPool2d(bins)`.

    Bin i of n on a side of length L is [floor(iL/n), ceil((i+1)L/n)). Bins may overlap.

    Args:
        bins: Number of bins per side.
        **kwargs: Arguments of every layer.
    """

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
    """Average pooling without padding, with a clear error if the image is smaller than the window.

    Args:
        pool_size: Size of the window in feature pixels.
        output_stride: Stride of the features, in image pixels.
        crop_size: Size of the window in image pixels, if the config gives it in this form.
        **kwargs: Arguments of `keras.layers.AveragePooling2D`.
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
        # In a model for any size, the size may only be known at run time.
        if height is not None and width is not None:
            self.check_size(height * self.output_stride, width * self.output_stride)
        return super().call(inputs)

    def check_size(self, height: int, width: int) -> None:
        """Raises `UserError` if the window is larger than the features of an image of this size."""
        check_window(height, width, tuple(self.pool_size), self.output_stride, self.crop_size)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_stride": self.output_stride,
            "crop_size": self.crop_size,
        }


def smallest_size(window: tuple[int, ...], output_stride: int) -> tuple[int, int]:
    """Returns the (height, width) of the smallest image with features as large as a window.

    Without a window, it is (1, 1).
    """
    height, width = ((length - 1) * output_stride + 1 for length in window or (1, 1))
    return height, width


def check_window(
    height: int,
    width: int,
    window: tuple[int, ...],
    output_stride: int,
    crop_size: tuple[int, ...] = (),
) -> None:
    """Raises `UserError` if the image pooling window is larger than the features of an image."""
    smallest = smallest_size(window, output_stride)
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
        f"use a larger size, `{flag}={fitting}`, or `{flag}=` (empty) for global pooling"
    )
    # Otherwise Keras appends the values of the image to the message.
    error._keras_call_info_injected = True  # type: ignore[attr-defined]
    raise error


@keras.saving.register_keras_serializable(PACKAGE)
def q_sigmoid(x: Tensor) -> Tensor:
    """Computes `relu6(x + 3) * 0.16667`, the official DeepLab's gate.

    See docs/reference/official_deeplab.md#activations.
    """
    return ops.relu6(x + 3) * 0.16667
