"""int8 files whose most sensitive layers stay in float32: which they are is measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from deeplab_keras.export import tflite
from deeplab_keras.inference.exported import open_interpreter
from deeplab_keras.io.progress import Progress

IMAGES = 3  # on which layers are measured


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What one operator alone costs.

    Attributes:
        tensor: name of the tensor that it gives.
        lost: share of the pixels, 0..1, whose label changes when it alone computes in 8 bits.
    """

    tensor: str
    lost: float


def mixed(
    calibrated: bytes, images: Sequence[np.ndarray], agreement: float, threads: int = 2
) -> tuple[bytes, tuple[str, ...]]:
    """An int8 file in which as few layers as will do stay in float32.

    The layers are ordered by what each of them changes when it alone is in 8 bits. Then the number
    of those that stay in float is doubled until the labels agree with the float32 file's, and the
    smallest such number is searched for.

    Args:
        calibrated: a float32 file with ranges, see `tflite.calibrate`.
        images: uint8 `[height, width, channels]` of the file's size; IMAGES of them, evenly spread,
            are used.
        agreement: share of the pixels, 0..1, whose labels must be the float32 file's.
        threads: of the runtime.

    Returns:
        The file, and the names of the layers in float, the most sensitive first.
    """
    images = [
        images[index]
        for index in np.linspace(0, len(images) - 1, min(IMAGES, len(images))).round().astype(int)
    ]
    expected = _labels(calibrated, images, threads)

    def agrees(model: bytes) -> float:
        return float((_labels(model, images, threads) == expected).mean())

    model = tflite.quantize(calibrated)
    if agrees(model) >= agreement:
        return model, ()
    order = [found.tensor for found in sensitivities(calibrated, agrees)]
    low, high = 0, 1  # with so many in float it does not agree enough, and with so many it may
    while agrees(tflite.quantize(calibrated, order[:high])) < agreement and high < len(order):
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        if agrees(tflite.quantize(calibrated, order[:middle])) >= agreement:
            high = middle
        else:
            low = middle
    return tflite.quantize(calibrated, order[:high]), tuple(
        layer_name(tensor) for tensor in order[:high]
    )


def sensitivities(calibrated: bytes, agrees: Callable[[bytes], float]) -> list[Sensitivity]:
    """What each operator of a file costs when it alone is in 8 bits, the costliest first.

    Args:
        calibrated: a float32 file with ranges.
        agrees: the share of labels that an int8 file has in common with it.
    """
    tensors = [tensor for _, tensor in tflite.named_operators(calibrated)]
    progress = Progress(len(tensors), "layers measured for int8", unit="layers")
    found = []
    for index, tensor in enumerate(tensors):
        alone = tflite.quantize(calibrated, [other for other in tensors if other != tensor])
        found.append(Sensitivity(tensor, 1 - agrees(alone)))
        progress.update(index + 1)
    return sorted(found, key=lambda one: -one.lost)


def layer_name(tensor: str) -> str:
    """The layer behind a tensor, whose name is that of every operation that was fused into its operator.

    `model/block1_act_1/Relu6;model/block1_conv_1/convolution` -> `block1_conv`.
    """
    layers = [
        re.sub(r"_\d+$", "", part.split("/")[1])
        for part in tensor.split(";")
        if part.count("/") > 1
    ]
    return next(
        (layer for layer in layers if layer.endswith("_conv")), layers[0] if layers else tensor
    )


def _labels(model: bytes, images: Sequence[np.ndarray], threads: int) -> np.ndarray:
    """The file's labels, int32 `[images, height, width]`."""
    run = open_interpreter(model, threads).get_signature_runner()
    (details,) = run.get_input_details().values()
    answers = [run(image=image[None].astype(details["dtype"])) for image in images]
    return np.concatenate(
        [a["labels"] if "labels" in a else a["logits"].argmax(-1) for a in answers]
    )
