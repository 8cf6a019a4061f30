"""A backbone of five convolutions for tests that train a network and do not care which one.

Building and tracing MobileNetV2 takes most of the time of a training run of two steps. A test that
runs a script in another process starts it through this file, which registers the backbone there:
`python tests/toy.py scripts/train.py --model_variant=toy ...`.
"""

from __future__ import annotations

import contextlib
import pathlib
import runpy
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from deeplab_keras.config import ModelConfig
from deeplab_keras.config import backbones as config_backbones


def toy(image: Any, config: ModelConfig) -> dict[str, Any]:
    """Features c1 to c5; the stem and blocks 1 to 4."""
    from deeplab_keras.models.backbones.dilation import StridePlan
    from deeplab_keras.models.blocks import backbone_style, conv_bn_act, make_divisible

    style, plan = backbone_style(config), StridePlan(config)
    x, features = image, {}
    for index, channels in enumerate((16, 24, 32, 96, 160)):
        name = f"block{index}" if index else "stem"
        stride, dilation = plan.next(2)
        channels = make_divisible(channels * config.depth_multiplier, config.channel_divisor)
        x = conv_bn_act(
            x, channels, 3, name=name, style=style, stride=stride, dilation=dilation, act="relu6"
        )
        features |= {plan.level: x, name: x}
    return features


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """`--model_variant=toy` works within, and no list of backbones has it afterwards."""
    import keras  # noqa: F401  (before our models, which register themselves with it)

    from deeplab_keras.models import backbones

    with (
        mock.patch.dict(backbones.BACKBONES, toy=toy),
        mock.patch.dict(config_backbones.BACKBONES, toy=config_backbones.BackboneConfig),
    ):
        yield


def toy_config(**options: Any) -> ModelConfig:
    """A config with the backbone, also where it is not registered (yet)."""
    with registered():
        return ModelConfig(**{"backbone": "toy", "depth_multiplier": 0.25, **options})


if __name__ == "__main__":
    del sys.argv[0]
    with registered():
        runpy.run_path(sys.argv[0], run_name="__main__")
