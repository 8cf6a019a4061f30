"""Runs deeplab_keras/cli/commands/check_dataset.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("check_dataset")
