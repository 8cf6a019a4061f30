"""Measures a trained network on a split of a dataset: mIoU, IoU of each class, accuracies.

Writes metrics.json to --eval_logdir. The dataset is the one of the training, unless flags name
another.

    python scripts/eval.py --checkpoint_dir=runs/demo

    python scripts/eval.py --checkpoint_dir=runs/mine --eval_scales=0.75,1,1.25 --add_flipped_images
"""

from __future__ import annotations

import dataclasses
import pathlib

from deeplab_keras.config import Config, DataConfig, EvalConfig, option
from deeplab_keras.flags import Command, run


@dataclasses.dataclass(frozen=True)
class Options(Config):
    """What to measure, and where the result goes."""

    checkpoint_dir: str = option("", "a workdir (its best checkpoint) or a checkpoint folder")
    eval_logdir: str = option("", "folder for metrics.json; default: eval_SPLIT in --checkpoint_dir")

    def validate(self) -> None:
        """A checkpoint is needed."""
        self._require(bool(self.checkpoint_dir), "checkpoint_dir", "is needed: the --train_logdir of a training")


def main(command: Command) -> None:
    """Evaluates, prints the table, writes metrics.json."""
    options, eval_config = command.config(Options), command.config(EvalConfig)
    data_config = command.data_config(options.checkpoint_dir)
    split = data_config.eval_split

    from deeplab_keras import data, evaluation
    from deeplab_keras.checkpoints.folder import load_checkpoint

    checkpoint = load_checkpoint(options.checkpoint_dir)
    source = data.open_dataset(data_config, split)
    name = checkpoint.config.name or checkpoint.model.name
    report = evaluation.evaluate(checkpoint.model, source, eval_config, model_name=name, split=split)
    path = pathlib.Path(options.eval_logdir or pathlib.Path(options.checkpoint_dir) / f"eval_{split}") / "metrics.json"
    report.save(path)
    print(report.table())
    print(f"written: {path}")


if __name__ == "__main__":
    run(__doc__, main, Options, EvalConfig, DataConfig)
