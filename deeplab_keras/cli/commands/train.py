r"""Trains a network; the run's folder, --train_logdir, holds all that is needed to go on and to use it.

The same command given again goes on where the run stopped. A recipe is a flagfile under configs/;
flags after it change it. A run that starts from a checkpoint has its architecture, unless --model
names another, but not the batch norm momenta of its training.

    python scripts/train.py --flagfile=configs/synthetic/demo.flags --train_logdir=runs/demo

    python scripts/train.py --model=deeplabv3plus_mobilenetv2os8_voc --initial_checkpoint=imagenet \
        --dataset=folder --dataset_dir=datasets/mine --epochs=50 --train_logdir=runs/mine
"""

from __future__ import annotations

import os

from deeplab_keras.cli import Command
from deeplab_keras.config import DataConfig, EvalConfig, ModelConfig, TrainConfig


def main(command: Command) -> None:
    """Makes the configs and trains."""
    command.refuse("num_classes", "a training has as many classes as its dataset")
    data_config, train_config = command.config(DataConfig), command.config(TrainConfig)
    eval_config = command.config(EvalConfig)

    from deeplab_keras.convert.initial import start_config
    from deeplab_keras.training import train as trainer

    start = train_config.tf_initial_checkpoint
    base = start_config(start) if start and os.path.isdir(start) else None
    model_config = command.model_config(base)
    report = trainer.train(
        model_config, data_config, train_config, eval_config, flags_text=command.text()
    )
    if report is not None:  # otherwise SIGTERM ended the run early, which is not a failure
        print(report.table())
        page = (
            f"; open {os.path.join(train_config.train_logdir, 'report.html')}"
            if train_config.html_report
            else ""
        )
        print(f"written: {train_config.train_logdir}{page}")


SECTIONS = (TrainConfig, DataConfig, EvalConfig, ModelConfig)
