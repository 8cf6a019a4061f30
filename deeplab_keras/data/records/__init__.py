"""Building, indexing and reading TFRecord files, and the cache of decoded images."""
