r"""Exports a trained network for other runtimes; each file is checked against Keras.

    python scripts/export_model.py --checkpoint_dir=runs/demo --export_path=runs/demo/export \
        --formats=saved_model,tflite,tflite_int8 --input_size=160,160
"""

from __future__ import annotations

import dataclasses

from deeplab_keras.config import Config, DataConfig, UserError, option
from deeplab_keras.flags import Command, run


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What to export, and how."""

    checkpoint_dir: str = option("", "a workdir (its best checkpoint) or a checkpoint folder")
    export_path: str = option("", "folder for the files; for one format also the name of a .tflite or .onnx file")
    formats: tuple[str, ...] = option(
        ("saved_model", "tflite"), "saved_model, tflite, tflite_float16, tflite_dynamic, tflite_int8, onnx"
    )
    input_size: tuple[int, ...] = option((), "height,width that TFLite and ONNX files take")
    output: str = option("labels", "what the files give", choices=("labels", "logits", "both"))
    representative_dir: str = option("", "pictures from which tflite_int8 gets its ranges; default: the training split")
    min_agreement: float | None = option(
        None, "share of the pixels whose label must be Keras' own; default: 0.995, for 8-bit files 0"
    )
    overwrite: bool = option(False, "replaces files of an earlier export")
    threads: int = option(2, "threads of the runtimes in the check")

    def validate(self) -> None:
        """A checkpoint and a place are needed."""
        self._require(bool(self.checkpoint_dir), "checkpoint_dir", "is needed: the --train_logdir of a training")
        self._require(bool(self.export_path), "export_path", "is needed: a folder for the files")
        self._require(len(self.input_size) in (0, 2), "input_size", "two numbers: height,width")
        self._require(self.threads >= 1, "threads", "at least 1")


def main(command: Command) -> None:
    """Exports; images of the dataset, where it can be opened, serve for the check and the ranges of int8."""
    options = command.config(Options)
    data_config = command.data_config(options.checkpoint_dir)

    from deeplab_keras import data, export
    from deeplab_keras.checkpoints.folder import find_checkpoint, read_info

    def pictures(split: str) -> data.Source:
        source = data.open_dataset(data_config, split)
        classes = read_info(find_checkpoint(options.checkpoint_dir)).class_names
        if "dataset" not in command.given(DataConfig) and source.info.class_names != classes:
            raise UserError(
                "the checkpoint does not say where its pictures are; give --dataset and --dataset_dir, "
                "and for tflite_int8 those or --representative_dir"
            )
        return source

    representative: data.Source | str | None = options.representative_dir or None
    if representative is None and "tflite_int8" in options.formats:
        representative = pictures(data_config.train_split)
    check = None
    try:
        check = pictures(data_config.eval_split)
    except UserError as error:
        print(f"the check is made on artificial pictures, because: {error}")
    size = (options.input_size[0], options.input_size[1]) if options.input_size else None
    export.export_model(
        options.checkpoint_dir, options.export_path, formats=options.formats, input_size=size, output=options.output,
        representative_images=representative, check_images=check, min_agreement=options.min_agreement,
        overwrite=options.overwrite, threads=options.threads,
    )  # fmt: skip


if __name__ == "__main__":
    run(__doc__, main, Options, DataConfig)
