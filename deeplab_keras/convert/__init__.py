"""Conversion of other projects' weights.

There is one module per source, one reader per file format, and one engine for all (`transfer`).
"""
