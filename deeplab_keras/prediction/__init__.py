"""Files of a person's own: images, videos and the camera in; label maps, pictures and submissions out."""

from deeplab_keras.prediction.files import Summary, predict
from deeplab_keras.prediction.inputs import Input, find_inputs
from deeplab_keras.prediction.results import Results

__all__ = ["Input", "Results", "Summary", "find_inputs", "predict"]
