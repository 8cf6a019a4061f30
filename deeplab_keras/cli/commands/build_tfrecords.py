r"""Writes a dataset as sharded TFRecords with the official DeepLab's feature names.

Writes several files in parallel and verifies each by reading it back. Run the same command again
to resume after an interruption. A manifest (classes, counts, checksums) and an index of the
records are written to the same folder. All scripts read the records with --dataset=tfrecord, or
with the dataset's own name, and with --dataset_dir set to the folder of the records.

    python scripts/build_tfrecords.py --dataset=voc2012 --dataset_dir=datasets/voc2012 \
        --splits=trainaug,val --output_dir=datasets/voc2012_records

    python scripts/build_tfrecords.py --output_dir=datasets/voc2012_records --splits=val --verify
"""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.cli import Command, load_keras
from deeplab_keras.config import Config, DataConfig, UserError, option


@dataclasses.dataclass(frozen=True)
class TFRecordsOptions(Config):
    """Which records to build, and where."""

    output_dir: str = option("", "folder for the records; created if it does not exist")
    splits: tuple[str, ...] = option(("train", "val"), "splits to build")
    num_shards: int = option(
        0, "number of files per split; 0: files of about 128 MB, at least four"
    )
    threads: int = option(0, "number of files to write in parallel; 0: one per core")
    overwrite: bool = option(False, "replaces records that were built from other files")
    verify: bool = option(False, "only verifies existing records against their manifest")

    def validate(self) -> None:
        """Requires a folder and a split, and checks the numbers."""
        self._require_given("output_dir", "a folder for the records")
        self._require_given("splits", "one or more splits, such as train,val")
        self._require(
            self.num_shards >= 0 and self.num_shards < 100000,
            "num_shards",
            "must be between 0 and 99999",
        )
        self._require(self.threads >= 0, "threads", "must be at least 0")


def main(command: Command) -> None:
    """Builds or verifies each split."""
    options, config = command.config(TFRecordsOptions), command.config(DataConfig)
    load_keras()

    from deeplab_keras.data.records.build import build_records, verify_records
    from deeplab_keras.data.records.tfrecords import find_records
    from deeplab_keras.data.registry import open_dataset

    folder = pathlib.Path(options.output_dir).expanduser()
    for split in options.splits:
        if options.verify:
            name, files = find_records(folder, split)
            if not files:
                raise UserError(
                    f"`output_dir={options.output_dir}`: no records of the split {split!r} here; "
                    "build them first, without `verify`"
                )
            pairs = verify_records(folder, name, files)
            command.summary.count(**{f"{split}_pairs": pairs, f"{split}_files": len(files)})
            print(f"{folder}/{name}: {pairs} pairs in {len(files)} files match the manifest")
            continue
        source = open_dataset(config.replace(cache=False), split)
        built = build_records(
            source,
            split,
            folder,
            num_shards=options.num_shards,
            threads=options.threads,
            overwrite=options.overwrite,
        )
        command.summary.count(**{f"{split}_pairs": built.pairs, f"{split}_files": built.shards})
        command.summary.wrote(folder)
        print(
            f"{folder}/{split}: {built.pairs} pairs in {built.shards} files, "
            f"{built.size / 2**20:.1f} MB"
        )


SECTIONS = (TFRecordsOptions, DataConfig)
