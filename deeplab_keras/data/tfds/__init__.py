"""tensorflow-datasets: reading its prepared datasets, and builders that prepare ours for it."""
