"""Runs deeplab_keras/cli/commands/convert_checkpoint.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("convert_checkpoint")
