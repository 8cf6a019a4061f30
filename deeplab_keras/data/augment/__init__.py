"""Augmentation: geometry, color, the official DeepLab transforms, and strong mixes such as CutMix."""
