"""Groups of a segmentor's layers, by patterns of their names."""

from __future__ import annotations

import re

import keras

_BACKBONE = r"(stem|block\d+|last)_.*"

# Group -> pattern of complete layer names.
GROUPS: dict[str, re.Pattern[str]] = {
    "all": re.compile(r".*"),
    "backbone": re.compile(_BACKBONE),
    "head": re.compile(rf"(?!{_BACKBONE}).*"),
    "classifiers": re.compile(r"(auxiliary_)?logits(\d+|_high|_low)?"),
    "without_auxiliary": re.compile(r"(?!auxiliary).*"),
}


def is_in_group(layer: str, group: str) -> bool:
    """Whether a layer with this name is in a group of `GROUPS`."""
    return GROUPS[group].fullmatch(layer) is not None


def layers_in_group(model: keras.Model, group: str) -> tuple[str, ...]:
    """Returns the names of the layers in a group that have weights."""
    return tuple(
        layer.name for layer in model.layers if layer.weights and is_in_group(layer.name, group)
    )
