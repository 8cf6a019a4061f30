"""Inference: label maps of images of any size, whole, by sliding window or in tiles."""

from deeplab_keras.inference.exported import ExportedNetwork, is_exported, open_exported
from deeplab_keras.inference.images import (
    allow_pixels,
    as_batch,
    as_image,
    open_image,
    open_picture,
)
from deeplab_keras.inference.logits import predict_logits, resized_size
from deeplab_keras.inference.network import Network
from deeplab_keras.inference.opening import as_network, open_network
from deeplab_keras.inference.predictor import Predictor
from deeplab_keras.inference.tiles import predict_tiles
from deeplab_keras.inference.windows import window_starts

__all__ = [
    "ExportedNetwork",
    "Network",
    "Predictor",
    "allow_pixels",
    "as_batch",
    "as_image",
    "as_network",
    "is_exported",
    "open_exported",
    "open_image",
    "open_network",
    "open_picture",
    "predict_logits",
    "predict_tiles",
    "resized_size",
    "window_starts",
]
