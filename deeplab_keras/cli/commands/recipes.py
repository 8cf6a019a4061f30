"""Lists the recipes: flagfiles that train a model with known settings.

Each name is a value of --flagfile, from any folder. The file's header has the whole command, the
hardware, the training time and the mIoU.

    python scripts/recipes.py --match=camvid
"""

from __future__ import annotations

import dataclasses
import fnmatch

from deeplab_keras.cli import Command
from deeplab_keras.cli.recipes import PARTS, recipes
from deeplab_keras.config import Config, UserError, option


@dataclasses.dataclass(frozen=True)
class RecipeOptions(Config):
    """Which recipes to list."""

    match: str = option(
        "", "lists only names that contain this text, or match it if it has wildcards (* ? [...])"
    )


def main(command: Command) -> None:
    """Prints one line per recipe."""
    match = command.config(RecipeOptions).match
    known = [recipe for recipe in recipes() if not recipe.name.startswith(f"{PARTS}/")]
    pattern = match if set("*?[") & set(match) else f"*{match}*"
    found = [recipe for recipe in known if fnmatch.fnmatchcase(recipe.name, pattern)]
    if not found:
        raise UserError(f"`match={match}`: no recipe has such a name; omit `match` to list all")
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        print(f"{recipe.name:{width}}  {recipe.title()}")
    command.summary.count(recipes=len(found))


SECTIONS = (RecipeOptions,)
