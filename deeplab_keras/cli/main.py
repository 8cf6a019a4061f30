"""The program `deeplab-keras COMMAND`, for an installed package."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from deeplab_keras.cli.script import HELP, VERSION, call_command, fail, show, version
from deeplab_keras.cli.streams import standard_streams
from deeplab_keras.config import unknown_name
from deeplab_keras.config.commands import COMMANDS, PROGRAM, commands_of

# What each command does, for the list of commands.
PURPOSES = {
    "train": "train and resume; writes checkpoints and TensorBoard logs",
    "eval": "mIoU, IoU per class, boundary IoU, calibration; compare two models",
    "vis": "draw image, label, prediction and errors of a dataset split",
    "predict": "label maps and overlays of images, folders, videos and cameras",
    "export": "SavedModel, TFLite and ONNX, each compared with Keras",
    "convert": "convert weights of other projects, and verify them",
    "check": "find problems in a dataset",
    "convert-masks": "convert masks of other forms to index masks",
    "build-tfrecords": "write a dataset as sharded TFRecords",
    "build-tfds": "write a dataset as a tensorflow-datasets builder",
    "build-web": "build a web page that runs a .tflite file",
    "data-service": "prepare batches on remote workers",
    "list": "list the models",
    "recipes": "list the recipes for --flagfile",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the command line names, and returns the exit status.

    Args:
        argv: The command line; default: `sys.argv`.
    """
    first, *arguments = sys.argv if argv is None else argv
    as_module = os.path.basename(first) == "__main__.py"
    program = "python -m deeplab_keras" if as_module else PROGRAM
    with standard_streams(), commands_of(program):
        return _main(program, arguments)


def _main(program: str, arguments: Sequence[str]) -> int:
    if not arguments:
        print(_help(program), file=sys.stderr)
        return 1
    if arguments[0] == "help":  # `help train` is `train --help`
        arguments = [*arguments[1:2], "--help"]
    name, *flags = arguments
    if name in HELP:
        return show(_help(program))
    if name in VERSION:
        return show(version())
    if name.startswith("-"):
        return fail(
            f"{name} is before the command; write {program} COMMAND {name}; {program} --help "
            "lists the commands"
        )
    scripts = {script: command for command, script in COMMANDS.items()}
    command = name.removesuffix(".py")
    command = scripts.get(command.replace("-", "_"), command)
    if command not in COMMANDS:
        return fail(str(unknown_name("command", name, COMMANDS)))
    return call_command(COMMANDS[command], [f"{program} {command}", *flags])


def _help(program: str) -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "Mobile semantic segmentation in Keras 3.",
            "",
            f"    {program} COMMAND --flag=value ...",
            "",
            "Commands:",
            *(f"  {name:{width}}  {PURPOSES[name]}" for name in COMMANDS),
            "",
            f"{program} COMMAND --help lists the flags of a command.",
            f"{program} --version prints the version.",
        ]
    )
