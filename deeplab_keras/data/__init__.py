"""Datasets: their files, classes, augmentation and batches. `registry.open_dataset` opens each of them by its name."""
