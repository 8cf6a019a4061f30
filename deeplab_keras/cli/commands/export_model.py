r"""Exports a trained network for other runtimes; each file is checked against Keras.

    python scripts/export_model.py --checkpoint_dir=runs/demo --export_path=runs/demo/export \
        --formats=saved_model,tflite,tflite_int8 --input_size=160,160
"""

from __future__ import annotations

import pathlib

from deeplab_keras.cli import Command, require_tensorflow
from deeplab_keras.config import DataConfig, ExportConfig, UserError


def main(command: Command) -> None:
    """Exports; images of the dataset, where it can be opened, serve for the check and the ranges of int8."""
    options = command.config(ExportConfig)
    data_config = command.data_config(options.checkpoint_dir)
    require_tensorflow(command)

    from deeplab_keras import export
    from deeplab_keras.checkpoints.folder import find_checkpoint, read_info
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.data.source import Source

    export.request.targets(
        pathlib.Path(options.export_path), list(options.formats), options.overwrite
    )
    checkpoint = find_checkpoint(
        options.checkpoint_dir
    )  # a mistake there says nothing of the pictures

    def pictures(split: str) -> Source:
        source = open_dataset(data_config, split)
        classes = read_info(checkpoint).class_names
        if "dataset" not in command.given(DataConfig) and source.info.class_names != classes:
            raise UserError(
                "the checkpoint does not say where its pictures are; give --dataset and "
                "--dataset_dir, "
                "and for tflite_int8 those or --representative_dir"
            )
        return source

    representative: Source | str | None = options.representative_dir or None
    if representative is None and {"tflite_int8", "tflite_mixed"} & set(options.formats):
        representative = pictures(data_config.train_split)
    check = None
    try:
        check = pictures(data_config.eval_split)
    except UserError as error:
        print(f"the check is made on artificial pictures, because: {command.show(error.text)}")
    size = (options.input_size[0], options.input_size[1]) if options.input_size else None
    export.export_model(
        options.checkpoint_dir,
        options.export_path,
        formats=options.formats,
        input_size=size,
        output=options.output,
        label_type=options.label_type,
        representative_images=representative,
        check_images=check,
        checked=options.check_images,
        min_agreement=options.min_agreement,
        max_miou_loss=options.max_miou_loss,
        mixed_agreement=options.mixed_agreement,
        half_pixel_resizes=options.half_pixel_resizes,
        keep_concatenations=options.keep_concatenations,
        overwrite=options.overwrite,
        threads=options.threads,
    )


SECTIONS = (ExportConfig, DataConfig)
