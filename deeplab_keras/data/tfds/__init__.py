"""tensorflow-datasets: reading what it has prepared, and builders that prepare our datasets for it."""
