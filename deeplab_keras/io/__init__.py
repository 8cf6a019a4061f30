"""Atomic file writes, guarded reading of foreign files, and the progress line."""
