r"""Trains a network, and writes everything needed to resume and to use it to --train_logdir.

Run the same command again to resume an interrupted run. A recipe is a flagfile under configs/;
flags after it override it. A run that starts from a checkpoint has the checkpoint's architecture,
unless --model names another, but not its batch norm momenta.

    python scripts/train.py --flagfile=configs/synthetic/demo.flags --train_logdir=runs/demo

    python scripts/train.py --model=deeplabv3plus_mobilenetv2os8_voc --initial_checkpoint=imagenet \
        --dataset=folder --dataset_dir=datasets/mine --epochs=50 --train_logdir=runs/mine
"""

from __future__ import annotations

import os

from deeplab_keras.cli import Command, require_backend
from deeplab_keras.cli.official import TrainFlags, find_step
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, TrainConfig, UserError


def main(command: Command) -> None:
    """Trains, and prints the result."""
    command.refuse("num_classes", "the dataset determines the number of classes")
    data_config, train_config = command.config(DataConfig), command.config(TrainConfig)
    eval_config = command.config(EvalConfig)
    if not train_config.train_logdir:
        raise UserError("`train_logdir` is required: a folder for the run, such as runs/first")
    require_backend(command)

    from deeplab_keras.convert.initial import start_config
    from deeplab_keras.convert.official_files import is_official_file
    from deeplab_keras.training import train as trainer
    from deeplab_keras.zoo.loading import initial_weights

    start = find_step(train_config.tf_initial_checkpoint or "")
    if train_config.tf_initial_checkpoint:
        train_config = train_config.replace(tf_initial_checkpoint=start)
    start = initial_weights(start)
    ours = os.path.isdir(start) and not is_official_file(start)
    # An official command line describes its model completely.
    base = start_config(start) if ours and not command.official else None
    model_config = command.model_config(base)
    report = trainer.train(
        model_config, data_config, train_config, eval_config, flags_text=command.text()
    )
    if report is not None:  # otherwise SIGTERM has stopped the run, which is not a failure
        print(report.table())
        page = (
            f"; open {os.path.join(train_config.train_logdir, 'report.html')}"
            if train_config.html_report
            else ""
        )
        print(f"written: {train_config.train_logdir}{page}")
        command.summary.count(evaluated_images=report.images)
    command.summary.wrote(train_config.train_logdir)


SECTIONS = (TrainConfig, DataConfig, EvalConfig, ModelConfig, TrainFlags)
