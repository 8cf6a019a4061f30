"""Writes the tables of docs/model_zoo.md from the models and the headers of the recipes.

It takes a few minutes:

    python scripts/make_model_zoo.py --output=docs/model_zoo.md
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, UserError, option

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
# Title of the table by the folder of the recipes.
TITLES = {
    "voc": "PASCAL VOC 2012",
    "ade20k": "ADE20k",
    "cityscapes": "Cityscapes",
    "official": "Official DeepLab",
    "": "torchvision",  # no recipes
}
COLUMNS = (
    "model",
    "parameters",
    "auxiliary",
    "multiply-adds",
    "mIoU reported",
    "mIoU measured",
    "recipe",
    "released",
    "license",
    "cite",
)
TABLES = "\n## "  # where they begin
NUMBERS = 5  # of the columns, after the name


@dataclasses.dataclass(frozen=True)
class ModelZooOptions(Config):
    """Where to write."""

    output: str = option(
        "docs/model_zoo.md", "the page, whose text is kept and whose tables are replaced"
    )


def count(name: str) -> tuple[str, str, str]:
    """Counts the parameters and multiply-adds of a model.

    Returns:
        The trainable parameters, those of the auxiliary head among them, and the 10^9 multiply-adds
        at 512x512, as text.
    """
    from deeplab_keras import build_segmentor
    from deeplab_keras.models.multiply_adds import count_multiply_adds, is_auxiliary
    from deeplab_keras.zoo import registry as zoo

    multiply_adds = "-"
    try:
        model = build_segmentor(zoo.get_config(name), (512, 512))
        multiply_adds = f"{count_multiply_adds(model) / 1e9:.3f}"
    except UserError:  # its image pooling requires a larger input
        model = build_segmentor(zoo.get_config(name))
    auxiliary = [
        w for layer in model.layers if is_auxiliary(layer) for w in layer.trainable_weights
    ]
    sizes = [
        sum(math.prod(w.shape) for w in weights) for weights in (model.trainable_weights, auxiliary)
    ]
    return f"{sizes[0]:,}", f"{sizes[1]:,}", multiply_adds


def tables(count: Callable[[str], tuple[str, str, str]]) -> str:
    """Returns one table per folder of recipes, with the `count` of each model."""
    from deeplab_keras.zoo import registry as zoo

    parts = []
    for folder, title in TITLES.items():
        lines = [
            f"## {title}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|" + "--:|" * NUMBERS + "---|" * (len(COLUMNS) - 1 - NUMBERS),
        ]
        for name in zoo.MODELS:
            recipe = next(CONFIGS.glob(f"*/{name}.flags"), None)
            if (recipe.parent.name if recipe else "") != folder:
                continue
            reported, measured = zoo.reported(name), None
            if recipe:
                measured = re.search(
                    r"^# mIoU measured: +(\d+\.\d+)", recipe.read_text(), re.MULTILINE
                )
            cells = (
                f"`{name}`",
                *count(name),
                f"{reported:.2f}" if reported else "",
                measured[1] if measured else "",
                f"[{folder}](../configs/{folder}/{name}.flags)" if recipe else "",
                *released(name),
            )
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def released(name: str) -> tuple[str, str, str]:
    """Returns what is known about the released weights of a model.

    Returns:
        Links to the weights, their config and their log, with the checksum of the weights; the
        license; the keys of the papers in CITATION.bib.
    """
    from deeplab_keras.zoo.downloads import download_of

    found = download_of(name)
    # The second address, if there is one, has the file under its earlier name.
    labels = ("weights", "earlier file name")
    weights = " or ".join(f"[{text}]({url})" for text, url in zip(labels, found.urls, strict=False))
    if found.checksum:
        weights += f" ({found.checksum.replace(':', ' ')})"
    more = {"config": found.config, "log": found.log}
    links = [weights, *(f"[{text}]({url})" for text, url in more.items() if url)]
    return ", ".join(links), found.license, " ".join(found.papers)


def replace_tables(page: str, new: str) -> str:
    """Returns the page with new tables. They begin at its first heading of level 2."""
    return page[: page.index(TABLES) + 1] + new


def main(command: Command) -> None:
    """Counts all models and writes the page."""
    path = pathlib.Path(command.config(ModelZooOptions).output)
    advice = "run the script from the repository root, with `output=docs/model_zoo.md`"
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"`output={path}`: cannot be read ({reason}); {advice}") from error
    if TABLES not in page:
        raise UserError(f"`output={path}`: has no headings of level 2 with tables; {advice}")
    load_keras()
    aside = path.with_suffix(".tmp")
    aside.write_text(replace_tables(page, tables(count)), encoding="utf-8")
    aside.replace(path)
    print(f"wrote {path}")
    command.summary.wrote(path)


SECTIONS = (ModelZooOptions,)
