"""Runs deeplab_keras/cli/commands/build_tfrecords.py."""

from deeplab_keras import cli

if __name__ == "__main__":
    cli.run_command("build_tfrecords")
