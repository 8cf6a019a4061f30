"""Segmentation networks: backbones, heads and their layers."""

import keras  # noqa: F401  first, because `deeplab_keras` registers its classes with this import
