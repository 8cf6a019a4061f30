r"""Exports a trained network for other runtimes; each file is checked against Keras.

    python scripts/export_model.py --checkpoint_dir=runs/demo --export_path=runs/demo/export \
        --formats=saved_model,tflite,tflite_int8 --input_size=160,160
"""

from __future__ import annotations

import pathlib

from deeplab_keras.cli import Command, require_backend
from deeplab_keras.cli.official import ExportFlags
from deeplab_keras.config import DataConfig, ExportConfig, UserError


def main(command: Command) -> None:
    """Exports; the dataset, if it can be opened, provides images for the check and int8 ranges."""
    config = command.config(ExportConfig)
    config.require("checkpoint_dir", "export_path")
    data_config = command.data_config(config.checkpoint_dir)
    require_backend(command, ("tensorflow",))

    from deeplab_keras import export
    from deeplab_keras.checkpoints.folder import load_checkpoint, read_info
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.data.source import Source
    from deeplab_keras.zoo.loading import checkpoint_folder

    # Errors in these two options are reported before the dataset is opened.
    export.request.targets(pathlib.Path(config.export_path), list(config.formats), config.overwrite)
    checkpoint = checkpoint_folder(command.checkpoint(config.checkpoint_dir))

    def images(split: str) -> Source:
        source = open_dataset(data_config, split)
        classes = read_info(checkpoint).class_names
        if "dataset" not in command.given(DataConfig) and source.info.class_names != classes:
            raise UserError(
                "the checkpoint does not record its dataset; give --dataset and --dataset_dir, or "
                "for the ranges of tflite_int8 --representative_dir"
            )
        return source

    representative = None
    needs_ranges = {"tflite_int8", "tflite_mixed"} & set(config.formats)
    if needs_ranges and not config.representative_dir:
        representative = images(data_config.train_split)
    check = None
    try:
        check = images(data_config.eval_split)
    except UserError as error:
        print(f"checking on synthetic images: {command.show(error.text)}")
    files = export.export_model(
        command.official_network(load_checkpoint(checkpoint)) if command.official else checkpoint,
        config=config,
        representative_images=representative,
        check_images=check,
    )
    command.summary.count(files=len(files))
    command.summary.wrote(*(file.path for file in files))


SECTIONS = (ExportConfig, DataConfig, ExportFlags)
