"""TFRecord files: building them, their index, reading them as a dataset, and the cache of decoded images."""
