r"""Writes a dataset as sharded TFRecords with the official DeepLab's feature names.

Several files are written at once, each is read back before it counts, and the same command given
again goes on where it stopped. Beside the records lie a manifest (classes, counts, checksums) and
an index of where each record begins. Every script reads the records with --dataset=tfrecord, or
under their dataset's own name, --dataset_dir being their folder.

    python scripts/build_tfrecords.py --dataset=voc2012 --dataset_dir=datasets/voc2012 \
        --splits=trainaug,val --output_dir=datasets/voc2012_records

    python scripts/build_tfrecords.py --output_dir=datasets/voc2012_records --splits=val --verify
"""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, DataConfig, UserError, option


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What is built, and where."""

    output_dir: str = option("", "folder of the records; made if it is not there")
    splits: tuple[str, ...] = option(("train", "val"), "splits to build")
    num_shards: int = option(
        0, "files a split; 0: as many as are about 128 MB each, but four at least"
    )
    threads: int = option(0, "files written at once; 0: one a core")
    overwrite: bool = option(False, "replaces records that were built of other files")
    verify: bool = option(
        False, "builds nothing, but reads the records and compares them with their manifest"
    )

    def validate(self) -> None:
        self._require(
            self.num_shards >= 0 and self.num_shards < 100000,
            "num_shards",
            "must be between 0 and 99999",
        )
        self._require(self.threads >= 0, "threads", "must be at least 0")


def main(command: Command) -> None:
    """Builds or verifies the splits one after another."""
    options, config = command.config(Options), command.config(DataConfig)
    if not options.output_dir:
        raise UserError("--output_dir=FOLDER is needed, the folder that the records are written to")

    from deeplab_keras.data.records.build import build_records, verify_records
    from deeplab_keras.data.records.tfrecords import find_records
    from deeplab_keras.data.registry import open_dataset

    for split in options.splits:
        folder = pathlib.Path(options.output_dir).expanduser()
        if options.verify:
            name, files = find_records(folder, split)
            if not files:
                raise UserError(
                    f"--output_dir={options.output_dir}: there are no records of the split "
                    f"{split!r}"
                )
            print(
                f"{folder}/{name}: {verify_records(folder, name, files)} pairs in {len(files)} "
                "files, as the manifest says"
            )
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
        print(
            f"{folder}/{split}: {built.pairs} pairs in {built.shards} files, "
            f"{built.size / 2**20:.1f} MB"
        )


SECTIONS = (Options, DataConfig)
