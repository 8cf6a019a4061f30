"""Checkpoint folders, the workdir of a training run, and downloads."""
