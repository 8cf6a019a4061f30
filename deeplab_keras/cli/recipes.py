"""The recipes of the package: flagfiles that are found from any folder."""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib

from deeplab_keras.io.resources import resource_folder

FOLDER = "configs"
PARTS = "base"  # the folder of the parts that recipes share


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A recipe.

    Attributes:
        name: Its path in configs/, such as "synthetic/demo.flags".
        path: The file.
    """

    name: str
    path: pathlib.Path

    def title(self) -> str:
        """Returns the first line of its header, which says what it trains."""
        with self.path.open(encoding="utf-8") as file:
            return file.readline().lstrip("#").strip()


def recipes() -> list[RecipeFile]:
    """Returns all recipes, including the parts that they share, sorted by name."""
    folder = resource_folder(FOLDER)
    found = sorted(folder.rglob("*.flags"))
    return [RecipeFile(path.relative_to(folder).as_posix(), path) for path in found]


def find_flagfile(path: str) -> str:
    """Returns the path of a flagfile, which may be the name of a recipe.

    Args:
        path: A path, relative to the current folder. If it does not exist: the name of a
            recipe, with or without `configs/`.

    Returns:
        The path of the recipe, or `path` unchanged.
    """
    if not path or os.path.exists(path):
        return path
    return next((str(recipe.path) for recipe in recipes() if recipe.name == _name(path)), path)


def similar_recipe(path: str) -> str:
    """Returns the name of the recipe most similar to a path; "" if none is similar."""
    names = [recipe.name for recipe in recipes()]
    return next(iter(difflib.get_close_matches(_name(path), names, n=1)), "")


def _name(path: str) -> str:
    return pathlib.PurePath(path).as_posix().removeprefix(f"{FOLDER}/")
