"""Runs deeplab_keras/cli/commands/data_service.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("data_service")
