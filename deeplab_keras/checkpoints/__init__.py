"""Checkpoints: our own folder, and one file for every foreign source of weights."""
