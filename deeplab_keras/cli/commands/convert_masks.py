"""Converts masks to index masks: gray PNGs that hold the class id of each pixel.

Masks that already exist are kept, so an interrupted conversion can be resumed. Files that cannot be
converted are listed and skipped, and the exit status is 1. Also writes classes.txt next to the
masks.

    python scripts/convert_masks.py --from=palette --input=VOC2012/SegmentationClass --output=ids

    python scripts/convert_masks.py --from=rgb --classes=classes.txt --input=drawn --output=labels

    python scripts/convert_masks.py --from=labelme --input=json --output=datasets/mine/labels/train
"""

from __future__ import annotations

import dataclasses
import sys

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, UserError, option

FORMS = (
    "form of the masks; palette: palette PNGs, as in PASCAL VOC; rgb: one color per class; gray: "
    "one gray level per class; binary: black and white; cityscapes: labelIds to train ids; "
    "labelme: JSON files; index: class ids, shifted by --id_offset"
)

SHOWN = 10  # failed files that are listed


@dataclasses.dataclass(frozen=True)
class MasksOptions(Config):
    """Which masks to convert, and how."""

    kind: str = option("", FORMS, flag="from", aliases={"grey": "gray"})
    input: str = option("", "folder of masks, searched recursively")
    output: str = option("", "folder for the index masks")
    classes: str = option(
        "",
        "file of classes, one line 'name #rrggbb' each; or the classes of a dataset: voc2012, "
        "cityscapes, camvid, ade20k_151",
    )
    id_offset: int = option(
        0, "added to each id with --from=index; negative results become 255, the ignore label"
    )
    overwrite: bool = option(False, "converts masks again that already exist")

    def validate(self) -> None:
        """Checks that kind, input and output are given."""
        self._require_given("kind", "palette, rgb, gray, binary, cityscapes, labelme or index")
        self._require_given("input", "a folder of masks")
        self._require_given("output", "a folder for the index masks")


def main(command: Command) -> None:
    """Converts the masks and prints how many were written."""
    options = command.config(MasksOptions)

    from deeplab_keras.data.annotations.masks import convert_masks

    result = convert_masks(
        options.kind,
        options.input,
        options.output,
        classes=options.classes,
        id_offset=options.id_offset,
        overwrite=options.overwrite,
    )
    failures = {path: command.show(line) for path, line in result.failures.items()}
    command.summary.count(converted=result.converted, kept=result.kept, failed=len(failures))
    command.summary.failures |= failures
    command.summary.wrote(options.output)
    kept = f", {result.kept} already existed" if result.kept else ""
    print(f"written: {result.converted} masks to {options.output}{kept}")
    if result.classes_file and (result.converted or result.kept):
        print(f"classes: {result.classes_file}; move it into the folder that --dataset_dir names")
    if result.failed:
        for line in result.failed[1:SHOWN]:
            print(f"not converted: {command.show(line)}", file=sys.stderr)
        raise UserError(
            f"{len(result.failed)} of the files in {options.input} could not be converted: "
            f"{result.failed[0]}"
        )


SECTIONS = (MasksOptions,)
