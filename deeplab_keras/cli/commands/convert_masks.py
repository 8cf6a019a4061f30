"""Makes index masks, grey PNGs of the class id of each pixel, out of masks of other forms.

What is there already is kept, so that a conversion that was stopped goes on. A file that can't be
converted is named and left out; the exit status is 1 then. Writes classes.txt beside the masks.

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
    "palette: palette PNGs as PASCAL VOC's; rgb: a colour a class; grey: a grey level a class; "
    "binary: black and white; "
    "cityscapes: labelIds to train ids; labelme: JSON files; index: ids, moved by --id_offset"
)

SHOWN = 10  # lines about files that are not converted


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """Which masks, and what becomes of them."""

    kind: str = option("", FORMS, flag="from")
    input: str = option("", "folder of masks, with folders in it")
    output: str = option("", "folder for the index masks")
    classes: str = option(
        "",
        "file of classes, a line 'name #rrggbb' each; or a dataset's: voc2012, cityscapes, "
        "camvid, ade20k_151",
    )
    id_offset: int = option(
        0, "with --from=index, is added to each id; what falls below 0 becomes 255, ignored"
    )
    overwrite: bool = option(False, "makes the masks anew that are there already")

    def validate(self) -> None:
        """Kind, input and output are needed."""
        self._require_given("kind", "palette, rgb, grey, binary, cityscapes, labelme or index")
        self._require_given("input", "a folder of masks")
        self._require_given("output", "a folder for the index masks")


def main(command: Command) -> None:
    """Converts and says how many."""
    options = command.config(Options)

    from deeplab_keras.data.annotations.masks import convert_masks

    result = convert_masks(
        options.kind,
        options.input,
        options.output,
        classes=options.classes,
        id_offset=options.id_offset,
        overwrite=options.overwrite,
    )
    kept = f", {result.kept} were there already" if result.kept else ""
    print(f"written: {result.converted} masks to {options.output}{kept}")
    if result.classes_file and (result.converted or result.kept):
        print(f"classes: {result.classes_file}; move it into the folder that --dataset_dir names")
    if result.failed:
        for line in result.failed[1:SHOWN]:
            print(f"not converted: {command.show(line)}", file=sys.stderr)
        raise UserError(
            f"{len(result.failed)} of the files in {options.input} are not converted: "
            f"{result.failed[0]}"
        )


SECTIONS = (Options,)
