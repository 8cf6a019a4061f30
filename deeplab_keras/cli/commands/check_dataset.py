r"""Reads a whole dataset and reports problems before you start training.

Finds unreadable and missing files, masks of the wrong size, ids that are not classes, and images
that are in two splits. Counts the pixels and images of each class, and the image sizes. Writes
report.html, report.json and contact_sheet.png to --output. The exit status is 1 if there are
problems.

With --checkpoint_dir, a trained model also looks for masks that are probably wrong, and the report
shows them, the most doubtful first. With --unlabeled, it ranks pictures without masks by how much
labeling them would teach it.

    python scripts/check_dataset.py --dataset=folder --dataset_dir=datasets/mine

    python scripts/check_dataset.py --dataset=voc2012 --dataset_dir=voc2012 --splits=trainaug,val

    python scripts/check_dataset.py --dataset=folder --dataset_dir=datasets/mine \
        --checkpoint_dir=runs/mine --unlabeled=new_photos
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deeplab_keras.cli import Command, load_keras, require_backend
from deeplab_keras.config import Config, DataConfig, EvalConfig, UserError, option

if TYPE_CHECKING:
    import numpy as np

    from deeplab_keras.inference import Predictor
    from deeplab_keras.visualization.dataset_report import Doubts


@dataclasses.dataclass(frozen=True)
class CheckOptions(Config):
    """What to check, and where to write the report."""

    splits: tuple[str, ...] = option(
        (), "splits to check, the training split first; default: --train_split and --eval_split"
    )
    output: str = option("", "folder for the report; default: runs/check_NAME")
    checkpoint_dir: str = option(
        "",
        "a trained model, which looks for masks that are probably wrong: a workdir, a checkpoint "
        "or the name of a model; the default dataset is that of the training run",
    )
    unlabeled: str = option(
        "",
        "a folder of pictures without masks; `checkpoint_dir` ranks them in unlabeled.csv by how "
        "much labeling them would teach it",
    )

    def validate(self) -> None:
        """Requires a model for unlabeled pictures."""
        self._require(
            bool(self.checkpoint_dir) or not self.unlabeled,
            "unlabeled",
            "needs `checkpoint_dir`, a trained model",
        )


def main(command: Command) -> None:
    """Checks the dataset, prints a summary, and writes the report."""
    options = command.config(CheckOptions)
    # A run records its dataset, and which images are its validation split.
    run = options.checkpoint_dir
    config = command.data_config(run) if run else command.config(DataConfig)
    command.config(EvalConfig)
    load_keras()

    from deeplab_keras.io.writing import check_folder

    name = os.path.basename(os.path.normpath(config.dataset_dir or config.dataset))
    folder = options.output or os.path.join("runs", f"check_{name}")
    splits = options.splits or (config.train_split, config.eval_split)
    check_folder(folder, "output")
    predictor = _predictor(command, options.checkpoint_dir) if options.checkpoint_dir else None

    from deeplab_keras.data.check import check_dataset
    from deeplab_keras.visualization.dataset_report import summary, write_report

    check = check_dataset(config, splits)
    print(command.show(summary(check)))
    doubts = [] if predictor is None or check.wrong else list(_audit(predictor, config, splits))
    page = write_report(check, folder, doubts)
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
    if predictor is not None and options.unlabeled:
        _rank(command, predictor, options.unlabeled, folder)
    if check.wrong:
        count = max(len(check.problems), 1)
        problems = (
            f"{count} problems; {page} shows them" if count > 1 else f"1 problem; {page} shows it"
        )
        first = "; the model looks at the masks once they are fixed" if predictor else ""
        raise UserError(f"--dataset_dir={config.dataset_dir}: {problems}{first}")


def _predictor(command: Command, checkpoint_dir: str) -> Predictor:
    require_backend(command)

    from deeplab_keras.inference import Predictor

    return Predictor(command.checkpoint(checkpoint_dir), command.config(EvalConfig))


def _audit(predictor: Predictor, config: DataConfig, splits: tuple[str, ...]) -> Iterator[Doubts]:
    """Yields what the model finds in each split, and prints its first lines."""
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.evaluation.audit import audit_labels
    from deeplab_keras.evaluation.audit_page import describe, table

    for split in dict.fromkeys(splits):
        source = open_dataset(config, split)
        audit = audit_labels(predictor.network, source, predictor.config, split=split)
        print(table(audit))
        yield describe(audit, predictor, source)


def _rank(command: Command, predictor: Predictor, unlabeled: str, folder: str) -> None:
    """Writes unlabeled.csv and prints its first lines."""
    from deeplab_keras.data.files.reading import read_image
    from deeplab_keras.evaluation.audit import rank_unlabeled
    from deeplab_keras.evaluation.audit_page import LINES, ranking_csv
    from deeplab_keras.io.progress import Progress
    from deeplab_keras.io.writing import write_text
    from deeplab_keras.prediction.inputs import find_inputs

    inputs = [item for item in find_inputs(unlabeled) if item.kind == "image"]
    progress = Progress(len(inputs), "ranking")

    def images() -> Iterator[tuple[str, np.ndarray]]:
        for done, item in enumerate(inputs, 1):
            try:
                yield item.name, read_image(item.path)
            except UserError as error:
                command.summary.failures[item.name] = command.show(error.text)
            progress.update(done)

    ranking = rank_unlabeled(predictor.network, images(), predictor.config)
    path = os.path.join(folder, "unlabeled.csv")
    write_text(path, ranking_csv(ranking))
    print(f"{len(ranking)} pictures without masks; label these first:")
    for name, score in ranking[:LINES]:
        print(f"  {name}: {score:.3f}")
    print(f"written: {path}")
    command.summary.count(ranked=len(ranking))


SECTIONS = (CheckOptions, DataConfig, EvalConfig)
