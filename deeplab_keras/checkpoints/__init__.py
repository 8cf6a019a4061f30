"""Checkpoints of this project: their folder, the workdir of a training run, and downloads."""
