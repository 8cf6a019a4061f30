"""Lists the models of the zoo, with the mIoU that their authors report.

Wherever a checkpoint is given, one of these names can be given instead. The weights of a released
model are downloaded once; a model marked "built in" is part of the package. The ImageNet backbones
at the end are for --initial_checkpoint.

    python scripts/list_models.py --match=lraspp
    python scripts/list_models.py --match='*mobilenetv3*voc'
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, UserError, option


@dataclasses.dataclass(frozen=True)
class ListOptions(Config):
    """Which models to list."""

    match: str = option(
        "", "lists only names that contain this text, or match it if it has wildcards (* ? [...])"
    )


def main(command: Command) -> None:
    """Prints one line per model."""
    match = command.config(ListOptions).match

    from deeplab_keras.zoo import registry as zoo
    from deeplab_keras.zoo.downloads import IMAGENET

    names = zoo.list_models(match)
    backbones = zoo.matching(IMAGENET, match)
    if not names and not backbones:
        raise UserError(f"`match={match}`: no model has such a name; omit `match` to list all")
    command.summary.count(models=len(names), backbones=len(backbones))
    width = max(map(len, names + backbones))
    if names:
        print(f"{'model':{width}}  {'head':15}  {'backbone':22}  stride  classes  reported mIoU")
    for name in names:
        config, miou = zoo.get_config(name), zoo.reported(name)
        sizes = f"{config.output_stride:6}  {config.num_classes:7}"
        reported = "-" if miou is None else f"{miou:.2f}"
        if name in zoo.BUNDLED:
            reported = "- (built in)"
        print(f"{name:{width}}  {config.head:15}  {config.backbone:22}  {sizes}  {reported}")
    if backbones:
        print(
            "\nImageNet backbones for --initial_checkpoint, in addition to imagenet (Keras' own):"
        )
        print("\n".join(backbones))


SECTIONS = (ListOptions,)
