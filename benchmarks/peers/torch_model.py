"""A segmentor in PyTorch: the same operations in the same order with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import Step
from benchmarks.workers import ImageContender

Tensor = Any

OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "hard_silu": functional.hardswish,
    "hard_sigmoid": functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "q_sigmoid": lambda x: functional.relu6(x + 3) * 0.16667,
    "same": lambda x: x,
    "add": torch.add,
    "multiply": torch.mul,
    "maximum": torch.maximum,
    "average": lambda *values: sum(values[1:], values[0]) / len(values),
    "concatenate": lambda *values: torch.cat(values, 1),
    "pad": lambda x, margins: functional.pad(x, (*margins[1], *margins[0])),
    "global_pool": lambda x: x.mean((2, 3), keepdim=True),
    "adaptive_pool": lambda x, bins: functional.adaptive_avg_pool2d(x, bins),
    "window_pool": lambda x, size, strides: functional.avg_pool2d(x, tuple(size), tuple(strides)),
    "resize": lambda x, size, align_corners: functional.interpolate(
        x, tuple(size), mode="bilinear", align_corners=align_corners
    ),
}


class TorchConvolution(torch.nn.Module):
    """A convolution with the padding of either model family."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        kernel, settings = (
            torch.from_numpy(np.ascontiguousarray(step.arrays["kernel"])),
            step.settings,
        )
        rows, columns = settings["margins"]
        even = rows[0] == rows[1] and columns[0] == columns[1]
        self.margins = None if even else (*columns, *rows)
        self.conv = torch.nn.Conv2d(
            kernel.shape[1] * settings["groups"],
            kernel.shape[0],
            tuple(kernel.shape[2:]),
            tuple(settings["strides"]),
            (rows[0], columns[0]) if even else 0,
            tuple(settings["dilation"]),
            settings["groups"],
            "bias" in step.arrays,
        )
        self.conv.weight.data = kernel
        if "bias" in step.arrays:
            self.conv.bias.data = torch.from_numpy(step.arrays["bias"])

    def forward(self, x: Tensor) -> Tensor:
        """Applies the convolution."""
        return self.conv(functional.pad(x, self.margins) if self.margins else x)


class TorchNormalize(torch.nn.Module):
    """Computes `(image - mean) / std`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("scale", 1 / torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalized image."""
        return (x - self.mean) * self.scale


class TorchNetwork(torch.nn.Module):
    """The network, from images `[batch, height, width, 3]` in 0..255 to labels or logits."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = [(step.name, step.kind, step.inputs, step.settings) for step in steps]
        self.parts = torch.nn.ModuleDict()
        for step in steps:
            if step.kind == "conv":
                self.parts[step.name] = TorchConvolution(step)
            elif step.kind == "batch_norm":
                self.parts[step.name] = _batch_norm(step)
            elif step.kind == "normalize":
                self.parts[step.name] = TorchNormalize(step.settings["mean"], step.settings["std"])

    def logits(self, images: Tensor) -> Tensor:
        """Returns the class scores, `[batch, classes, height, width]`."""
        values: dict[str, Tensor] = {}
        last = self.steps[-1][0]
        for name, kind, inputs, settings in self.steps:
            if kind == "input":
                # Without a copy, in the memory format channels_last.
                values[name] = images.float().permute(0, 3, 1, 2)
            elif name in self.parts:
                values[name] = self.parts[name](values[inputs[0]])
            else:
                given = [values[before] for before in inputs]
                # At full size, class scores are float32 in every precision, like ours.
                values[name] = OPERATIONS[kind](
                    *([x.float() for x in given] if name == last else given), **settings
                )
        return values[last]

    def forward(self, images: Tensor) -> Tensor:
        """Returns the labels, `[batch, height, width]`."""
        return self.logits(images).argmax(1)


def _batch_norm(step: Step) -> torch.nn.BatchNorm2d:
    arrays = {name: torch.from_numpy(array) for name, array in step.arrays.items()}
    norm = torch.nn.BatchNorm2d(len(arrays["gamma"]), eps=step.settings["epsilon"])
    norm.weight.data, norm.bias.data = arrays["gamma"], arrays["beta"]
    norm.running_mean, norm.running_var = arrays["moving_mean"], arrays["moving_variance"]
    return norm


def make(steps: Sequence[Step], threads: int, compiled: bool) -> ImageContender:
    """Creates the contender of `benchmarks.models`, eager or compiled."""
    torch.set_num_threads(threads)
    network: Any = TorchNetwork(steps).eval().to(memory_format=torch.channels_last)
    run = torch.compile(network) if compiled else network

    @torch.inference_mode()
    def labels(images: np.ndarray) -> np.ndarray:
        return run(torch.from_numpy(images)).numpy()

    return ImageContender(labels)
