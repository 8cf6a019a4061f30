"""torchvision's MobileNets and two segmentation models in PyTorch, without torchvision.

torchvision cannot be installed on the test machines. The structure and the names in the state_dict
follow torchvision 0.20's `models/mobilenetv2.py`, `mobilenetv3.py`, `segmentation/lraspp.py`
and `segmentation/deeplabv3.py`. `PARAMETERS` are the counts that torchvision publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

PARAMETERS = {
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "lraspp_mobilenet_v3_large": 3_221_538,
    "deeplabv3_mobilenet_v3_large": 11_029_328,
}
Norm = Callable[[int], nn.Module]


def divisible(value: float) -> int:
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def conv_norm_act(
    inputs: int,
    outputs: int,
    kernel: int,
    norm: Norm,
    act: type[nn.Module] | None,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
    )
    return nn.Sequential(conv, norm(outputs), *([act()] if act else []))


class InvertedResidualV2(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden, norm = inputs * expansion, nn.BatchNorm2d
        self.residual = stride == 1 and inputs == outputs
        layers = [] if expansion == 1 else [conv_norm_act(inputs, hidden, 1, norm, nn.ReLU6)]
        layers.append(conv_norm_act(hidden, hidden, 3, norm, nn.ReLU6, stride, groups=hidden))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, outputs, 1, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        features: list[nn.Module] = [conv_norm_act(3, 32, 3, nn.BatchNorm2d, nn.ReLU6, stride=2)]
        inputs = 32
        for expansion, outputs, blocks, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for block in range(blocks):
                features.append(
                    InvertedResidualV2(inputs, outputs, stride if block == 0 else 1, expansion)
                )
                inputs = outputs
        self.features = nn.Sequential(
            *features, conv_norm_act(320, 1280, 1, nn.BatchNorm2d, nn.ReLU6)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))


class SqueezeExcitation(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = functional.adaptive_avg_pool2d(x, 1)
        return x * functional.hardsigmoid(self.fc2(functional.relu(self.fc1(scale))))


class InvertedResidualV3(nn.Module):
    def __init__(
        self,
        inputs: int,
        kernel: int,
        expanded: int,
        outputs: int,
        se: bool,
        hard_swish: bool,
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        norm, act = (
            partial(nn.BatchNorm2d, eps=0.001, momentum=0.01),
            nn.Hardswish if hard_swish else nn.ReLU,
        )
        self.residual, self.is_strided, self.out_channels = (
            stride == 1 and inputs == outputs,
            stride > 1,
            outputs,
        )
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(conv_norm_act(inputs, expanded, 1, norm, act))
        stride = 1 if dilation > 1 else stride
        layers.append(
            conv_norm_act(expanded, expanded, kernel, norm, act, stride, dilation, groups=expanded)
        )
        if se:
            layers.append(SqueezeExcitation(expanded, divisible(expanded // 4)))
        self.block = nn.Sequential(*layers, conv_norm_act(expanded, outputs, 1, norm, None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


# Input, kernel, expanded, output, squeeze-and-excite, hard swish, stride, dilated.
V3 = {
    "large": (
        (16, 3, 16, 16, False, False, 1, 0),
        (16, 3, 64, 24, False, False, 2, 0),
        (24, 3, 72, 24, False, False, 1, 0),
        (24, 5, 72, 40, True, False, 2, 0),
        (40, 5, 120, 40, True, False, 1, 0),
        (40, 5, 120, 40, True, False, 1, 0),
        (40, 3, 240, 80, False, True, 2, 0),
        (80, 3, 200, 80, False, True, 1, 0),
        (80, 3, 184, 80, False, True, 1, 0),
        (80, 3, 184, 80, False, True, 1, 0),
        (80, 3, 480, 112, True, True, 1, 0),
        (112, 3, 672, 112, True, True, 1, 0),
        (112, 5, 672, 160, True, True, 2, 1),
        (160, 5, 960, 160, True, True, 1, 1),
        (160, 5, 960, 160, True, True, 1, 1),
    ),
    "small": (
        (16, 3, 16, 16, True, False, 2, 0),
        (16, 3, 72, 24, False, False, 2, 0),
        (24, 3, 88, 24, False, False, 1, 0),
        (24, 5, 96, 40, True, True, 2, 0),
        (40, 5, 240, 40, True, True, 1, 0),
        (40, 5, 240, 40, True, True, 1, 0),
        (40, 5, 120, 48, True, True, 1, 0),
        (48, 5, 144, 48, True, True, 1, 0),
        (48, 5, 288, 96, True, True, 2, 1),
        (96, 5, 576, 96, True, True, 1, 1),
        (96, 5, 576, 96, True, True, 1, 1),
    ),
}


class MobileNetV3(nn.Module):
    def __init__(self, arch: str, dilated: bool = False) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        blocks = [
            InvertedResidualV3(*row[:7], dilation=2 if dilated and row[7] else 1)
            for row in V3[arch]
        ]
        inputs = V3[arch][-1][3]
        stem = conv_norm_act(3, 16, 3, norm, nn.Hardswish, stride=2)
        self.features = nn.Sequential(
            stem, *blocks, conv_norm_act(inputs, 6 * inputs, 1, norm, nn.Hardswish)
        )
        hidden = 1280 if arch == "large" else 1024
        self.classifier = nn.Sequential(
            nn.Linear(6 * inputs, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, 1000)
        )


class ASPPPooling(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(960, 256, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(
            super().forward(x), size=x.shape[-2:], mode="bilinear", align_corners=False
        )


class ASPP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        branches = [
            nn.Sequential(nn.Conv2d(960, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
        ]
        for rate in (12, 24, 36):
            conv = nn.Conv2d(960, 256, 3, padding=rate, dilation=rate, bias=False)
            branches.append(nn.Sequential(conv, nn.BatchNorm2d(256), nn.ReLU()))
        self.convs = nn.ModuleList([*branches, ASPPPooling()])
        self.project = nn.Sequential(
            nn.Conv2d(5 * 256, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))


class LRASPPHead(nn.Module):
    def __init__(self, low: int, high: int, classes: int) -> None:
        super().__init__()
        self.cbr = nn.Sequential(
            nn.Conv2d(high, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high, 128, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier, self.high_classifier = (
            nn.Conv2d(low, classes, 1),
            nn.Conv2d(128, classes, 1),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        x = self.cbr(high) * self.scale(high)
        x = functional.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(x)


class Segmentation(nn.Module):
    """Returns `lraspp` or `deeplabv3` on the dilated large MobileNetV3.

    The low-level features are those of the fourth block.
    """

    def __init__(self, kind: str, classes: int = 21) -> None:
        super().__init__()
        features = MobileNetV3("large", dilated=True).features
        self.backbone = nn.ModuleDict({str(index): layer for index, layer in enumerate(features)})
        strided = [
            index for index, layer in enumerate(features) if getattr(layer, "is_strided", False)
        ]
        self.low_index = [0, *strided, len(features) - 1][-4]
        low = features[self.low_index].out_channels
        if kind == "lraspp":
            self.classifier: nn.Module = LRASPPHead(low, 960, classes)
        else:
            self.classifier = nn.Sequential(
                ASPP(),
                nn.Conv2d(256, 256, 3, padding=1, bias=False),
                nn.BatchNorm2d(256),
                nn.ReLU(),
                nn.Conv2d(256, classes, 1),
            )
            self.aux_classifier = nn.Sequential(
                nn.Conv2d(low, low // 4, 3, padding=1, bias=False),
                nn.BatchNorm2d(low // 4),
                nn.ReLU(),
                nn.Dropout(0.1),
                nn.Conv2d(low // 4, classes, 1),
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the logits before the resize, and the auxiliary logits."""
        low = x
        for index, layer in enumerate(self.backbone.values()):
            x = layer(x)
            low = x if index == self.low_index else low
        if isinstance(self.classifier, LRASPPHead):
            return self.classifier(low, x), None
        return self.classifier(x), self.aux_classifier(low)
