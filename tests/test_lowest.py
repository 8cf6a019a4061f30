"""The lowest versions that setup.py allows are what `make lowest` installs and tests."""

from __future__ import annotations

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

EXTRAS = ("", "onnx", "serve", "test", "video", "viz")


@pytest.mark.lowest
def test_the_lowest_versions_are_installed():
    """No other package requires a higher version, so that the bounds of setup.py are true."""
    found, bounds = {}, {}
    for line in importlib.metadata.requires("deeplab-keras"):
        requirement = Requirement(line)
        if any(not requirement.marker or requirement.marker.evaluate({"extra": e}) for e in EXTRAS):
            (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
            bounds[requirement.name] = Version(bound)
            found[requirement.name] = Version(importlib.metadata.version(requirement.name))
    assert found == bounds and len(bounds) >= 20
