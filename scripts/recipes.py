"""Runs deeplab_keras/cli/commands/recipes.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("recipes")
