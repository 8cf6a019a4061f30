"""Measures the speed and memory of input, training, evaluation and models.

scripts/benchmark.py runs it. There is one module per measurement: `input`, `training`,
`evaluating`, `models` and `files`. Each contender runs in its own process (`workers`). The
contenders take turns (`rounds`), and the results become rows of a table (`records`).
"""
