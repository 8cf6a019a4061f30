"""Weights from other projects: one module per source, one reader per file format, one engine (`transfer`) for all."""
