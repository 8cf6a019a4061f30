"""Runs deeplab_keras/cli/commands/list_models.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("list_models")
