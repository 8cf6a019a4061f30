"""Runs benchmarks/command.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import command
from deeplab_keras import cli

if __name__ == "__main__":
    cli.run(command.__doc__, command.main, *command.SECTIONS)
