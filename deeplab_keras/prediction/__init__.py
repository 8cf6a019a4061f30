"""Prediction for files: images, videos and cameras to label maps, pictures and submissions."""

from deeplab_keras.prediction.files import Summary, predict
from deeplab_keras.prediction.inputs import Input, find_inputs
from deeplab_keras.prediction.results import Results

__all__ = ["Input", "Results", "Summary", "find_inputs", "predict"]
