"""Evaluation of a model on a dataset: the loop, the report, its pages and comparisons."""

from deeplab_keras.evaluation.classes import check_classes
from deeplab_keras.evaluation.compare import Comparison, compare
from deeplab_keras.evaluation.detail import Details
from deeplab_keras.evaluation.loop import batches, evaluate, find_devices
from deeplab_keras.evaluation.output import draw_panel, write_report
from deeplab_keras.evaluation.page import html_page
from deeplab_keras.evaluation.report import Report

__all__ = [
    "Comparison", "Details", "Report", "batches", "check_classes", "compare", "draw_panel", "evaluate", "find_devices",
    "html_page", "write_report",
]  # fmt: skip
