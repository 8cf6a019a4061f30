"""Converts the export of a labeling tool, or masks of another form, to masks of class ids.

An export of COCO, CVAT, Label Studio, Roboflow or YOLO becomes a dataset for --dataset=folder:
images/SPLIT, labels/SPLIT and classes.txt. A folder of masks becomes a folder of index masks: gray
PNGs that hold the class id of each pixel, and classes.txt. The form is recognized unless --from
gives it.

Masks that already exist are kept, so an interrupted conversion can be resumed. Files that cannot be
converted are listed and skipped, and the exit status is 1.

    python scripts/convert_masks.py --input=export.zip --output=datasets/mine

    python scripts/convert_masks.py --from=palette --input=VOC2012/SegmentationClass --output=ids

    python scripts/convert_masks.py --from=rgb --classes=classes.txt --input=drawn --output=labels

    python scripts/convert_masks.py --from=labelme --input=json --output=datasets/mine/labels/train
"""

from __future__ import annotations

import dataclasses
import os
import sys

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, UserError, option

FORMS = (
    "form of the input; empty: recognized. Exports: coco, coco_panoptic, cvat (XML for images "
    "1.1), cvat_masks (Segmentation mask 1.1), label_studio, roboflow_masks, yolo. Masks; palette: "
    "palette PNGs, as in PASCAL VOC; rgb: one color per class; gray: one gray level per class; "
    "binary: black and white; cityscapes: labelIds to train ids; labelme: JSON files; index: class "
    "ids, shifted by --id_offset"
)

SHOWN = 10  # failed files that are listed


@dataclasses.dataclass(frozen=True)
class MasksOptions(Config):
    """Which masks to convert, and how."""

    kind: str = option("", FORMS, flag="from", aliases={"grey": "gray"})
    input: str = option(
        "", "an export: a folder, a .zip or a single file; or a folder of masks, with subfolders"
    )
    output: str = option("", "folder for the dataset, or for the index masks")
    classes: str = option(
        "",
        "file of classes, one line 'name #rrggbb' each; or the classes of a dataset: voc2012, "
        "cityscapes, camvid, ade20k_151",
    )
    images: str = option("", "folder of the images, if they are not in the export")
    overlap: str = option(
        "file",
        "how overlapping objects are drawn: file: later ones cover earlier ones; area: smaller "
        "ones cover larger ones",
        choices=("file", "area"),
    )
    crowd: str = option(
        "ignore",
        "what objects marked as iscrowd become: ignore: the ignore label, 255; class: objects",
        choices=("ignore", "class"),
    )
    id_offset: int = option(
        0, "added to each id with --from=index; negative results become 255, the ignore label"
    )
    overwrite: bool = option(False, "converts masks again that already exist")

    def validate(self) -> None:
        """Checks that input and output are given."""
        self._require_given("input", "an export, or a folder of masks")
        self._require_given("output", "a folder for the dataset, or for the index masks")


def main(command: Command) -> None:
    """Converts the masks and prints how many were written."""
    options = command.config(MasksOptions)
    load_keras()

    from deeplab_keras.data.annotations.convert import convert_annotations

    result = convert_annotations(
        options.input,
        options.output,
        kind=options.kind,
        classes=options.classes,
        images=options.images,
        overlap=options.overlap,
        crowd=options.crowd,
        id_offset=options.id_offset,
        overwrite=options.overwrite,
    )
    failures = {path: command.show(line) for path, line in result.failures.items()}
    command.summary.count(converted=result.converted, kept=result.kept, failed=len(failures))
    command.summary.failures |= failures
    command.summary.wrote(options.output)
    if result.recognized:
        print(f"recognized: {result.recognized}")
    for note in result.notes:
        print(f"note: {command.show(note)}")
    kept = f", {result.kept} already existed" if result.kept else ""
    print(f"written: {result.converted} masks to {options.output}{kept}")
    if result.images:
        alone = "train" in result.splits and "val" not in result.splits
        split = " --val_fraction=0.2" if alone else ""  # training needs a validation split
        print(f"ready: --dataset=folder --dataset_dir={options.output}{split}")
    elif result.classes_file and not result.splits and (result.converted or result.kept):
        print(_next_step(options.output))
    if result.failed:
        for line in result.failed[1:SHOWN]:
            print(f"not converted: {command.show(line)}", file=sys.stderr)
        raise UserError(
            f"{len(result.failed)} of the files in {options.input} could not be converted: "
            f"{result.failed[0]}"
        )


def _next_step(masks: str) -> str:
    """Returns what to do with a folder of index masks, in one line."""
    from deeplab_keras.data.datasets.folder_layout import image_folder
    from deeplab_keras.data.files.tree import Tree

    home, name = os.path.split(os.path.abspath(masks))
    if name == "labels" and image_folder(Tree(home)):
        return f"ready: --dataset=folder --dataset_dir={home}"
    return f"next: move {masks} to labels/ in the folder that has the images in images/"


SECTIONS = (MasksOptions,)
