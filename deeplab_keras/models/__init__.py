"""Segmentation networks: backbones, heads, and the layers they are made of."""

import keras  # noqa: F401  first, so that `deeplab_keras.__init__` registers every class of saved files
