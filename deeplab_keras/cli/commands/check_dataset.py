"""Reads a whole dataset and reports problems before you start training.

Finds unreadable and missing files, masks of the wrong size, ids that are not classes, and images
that are in two splits. Counts the pixels and images of each class, and the image sizes. Writes
report.html, report.json and contact_sheet.png to --output. The exit status is 1 if there are
problems.

    python scripts/check_dataset.py --dataset=folder --dataset_dir=datasets/mine

    python scripts/check_dataset.py --dataset=voc2012 --dataset_dir=voc2012 --splits=trainaug,val
"""

from __future__ import annotations

import dataclasses
import os

from deeplab_keras.cli import Command
from deeplab_keras.config import Config, DataConfig, UserError, option


@dataclasses.dataclass(frozen=True)
class CheckOptions(Config):
    """What to check, and where to write the report."""

    splits: tuple[str, ...] = option(
        (), "splits to check, the training split first; default: --train_split and --eval_split"
    )
    output: str = option("", "folder for the report; default: runs/check_NAME")


def main(command: Command) -> None:
    """Checks the dataset, prints a summary, and writes the report."""
    options, config = command.config(CheckOptions), command.config(DataConfig)
    name = os.path.basename(os.path.normpath(config.dataset_dir or config.dataset))

    from deeplab_keras.data.check import check_dataset
    from deeplab_keras.visualization.dataset_report import summary, write_report

    check = check_dataset(config, options.splits or (config.train_split, config.eval_split))
    print(command.show(summary(check)))
    page = write_report(check, options.output or os.path.join("runs", f"check_{name}"))
    print(f"written: {page}")
    command.summary.count(
        problems=len(check.problems),
        **{f"{split.name}_pairs": split.pairs for split in check.splits},
    )
    command.summary.wrote(page.parent)
    for number, problem in enumerate(check.problems, 1):
        command.summary.failures[f"{problem.split} {number}: {problem.kind}"] = command.show(
            problem.message
        )
    if check.wrong:
        count = max(len(check.problems), 1)
        problems = (
            f"{count} problems; {page} shows them" if count > 1 else f"1 problem; {page} shows it"
        )
        raise UserError(f"--dataset_dir={config.dataset_dir}: {problems}")


SECTIONS = (CheckOptions, DataConfig)
