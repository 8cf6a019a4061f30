"""int8 files with the most sensitive layers in float32, selected by measurement."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from deeplab_keras.export import tflite
from deeplab_keras.inference.exported import open_interpreter
from deeplab_keras.io.progress import Progress

IMAGES = 3  # the number of images for the measurement


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of one operator.

    Attributes:
        tensor: The name of its output tensor.
        lost: The share of pixels, 0..1, whose label changes if only this operator computes in 8
            bits.
    """

    tensor: str
    lost: float


def mixed(
    calibrated: bytes, images: Sequence[np.ndarray], agreement: float, threads: int = 2
) -> tuple[bytes, tuple[str, ...]]:
    """Converts to an int8 file with as few layers in float32 as the agreement requires.

    Sorts the layers by how many labels change if only that layer is in 8 bits. Doubles the number
    of float layers until enough labels agree with the float32 file, then finds the smallest such
    number by bisection.

    Args:
        calibrated: A float32 file with ranges, see `tflite.calibrate`.
        images: uint8 arrays `[height, width, channels]` of the file's input size. `IMAGES` of them,
            evenly spaced, are used.
        agreement: The required share of pixels, 0..1, with the same label as the float32 file.
        threads: The number of threads of the runtime.

    Returns:
        The file, and the names of the float layers, the most sensitive first.
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
    low, high = 0, 1  # `low` float layers are too few; `high` may be enough
    while agrees(tflite.quantize(calibrated, order[:high])) < agreement and high < len(order):
        low, high = high, min(2 * high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        if agrees(tflite.quantize(calibrated, order[:middle])) >= agreement:
            high = middle
        else:
            low = middle
    layers = tuple(layer_name(tensor) for tensor in order[:high])
    return tflite.quantize(calibrated, order[:high]), layers


def sensitivities(calibrated: bytes, agrees: Callable[[bytes], float]) -> list[Sensitivity]:
    """Measures the sensitivity of each operator of a file, and returns the most sensitive first.

    Args:
        calibrated: A float32 file with ranges.
        agrees: Function from an int8 file to the share of labels that agree with the float32 file.
    """
    tensors = [tensor for _, tensor in tflite.named_operators(calibrated)]
    progress = Progress(len(tensors), "measuring layers for int8", unit="layers")
    found = []
    for index, tensor in enumerate(tensors):
        alone = tflite.quantize(calibrated, [other for other in tensors if other != tensor])
        found.append(Sensitivity(tensor, 1 - agrees(alone)))
        progress.update(index + 1)
    return sorted(found, key=lambda one: -one.lost)


def layer_name(tensor: str) -> str:
    """Returns the layer of a tensor, whose name lists all operations fused into its operator.

    Example: `model/block1_act_1/Relu6;model/block1_conv_1/convolution` -> `block1_conv`.
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
    """Returns the labels of a file's content: int32 `[images, height, width]`."""
    run = open_interpreter(model, threads).get_signature_runner()
    (details,) = run.get_input_details().values()
    answers = [run(image=image[None].astype(details["dtype"])) for image in images]
    return np.concatenate(
        [a["labels"] if "labels" in a else a["logits"].argmax(-1) for a in answers]
    )
