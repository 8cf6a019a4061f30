"""Segmentation networks: backbones, heads, and the layers they are made of."""
