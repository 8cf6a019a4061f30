"""Runs `python -m deeplab_keras`, which is the same as `deeplab-keras`."""

import sys

from deeplab_keras.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
