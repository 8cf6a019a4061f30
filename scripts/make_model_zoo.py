"""Runs benchmarks/model_zoo.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks import model_zoo
from deeplab_keras import cli

if __name__ == "__main__":
    cli.run(model_zoo.__doc__, model_zoo.main, *model_zoo.SECTIONS)
