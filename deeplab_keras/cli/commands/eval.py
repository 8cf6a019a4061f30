"""Evaluates a trained network on a split of a dataset: mIoU, per-class IoU, accuracies.

Writes metrics.json, .csv and .md, and report.html with the best and worst images, to
--eval_logdir. The default dataset is that of the training run.

    python scripts/eval.py --checkpoint_dir=runs/demo

    python scripts/eval.py --checkpoint_dir=runs/mine --eval_scales=0.75,1,1.25 --add_flipped_images

    python scripts/eval.py --compare=runs/mine,runs/other
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib

from deeplab_keras.cli import Command, require_backend
from deeplab_keras.cli.official import EvalFlags
from deeplab_keras.config import Config, DataConfig, EvalConfig, option

RESULTS = ("metrics.json", "metrics.csv", "metrics.md")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions(Config):
    """What to evaluate, and where to write the results."""

    checkpoint_dir: str = option(
        "", "a workdir (for its best checkpoint), a checkpoint folder, or the name of a model"
    )
    eval_logdir: str = option("", "folder for the results; default: eval_SPLIT in --checkpoint_dir")
    details: bool = option(
        True, "also computes boundary IoU and calibration error, and writes report.html"
    )
    compare: tuple[str, ...] = option(
        (), "two checkpoints to compare, with a confidence interval of their difference"
    )
    eval_devices: int = option(0, "number of GPUs to use; 0: all")

    def validate(self) -> None:
        """Requires one checkpoint, or two to compare."""
        self._require(
            len(self.compare) in (0, 2), "compare", "must be two checkpoints, separated by a comma"
        )
        if not self.compare:
            self._require_given("checkpoint_dir", "a workdir; or two checkpoints in `compare`")
        self._require(
            not (self.checkpoint_dir and self.compare),
            "compare",
            "cannot be combined with `checkpoint_dir`",
        )
        self._require(self.eval_devices >= 0, "eval_devices", "must be at least 0")


def main(command: Command) -> None:
    """Evaluates, prints the table, and writes the results."""
    options, eval_config = command.config(EvaluationOptions), command.config(EvalConfig)
    data_config = command.data_config([*options.compare, options.checkpoint_dir][0])
    split = data_config.eval_split
    require_backend(command)

    from deeplab_keras.checkpoints.folder import read_info
    from deeplab_keras.data.registry import open_dataset
    from deeplab_keras.evaluation.classes import check_classes
    from deeplab_keras.evaluation.compare import compare
    from deeplab_keras.evaluation.detail import Details
    from deeplab_keras.evaluation.loop import evaluate, find_devices
    from deeplab_keras.evaluation.output import write_report
    from deeplab_keras.evaluation.report import Report
    from deeplab_keras.inference import Predictor
    from deeplab_keras.io.writing import check_folder
    from deeplab_keras.zoo.loading import checkpoint_folder, open_checkpoint, results_folder

    workdir = results_folder(options.checkpoint_dir)
    folder = pathlib.Path(options.eval_logdir or workdir / f"eval_{split}")
    devices = find_devices(options.eval_devices)
    paths = [command.checkpoint(path) for path in options.compare or [options.checkpoint_dir]]
    trained = {path: read_info(checkpoint_folder(path)) for path in paths}
    if not options.compare:
        check_folder(folder, "eval_logdir")
    source = open_dataset(data_config, split)
    for path, info in trained.items():  # both before the first evaluation, which takes minutes
        check_classes(path, info, source.info)
    evaluate_model = functools.partial(
        evaluate, source=source, config=eval_config, split=split, devices=devices
    )

    def measure(path: str, details: Details | None) -> tuple[Report, Predictor]:
        checkpoint = command.official_network(open_checkpoint(path))
        predictor, name = (
            Predictor(checkpoint.model, eval_config),
            checkpoint.config.name or checkpoint.model.name,
        )
        return evaluate_model(predictor.network, model_name=name, details=details), predictor

    if options.compare:
        found = [Details(source.info, boundaries=False) for _ in options.compare]
        reports = [measure(path, details)[0] for path, details in zip(paths, found, strict=True)]
        (first, second), result = options.compare, compare(found[0].images, found[1].images)
        command.summary.count(images=len(found[0].images))
        print(result.table(first, second, list(reports[0].per_class_iou)))
        return
    details = Details(source.info) if options.details else None
    report, predictor = measure(paths[0], details)
    write_report(folder, report, details, predictor, source, training_csv=workdir / "training.csv")
    command.summary.count(images=report.images)
    names = [*RESULTS, *(["report.html"] if options.details else [])]
    command.summary.wrote(*(folder / name for name in names))
    print(report.table())
    page = f", {folder / 'report.html'}" if options.details else ""
    print(f"written: {folder / 'metrics.json'}{page}")


SECTIONS = (EvaluationOptions, EvalConfig, DataConfig, EvalFlags)
