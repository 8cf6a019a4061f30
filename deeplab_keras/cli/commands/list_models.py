"""Lists the models of the zoo, with the mIoU that their authors report.

python scripts/list_models.py --match=lraspp
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, UserError, option


@dataclasses.dataclass(frozen=True)
class ListOptions(Config):
    """Which models to list."""

    match: str = option("", "lists only names that contain this text")


def main(command: Command) -> None:
    """Prints one line per model."""
    match = command.config(ListOptions).match

    from deeplab_keras.zoo import registry as zoo

    names = [name for name in zoo.list_models() if match in name]
    if not names:
        raise UserError(
            f"`match={match}`: no model name contains this text; leave `match` out to list all"
        )
    width = max(map(len, names))
    print(f"{'model':{width}}  {'head':15}  {'backbone':22}  stride  classes  reported mIoU")
    for name in names:
        config, miou = zoo.get_config(name), zoo.reported(name)
        sizes = f"{config.output_stride:6}  {config.num_classes:7}"
        reported = "-" if miou is None else f"{miou:.2f}"
        print(f"{name:{width}}  {config.head:15}  {config.backbone:22}  {sizes}  {reported}")


SECTIONS = (ListOptions,)
