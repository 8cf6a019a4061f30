"""Folders of the repository that the wheel contains too: recipes, documentation and web page.

A checkout has them outside the package, where people look for them. setup.py copies them into
`deeplab_keras/resources/` of a wheel.
"""

from __future__ import annotations

import pathlib

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def resource_folder(name: str) -> pathlib.Path:
    """Returns a folder in the installed package, or in the checkout if there is none.

    Args:
        name: The path of the folder in the repository: "configs", "docs" or "demo/web".
    """
    packaged = _PACKAGE / "resources" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
