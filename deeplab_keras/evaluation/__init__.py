"""Evaluation of a model on a dataset: the loop, metrics, the report, its pages and comparisons."""
