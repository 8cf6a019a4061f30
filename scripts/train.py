"""Runs deeplab_keras/cli/commands/train.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("train")
