r"""Converts weights of other projects, or writes a checkpoint as a .pth file of SSSegmentation.

Stops at a tensor that is missing, unused, or has another shape. Prints the destination of each
tensor, and the result of two checks: every tensor is compared bit for bit with the model's, and
the labels and logits of a frozen graph or .tflite file are compared with the model's.

    python scripts/convert_checkpoint.py --source=sssegmentation \
        --model=deeplabv3_mobilenetv2os8_voc \
        --checkpoint=deeplabv3_mobilenetv2os8_voc.pth --output=converted/voc

    python scripts/convert_checkpoint.py --source=sssegmentation \
        --model=deeplabv3_mobilenetv2os8_voc \
        --num_classes=11 --checkpoint=deeplabv3_mobilenetv2os8_voc.pth --output=converted/start

    python scripts/convert_checkpoint.py --source=official_deeplab \
        --model=deeplabv3_mnv2_dm05_pascal_trainval --checkpoint=deeplabv3.tflite \
        --restore_batch_norm=photographs --output=converted/voc

    python scripts/convert_checkpoint.py --source=torchvision \
        --flagfile=configs/base/torchvision_lraspp_mobilenet_v3_large.flags \
        --checkpoint=lraspp_mobilenet_v3_large-d234d4ea.pth --output=converted/lraspp

    python scripts/convert_checkpoint.py --to=sssegmentation \
        --checkpoint_dir=runs/first --output=first.pth
"""

from __future__ import annotations

import dataclasses
from typing import Any

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, ModelConfig, UserError, option


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(Config):
    """What to convert, and where to write the result."""

    source: str = option(
        "",
        "project of the weights: sssegmentation (.pth, also OpenMMLab's ImageNet files), "
        "official_deeplab (TF1 checkpoint, release archive, frozen graph, .tflite), torchvision "
        "(.pth) or keras_applications (.h5)",
    )
    to: str = option(
        "", "writes weights for another project: sssegmentation", choices=("", "sssegmentation")
    )
    checkpoint: str = option("", "file to convert")
    checkpoint_dir: str = option("", "with --to: checkpoint folder or workdir to convert")
    check: bool = option(
        True,
        "runs a frozen graph or .tflite file and the new model on the same images, and refuses "
        "to convert if they differ",
    )
    check_photos: str = option(
        "",
        "folder of photographs for this comparison, resized to the size of the file; default: "
        "synthetic images, on which 8-bit files agree less with the new model",
    )
    restore_batch_norm: str = option(
        "",
        "folder of at least 16 images, such as those for training, on which the statistics of "
        "batch norm that was folded into the convolutions are measured. The outputs do not change, "
        "and the model can be trained with updated statistics",
    )
    output: str = option("", "new checkpoint folder; with --to: new .pth file")
    class_names: tuple[str, ...] = option(
        (), "names of the classes; default: those of the model's dataset"
    )

    def validate(self) -> None:
        """Requires one direction, its input and its output."""
        self._require(
            bool(self.source) != bool(self.to),
            "source",
            "or `to` is required, but not both",
        )
        needed = "checkpoint_dir" if self.to else "checkpoint"
        self._require_given(needed, "the weights to convert")
        for name in ("check_photos", "restore_batch_norm"):
            self._require(
                not (self.to and getattr(self, name)), name, "cannot be combined with `to`"
            )
        self._require(
            self.check or not self.check_photos, "check_photos", "has no effect without `check`"
        )
        self._require_given("output", "where to write the result")


def main(command: Command) -> None:
    """Converts the weights, and prints the destination of each tensor."""
    options, given = command.config(CheckpointOptions), command.given(ModelConfig)
    if not given and not options.to:
        raise UserError(
            "`name` is required: a model of `scripts/list_models.py`, or give the model flags "
            "instead"
        )
    from deeplab_keras.convert.pictures import find_for_comparison, find_for_statistics

    photos: Any = None  # both are checked before Keras is imported
    images: Any = None
    if options.check_photos:
        photos = find_for_comparison(options.check_photos)
    if options.restore_batch_norm:
        images = find_for_statistics(options.restore_batch_norm)
    load_keras()

    from deeplab_keras.checkpoints.folder import check_replaceable, save_checkpoint
    from deeplab_keras.convert.conversion import convert, dataset_info, write_sssegmentation
    from deeplab_keras.zoo import registry as zoo
    from deeplab_keras.zoo.loading import checkpoint_folder

    if options.to:
        checkpoint = checkpoint_folder(options.checkpoint_dir)
        proof = write_sssegmentation(checkpoint, options.output, zoo.SSSEGMENTATION)
        print(f"{proof.table()}\n{proof}\nwritten: {options.output}")
        command.summary.wrote(options.output)
        return
    config = command.model_config()
    info = dataset_info(config, options.class_names, options.source)
    check_replaceable(options.output)
    model, proof = convert(
        options.source,
        options.checkpoint,
        config,
        skip_mismatched_classifiers="num_classes" in given,
        check=options.check,
        check_photos=photos,
        restore_batch_norm=images,
    )
    print(f"{proof.table()}\n{proof}")
    folder = save_checkpoint(options.output, model, config, info)
    print(f"written: {folder}")
    command.summary.wrote(folder)


SECTIONS = (CheckpointOptions, ModelConfig)
