"""Augmentation: geometry, color, the official DeepLab's transforms, and mixes such as CutMix."""
