"""Runs deeplab_keras/cli/commands/export_model.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("export_model")
